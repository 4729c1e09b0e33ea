"""The training of the spike-driven transformer: mistakes, resume, and the published commands."""

import shlex
from pathlib import Path

import pytest
import torch

from cli.transformer import load_data
from engine.dist import World
from engine.recipes.timm_parts import TimmRecipe
from spike_driven_transformer import train
from tests.helpers import ROOT, cifar_copy, command, free_port, image_folder

FOLDER = ROOT / "spike-driven-transformer"  # as the published README spells it
PAGE = ROOT / "docs" / "transformer.md"
PUBLISHED = [line for line in PAGE.read_text().splitlines() if "train.py -c conf/" in line]
QUICK = (
    "--dim 16 --epochs 1 --cooldown_epochs 0 --warmup_epochs 0 --limit_train_batches 2 "
    "--limit_eval_batches 1 --workers 0 --device cpu"
)

# two epochs and a cool-down of three batches each, with everything that a run has to store
SMALL = (
    "--dataset digits --dim 16 --layer 1 --pooling_stat 0011 --time_steps 2 --spike_mode mlif "
    "--mlif_channels 3 --scaled true --sched cosine --opt adamw --lr 1e-3 --workers 0 "
    "--scale 1 1 --ratio 1 1 --color_jitter 0 --device cpu -b 64 --epochs 2 --cooldown_epochs 1 "
    "--warmup_epochs 1 --mixup 0.5 --model_ema --model_ema_decay 0.5 --TET --TET_lamb 0.001 "
    "--limit_train_batches 3 --limit_eval_batches 1"
)


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-c {d}/absent.yml", ("no configuration at {d}/absent.yml",)),
        ("--spike_mode lif --mlif_channels 3", ("lif has one lane", "use mlif")),
        ("--dim 20", ("dim 20",)),
        ("--img_size 30", ("--image_size 30", "DIGITS", "32 pixels")),
        ("--pooling_stat 01", ("four digits",)),
        ("--dataset imagenet --data_dir {d}", ("{d}",)),
        ("--dataset folder --data_dir {d}", ("--image_size",)),
        ("--sync_bn --pooling_stat 0011", ("--sync_bn needs GPUs",)),
        ("--test_only", ("give --initial_checkpoint",)),
        ("--pooling_stat 0011 --initial_checkpoint {d}/absent.pth", ("no checkpoint at",)),
        ("--model sdt_2_512_cifar --dim 64", ("contradicts --model",)),
        (
            "--spike_mode mlif --neuron_backend cupy",
            ("--neuron_backend cupy", "it runs on a CUDA GPU"),
        ),
        ("--spike_modus lif", ("did you mean --spike_mode?",)),
        ("--aa foo-m9 --pooling_stat 0011", ("timm refuses one of the options",)),
        ("--opt adamv --pooling_stat 0011", ("timm refuses one of the options",)),
        ("--cutmix_minmax 0.5 0.51 --pooling_stat 0011", ("--cutmix_minmax", "32 pixels")),
        ("--cutmix_minmax 0.8 0.2 --pooling_stat 0011", ("--cutmix_minmax 0.8 0.2", "largest")),
        ("--ratio 0 1", ("--ratio 0 1", "0 < smallest")),
        ("--aa rand-m9 --train_interpolation box", ("--aa", "--train_interpolation box")),
        ("--mixup 0.5 -b 15 --pooling_stat 0011", ("an even number", "here 15", "--batch_size")),
        ("--cutmix 1 --mixup_mode elem -b 15 --pooling_stat 0011", ("even number", "here 15")),
        # a single batch, of all images
        ("--mixup 0.5 -b 10000 --pooling_stat 0011", ("even number", "here 1437", "--batch_size")),
        (
            "--opt lookahead_adahessian --pooling_stat 0011",
            ("--opt lookahead_adahessian", "second derivatives"),
        ),
    ],
)
def test_command_line_mistakes(words, expected, tmp_path, fails):
    line = f"--dataset digits {words} --device cpu".format(d=tmp_path)
    fails(train.main, line, *(text.format(d=tmp_path) for text in expected))


