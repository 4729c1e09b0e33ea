"""The CNN command lines of the published README, exactly as printed there, and files with the
published code's names.
"""

import hashlib
import importlib
import itertools
import json
import shlex
import shutil

import numpy as np
import pytest
import torch

import absorb_bn
import ann_ddp
import models
import snn_ddp
from cli.parser import refuse_idle
from engine import checkpoint, settings
from models import convert
from tests.helpers import GOLDEN, ROOT, cifar_copy, command, image_folder, read

COMMANDS = (ROOT / "experiments" / "published_commands.txt").read_text().splitlines()

SHORT = " --epochs 1 --limit_train_batches 2 --limit_eval_batches 2"
WIDTH = 0.125
CLASSES = {"CIFAR10": 10, "CIFAR100": 100, "IMAGENET": 1000}
LAYERS = {"RESNET20": 3, "VGG16": 15}  # layers whose threshold is balanced
QUANTISERS = {"RESNET20": 19, "VGG16": 15}


def chain(dataset, architecture):
    """The commands of one network, in the order of the README."""
    wanted = f"--dataset {dataset} ", f"--architecture {architecture} "
    return [line for line in COMMANDS if all(words in line for words in wanted)]


def narrow(line, dataset, architecture):
    """The command at an eighth of the width: names of files say so, that it starts from, too."""
    stem = f"{architecture}_{dataset}".lower()
    return line.replace(stem, f"{stem}_w{WIDTH}") + f" --width_mult {WIDTH}"


def parsed(line):
    """(script name, its settings) of a command line under its own script's parser and rules."""
    script, *argv = shlex.split(line)[1:]
    module = importlib.import_module(script.removesuffix(".py"))
    parser = module.get_parser()
    asked = parser.parse(argv)
    refuse_idle(parser.named(argv), module.rules(asked))
    return module.__name__, asked


def written(script, asked):
    """The file that the README goes on with after this command (paper sections 'LQ-ANN', 'SNN')."""
    stem = f"{asked.network.architecture}_{asked.data.dataset}".lower()
    if asked.network.width_mult != 1:
        stem += f"_w{asked.network.width_mult}"
    if script == "absorb_bn":
        return f"trained_models/ann/ann_{stem}_bn_fused.pth"
    if script == "ann_ddp":
        quantised = f"_AB_{asked.quant.act_bits}_log" if asked.quant.quant_act else ""
        return f"trained_models/ann/ann_{stem}{quantised}.pth"
    neuron = asked.neuron
    kind = f"MC_T_{neuron.timesteps}_H_1_C_{neuron.num_channels}_Z_0"
    return f"trained_models/snn/snn_{stem}_{kind}.pth"


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- what is printed


def test_commands_are_all_here():
    kinds = [(line.split()[1], "--quant_act" in line) for line in COMMANDS]
    assert kinds.count(("ann_ddp.py", False)) == 5
    assert kinds.count(("ann_ddp.py", True)) == 6
    assert kinds.count(("absorb_bn.py", False)) == 5
    assert kinds.count(("snn_ddp.py", False)) == 5
    assert sum(len(chain(d, a)) for d in CLASSES for a in LAYERS) == len(COMMANDS) == 21


@pytest.mark.parametrize(
    "line", COMMANDS, ids=lambda line: f"{COMMANDS.index(line):02}-{line.split()[1]}"
)
def test_command_parses(line):
    """As printed, at full width."""
    script, asked = parsed(line)
    tokens = shlex.split(line)[2:]
    named = {t.lstrip("-").split("=")[0] for t in tokens if t.startswith("-")}
    assert asked.given == named
    text = {key.lstrip("-"): value for key, value in itertools.pairwise(tokens)}
    values = settings.flat(asked)
    assert asked.network.width_mult == 1
    for name in named - {"lr_interval"}:
        value = text.get(name)
        if value is not None and not value.startswith("-"):
            assert values[name] == type(values[name])(value), name
    if script != "absorb_bn":
        assert asked.data.dataset_dir == "./ILSVRC/Data/CLS-LOC"
        assert asked.device.multiprocessing_distributed
        drops = tuple(float(f) for f in text["lr_interval"].split())
        assert asked.training.lr_interval == drops


