"""The CNN command lines of the published README, exactly as printed there, and files with the published code's names."""

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
import models
from cli.parser import refuse_idle
from engine import checkpoint
from models import convert
from tests.helpers import GOLDEN, ROOT, command, image_folder, read

COMMANDS = (ROOT / "experiments" / "published_commands.txt").read_text().splitlines()

SHORT = " --epochs 1 --limit_train_batches 2 --limit_eval_batches 2"
CLASSES = {"CIFAR10": 10, "CIFAR100": 100, "IMAGENET": 1000}
LAYERS = {"RESNET20": 3, "VGG16": 15}  # layers whose threshold is balanced


def chain(dataset, architecture):
    return [
        line
        for line in COMMANDS
        if f"--dataset {dataset} " in line and f"--architecture {architecture} " in line
    ]


def parsed(line):
    """(script name, namespace) of a command line under its own script's parser and rules."""
    script, *argv = shlex.split(line)[1:]
    module = importlib.import_module(script.removesuffix(".py"))
    args = module.get_parser().parse(argv)
    refuse_idle(args, module.rules(args))
    return module.__name__, args


def written(script, args):
    """The file that the README goes on with after this command (paper sections 'LQ-ANN' and 'SNN')."""
    stem = f"{args.architecture}_{args.dataset}".lower()
    if script == "absorb_bn":
        return f"trained_models/ann/ann_{stem}_bn_fused.pth"
    if script == "ann_ddp":
        return (
            f"trained_models/ann/ann_{stem}"
            + (f"_AB_{args.act_bits}_log" if args.quant_act else "")
            + ".pth"
        )
    return f"trained_models/snn/snn_{stem}_MC_T_{args.timesteps}_H_1_C_{args.num_channels}_Z_0.pth"


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_commands_are_all_here():
    kinds = [(line.split()[1], "--quant_act" in line) for line in COMMANDS]
    assert [
        kinds.count(k)
        for k in (
            ("ann_ddp.py", False),
            ("ann_ddp.py", True),
            ("absorb_bn.py", False),
            ("snn_ddp.py", False),
        )
    ] == [5, 6, 5, 5]
    assert sum(len(chain(d, a)) for d in CLASSES for a in LAYERS) == len(COMMANDS) == 21


@pytest.mark.parametrize(
    "line", COMMANDS, ids=lambda line: f"{COMMANDS.index(line):02}-{line.split()[1]}"
)
def test_command_parses(line):
    script, args = parsed(line)
    tokens = shlex.split(line)[2:]
    named = {t.lstrip("-").split("=")[0] for t in tokens if t.startswith("-")}
    assert args.given == named
    text = dict(itertools.pairwise(tokens))
    assert args.dataset == text["--dataset"] and args.architecture == text["--architecture"]
    for name in named - {"lr_interval"}:
        value = next((text[d + name] for d in ("--", "-") if d + name in text), None)
        if value is not None and not value.startswith("-"):
            assert getattr(args, name) == type(getattr(args, name))(value)
    if script != "absorb_bn":
        assert args.dataset_dir == "./ILSVRC/Data/CLS-LOC" and args.multiprocessing_distributed
        assert args.lr_interval == [float(f) for f in text["--lr_interval"].split()]


