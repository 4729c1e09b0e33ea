"""Train VGGSNN on prepared DVS-CIFAR10 recordings.

python3 main_training_parallel.py --multi_channel 1 --num_channels 4 --T_prime 80
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models
from analysis.energy import lane_curves
from cli import parser as cli
from cli import run
from engine import checkpoint
from engine.dist import launch
from engine.errors import UseError, guard
from engine.loop import seed_all
from engine.recipes.cnn import Recipe, cosine, tet_loss
from inputs import images as data
from inputs.events import recordings as dvs
from models.vggsnn import from_published, neurons

SETTING = (
    "multi_channel",
    "num_channels",
    "T_prime",
    "resize",
    "width_mult",
)  # without which weights mean nothing


def add_setting(parser, multi_channel, lanes, frames):
    """Options of the data, the network and its neurons, with the defaults of a script."""
    group = dvs.add_coding(parser, lanes, frames)
    group.add_argument(
        "-b",
        "--batch_size",
        type=cli.positive,
        default=128,
        help="recordings per step, all processes together",
    )
    group.add_argument(
        "-j",
        "--workers",
        type=cli.natural,
        default=16,
        help="accepted as published; batches are made on the device and need no processes",
    )
    group.add_argument(
        "--cache_gb",
        type=cli.rate,
        default=4.0,
        help="memory for coded recordings per process, in GB; at "
        "T_F = 80 all take 3.7 with 1 or 2 lanes, 1.8 with 3, 0.9 with 4; else they are coded in every epoch",
    )
    cli.add_limits(group)
    group = parser.add_argument_group("network and neuron")
    group.add_argument(
        "--width_mult", type=cli.width, default=1.0, help="factor of every layer's width"
    )
    group.add_argument(
        "--multi_channel",
        type=int,
        default=multi_channel,
        choices=(0, 1),
        help="1: M-LIF, 0: plain LIF",
    )
    group.add_argument(
        "--neuron_backend", default="auto", choices=models.BACKENDS, help="what runs the neuron"
    )
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=cli.seed, default=1000, help="of everything random")
    group.add_argument(
        "--amp",
        default="none",
        choices=("none", "bf16", "fp16"),
        help="autocast type; the membrane stays float32",
    )
    return group


def get_parser():
    parser = cli.Parser(
        prog="main_training_parallel.py",
        description="Train VGGSNN on prepared DVS-CIFAR10 recordings.",
    )
    group = add_setting(parser, 0, 1, 10)
    cli.add_compile(group)
    group.add_argument(
        "--recompute",
        action="store_true",
        help="run each stage again in the backward: less memory, more time",
    )
    group = parser.add_argument_group("training")
    group.add_argument(
        "--surrogate_edge",
        default="published",
        choices=("paper", "published"),
        help="weight of the inner edges in the surrogate: 1/2 or 3/2",
    )
    group.add_argument("--epochs", type=cli.positive, default=300, help="epochs to train")
    group.add_argument(
        "--learning_rate",
        "--lr",
        type=cli.rate,
        default=1e-3,
        help="initial rate of Adam; cosine to 0",
    )
    group.add_argument(
        "--weight_decay", type=cli.rate, default=0.0, help="L2 penalty, on every parameter"
    )
    group.add_argument(
        "--TET",
        nargs="?",
        const=True,
        type=cli.boolean,
        default=True,
        help="true: loss at every time step; false: cross-entropy of the mean readout",
    )
    group.add_argument(
        "--means", type=cli.finite, default=1.0, help="what TET's regulariser pulls the readout to"
    )
    group.add_argument(
        "--lamb", type=cli.number(float, low=0, high=1), default=1e-3, help="weight of it"
    )
    group.add_argument(
        "--pretrained_snn", default="", help="weights to start from: ours or the published code's"
    )
    group.add_argument("--start_epoch", help=argparse.SUPPRESS)
    cli.add_output(parser)
    cli.add_distributed(parser)
    return parser


def rules(args):
    lanes = args.num_channels if args.multi_channel else 0
    return [
        (["num_channels"], lanes, "plain LIF has one lane, give --multi_channel 1"),
        (["surrogate_edge"], lanes > 1, "only neurons of several lanes have inner edges"),
        (["means", "lamb"], args.TET, "it belongs to the TET loss"),
        (
            ["neuron_backend"],
            args.compile == "none" or args.neuron_backend in ("auto", "compiled"),
            "--compile traces the neuron into the step",
        ),
        (["start_epoch"], False, "an interrupted run goes on with --resume <its run folder>"),
    ]


class TETRecipe(Recipe):
    """Adam, its rate a cosine from --learning_rate to 0 over the epochs, set once per epoch, as published; TET loss."""

    def optimizer(self, net):
        return torch.optim.Adam(
            net.parameters(),
            self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            fused=True,
        )

    def set_rate(self, optimizer, epoch):
        rate = cosine(int(epoch), self.epochs, self.args.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def targets(self, images, labels, epoch):
        return images, labels

    def loss(self, out, targets):
        if not self.args.TET:
            return F.cross_entropy(out.mean(0), targets, reduction="sum")
        return tet_loss(out, targets, self.args.lamb, self.args.means)


def build(args, about):
    """The network of the options, for the data `about`."""
    coding = dvs.coding(args)
    act = neurons(
        coding.lanes if args.multi_channel else 0,
        coding.steps,
        args.surrogate_edge,
        args.neuron_backend,
    )
    return models.build(
        "vggsnn",
        act,
        num_classes=about["num_classes"],
        image_size=about["image_size"],
        width_mult=args.width_mult,
    )


def settled(args, path, option):
    """(`args` with the settings of the checkpoint that `option` names, its content); published weights have no settings.

    Raises:
        UseError: the checkpoint is of another network, or an option that was given contradicts it.
    """
    content = checkpoint.load(path)
    if content["format"] == "published":
        return args, content
    if content["network"]["name"] != "vggsnn":
        raise UseError(f"{path} holds a {content['network']['name']}, expected a vggsnn")
    stored = {name: content["settings"][name] for name in SETTING} | {
        "split": content["data"]["split"]
    }
    stored["T_prime"] = dvs.frames(stored["T_prime"])
    for name in sorted(args.given & set(stored)):
        if getattr(args, name) != stored[name]:
            raise UseError(
                f"{path} was trained with --{name} {stored[name]}, not {getattr(args, name)}: leave it out, or give "
                f"another {option}"
            )
    return argparse.Namespace(**{**vars(args), **stored}), content


def check_recordings(content, about, path):
    """Refuse to test a checkpoint on other recordings than it was chosen on: it may have been trained on them."""
    if (
        content["format"] == "published"
        or content["data"]["test"]["sha256"] == about["test"]["sha256"]
    ):
        return
    raise UseError(
        f"{path} has {content['data']['test']['images']} test recordings, {about['where']} holds "
        f"{about['test']['images']} others, on which it may have been trained: name those of its training with "
        "--prepared"
    )


def load_weights(net, path):
    """Copy weights into the network, strictly: ours or the published code's."""
    checkpoint.load_named(
        net, path, from_published, new=("theta", "leak"), dropped=("theta", "leak")
    )


