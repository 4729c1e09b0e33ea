"""Trained networks for anyone: what they take, and what a user needs beside the weights."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import models
from engine import checkpoint
from engine.errors import UseError
from inputs.images import Data, decode
from inputs.loader import published_transform
from inputs.pretrained import Transform, from_pretrained, normalisation
from inputs.table import TABLE
from models import NeuronConfig, Spiking, transformer
from tests.zoo import MEAN, NAME, STD

CIFAR = {"name": "CIFAR10", "num_classes": 10, "image_size": 32, "source": "CIFAR-10"}


def stored(path, kind="ann", data=CIFAR, act=None, **more):
    act = act or models.ReLU()
    net = models.build("resnet20", act, num_classes=data["num_classes"], width_mult=1 / 16)
    content = checkpoint.content(net, kind, data, {}, **more)
    checkpoint.save(path, content)
    return net.eval()


def test_a_network_of_the_zoo_is_ready_for_use(small_zoo):
    net = from_pretrained(NAME)
    assert not net.training
    assert (net.classes, net.mean, net.std) == (list("0123456789"), MEAN, STD)
    out = net(net.transform(np.zeros((40, 50, 3), np.uint8))[None])
    assert out.shape == (1, 10)
    weights = checkpoint.load(NAME)["model"]
    assert torch.equal(net.head.weight, weights["head.weight"])
    # what it carries is no part of it
    assert set(net.state_dict()) == set(weights)


def test_a_checkpoint_of_a_training_is_one_too(tmp_path):
    net = stored(tmp_path / "best.pth")
    again = from_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), net(images))
    assert again.classes[0] == "airplane" and again.classes[9] == "truck"
    assert again.mean == (0.4914, 0.4822, 0.4465)


def test_a_transformer_of_an_earlier_version_has_its_normalisation_in_its_settings():
    content = {"kind": "sdt", "data": {"name": "CIFAR10"}, "settings": {"mean": MEAN, "std": None}}
    mean, std = normalisation(content, "x.pth")
    assert mean == MEAN and std == TABLE["CIFAR10"].std


def test_a_transformer_of_several_readouts_has_one(tmp_path):
    """--TET trains one for each step."""
    act = transformer.activation("mlif", 3, 2)
    net = models.build("sdt", act, img_size=32, num_classes=10, dim=16, depth=1, tet=True)
    checkpoint.save(tmp_path / "x.pth", checkpoint.content(net, "sdt", CIFAR, {}))
    images = torch.randn(2, 3, 32, 32)
    assert net(images).shape == (2, 2, 10)
    assert from_pretrained(tmp_path / "x.pth")(images).shape == (2, 10)


def test_classes_of_an_own_folder_are_its_names(tmp_path):
    about = {"name": "FOLDER", "num_classes": 3, "image_size": 32, "classes": ["a", "b", "c"]}
    stored(tmp_path / "x.pth", data={**about, "mean": MEAN, "std": STD})
    assert from_pretrained(tmp_path / "x.pth").classes == ["a", "b", "c"]


def test_a_picture_becomes_what_the_network_was_trained_on(tmp_path):
    """Of the right size: its pixels, normalised."""
    image = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
    Image.fromarray(image).save(tmp_path / "x.png")
    transform = Transform(32, MEAN, STD)
    expected = (image / 255 - np.array(MEAN)) / np.array(STD)
    for given in (image, decode(tmp_path / "x.png"), Image.open(tmp_path / "x.png")):
        found = transform(given)
        assert found.dtype == torch.float32 and found.shape == (3, 32, 32)
        assert np.allclose(found.permute(1, 2, 0), expected, atol=1e-6)


def test_a_picture_of_another_mode_is_made_rgb():
    transform = Transform(32, MEAN, STD)
    picture = Image.linear_gradient("L").convert("RGB").quantize(16)
    expected = transform(picture.convert("RGB"))
    for mode in ("P", "RGBA", "RGB"):
        assert torch.equal(transform(picture.convert(mode)), expected)
    with pytest.raises(ValueError, match=r"an array uint8 \[H, W, 3\], got float32 \[8, 8, 3\]"):
        transform(np.zeros((8, 8, 3), np.float32))


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (20, 10)])
def test_the_shorter_side_fits_and_the_middle_is_taken(size):
    """A white stripe in the middle of a black picture stays there."""
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    image[height // 2 - height // 8 : height // 2 + height // 8] = 255
    found = Transform(32, (0.0,) * 3, (1.0,) * 3)(image)
    rows = found.mean((0, 2))
    assert found.shape == (3, 32, 32)
    assert rows[0] < 0.1 and rows[31] < 0.1 and rows[16] > 0.9
    assert torch.allclose(rows, rows.flip(0), atol=0.02)


@pytest.mark.parametrize("side", [32, 128])
def test_a_picture_is_scaled_as_in_the_evaluation(side, tmp_path):
    """Of images that are not held in memory a margin is cut off."""
    coarse = torch.rand(1, 3, 20, 30)
    fine = F.interpolate(coarse, (200, 305), mode="bicubic")[0].clamp(0, 1)
    image = (255 * fine).round().to(torch.uint8).permute(1, 2, 0)
    about = {"name": "FOLDER", "num_classes": 3, "image_size": side, "classes": ["a", "b", "c"]}
    about |= {"source": "own", "mean": MEAN, "std": STD}
    net = models.build("vgg16", models.ReLU(), num_classes=3, image_size=side, width_mult=1 / 16)
    checkpoint.save(tmp_path / "x.pth", checkpoint.content(net, "ann", about, {}))
    found = from_pretrained(tmp_path / "x.pth").transform(image.numpy())
    if side > 64:
        data = Data(None, None, about, MEAN, STD, 0, False)
        expected = published_transform(data, training=False)(image.permute(2, 0, 1))
        assert torch.equal(found, expected)
        return
    Image.fromarray(image.numpy()).save(tmp_path / "x.png")
    expected = (decode(tmp_path / "x.png", side) / 255 - np.array(MEAN)) / np.array(STD)
    assert np.allclose(found.permute(1, 2, 0), expected, atol=1e-6)


def test_a_picture_is_turned_as_the_camera_says():
    picture = Image.linear_gradient("L").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    picture.info["exif"] = exif.tobytes()
    before = np.array(picture)
    transform = Transform(32, MEAN, STD)
    turned = transform(np.rot90(before, -1).copy())
    assert torch.equal(transform(picture), turned)
    assert np.array_equal(picture, before)


def test_a_picture_of_16_bits_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "x.png", exif=exif)
    transform = Transform(32, MEAN, STD)
    expected = transform(decode(tmp_path / "x.png", upright=True))
    assert not torch.allclose(expected, transform(decode(tmp_path / "x.png")))
    assert torch.equal(transform(Image.open(tmp_path / "x.png")), expected)


def test_a_transformer_s_picture_is_scaled_as_its_settings_say(tmp_path):
    act = transformer.activation("mlif", 3, 1)
    net = models.build("sdt", act, img_size=128, num_classes=10, dim=16, depth=1)
    about = CIFAR | {"image_size": 128}
    settings = {"crop_pct": 0.95, "interpolation": "bilinear"}
    for given, wanted in ((settings, (134, "bilinear")), ({}, (146, "bicubic"))):
        checkpoint.save(tmp_path / "x.pth", checkpoint.content(net, "sdt", about, given))
        transform = from_pretrained(tmp_path / "x.pth").transform
        assert (transform.shorter, transform.interpolation) == wanted


EVENTS = {"name": "DVSCIFAR10", "num_classes": 10, "image_size": 48}
CASES = {
    "events": ("vggsnn", EVENTS, {}, "takes no images"),
    "measured": ("ann", {**CIFAR, "name": "FOLDER"}, {}, "does not say how its images are norm"),
}


@pytest.mark.parametrize("kind, data, more, words", CASES.values(), ids=CASES)
def test_what_cannot_be_used_is_refused(kind, data, more, words, tmp_path):
    stored(tmp_path / "x.pth", kind, data, Spiking(NeuronConfig.vgg(3)), **more)
    with pytest.raises(UseError, match=words):
        from_pretrained(tmp_path / "x.pth")


ODD = {
    "no-data-set": {"name": "x"},
    "unhashable-name": {"name": [1]},
    "too-large": {"image_size": 10**9},
    "too-few-classes": {"num_classes": 9},
    "too-few-names": {"classes": ["a"]},
    "no-names": {"classes": 3},
    "numbers-as-names": {"classes": list(range(10))},
    "words-as-mean": {"mean": "abc"},
    "two-means": {"mean": [0.5, 0.5]},
    "no-numbers": {"mean": [float("nan")] * 3},
    "no-spread": {"std": [0.0] * 3},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_data_that_cannot_be_the_network_s_is_refused(odd, tmp_path):
    path = tmp_path / "x.pth"
    stored(path, data=CIFAR)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"data": CIFAR | odd}, path)
    with pytest.raises(UseError, match=f"{path} does not say which images it takes"):
        from_pretrained(path)


def test_a_file_of_the_published_code_is_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "x.pth")
    with pytest.raises(UseError, match="is a file of the published code"):
        from_pretrained(tmp_path / "x.pth")