# ---- what is run


def check_training(path, content, asked):
    """What a training command must have written beside its checkpoint."""
    (folder,) = path.parent.glob(f"{path.stem}_2*")
    (line,) = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    training = asked.training
    first = training.warm_up_lr if training.warm_up else training.learning_rate
    assert line["epoch"] == 1
    assert np.isfinite(line["train_loss"])
    assert line["learning_rate"] == first
    assert content["settings"]["batch_size"] == asked.batches.batch_size
    shutil.rmtree(folder)


def check_quantisers(content, asked):
    ranges = [v for k, v in content["model"].items() if k.endswith(".hi")]
    assert len(ranges) == QUANTISERS[asked.network.architecture]
    assert content["activation"]["bits"] == asked.quant.act_bits


def check_thresholds(content, asked):
    """They start at the balanced ones, and have moved by a few steps at most."""
    found = content["converted"]["thresholds"]
    thetas = torch.stack([v for k, v in content["model"].items() if k.endswith(".theta")])
    assert len(found) == LAYERS[asked.network.architecture]
    assert content["activation"]["neuron"]["levels"] == asked.neuron.num_channels
    start = torch.tensor([theta * asked.conversion.scaling_factor for theta in found])
    moved = 3 * (asked.training.thr_lr or asked.training.learning_rate)
    torch.testing.assert_close(thetas[: len(start)], start, atol=moved, rtol=0)


def check(script, asked, folder):
    """What one command must have written."""
    path = folder / written(script, asked)
    content = checkpoint.load(path)
    network = content["network"]
    assert content["data"]["num_classes"] == CLASSES[asked.data.dataset]
    assert network["name"] == asked.network.architecture.lower()
    assert network["width_mult"] == asked.network.width_mult
    assert all(v.isfinite().all() for v in content["model"].values())
    # the published ANN has its own dropout before the head on small images
    if network["name"] == "vgg16" and script != "absorb_bn":
        small = script == "ann_ddp" and network["image_size"] < 128
        assert network["head_dropout"] == (0.5 if small else asked.network.dropout)
    if script == "absorb_bn":
        assert content["fused"]
        assert content["fusion_error"] <= 1e-4
        assert not network["bn"]
    else:
        check_training(path, content, asked)
    if script == "ann_ddp" and asked.quant.quant_act:
        check_quantisers(content, asked)
    if script == "snn_ddp":
        check_thresholds(content, asked)


