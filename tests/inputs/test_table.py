"""What is known of every data set, and the data set that the options name."""

import itertools

import pytest
import torch
from PIL import Image

from engine.dist import World
from engine.errors import UseError
from inputs.images import Files, Found, Memory
from inputs.loader import BatchOptions, loaders, published_transform
from inputs.table import (
    IMAGENET,
    TABLE,
    CropOptions,
    DataOptions,
    DataSet,
    augmented,
    check_found,
    data_rules,
    data_set_name,
    load,
)
from tests.helpers import image_folder
from tests.inputs.noise import files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder of 3 classes."""
    root = tmp_path_factory.mktemp("images")
    image_folder(root / "train", 3, 23, (100, 90), "jpg")
    image_folder(root / "val", 3, 11, (90, 100), "png")
    return root


def idle(**given):
    """Names of options that do nothing with this data set."""
    rules = data_rules(DataOptions(**given), CropOptions(flip="alternating"))
    return {name for names, holds, _ in rules for name in names if not holds}


# ---- facts


def test_the_table_has_every_data_set():
    assert list(TABLE) == ["CIFAR10", "CIFAR100", "IMAGENET", "DIGITS", "FOLDER"]


@pytest.mark.parametrize(
    "name, classes, side, images",
    [
        ("CIFAR10", 10, 32, 50_000),
        ("CIFAR100", 100, 32, 50_000),
        ("IMAGENET", 1000, 224, 1_281_167),
        ("FOLDER", None, None, 0),
    ],
)
def test_facts(name, classes, side, images):
    entry = TABLE[name]
    assert (entry.classes, entry.side, entry.images) == (classes, side, images)


def test_the_published_normalisation():
    """CIFAR-10's deviation is that of the published CNNs (0.2023), as printed."""
    assert TABLE["CIFAR10"].mean == (0.4914, 0.4822, 0.4465)
    assert TABLE["CIFAR10"].std == (0.2023, 0.1994, 0.2010)
    assert TABLE["CIFAR100"].mean == (0.5071, 0.4867, 0.4408)
    assert TABLE["CIFAR100"].std == (0.2675, 0.2565, 0.2761)
    assert TABLE["IMAGENET"].mean == (0.485, 0.456, 0.406)
    assert TABLE["IMAGENET"].std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("text", ["cifar10", "CIFAR10", "torch/cifar10", "Torch/CIFAR10"])
def test_a_data_set_is_named_in_any_case(text):
    """The published transformer says torch/cifar10."""
    assert data_set_name(text) == "CIFAR10"


@pytest.mark.parametrize(
    "given, names",
    [
        ({"dataset": "CIFAR10"}, {"image_size"}),
        ({"dataset": "IMAGENET"}, {"image_size", "data_root", "padding", "flip", "cutout"}),
        ({"dataset": "DIGITS"}, {"image_size", "data_root", "dataset_dir", "flip"}),
        ({"dataset": "FOLDER", "image_size": 64}, {"data_root"}),
        ({"dataset": "FOLDER", "image_size": 65}, {"data_root", "padding", "flip", "cutout"}),
    ],
)
def test_options_that_do_nothing(given, names):
    """Published commands give --dataset_dir with CIFAR, too."""
    assert idle(**given) == names


# ---- loading


def test_an_image_folder_has_its_own_classes(folder):
    data = files(folder, 32)
    assert data.about["num_classes"] == 3
    assert data.about["classes"] == ["n0000", "n0001", "n0002"]
    assert data.about["image_size"] == 32
    assert data.about["where"] == str(folder)
    assert data.train.labels.bincount().tolist() == [8, 8, 7]


def test_small_images_of_a_folder_are_held_in_memory(folder):
    data = files(folder, 32)
    assert isinstance(data.train, Memory)
    assert data.train.images.shape == (23, 32, 32, 3)
    assert data.crop == 4  # an eighth of the side
    assert data.flip


@pytest.mark.parametrize("side", [32, 80])
def test_letters_are_not_mirrored(folder, side):
    """Up to 64 pixels on the device, above by the workers."""
    data = augmented(files(folder, side), CropOptions(flip="none"))
    assert not data.flip
    if side == 80:
        for chosen, chance in ((data, 0), (files(folder, side), 0.5)):
            (flips,) = [t for t in published_transform(chosen, True).transforms if hasattr(t, "p")]
            assert flips.p == chance


def test_large_images_are_mirrored_by_chance_or_not_at_all():
    given = DataOptions(dataset="IMAGENET")
    refused = {
        how: [names for names, holds, _ in data_rules(given, CropOptions(flip=how)) if not holds]
        for how in ("none", "random", "alternating")
    }
    assert [how for how, names in refused.items() if ["flip"] in names] == ["alternating"]


def test_large_images_of_a_folder_stay_files(folder):
    data = files(folder, 80)
    assert isinstance(data.train, Files)
    assert (data.mean, data.std) == (IMAGENET.mean, IMAGENET.std)


