"""Accuracy, operations, rates per layer, lane and step, and energy of a trained VGGSNN on the test recordings.

python3 main_test.py --multi_channel 1 --num_channels 4 --T_prime 80       the checkpoint that the training wrote for these
python3 main_test.py --checkpoint trained_models/vggsnn_dvscifar10_first900_T80_C4.pth
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.firing import measured
from cli import parser as cli
from cli import run
from engine import checkpoint
from engine.dist import launch
from engine.errors import guard
from inputs import images as data
from inputs.events import recordings as dvs
from neuromorphic_tasks.main_training_parallel import (
    add_setting,
    build,
    check_recordings,
    load_weights,
    result,
    settled,
)


def get_parser():
    parser = cli.Parser(
        prog="main_test.py",
        description="Accuracy, operations, rates and energy of a trained VGGSNN.",
    )
    group = add_setting(parser, 1, 2, 5)
    group.add_argument(
        "--checkpoint",
        default="",
        help="trained weights, ours (their settings hold; of a run folder "
        "its best) or the published code's; default: what the training wrote for these options",
    )
    group.add_argument(
        "--output_dir", default="./trained_models", help="folder in which that is looked for"
    )
    group.add_argument(
        "--output",
        default="",
        help="path without suffix of the results, else beside the checkpoint",
    )
    group.add_argument("--debug", action="store_true", help="show tracebacks")
    cli.add_distributed(parser)
    parser.set_defaults(compile="none", surrogate_edge="published")
    return parser


def work(args, world):
    path = args.checkpoint or result(args)
    args, content = settled(args, path, "--checkpoint")
    run.say_backend(args, world)
    found = dvs.load(args)
    check_recordings(content, found.about, path)
    net = build(args, found.about)
    load_weights(net, path)
    test = data.loaders(found, args, world, dvs.EventLoader)[2]
    return measured(
        run.place(net, world),
        test,
        world,
        args,
        found.about,
        checkpoint.beside(path, "_test", args.output),
    )


def main(argv=None):
    args = get_parser().parse(argv)
    cli.refuse_idle(
        args,
        [
            (
                ["val_fraction", "limit_train_batches"],
                False,
                "the test set is measured, nothing is trained",
            ),
            (
                ["num_channels"],
                args.multi_channel,
                "plain LIF has one lane, give --multi_channel 1",
            ),
        ],
    )
    return launch(work, args)


if __name__ == "__main__":
    guard(main)
