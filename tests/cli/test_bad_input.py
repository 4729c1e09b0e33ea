"""What a user gets wrong: one line that says what was expected, what came and the way out; nothing
on disk is damaged.
"""

import argparse
import os
import re
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from PIL import Image

import absorb_bn
import ann_ddp
import energy
import models
import snn_ddp
from engine import checkpoint
from engine.errors import UseError, guard
from engine.recipes.cnn import CNNRecipe
from models import transformer, vggsnn
from tests.conftest import digests
from tests.helpers import ROOT, end, image_folder, start

NET = "-a VGG16 --width_mult 0.0625 --bias --device cpu "
SPIKING = (
    f"{NET}-multi_channel 1 -num_channels 3 --timesteps 1 --balance_steps 2 --batch_size 12 "
    "--epochs 1 "
)
MAIN = {"ann": ann_ddp.main, "snn": snn_ddp.main, "fuse": absorb_bn.main, "energy": energy.main}


class Foreign:
    """An object whose unpickling leaves a mark."""

    def __reduce__(self):
        return os.mkdir, (str(Foreign.mark),)


@pytest.fixture(scope="module")
def here(cifar, tmp_path_factory):
    """A folder with data, a trained ANN, its fused form, an SNN, run folders, and damaged files."""
    root = tmp_path_factory.mktemp("here")
    common = f"--data_root {cifar} --output_dir {root} --batch_size 12 --epochs 1"
    guard(ann_ddp.main, f"{NET} --bn {common}".split())
    (root / "ann/ann_vgg16_cifar10_w0.0625.pth").rename(root / "ann.pth")
    next((root / "ann").glob("ann_*_w0.0625_*")).rename(root / "ann_run")
    guard(absorb_bn.main, f"--pretrained_ann {root}/ann.pth".split())
    (root / "ann_bn_fused.pth").rename(root / "fused.pth")
    guard(snn_ddp.main, f"{SPIKING} {common} --pretrained_ann {root}/fused.pth".split())
    next((root / "snn").glob("*.pth")).rename(root / "snn.pth")
    next(p for p in (root / "snn").iterdir() if p.is_dir()).rename(root / "snn_run")
    damaged(root)
    other_networks(root)
    data(root)
    return root


