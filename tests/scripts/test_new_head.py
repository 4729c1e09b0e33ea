"""A training that starts from a network of other classes."""

import pytest
import torch

import ann_ddp
import models
import snn_ddp
from cli import run
from engine import checkpoint
from engine.errors import UseError
from models import NeuronConfig, Spiking, transformer
from spike_driven_transformer import train
from tests.helpers import image_folder

NETWORK = "--architecture RESNET20 --width_mult 0.0625 --bias --dropout 0 --batch_size 4"
IMAGES = "--dataset FOLDER --dataset_dir images --image_size 32 --epochs 1 --learning_rate 0"
SPIKING = "--multi_channel 1 --num_channels 3 --timesteps 1 --thr_lr 0"
LINE = f"{NETWORK} {IMAGES} --weight_decay 0 --device cpu"
STORED = {
    "snn": "snn/snn_resnet20_folder_images_w0.0625_MC_T_1_H_1_C_3_Z_0.pth",
    "ann": "ann/ann_resnet20_folder_images_w0.0625.pth",
}
ABOUT = {"name": "CIFAR10", "source": "CIFAR-10", "num_classes": 10, "image_size": 32}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with images of three classes, and networks of ten: an ANN and an SNN."""
    monkeypatch.chdir(tmp_path)
    for part, count in (("train", 8), ("val", 6)):
        image_folder(tmp_path / "images" / part, 3, count)
    for kind, act in (("ann", models.ReLU()), ("snn", Spiking(NeuronConfig.vgg(3), theta=0.2))):
        net = models.build("resnet20", act, width_mult=1 / 16, bn=False)
        checkpoint.save(f"{kind}.pth", checkpoint.content(net, kind, ABOUT, {}))
    return tmp_path


@pytest.mark.parametrize(
    "script, kind, start",
    [
        (ann_ddp, "ann", "--pretrained_ann ann.pth"),
        (snn_ddp, "snn", f"{SPIKING} --balance_steps 2 --pretrained_ann ann.pth"),
        (snn_ddp, "snn", f"{SPIKING} --pretrained_snn snn.pth"),
    ],
    ids=["ANN", "conversion", "SNN"],
)
def test_all_but_the_head_comes_from_the_file(here, fails, script, kind, start):
    argv = f"{LINE} {start}"
    fails(script.main, argv, "built with num_classes 10, here 3", "--new_head trains")

    script.main([*argv.split(), "--new_head"])
    (name,) = start.split()[-1:]
    before = checkpoint.load(name)["model"]
    after = checkpoint.load(here / "trained_models" / STORED[kind])["model"]
    assert after["head.weight"].shape[0] == 3
    own = ("head.weight", "theta", "leak")
    shared = [key for key in before if not key.endswith(own)]
    assert len(shared) > 40
    assert all(torch.equal(after[key], before[key]) for key in shared)


TRANSFORMER = (
    "--dataset FOLDER --data_dir images --img_size 32 --dim 16 --layer 1 --num_heads 1 --epochs 1 "
    "--batch_size 8 --limit_train_batches 1 --device cpu --initial_checkpoint sdt.pth"
)


@pytest.mark.parametrize("published", [False, True], ids=["ours", "bare weights"])
def test_a_transformer_takes_all_but_its_head(here, fails, monkeypatch, published):
    act = transformer.activation("mlif", 3, 1)
    net = models.build("sdt", act, num_classes=10, img_size=32, dim=16, depth=1, num_heads=1)
    content = checkpoint.content(net, "sdt", ABOUT, {})
    if published:
        content = net.state_dict()
    torch.save(content, "sdt.pth")
    starts = []
    monkeypatch.setattr(run, "train", lambda net, *_, **__: starts.append(net))
    argv = f"{TRANSFORMER} --spike_mode mlif --mlif_channels 3 --time_steps 1"
    fails(train.main, argv, "sdt.pth", "; --new_head trains it for others")

    train.main([*argv.split(), "--new_head"])
    (found,) = starts
    before, after = net.state_dict(), found.state_dict()
    assert after["head.weight"].shape[0] == 3
    shared = [key for key in before if not key.startswith("head.")]
    assert all(torch.equal(after[key], before[key]) for key in shared)


@pytest.mark.parametrize(
    "images, words",
    [
        ("--image_size 64", ["image_size 32, here 64", "check --image_size; --new_head trains"]),
        ("--image_size 32 --width_mult 0.125", ["width_mult 0.0625, here 0.125"]),
    ],
)
def test_what_a_new_head_would_mend_is_told(here, fails, images, words):
    argv = f"{NETWORK} --dataset FOLDER --dataset_dir images {images} --device cpu"
    fails(ann_ddp.main, f"{argv} --pretrained_ann ann.pth", *words)
    # a test keeps the head that the file has
    still = f"{argv} --pretrained_ann ann.pth --test_only"
    with pytest.raises(UseError, match="was built with") as error:
        ann_ddp.main(still.split())
    assert "--new_head" not in str(error.value)


@pytest.mark.parametrize("more", ["", "--pretrained_ann ann.pth --test_only"])
def test_a_new_head_without_a_start_is_refused(here, fails, more):
    fails(ann_ddp.main, f"{LINE} --new_head {more}", "--new_head does nothing here")


def test_images_that_mean_something_else_are_told(here, capsys):
    """The same number of classes says nothing: they may be others, or be normalised otherwise."""
    net = models.build("resnet20", models.ReLU(), width_mult=1 / 16, bn=False, num_classes=3)
    about = ABOUT | {"num_classes": 3, "classes": ["bird", "cat", "dog"]}
    checkpoint.save("three.pth", checkpoint.content(net, "ann", about, {}))
    ann_ddp.main([*LINE.split(), "--pretrained_ann", "three.pth"])
    assert "note: three.pth was trained with other classes of its images" in capsys.readouterr().out
