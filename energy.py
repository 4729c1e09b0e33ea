"""Accuracy, firing rates and energy of a checkpoint over its whole test set.

python energy.py trained_models/snn/snn_resnet20_cifar10_MC_T_1_H_1_C_3_Z_0.pth --data_root data
"""

import sys
from argparse import Namespace
from pathlib import Path

from engine import checkpoint, cli, data, run
from engine.dist import launch
from engine.errors import UseError, guard
from engine.loop import report

ELSEWHERE = {"sdt": "spike_driven_transformer/firing_num.py", "vggsnn": "neuromorphic_tasks/main_test.py"}


def get_parser():
    parser = cli.Parser(prog="energy.py", description="Accuracy, firing rates and energy of a checkpoint.")
    parser.add_argument("checkpoint", help="checkpoint of ann_ddp.py, absorb_bn.py or snn_ddp.py")
    parser.add_argument("--output", default="", help="path without suffix of the .json and .csv, else beside the checkpoint")
    cli.add_data(parser)
    cli.add_distributed(parser)
    parser.add_argument("--amp", default="none", choices=("none", "bf16", "fp16"), help="autocast type")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def work(args, world):
    content = checkpoint.load(args.checkpoint)
    if content["format"] == "published":
        raise UseError(f"{args.checkpoint} is a file of the published code: run absorb_bn.py or snn_ddp.py on it first")
    if content["kind"] in ELSEWHERE:
        raise UseError(f"{args.checkpoint} holds a {content['kind']}: measure it with {ELSEWHERE[content['kind']]}")
    stored = {k: v for k, v in content["settings"].items() if k not in args.given}
    args = Namespace(**{**vars(args), **{k: v for k, v in stored.items() if k in ("dataset", "data_root", "dataset_dir",
                                                                                  "image_size")},
                        "energy": True, "seed": 0})
    net, found = run.place(checkpoint.rebuild(content), world), data.load(args, world)
    if any(content["data"][k] != found.about[k] for k in ("num_classes", "image_size")):
        sizes = ["{num_classes} classes and {image_size} pixels".format(**about) for about in (content["data"], found.about)]
        raise UseError(f"{args.checkpoint} was trained for {sizes[0]}, {found.about['source']} has {sizes[1]}")
    test = data.loaders(found, args, world)[2]
    stem = args.output or Path(args.checkpoint).with_suffix("").as_posix() + "_energy"
    summary = report(net, test, world, args, stem)
    world.say(f"accuracy {summary['test_accuracy']:.2%}, energy {summary['energy_uj']:.4g} uJ per image; "
              f"written to {stem}.json and {stem}.csv")
    return summary


def main(argv=None):
    args = get_parser().parse(sys.argv[1:] if argv is None else argv)
    cli.refuse_idle(args, [(["val_fraction", "limit_train_batches"], False, "the test set is measured, nothing is trained")])
    return launch(work, args)


if __name__ == "__main__":
    guard(main)