def result(args, prepared=None):
    """File of the trained network; prepared: "split" of the recordings and whether "simulated", else what `args` names."""
    prepared = prepared or dvs.read_manifest(args)[1]
    coding, data_set = dvs.coding(args), "simulated" if prepared.get("simulated") else "dvscifar10"
    name = (
        f"vggsnn_{data_set}_{prepared['split']}_T{coding.frames}_"
        + (f"C{coding.lanes}" if args.multi_channel else "LIF")
        + ("_published" if coding.published else "")
        + (f"_w{args.width_mult:g}" if args.width_mult != 1 else "")
    )
    return Path(args.output_dir) / f"{name}.pth"


def work(args, world, saved=None):
    run.check_compile(args, world)
    run.say_backend(args, world)
    seed_all(args.seed)
    weights = {"format": "published"}
    if args.test_only and args.pretrained_snn:
        args, weights = settled(args, args.pretrained_snn, "--pretrained_snn")
    content = dvs.load(args)
    about, coding = content.about, content.coding
    check_recordings(weights, about, args.pretrained_snn)
    loaders = data.loaders(content, args, world, dvs.EventLoader)
    world.say(
        f"S = {coding.lanes}, T_F = {coding.frames} of the first {coding.used} frames, Q_F = {coding.steps}"
        + (
            ""
            if content.keep
            else "; --cache_gb does not hold the coded recordings: they are coded in every epoch"
        )
    )
    net = build(args, about)
    if args.pretrained_snn and not saved:
        load_weights(net, args.pretrained_snn)
        world.say(f"weights from {args.pretrained_snn}")
    net = run.place(net, world)
    net.recompute = args.recompute
    if args.test_only:
        return run.test_only(
            net, loaders, about, args, world, args.pretrained_snn, "--pretrained_snn"
        )
    return run.train(
        net,
        "vggsnn",
        result(args, about),
        loaders,
        about,
        args,
        world,
        saved,
        recipe=TETRecipe(args),
        scalars=lambda: lane_curves(net, next(loaders[2].epoch(0))[0]),
        extra={"S": coding.lanes, "T_F": coding.frames, "Q_F": coding.steps},
    )


def main(argv=None):
    args, saved = run.settings(get_parser(), argv, rules)
    return launch(run.Work(work, saved), args)


if __name__ == "__main__":
    guard(main)