def check(script, args, before, folder):
    """What one command must have written; `before`: the digest of the file that it started from."""
    path = folder / written(script, args)
    content = checkpoint.load(path)
    assert content["data"]["num_classes"] == CLASSES[args.dataset]
    assert (content["network"]["name"], content["network"]["width_mult"]) == (
        args.architecture.lower(),
        1.0,
    )
    assert all(v.isfinite().all() for v in content["model"].values())
    if script == "absorb_bn":
        assert content["fused"] and content["fusion_error"] <= 1e-4 and not content["network"]["bn"]
    else:
        runs = list(path.parent.glob(f"{path.stem}_2*"))
        assert len(runs) == 1
        lines = [json.loads(line) for line in (runs[0] / "log.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1] and np.isfinite(lines[0]["train_loss"])
        assert lines[0]["learning_rate"] == (
            args.warm_up_lr if getattr(args, "warm_up", False) else args.learning_rate
        )
        assert content["settings"]["batch_size"] == args.batch_size
        shutil.rmtree(runs[0])
    if script == "ann_ddp" and args.quant_act:
        ranges = [v for k, v in content["model"].items() if k.endswith(".hi")]
        assert len(ranges) == {"RESNET20": 19, "VGG16": 15}[args.architecture]
        assert content["activation"]["bits"] == args.act_bits
    if script == "snn_ddp":
        done = content["converted"]
        thetas = torch.stack([v for k, v in content["model"].items() if k.endswith(".theta")])
        assert len(done["thresholds"]) == LAYERS[args.architecture]
        assert content["activation"]["neuron"]["levels"] == args.num_channels
        start = torch.tensor([t * args.scaling_factor for t in done["thresholds"]])
        torch.testing.assert_close(
            thetas[: len(start)], start, atol=3 * (args.thr_lr or args.learning_rate), rtol=0
        )
    if before:
        assert digest(folder / args.pretrained_ann) == before, (
            "a command must not rewrite the file that it reads"
        )


def run_chain(dataset, architecture, folder):
    """Run the commands of one network in the README's order, as printed and shortened by SHORT."""
    if dataset == "IMAGENET":
        for part, count in (("train", 2), ("val", 2)):
            image_folder(folder / "ILSVRC/Data/CLS-LOC" / part, 2, count, (240, 260), "JPEG")
    else:
        for part, count in (("train", 6), ("test", 3)):
            image_folder(
                folder / f"data/{dataset.lower()}-jpeg" / part,
                CLASSES[dataset],
                count,
                (32, 32),
                "png",
            )
    lines = chain(dataset, architecture)
    for line in lines:
        script, args = parsed(line)
        before = digest(folder / args.pretrained_ann) if args.pretrained_ann else None
        done = command(line if script == "absorb_bn" else line + SHORT, folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        check(script, args, before, folder)
    shutil.rmtree(folder / "trained_models")  # gigabytes


@pytest.mark.parametrize(
    "dataset, architecture", [(d, a) for d in ("CIFAR10", "CIFAR100") for a in LAYERS]
)
def test_cifar_commands(dataset, architecture, scripts):
    run_chain(dataset, architecture, scripts)


@pytest.mark.long
def test_compiled_training(scripts):
    """--compile on the ANN and the SNN, with a smaller last batch, bf16 and two timesteps."""
    network, ann = (
        "--dataset DIGITS -a RESNET20 --bias",
        "trained_models/ann/ann_resnet20_digits_w0.125",
    )
    training = f"{network} --width_mult 0.125 --epochs 1 --batch_size 256 --compile"
    read(shlex.split(f"ann_ddp.py {training} --bn"), scripts, timeout=600)
    read(shlex.split(f"absorb_bn.py {network} --bn --pretrained_ann {ann}.pth"), scripts)
    said = read(
        shlex.split(
            f"snn_ddp.py {training} -multi_channel 1 -num_channels 3 --timesteps 2 --amp bf16 "
            f"--conversion matched --rate_penalty 0.1 --pretrained_ann {ann}_bn_fused.pth"
        ),
        scripts,
        timeout=600,
    )
    assert "traced by torch.compile in training" in said and "best" in said


@pytest.mark.long
def test_imagenet_commands(scripts):
    run_chain("IMAGENET", "VGG16", scripts)


# ---- files of the published code ----


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folder with ann.pth, fused.pth as the published scripts write them, and the recorded numbers."""
    folder = tmp_path_factory.mktemp("published")
    numbers = np.load(GOLDEN / "B2_resnet20_w8.npz")

    def state(prefix, name=""):
        return {
            name + k.removeprefix(prefix): torch.from_numpy(numbers[k])
            for k in numbers.files
            if k.startswith(prefix)
        }

    torch.save(
        {
            "accuracy": 0.5,
            "epoch": 3,
            "state_dict": state("ann_w/"),
            "optimizer": {"state": {}, "param_groups": []},
        },
        folder / "ann.pth",
    )
    torch.save(
        {"state_dict": state("fused_w/", "module."), "thresholds": [1.0, 2.0, 3.0]},
        folder / "fused.pth",
    )
    return folder, numbers


NETWORK = ["--dataset", "CIFAR10", "--architecture", "RESNET20", "--width_mult", "0.125", "--bias"]
SPIKING = [
    "--multi_channel",
    "1",
    "--num_channels",
    "3",
    "--timesteps",
    "1",
    "--dropout",
    "0",
    "--batch_size",
    "4",
    "--balance_steps",
    "2",
    "--limit_train_batches",
    "2",
]


def logits(path, numbers):
    with torch.no_grad():
        return checkpoint.rebuild(checkpoint.load(path)).eval()(torch.from_numpy(numbers["x"]))


def test_published_ann_is_fused(published, scripts):
    folder, numbers = published
    shutil.copy(folder / "ann.pth", scripts)
    read(["absorb_bn.py", *NETWORK, "--bn", "--pretrained_ann", "ann.pth"], scripts)
    got = logits(scripts / "ann_bn_fused.pth", numbers)
    assert convert.relative_error(torch.from_numpy(numbers["ann_logits"]), got) < 1e-4
    assert checkpoint.load(scripts / "ann_bn_fused.pth")["accuracy"] == 0.5


def test_surplus_parts_of_a_published_file_are_named(published, tmp_path, fails):
    content = torch.load(published[0] / "ann.pth", weights_only=True)
    state = content["state_dict"]
    norm = next(k.rpartition(".")[0] for k in state if k.endswith("running_mean"))
    more = {
        f"layer9.0.residual.1.{k.rpartition('.')[2]}": v
        for k, v in state.items()
        if k.startswith(f"{norm}.")
    }
    torch.save({"state_dict": state | more}, tmp_path / "more.pth")
    argv = [*NETWORK, "--bn", "--pretrained_ann", str(tmp_path / "more.pth")]
    fails(absorb_bn.main, argv, "does not fit this resnet20", "1 unexpected ['(batch norms)']")


def test_published_fused_file_becomes_an_snn(published, scripts):
    folder, numbers = published
    shutil.copy(folder / "fused.pth", scripts)
    before = digest(scripts / "fused.pth")
    for part, count in (("train", 8), ("test", 5)):
        image_folder(scripts / "data/cifar10-jpeg" / part, 10, count, (32, 32), "png")
    argv = ["snn_ddp.py", *NETWORK, *SPIKING, "--pretrained_ann", "fused.pth"]
    assert "test accuracy" in read([*argv, "--test_only"], scripts)
    read(
        [*argv, "--epochs", "1", "--learning_rate", "0", "--thr_lr", "0", "--weight_decay", "0"],
        scripts,
    )
    content = checkpoint.load(
        scripts / "trained_models/snn/snn_resnet20_cifar10_w0.125_MC_T_1_H_1_C_3_Z_0.pth"
    )
    net = models.build(
        "resnet20", models.ReLU(), **{k: v for k, v in content["network"].items() if k != "name"}
    )
    net.load_state_dict(
        {k: v for k, v in content["model"].items() if not k.endswith((".theta", ".leak"))}
    )
    with torch.no_grad():
        got = net.eval()(torch.from_numpy(numbers["x"]))
    assert convert.relative_error(torch.from_numpy(numbers["fused_logits"]), got) < 1e-4
    assert (
        content["converted"]["thresholds"] != [1.0, 2.0, 3.0]
        and digest(scripts / "fused.pth") == before
    )


def test_published_ann_starts_an_lq_ann(published, scripts):
    folder, numbers = published
    shutil.copy(folder / "ann.pth", scripts)
    for part, count in (("train", 8), ("test", 5)):
        image_folder(scripts / "data/cifar10-jpeg" / part, 10, count, (32, 32), "png")
    read(
        [
            "ann_ddp.py",
            *NETWORK,
            "--bn",
            "--dropout",
            "0",
            "--batch_size",
            "4",
            "--learning_rate",
            "0",
            "--epochs",
            "1",
            "--quant_act",
            "--act_bits",
            "3",
            "--pretrained_ann",
            "ann.pth",
        ],
        scripts,
    )
    content = checkpoint.load(
        scripts / "trained_models/ann/ann_resnet20_cifar10_w0.125_AB_3_log.pth"
    )
    weight = next(v for k, v in content["model"].items() if k.endswith("map.weight"))
    assert torch.equal(weight, torch.from_numpy(numbers["ann_w/pre_process.0.weight"]))


@pytest.mark.parametrize(
    "argv, words",
    [
        (
            ["absorb_bn.py", *NETWORK, "--bn", "--pretrained_ann", "fused.pth"],
            "holds no batch norm",
        ),
        (
            ["snn_ddp.py", *NETWORK, *SPIKING, "--pretrained_ann", "ann.pth"],
            "run absorb_bn.py on it first",
        ),
        (
            [
                "absorb_bn.py",
                "--architecture",
                "VGG16",
                "--width_mult",
                "0.125",
                "--bias",
                "--bn",
                "--pretrained_ann",
                "ann.pth",
            ],
            "check --",
        ),
        (
            ["absorb_bn.py", *NETWORK[:-3], "--bias", "--bn", "--pretrained_ann", "ann.pth"],
            "check --width_mult",
        ),
        (["absorb_bn.py", *NETWORK[:-1], "--bn", "--pretrained_ann", "ann.pth"], "check --bias"),
    ],
)
def test_published_file_of_another_kind(published, scripts, argv, words):
    for path in published[0].glob("*.pth"):
        shutil.copy(path, scripts)
    for part in ("train", "test"):
        image_folder(scripts / "data/cifar10-jpeg" / part, 10, 4, (32, 32), "png")
    line = read(argv, scripts, status=2)
    assert words in line