def test_a_folder_needs_a_size(folder):
    with pytest.raises(UseError, match="--dataset FOLDER needs --image_size"):
        files(folder, None)


@pytest.mark.parametrize("dataset", ["DIGITS", "FOLDER"])
def test_small_images_are_normalised_by_their_own_statistics(dataset, folder):
    options = DataOptions(dataset=dataset, dataset_dir=str(folder), image_size=32)
    data = load(options, World())
    pixels = data.train.images.flatten(0, 2).double() / 255
    torch.testing.assert_close(pixels.mean(0), torch.tensor(data.mean, dtype=torch.float64))
    torch.testing.assert_close(pixels.std(0), torch.tensor(data.std, dtype=torch.float64))


def test_a_constant_channel_is_not_divided_by_zero(tmp_path):
    for part, kind in itertools.product(("train", "val"), "ab"):
        (tmp_path / part / kind).mkdir(parents=True)
        Image.new("RGB", (32, 32), (255, 0, 128)).save(tmp_path / part / kind / "0.png")
    assert files(tmp_path, 32).std == (1e-3, 1e-3, 1e-3)


def test_one_class_alone_is_refused(tmp_path):
    """As of folders that lie one too deep: nothing could be learnt."""
    for part in ("train", "val"):
        image_folder(tmp_path / part / "images", 2, 4)
    words = "train holds a single class, 'images', .*: expected a folder for each class"
    with pytest.raises(UseError, match=words):
        files(tmp_path, 32)


@pytest.mark.parametrize(
    "dataset, side, turned",
    [
        ("FOLDER", 16, True),  # in memory
        ("FOLDER", 80, True),  # read again in every epoch
        ("IMAGENET", None, False),  # as the published code does
    ],
)
def test_own_pictures_are_turned_as_the_camera_says(dataset, side, turned, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    picture = Image.new("RGB", (80, 80))
    picture.paste((255, 255, 255), (0, 0, 80, 40))  # the upper half, in the file
    for part, kind in itertools.product(("train", "val"), "ab"):
        (tmp_path / part / kind).mkdir(parents=True)
        picture.save(tmp_path / part / kind / "0.png", exif=exif)
    options = DataOptions(dataset=dataset, dataset_dir=str(tmp_path), image_size=side)
    data = load(options, World())
    images, _ = next(iter(loaders(data, BatchOptions(batch_size=2), 0, World())[2].epoch(1)))[:2]
    top, _ = images[0, 0].chunk(2)
    _, right = images[0, 0].chunk(2, dim=1)
    assert (right.min() > 0) == turned and (top.min() > 0) != turned


IMAGES = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    "images, labels, words",
    [
        (IMAGES.movedim(3, 1), LABELS, r"expected images uint8 \[N, 4, 4, 3\], .* \[3, 4, 4\]"),
        (IMAGES.float(), LABELS, r"expected images uint8 .* torch.float32 \[4, 4, 3\]"),
        (IMAGES, LABELS[:2], "expected a label for each image, .* 3 images and 2 labels"),
        (IMAGES[:0], LABELS[:0], "expected a label for each image, .* 0 images and 0 labels"),
        (IMAGES, LABELS + 1, r"expected labels int64 in \[0, 2\), .* in \[1, 2\]"),
        (IMAGES, LABELS.int(), r"expected labels int64 .* torch.int32"),
    ],
)
def test_a_reader_s_mistake_is_told(images, labels, words):
    """Torch would go on with most of them, and compute something else."""
    entry = DataSet("MINE", "mine", read=None)
    good = Memory(IMAGES, LABELS)
    check_found(entry, Found(good, good, "mine"), 4, 2)
    with pytest.raises(ValueError, match=f"MINE: {words}"):
        check_found(entry, Found(good, Memory(images, labels), "mine"), 4, 2)


def test_digits_are_not_mirrored():
    data = load(DataOptions(dataset="DIGITS"), World())
    assert not data.flip
    assert data.crop == 2
    assert data.about["num_classes"] == 10


def test_what_cifar_is_said_to_be(cifar):
    about = load(DataOptions(data_root=str(cifar)), World()).about
    assert (about["name"], about["num_classes"], about["image_size"]) == ("CIFAR10", 10, 32)
    assert "classes" not in about
    assert (about["train"]["images"], about["test"]["images"]) == (24, 12)
    assert len(about["train"]["sha256"]) == 16


def test_fewer_classes_than_imagenet_are_told(folder, capsys):
    data = load(DataOptions(dataset="IMAGENET", dataset_dir=str(folder)), World())
    assert data.about["num_classes"] == 1000
    assert data.about["source"] == f"IMAGENET stand-in of 3 classes ({folder})"
    assert "holds 3 classes, ImageNet has 1000; the network keeps" in capsys.readouterr().out
