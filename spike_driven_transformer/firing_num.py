"""Accuracy, nonzero and firing rates per layer, lane and step, and energy of a trained transformer on its whole test set.

python firing_num.py --resume output/sdt_2_512_cifar10_t4_mlif_c3.pth
python firing_num.py -c conf/cifar10/2_512_300E_t4_c3.yml --resume published_weights.pth.tar    (weights without settings)
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.firing import measured
from cli import parser as cli
from cli import run
from engine import checkpoint
from engine.dist import launch
from engine.errors import UseError, guard
from spike_driven_transformer.train import build, get_parser, load_data, load_weights, with_config

DATA = (
    "dataset",
    "data_dir",
    "img_size",
    "mean",
    "std",
    "interpolation",
    "crop_pct",
    "val_fraction",
)


def work(args, world):
    content = checkpoint.load(args.resume)
    if content["format"] != "published":
        if content["kind"] != "sdt":
            raise UseError(f"{args.resume} holds no transformer: use energy.py")
        stored = {k: v for k, v in content["settings"].items() if k in DATA and k not in args.given}
        args = Namespace(**{**vars(args), **stored})
        net, (data, loaders) = checkpoint.rebuild(content), load_data(args, world)
    elif args.config:
        data, loaders = load_data(args, world)
        net = build(args, data.about)
        load_weights(net, args.resume)
    else:
        raise UseError(f"{args.resume} holds weights without settings: give their -c configuration")
    if net.head.out_features != data.about["num_classes"]:
        raise UseError(
            f"{args.resume} has {net.head.out_features} classes, {data.about['source']} has "
            f"{data.about['num_classes']}: check --dataset"
        )
    stem = checkpoint.beside(args.resume, "_firing", args.experiment)
    return measured(run.place(net, world), loaders[2], world, args, data.about, stem)


def main(argv=None):
    parser = get_parser("firing_num.py")
    args = parser.parse(with_config(parser, argv))
    idle = {
        a.dest
        for group in parser._action_groups
        if group.title in ("augmentation", "training")
        for a in group._group_actions
    } | {"limit_train_batches", "save_freq", "test_only", "dont_save"}
    own = Namespace(
        given=parser.parse(argv).given
    )  # a configuration may well hold the recipe of the training
    cli.refuse_idle(own, [(idle - {*DATA, "amp"}, False, "a trained network is measured")])
    if not args.resume:
        raise UseError("give --resume, the checkpoint to measure")
    return launch(work, args)


if __name__ == "__main__":
    guard(main)