@pytest.mark.parametrize(
    ("words", "option", "way"),
    [
        ("--surrogate_edge paper --spike_mode mlif", "surrogate_edge", "several lanes"),
        ("--surrogate_edge paper --spike_mode fast_mlif --mlif_channels 3", "surrogate_edge", ""),
        ("--neuron_backend torch", "neuron_backend", "SpikingJelly"),
        (
            "--neuron_backend torch --spike_mode mlif --compile",
            "neuron_backend",
            "--compile traces the neuron",
        ),
        ("--TET_lamb 0.1", "lamb", "--TET"),
        ("--TET_means 2", "means", "--TET"),
        ("--cooldown_epochs 3", "cooldown_epochs", "no cool-down"),
        ("--decay_epochs 3 --sched tanh", "decay_epochs", "tanh"),
        ("--decay_rate 0.5 --sched cosine", "decay_rate", "cosine"),
        ("--clip_mode agc", "clip_mode", "--clip_grad"),
        ("--model_ema_decay 0.9", "model_ema_decay", "--model_ema"),
        ("--mixup_mode elem", "mixup_mode", "--mixup"),
        ("--recount 2", "recount", "--reprob"),
        ("--remode rand", "remode", "--reprob"),
        ("--color_jitter 1 --aa rand-m9", "color_jitter", "--aa"),
        ("--crop_pct 0.9", "crop_pct", "64 pixels"),
        ("--interpolation box", "interpolation", "64 pixels"),
        ("--pad_crop 2 --no_aug", "pad_crop", "--no_aug"),
        ("--aa rand-m9 --no_aug", "aa", "plain images"),
        ("--scale 0.5 1 --no_aug", "scale", "plain images"),
        ("--train_interpolation box --no_aug", "train_interpolation", "not resized"),
        (
            "--dataset folder --img_size 128 --scale 1 1 --ratio 1 1 --color_jitter 0 --pad_crop 8",
            "pad_crop",
            "up to 64 pixels",
        ),
        ("--pad_crop 4 --aa rand-m9", "pad_crop", "--aa"),
        ("--pad_crop 4 --scale 1 1 --ratio 1 1 --color_jitter 0 --hflip 0.3", "pad_crop", "0.5"),
        ("--opt sgd --opt_eps 1e-3", "opt_eps", "--opt sgd"),
        ("--opt sgd --opt_betas 0.9 0.99", "opt_betas", "--opt sgd"),
        ("--opt lookahead_adamw --momentum 0.5", "momentum", "adamw"),
        ("--hflip 0.5", "hflip", "DIGITS"),
        ("--drop_path 0.1 --layer 1", "drop_path", "first block"),
        ("--mixup 1 --mixup_switch_prob 0.1", "mixup_switch_prob", "--cutmix"),
        ("--cutmix 1 --cutmix_minmax 0.1 0.2", "cutmix", "--cutmix_minmax"),
        ("--data_dir x", "data_root", "no folder"),
    ],
)
def test_options_that_do_nothing_are_refused(words, option, way, fails):
    line = fails(train.main, f"--dataset digits {words} --device cpu", way)
    assert f"--{option} does nothing here" in line


# ---- images


def test_a_batch_is_one_of_each_process():
    asked = train.get_parser().parse(shlex.split("-d digits -b 6 -vb 7"))
    _, loaders = load_data(asked, World(rank=1, size=3))
    assert [loader.batch_size for loader in loaders] == [18, 21, 21]


def test_one_folder_serves_every_data_set(tmp_path):
    for part in ("train", "val"):
        image_folder(tmp_path / part, 2, 4)
    asked = train.get_parser().parse(
        ["-d", "folder", "--data-dir", str(tmp_path), "--img-size", "16"]
    )
    data, _ = load_data(asked, World())
    assert data.about["where"] == str(tmp_path)
    assert data.about["image_size"] == 16
    assert train.result(asked).name == f"sdt_4_512_folder_{tmp_path.name}_t4_lif.pth"


# ---- training


class Cut(Exception):
    """The run is cut off here."""


def weights(folder):
    """Tensors of network and average in a run folder's last.pth."""
    content = torch.load(Path(folder) / "last.pth", weights_only=True)
    average = content["training"]["recipe"]["average"]
    return {**content["model"], **{f"average.{name}": value for name, value in average.items()}}


def test_a_resumed_run_ends_like_a_whole_one(tmp_path, monkeypatch):
    whole = train.main(shlex.split(f"{SMALL} --output {tmp_path}/whole"))
    assert whole["epochs"] == 3

    steps, after_step = [], TimmRecipe.after_step

    def cut(self, net):
        after_step(self, net)
        steps.append(1)
        if len(steps) == 5:
            raise Cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(TimmRecipe, "after_step", cut)
        train.main(shlex.split(f"{SMALL} --output {tmp_path}/cut --save_freq 1 --debug"))
    (folder,) = (path for path in (tmp_path / "cut").iterdir() if path.is_dir())
    train.main(["--resume", str(folder)])

    first, second = weights(whole["run"]), weights(folder)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# ---- published commands


def test_the_page_shows_the_published_commands():
    assert len(PUBLISHED) == 8


@pytest.mark.parametrize(
    "line",
    # the others differ in steps, or are of CIFAR-10
    [
        pytest.param(line, marks=[pytest.mark.long] * (i != 3))
        for i, line in enumerate(PUBLISHED[:6])
    ],
)
def test_cifar_commands(line, scripts, cifar):
    """As written, in the dashed folder; one epoch of two batches at a small width."""
    if "cifar100" in line:
        cifar = scripts / "data"
        cifar_copy(cifar, "cifar100", classes=100, train=200, test=100)
    more = f"{QUICK} --data_dir {cifar} --batch_size 8 --output {scripts}/out"
    done = command(f"{line} {more}", FOLDER, path=scripts)
    assert done.returncode == 0, done.stderr
    assert "best" in done.stdout
    assert list((scripts / "out").glob("*.pth"))


@pytest.mark.long
def test_imagenet_commands_of_two_nodes(scripts, tmp_path):
    """Both at once, without srun: two gloo processes of this machine stand in for the nodes."""
    for part, count in (("train", 8), ("val", 4)):
        image_folder(tmp_path / "data" / part, 4, count, (240, 230), "jpg")
    more = f"{QUICK} --layer 1 --data_dir {tmp_path}/data --batch_size 2 --output {scripts}/out"
    both = []
    for line in PUBLISHED[6:]:
        line = line.removesuffix(" &").replace("--nproc_per_node=2", "--nproc_per_node=1")
        line = line.replace("CUDA_VISIBLE_DEVICES=0,1 srun --exclusive -N 1 ", "")
        both.append(f"{line} {more}")
    done = command(
        f"{both[0]} & first=$!; {both[1]}; second=$?; wait $first && exit $second",
        FOLDER,
        path=scripts,
        PET_MASTER_ADDR="127.0.0.1",
        PET_MASTER_PORT=free_port(),
    )
    assert done.returncode == 0, done.stderr
    assert "best" in done.stdout
    assert len(list((scripts / "out").glob("*.pth"))) == 1