def damaged(root):
    """Files that are no checkpoints, or not whole ones."""
    good = (root / "ann.pth").read_bytes()
    (root / "cut.pth").write_bytes(good[: len(good) // 2])
    (root / "empty.pth").write_bytes(b"")
    (root / "text.pth").write_text("accuracy 93.5 %\n")
    Foreign.mark = root / "mark"
    torch.save({"state_dict": {}, "what": Foreign()}, root / "object.pth")
    torch.save({"state_dict": {}, "what": argparse.Namespace(a=Path())}, root / "path.pth")
    torch.save({"format": checkpoint.FORMAT, "model": {}}, root / "part.pth")
    torch.save({"layer1.weight": torch.zeros(3, 3)}, root / "foreign.pth")
    torch.save({"act.maximum": torch.zeros(4)}, root / "odd.pth")
    torch.save(torch.zeros(3), root / "tensor.pth")
    content = checkpoint.load(root / "ann.pth")
    content["model"]["head.weight"].fill_(float("nan"))
    checkpoint.save(root / "nan.pth", content)


def other_networks(root):
    """Files of the other scripts' networks, ours and the published code's."""
    sdt = models.build("sdt", transformer.activation("lif", 1, 1), depth=1, dim=16)
    events = models.build("vggsnn", vggsnn.activation(1, 1), width_mult=1 / 16)
    for kind, net in (("sdt", sdt), ("vggsnn", events)):
        checkpoint.save(root / f"{kind}.pth", checkpoint.content(net, kind, {}, {}))
    state = {"module.patch_embed.proj_bn.running_mean": torch.zeros(2)}
    torch.save({"state_dict": state}, root / "original.pth.tar")


def data(root):
    """Image folders, good and bad."""
    for part, count in (("train", 6), ("val", 3)):
        image_folder(root / "three" / part, 3, count)
    for folder in ("hollow/train/a", "no_val/train/a", "no_val/train/b", "no_run"):
        (root / folder).mkdir(parents=True)
    shutil.copy(root / "three/train/n0000/0.png", root / "no_val/train/a/0.png")
    image_folder(root / "thousand/train", 1001, 1)
    image_folder(root / "more/train", 3, 6)
    image_folder(root / "more/val", 4, 4)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    from torchvision import datasets

    def refuse(self):
        raise URLError("no route to host")

    for cls in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(cls, "download", refuse)


THREE = "--dataset FOLDER --dataset_dir {h}/three --image_size 32 --batch_size 3 "
CASES = [  # script, arguments ({h}: the folder, {c}: --data_root with CIFAR), words of the line
    # data
    (
        "ann",
        "--data_root {h}/none",
        "no CIFAR10 under {h}/none",
        "cifar-10-batches-py",
        "cifar10-jpeg",
    ),
    ("snn", "--dataset CIFAR100 --data_root {c}", "no CIFAR100 under {c}", "cifar100-jpeg"),
    (
        "ann",
        "--dataset IMAGENET --dataset_dir {h}/none",
        "expected an image folder {h}/none/train/<class>",
    ),
    (
        "ann",
        "--dataset FOLDER --image_size 32 --dataset_dir {h}/hollow",
        "{h}/hollow/train holds no images",
    ),
    (
        "ann",
        "--dataset FOLDER --image_size 32 --dataset_dir {h}/no_val",
        "expected an image folder {h}/no_val/val/<class>",
    ),
    (
        "ann",
        "--dataset FOLDER --image_size 32 --dataset_dir {h}/more",
        "'n0003', which is not in the training part",
    ),
    (
        "ann",
        "--dataset IMAGENET --dataset_dir {h}/thousand",
        "{h}/thousand/train holds 1001 classes",
        "--dataset FOLDER",
    ),
    ("ann", "--dataset FOLDER --dataset_dir {h}/three", "needs --image_size"),
    (
        "ann",
        "--dataset FOLDER --dataset_dir {h}/three --image_size 20",
        "VGG16 expects an image size that 16 divides, got 20",
    ),
    (
        "ann",
        "--dataset FOLDER --dataset_dir {h}/three --image_size 40 -a RESNET20",
        "that 16 divides, got 40",
    ),
    (
        "ann",
        "--data_root {c} --val_fraction 0.01",
        "--val_fraction 0.01 of 24 training images holds back 0",
    ),
    # checkpoints
    (
        "ann",
        "--data_root {c} -a RESNET20 --width_mult 0.125 --bn --bias --pretrained_ann {h}/ann.pth",
        "{h}/ann.pth holds a vgg16",
        "expected a resnet20",
        "--architecture",
    ),
    (
        "ann",
        THREE + NET + "--bn --pretrained_ann {h}/ann.pth",
        "built with num_classes 10, here 3",
        "--new_head",
    ),
    (
        "ann",
        "--data_root {c} --width_mult 0.125 --bn --bias --pretrained_ann {h}/ann.pth",
        "built with width_mult 0.0625, here 0.125",
        "--width_mult",
    ),
    (
        "ann",
        "--data_root {c} --width_mult 0.0625 --bn --pretrained_ann {h}/ann.pth",
        "check --bias",
    ),
    ("ann", "--data_root {c} --pretrained_ann {h}/ann.pht", "no checkpoint at {h}/ann.pht", ".pth"),
    (
        "snn",
        "--data_root {c} --pretrained_ann {h}/none/ann.pth",
        "no checkpoint at",
        "check the folder {h}/none",
    ),
    ("fuse", "--pretrained_ann {h}/none.pth", "no checkpoint at {h}/none.pth"),
    ("ann", "--data_root {c} --pretrained_ann {h}", "no checkpoint at {h}"),
    (
        "ann",
        "--data_root {c} --pretrained_ann {h}/cut.pth",
        "{h}/cut.pth is truncated or not a checkpoint",
    ),
    ("fuse", "--pretrained_ann {h}/cut.pth", "{h}/cut.pth is truncated"),
    ("energy", "{h}/empty.pth", "{h}/empty.pth is truncated or not a checkpoint"),
    (
        "snn",
        "--data_root {c} --pretrained_snn {h}/text.pth",
        "{h}/text.pth is truncated or not a checkpoint",
    ),
    (
        "ann",
        "--data_root {c} --pretrained_ann {h}/object.pth",
        "object.pth holds an object of posix.mkdir",
        "only files of",
    ),
    ("fuse", "--pretrained_ann {h}/path.pth", "path.pth holds an object of pathlib"),
    (
        "fuse",
        "--pretrained_ann {h}/sdt.pth",
        "{h}/sdt.pth holds a sdt, which keeps its batch norm",
        "give a VGG16 or ResNet20 of ann_ddp.py",
    ),
    ("fuse", "--pretrained_ann {h}/vggsnn.pth -a VGG16 --bn --bias", "holds a vggsnn, which keeps"),
    ("fuse", "--pretrained_ann {h}/original.pth.tar --bn", "holds a sdt, which keeps"),
    ("energy", "{h}/original.pth.tar", "holds a sdt: measure it with", "firing_num.py"),
    (
        "ann",
        "--data_root {c} --bn --pretrained_ann {h}/original.pth.tar",
        "does not fit a vgg16: it holds a sdt; check --architecture",
    ),
    ("fuse", "--pretrained_ann {h}/part.pth", "{h}/part.pth is not a whole checkpoint", "kind"),
    (
        "fuse",
        "--pretrained_ann {h}/tensor.pth",
        "{h}/tensor.pth is not a checkpoint: it holds a Tensor",
    ),
    (
        "ann",
        "--data_root {c} " + NET + "--pretrained_ann {h}/foreign.pth",
        "{h}/foreign.pth is of another size",
    ),
    (
        "ann",
        "--data_root {c} " + NET + "--pretrained_ann {h}/odd.pth",
        "{h}/odd.pth does not fit a vgg16",
    ),
    (
        "snn",
        "--data_root {c} " + SPIKING + "--pretrained_ann {h}/ann.pth",
        "unfused batch norm",
        "run absorb_bn.py",
    ),
    (
        "snn",
        "--data_root {c} " + SPIKING + "--pretrained_ann {h}/snn.pth",
        "{h}/snn.pth holds an SNN",
        "--pretrained_snn",
    ),
    (
        "snn",
        "--data_root {c} " + NET + "--pretrained_snn {h}/fused.pth",
        "{h}/fused.pth holds an ANN",
        "--pretrained_ann",
    ),
    ("ann", "--data_root {c} " + NET + "--pretrained_ann {h}/snn.pth", "{h}/snn.pth holds an SNN"),
    (
        "ann",
        "--data_root {c} " + NET + "--bn --pretrained_ann {h}/fused.pth",
        "holds no batch norm",
        "--bn asks for it",
    ),
    (
        "fuse",
        "--pretrained_ann {h}/fused.pth",
        "{h}/fused.pth holds no batch norm",
        "fused already",
    ),
    ("fuse", "--pretrained_ann {h}/snn.pth", "{h}/snn.pth holds an SNN"),
    (
        "fuse",
        "-a RESNET20 --pretrained_ann {h}/ann.pth",
        "--architecture RESNET20 was given",
        "says VGG16",
    ),
    ("fuse", "", "give --pretrained_ann"),
    (
        "energy",
        "{h}/ann.pth " + THREE,
        "{h}/ann.pth was trained for 10 classes",
        "has 3 classes and 32 pixels",
    ),
    # options
    ("ann", "--lr_interval 0.5,1.5", "--lr_interval", "<= 1", "got 1.5"),
    ("ann", "--lr_interval 0", "--lr_interval", "> 0", "got 0"),
    ("ann", "--lr_interval half", "--lr_interval", "expected float, got 'half'"),
    ("snn", "--timesteps 0", "--timesteps", ">= 1", "got 0"),
    ("ann", "--epochs three", "--epochs", "expected int, got 'three'"),
    ("ann", "-a VGG19", "VGG19", "VGG16", "RESNET20"),
    ("ann", "--lerning_rate 0.1", "--lerning_rate", "did you mean --learning_rate?"),
    ("snn", "-num_chanels 3", "-num_chanels", "did you mean --num_channels?"),
    ("snn", "-hardwareopt 2", "-hardwareopt", "did you mean --hardware_opt?"),
    ("fuse", "--zzz", "--zzz", "--help lists the options"),
    ("snn", "--optimizer Adam --betas 0.9,1", "--betas", "< 1, got 1"),
    ("ann", "--data_root {c} --kernel_size 4", "kernel_size must be odd, got 4"),
    ("ann", "-a RESNET20 --kernel_size 5", "--kernel_size does nothing here: RESNET20 has no free"),
    (
        "fuse",
        "-a RESNET20 --kernel_size 5 --pretrained_ann {h}/ann.pth",
        "--kernel_size does nothing here",
    ),
    ("snn", "-num_channels 3", "--num_channels does nothing here", "--multi_channel 1"),
    ("snn", "-hardware_opt 1", "--hardware_opt does nothing here", "--multi_channel 1"),
    ("ann", "--act_bits 2", "--act_bits does nothing here", "--quant_act"),
    ("ann", "--quant_scale_max 99", "--quant_scale_max does nothing here", "--quant_act"),
    (
        "ann",
        "--dataset CIFAR10 --image_size 64",
        "--image_size does nothing here: CIFAR10 has a fixed size",
    ),
    ("ann", "--dataset DIGITS --data_root {c}", "--data_root does nothing here"),
    (
        "snn",
        "--multi_channel 1 --num_channels 3 --first_lanes 3",
        "--first_lanes 3 must fall to the 3 of --num_channels",
    ),
    ("snn", "--first_lanes 4,5", "--first_lanes", "falling numbers such as '5 4', got '4,5'"),
    (
        "snn",
        "--multi_channel 1 --num_channels 2 --first_lanes 3",
        "--first_lanes needs --pretrained_ann and --conversion matched",
    ),
    (
        "snn",
        "--multi_channel 1 --num_channels 2 --first_lanes 3 --pretrained_ann {h}/fused.pth "
        "--conversion matched",
        "--first_lanes needs two epochs, and --keep last",
    ),
    ("snn", "--optimizer Adam --lsq_gradient", "--lsq_gradient does nothing here", "Adam"),
    ("snn", "--warm_up_epochs 3", "--warm_up_epochs does nothing here", "--warm_up"),
    ("snn", "--amsgrad true", "--amsgrad does nothing here", "--optimizer Adam"),
    ("snn", "--scaling_factor 0.5", "--scaling_factor does nothing here", "--pretrained_ann"),
    (
        "snn",
        "--conversion matched --balance all --pretrained_ann {h}/fused.pth",
        "--balance does nothing here",
    ),
    (
        "snn",
        "--data_root {c} " + SPIKING + "--balance stem --pretrained_ann {h}/fused.pth",
        "--balance stem: VGG16 has no stem",
        "--balance all",
    ),
    (
        "snn",
        "--pretrained_ann {h}/fused.pth --pretrained_snn {h}/snn.pth",
        "--pretrained_ann",
        "not both",
    ),
    ("ann", "--data_root {c} --test_only", "--test_only", "give --pretrained_ann"),
    ("snn", "--data_root {c} --test_only", "--test_only", "give --pretrained_snn"),
    # device
    ("ann", "--data_root {c} --device cpu --amp fp16", "--amp fp16 needs a GPU", "bf16 or none"),
    ("energy", "{h}/ann.pth --device cpu --amp fp16", "--amp fp16 needs a GPU"),
    (
        "ann",
        "--data_root {c} --device cpu --dist_backend nccl",
        "--dist_backend nccl needs GPUs",
        "gloo",
    ),
    (
        "snn",
        "--data_root {c} --device cpu --neuron_backend cupy",
        "--neuron_backend cupy",
        "it runs on a CUDA GPU",
    ),
    ("snn", "--neuron_backend inductor", "--neuron_backend", "inductor", "compiled"),
    (
        "snn",
        "--compile --neuron_backend cpp",
        "--neuron_backend does nothing here",
        "auto or compiled",
    ),
    (
        "ann",
        "--data_root {c} --device cpu --compile reduce-overhead",
        "CUDA graphs, which need a GPU",
        "--compile alone",
    ),
    ("ann", "--compile fast", "--compile", "reduce-overhead"),
    ("ann", "--device tpu", "--device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
    ("ann", "--gpu 256", "--device must be auto, cpu, cuda or cuda:N, got 'cuda:256'"),
    ("ann", "--device cuda:99", "--device cuda:99 is not here", "--device cpu"),
    # weights
    (
        "ann",
        "--data_root {c} --bn --pretrained_ann {h}/nan.pth " + NET,
        "the weights to start from are not finite numbers",
        "give others",
    ),
    # batches
    (
        "ann",
        "--dataset FOLDER --dataset_dir {h}/three --image_size 16 -a RESNET20 --bn --batch_size 5 "
        "--width_mult 0.0625 --device cpu",
        "batch norm needs more than one value",
        "--batch_size",
    ),
    # resume
    ("ann", "--resume {h}/no_run", "no checkpoint at {h}/no_run/last.pth"),
    ("ann", "--resume {h}/absent", "no checkpoint at {h}/absent"),
    ("ann", "--resume {h}/ann.pth", "{h}/ann.pth is not the last.pth of a run", "run folder"),
    (
        "ann",
        "--resume {h}/ann_run --learning_rate 0.5",
        "--learning_rate 0.5 differs",
        "0.001",
        "start a new run",
    ),
    ("snn", "--resume {h}/ann_run", "{h}/ann_run is a run of another script"),
    ("ann", "--resume {h}/snn_run", "{h}/snn_run is a run of another script"),
]


@pytest.mark.parametrize(
    "script, argv, words",
    [(c[0], c[1], c[2:]) for c in CASES],
    ids=[f"{c[0]} {c[1]}" for c in CASES],
)
def test_one_line(here, cifar, fails, monkeypatch, script, argv, words):
    monkeypatch.chdir(here)
    before = set(here.rglob("*"))
    fails(
        MAIN[script],
        argv.format(h=here, c=cifar),
        *(w.format(h=here, c=cifar) for w in words),
        keep=here,
    )
    new = set(here.rglob("*")) - before
    assert not [p for p in new if p.is_file() or p.name.startswith(("ann_", "snn_"))]
    assert not (here / "mark").exists()  # nothing was unpickled


@pytest.mark.parametrize(
    "share, side, workers",
    [(0.5, 32, 0), (0.03, 32, 0), (0, 32, 0), (0.5, 96, 0), (0, 96, 1)],
    ids=["half", "head", "empty", "half, as files", "empty, in a worker"],
)
def test_truncated_image_is_named(share, side, workers, fails, tmp_path):
    """Of small images, which are held in memory, and of large ones, which stay files."""
    image_folder(tmp_path / "train", 3, 6)
    image_folder(tmp_path / "val", 3, 3)
    bad = tmp_path / "train/n0001/4.jpg"
    Image.linear_gradient("L").convert("RGB").save(bad)
    whole = bad.read_bytes()
    bad.write_bytes(whole[: int(share * len(whole))])
    line = fails(
        ann_ddp.main,
        f"--dataset FOLDER --dataset_dir {tmp_path} --image_size {side} --batch_size 6 {NET}"
        f"--epochs 1 --workers {workers} --output_dir {tmp_path}/out",
        f"{bad} cannot be read",
        "replace it",
    )
    assert "worker process" not in line
    assert line.count("error:") == 1


def test_wrong_image_size_is_named(cifar, fails, tmp_path):
    shutil.copytree(cifar / "cifar10-jpeg", tmp_path / "cifar10-jpeg")
    bad = tmp_path / "cifar10-jpeg/test/n0003/3.png"
    Image.new("RGB", (40, 32)).save(bad)
    fails(ann_ddp.main, f"--data_root {tmp_path}", f"{bad} is 40x32 pixels, expected 32x32")


@pytest.mark.parametrize("save_freq", [0, 1])
def test_nan_loss_ends_the_run_and_keeps_the_good_state(cifar, fails, tmp_path, save_freq):
    argv = (
        f"--data_root {cifar} {NET} --bn --batch_size 8 --epochs 1 --output_dir {tmp_path} "
        f"--save_freq {save_freq} "
    )
    guard(ann_ddp.main, f"{argv} -lr 0.001".split())
    stable = tmp_path / "ann/ann_vgg16_cifar10_w0.0625.pth"
    stable.rename(tmp_path / "kept.pth")
    before = set(tmp_path.glob("ann/*"))
    words = ("the loss is", "at epoch 1", "lower --learning_rate")
    fails(ann_ddp.main, f"{argv} -lr 1e30", *words, status=1, keep=tmp_path)
    assert not stable.exists()

    (run_folder,) = set(tmp_path.glob("ann/*")) - before
    content = checkpoint.load(run_folder / "last.pth")
    assert content["training"]["epoch"] == 1
    assert all(v.isfinite().all() for v in content["model"].values())
    assert not list(run_folder.glob(".*"))


def test_overflowed_weights_are_not_stored(cifar, fails, monkeypatch, tmp_path):
    """The second step makes them infinite."""
    steps = iter((1, 2, 3))

    def overflow(self, net):
        if next(steps) == 2:
            next(net.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(CNNRecipe, "after_step", overflow)
    argv = f"--data_root {cifar} {NET} --batch_size 8 --epochs 1 --output_dir {tmp_path}"
    fails(ann_ddp.main, f"{argv} --save_freq 1", "the loss is nan", status=1)
    content = checkpoint.load(next(tmp_path.glob("ann/*/last.pth")))
    assert content["training"]["step"] == 1
    assert all(v.isfinite().all() for v in content["model"].values())


def test_resume_with_other_images(here, cifar, fails, tmp_path):
    shutil.copytree(cifar / "cifar10-jpeg", tmp_path / "cifar10-jpeg")
    (tmp_path / "cifar10-jpeg/train/n0000/0.png").unlink()
    fails(
        ann_ddp.main,
        f"--resume {here}/ann_run --data_root {tmp_path}",
        "the train images are not those",
        "24",
        "23",
        keep=here,
    )


def test_unwritable_output(cifar, fails, tmp_path):
    (tmp_path / "out").write_text("a file")
    fails(
        ann_ddp.main,
        f"--data_root {cifar} {NET} --output_dir {tmp_path}/out",
        "cannot create the run folder",
        "--output_dir",
        keep=tmp_path,
    )


@pytest.mark.parametrize("flag", ["--debug", "-debug"])
def test_debug_shows_the_traceback(flag):
    with pytest.raises(UseError):
        guard(ann_ddp.main, ["--act_bits", "2", flag])


SUBPROCESS = [
    ("ann_ddp.py", "--lerning_rate 0.1", 2, "did you mean --learning_rate?"),
    (
        "snn_ddp.py",
        "--data_root {c} " + SPIKING + "--pretrained_ann {h}/ann.pth",
        2,
        "run absorb_bn.py",
    ),
    ("absorb_bn.py", "--pretrained_ann {h}/fused.pth", 2, "fused already"),
    (
        "ann_ddp.py",
        "--data_root {c} --output_dir {h} --epochs 1 --batch_size 2 -lr 1e30 " + NET,
        1,
        "lower --learning_rate",
    ),
]


@pytest.mark.parametrize("script, argv, status, words", SUBPROCESS)
def test_one_line_of_a_process(here, cifar, script, argv, status, words):
    before = digests(here)
    argv = [ROOT / script, *argv.format(h=here, c=cifar).split()]
    got, _, errors = end(start(argv, here, TQDM_DISABLE=""))
    lines = [line.strip() for line in re.split(r"[\r\n]+", errors) if "error:" in line]
    assert got == status, errors
    assert len(lines) == 1, errors
    assert lines[0].startswith(str(ROOT / script))
    assert words in lines[0]
    assert "Traceback" not in errors
    assert before.items() <= digests(here).items()