def run_chain(lines, folder):
    """Run commands in the README's order, shortened by SHORT."""
    for line in lines:
        script, asked = parsed(line)
        source = asked.network.pretrained_ann
        before = digest(folder / source) if source else None
        done = command(line if script == "absorb_bn" else line + SHORT, folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        check(script, asked, folder)
        # a command must not rewrite the file that it reads
        assert not source or digest(folder / source) == before
    shutil.rmtree(folder / "trained_models")  # at full width gigabytes


CIFAR = [(dataset, architecture) for dataset in ("CIFAR10", "CIFAR100") for architecture in LAYERS]


@pytest.fixture
def here(scripts):
    """A folder with the scripts and stand-ins for both CIFAR sets."""
    for name in ("CIFAR10", "CIFAR100"):
        cifar_copy(scripts / "data", name.lower(), CLASSES[name], train=6, test=3)
    return scripts


def test_cifar_commands(here):
    """At an eighth of the width; `make test-long` runs all, as printed."""
    network = ("CIFAR100", "VGG16")
    run_chain([narrow(line, *network) for line in chain(*network)], here)


@pytest.mark.long
@pytest.mark.parametrize("dataset, architecture", CIFAR)
def test_cifar_commands_as_printed(dataset, architecture, here):
    run_chain(chain(dataset, architecture), here)


@pytest.mark.long
def test_imagenet_commands_as_printed(scripts):
    for part in ("train", "val"):
        image_folder(scripts / "ILSVRC/Data/CLS-LOC" / part, 2, 2, (240, 260), "JPEG")
    run_chain(chain("IMAGENET", "VGG16"), scripts)


@pytest.mark.compiler
@pytest.mark.long
def test_compiled_training(scripts):
    """--compile on the ANN and the SNN, with a smaller last batch, bf16 and two timesteps."""
    network = "--dataset DIGITS -a RESNET20 --bias"
    ann = "trained_models/ann/ann_resnet20_digits_w0.125"
    training = f"{network} --width_mult 0.125 --epochs 1 --batch_size 256 --compile"
    spiking = (
        "-multi_channel 1 -num_channels 3 --timesteps 2 --amp bf16 --conversion matched "
        f"--rate_penalty 0.1 --pretrained_ann {ann}_bn_fused.pth"
    )
    read(shlex.split(f"ann_ddp.py {training} --bn"), scripts)
    read(shlex.split(f"absorb_bn.py {network} --bn --pretrained_ann {ann}.pth"), scripts)
    said = read(shlex.split(f"snn_ddp.py {training} {spiking}"), scripts)
    assert "traced by torch.compile in training" in said
    assert "best" in said


# ---- files of the published code

NUMBERS = np.load(GOLDEN / "B2_resnet20_w8.npz")
NETWORK = "--dataset CIFAR10 --architecture RESNET20 --width_mult 0.125 --bias"
SPIKING = (
    "--multi_channel 1 --num_channels 3 --timesteps 1 --dropout 0 --batch_size 4 "
    "--balance_steps 2 --limit_train_batches 2 --device cpu"
)


def state(prefix, name=""):
    """Recorded weights by their published names."""
    keys = [key for key in NUMBERS.files if key.startswith(prefix)]
    return {name + key.removeprefix(prefix): torch.from_numpy(NUMBERS[key]) for key in keys}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The current folder, with ann.pth and fused.pth as the published scripts write them, and
    images.
    """
    ann = {
        "accuracy": 0.5,
        "epoch": 3,
        "state_dict": state("ann_w/"),
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save(ann, tmp_path / "ann.pth")
    fused = {"state_dict": state("fused_w/", "module."), "thresholds": [1.0, 2.0, 3.0]}
    torch.save(fused, tmp_path / "fused.pth")
    cifar_copy(tmp_path / "data", train=8, test=5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@torch.no_grad()
def error(net, name):
    """Relative error of a network's readout against a recorded one."""
    got = net.eval()(torch.from_numpy(NUMBERS["x"]))
    return convert.relative_error(torch.from_numpy(NUMBERS[name]), got)


@pytest.mark.parametrize(
    "given, expected",
    [
        ("ann/x_w0.125.pth", "ann/x_w0.125_bn_fused.pth"),
        ("ann/x_w0.125_20250101-120000/", "ann/x_w0.125_20250101-120000_bn_fused.pth"),
        ("ann/x_w0.25_20250101-120000", "ann/x_w0.25_20250101-120000_bn_fused.pth"),
        ("x.pth.tar", "x_bn_fused.pth"),
        ("x.v2.pt", "x.v2_bn_fused.pth"),
    ],
)
def test_the_fused_file_is_named_after_the_whole_name(given, expected):
    """A dot in a name begins no suffix."""
    asked = absorb_bn.get_parser().parse(["--pretrained_ann", given])
    assert str(absorb_bn.result(asked)) == expected


def test_published_ann_is_fused(published):
    absorb_bn.main(f"{NETWORK} --bn --pretrained_ann ann.pth".split())
    content = checkpoint.load("ann_bn_fused.pth")
    assert error(checkpoint.rebuild(content), "ann_logits") < 1e-4
    assert content["accuracy"] == 0.5


def test_surplus_parts_of_a_published_file_are_named(published, fails):
    weights = state("ann_w/")
    norm = next(k.rpartition(".")[0] for k in weights if k.endswith("running_mean"))
    more = {
        f"layer9.0.residual.1.{key.rpartition('.')[2]}": value
        for key, value in weights.items()
        if key.startswith(f"{norm}.")
    }
    torch.save({"state_dict": weights | more}, "more.pth")
    argv = f"{NETWORK} --bn --pretrained_ann more.pth"
    words = ("does not fit this resnet20", "1 unexpected ['(batch norms)']")
    fails(absorb_bn.main, argv, *words)


def test_published_fused_file_is_tested_as_an_snn(published, capsys):
    snn_ddp.main(f"{NETWORK} {SPIKING} --pretrained_ann fused.pth --test_only".split())
    assert "test accuracy" in capsys.readouterr().out


@pytest.fixture
def converted(published):
    """The checkpoint of an SNN that starts from the published fused file, and learns nothing."""
    still = "--epochs 1 --learning_rate 0 --thr_lr 0 --weight_decay 0"
    snn_ddp.main(f"{NETWORK} {SPIKING} {still} --pretrained_ann fused.pth".split())
    name = "snn_resnet20_cifar10_w0.125_MC_T_1_H_1_C_3_Z_0.pth"
    return checkpoint.load(published / "trained_models/snn" / name)


def test_published_fused_file_becomes_an_snn(converted):
    """With its weights: under ReLU they compute the recorded readout."""
    built = {key: value for key, value in converted["network"].items() if key != "name"}
    net = models.build("resnet20", models.ReLU(), **built)
    weights = {
        key: value
        for key, value in converted["model"].items()
        if not key.endswith((".theta", ".leak"))
    }
    net.load_state_dict(weights)
    assert error(net, "fused_logits") < 1e-4


def test_thresholds_of_a_published_file_are_not_taken(published, converted):
    """They ignore the number of lanes; and the file is not rewritten, as published code does."""
    assert converted["converted"]["thresholds"] != [1.0, 2.0, 3.0]
    assert torch.load("fused.pth", weights_only=True)["thresholds"] == [1.0, 2.0, 3.0]


def test_published_files_are_only_read(published):
    before = digest("fused.pth")
    snn_ddp.main(f"{NETWORK} {SPIKING} --epochs 1 --pretrained_ann fused.pth".split())
    assert digest("fused.pth") == before


def test_published_ann_starts_an_lq_ann(published):
    still = "--bn --dropout 0 --batch_size 4 --learning_rate 0 --epochs 1 --device cpu"
    line = f"{NETWORK} {still} --quant_act --act_bits 3 --pretrained_ann ann.pth"
    ann_ddp.main(line.split())
    content = checkpoint.load("trained_models/ann/ann_resnet20_cifar10_w0.125_AB_3_log.pth")
    weight = next(v for k, v in content["model"].items() if k.endswith("map.weight"))
    assert torch.equal(weight, torch.from_numpy(NUMBERS["ann_w/pre_process.0.weight"]))


@pytest.mark.parametrize(
    "script, argv, words",
    [
        (absorb_bn, f"{NETWORK} --bn --pretrained_ann fused.pth", "holds no batch norm"),
        (
            snn_ddp,
            f"{NETWORK} {SPIKING} --pretrained_ann ann.pth",
            "run absorb_bn.py on it first",
        ),
        (
            absorb_bn,
            "--architecture VGG16 --width_mult 0.125 --bias --bn --pretrained_ann ann.pth",
            "check --",
        ),
        (
            absorb_bn,
            "--dataset CIFAR10 --architecture RESNET20 --bias --bn --pretrained_ann ann.pth",
            "check --width_mult",
        ),
        (
            absorb_bn,
            "--dataset CIFAR10 --architecture RESNET20 --width_mult 0.125 --bn "
            "--pretrained_ann ann.pth",
            "check --bias",
        ),
    ],
    ids=["fused already", "not fused", "other network", "other width", "other biases"],
)
def test_published_file_of_another_kind(published, fails, script, argv, words):
    fails(script.main, argv, words, keep=published)


def test_an_error_of_a_script_is_one_line(published, scripts):
    """As a user sees it."""
    argv = ["absorb_bn.py", *NETWORK.split(), "--bn", "--pretrained_ann", "fused.pth"]
    line = read(argv, scripts, status=2)
    assert line.startswith("absorb_bn.py: error: fused.pth holds no batch norm")
