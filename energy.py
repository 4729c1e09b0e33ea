"""Accuracy, firing rates and energy of a checkpoint over its whole test set; or the energy of an ANN from its shape alone.

python energy.py trained_models/snn/snn_resnet20_cifar10_MC_T_1_H_1_C_3_Z_0.pth --data_root data
python energy.py --architecture VGG16 --dataset IMAGENET            (no checkpoint, no data)
"""

from argparse import Namespace

from analysis.energy import MODELS, of_ann
from cli import parser as cli
from cli import run
from engine import checkpoint
from engine.dist import launch
from engine.errors import UseError, guard
from engine.loop import report
from inputs import images as data

SHAPES = {
    "CIFAR10": (10, 32),
    "CIFAR100": (100, 32),
    "IMAGENET": (1000, 224),
}  # classes, side of the images
ELSEWHERE = {
    "sdt": "spike_driven_transformer/firing_num.py",
    "vggsnn": "neuromorphic_tasks/main_test.py",
}


def get_parser():
    parser = cli.Parser(
        prog="energy.py", description="Accuracy, firing rates and energy of a checkpoint."
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="",
        help="checkpoint of ann_ddp.py, absorb_bn.py or snn_ddp.py",
    )
    parser.add_argument(
        "-a",
        "--architecture",
        type=str.upper,
        choices=cli.ARCHITECTURES,
        help="in the place of a checkpoint: the energy of this network for --dataset as an ANN",
    )
    parser.add_argument(
        "--width_mult", type=cli.width, default=1.0, help="with it: factor of every layer's width"
    )
    parser.add_argument(
        "--energy_model",
        default="paper",
        choices=MODELS,
        help="prices of the table; files hold all models",
    )
    parser.add_argument(
        "--output",
        default="",
        help="path without suffix of the .json and .csv, else beside the checkpoint",
    )
    cli.add_data(parser)
    cli.add_distributed(parser)
    parser.add_argument(
        "--amp", default="none", choices=("none", "bf16", "fp16"), help="autocast type"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def shape_only(args):
    """Energy of --architecture as an ANN."""
    if args.dataset not in SHAPES:
        raise UseError(
            f"--architecture without a checkpoint needs --dataset {', '.join(SHAPES)}, got {args.dataset}"
        )
    classes, size = SHAPES[args.dataset]
    energy = of_ann(
        args.architecture, num_classes=classes, image_size=size, width_mult=args.width_mult
    )
    print(energy.table(args.energy_model))
    print(
        f"{args.architecture} for {args.dataset} as an ANN: {energy.uj(args.energy_model):.3E} uJ per image"
    )
    if args.output:
        energy.write(args.output)
    return energy


def work(args, world):
    content = checkpoint.load(args.checkpoint)
    if content["format"] == "published":
        raise UseError(
            f"{args.checkpoint} is a file of the published code: run absorb_bn.py or snn_ddp.py on it first"
        )
    if content["kind"] in ELSEWHERE:
        raise UseError(
            f"{args.checkpoint} holds a {content['kind']}: measure it with {ELSEWHERE[content['kind']]}"
        )
    stored = {k: v for k, v in content["settings"].items() if k not in args.given}
    args = Namespace(
        **{
            **vars(args),
            **{
                k: v
                for k, v in stored.items()
                if k in ("dataset", "data_root", "dataset_dir", "image_size")
            },
            "energy": True,
            "seed": 0,
        }
    )
    cli.refuse_idle(args, run.data_rules(args))
    net, found = run.place(checkpoint.rebuild(content), world), data.load(args, world)
    if any(content["data"][k] != found.about[k] for k in ("num_classes", "image_size")):
        sizes = [
            "{num_classes} classes and {image_size} pixels".format(**about)
            for about in (content["data"], found.about)
        ]
        raise UseError(
            f"{args.checkpoint} was trained for {sizes[0]}, {found.about['source']} has {sizes[1]}"
        )
    test = data.loaders(found, args, world)[2]
    stem = checkpoint.beside(args.checkpoint, "_energy", args.output)
    summary = report(net, test, world, args, found.about, stem, args.energy_model)
    world.say(
        f"accuracy {summary['test_accuracy']:.2%}, energy {summary['energy'].uj(args.energy_model):.4g} uJ per image "
        f"({args.energy_model}); written to {stem}.json and {stem}.csv"
    )
    return summary


def main(argv=None):
    args = get_parser().parse(argv)
    if bool(args.checkpoint) == bool(args.architecture):
        raise UseError(
            "give a checkpoint to measure, or --architecture for the energy of an ANN from its shape, "
            + ("not both" if args.checkpoint else "one of the two")
        )
    measured = args.given - {
        "architecture",
        "width_mult",
        "dataset",
        "energy_model",
        "output",
        "debug",
        "checkpoint",
    }
    cli.refuse_idle(
        args,
        [
            (
                ["val_fraction", "limit_train_batches"],
                False,
                "the test set is measured, nothing is trained",
            ),
            (["width_mult"], args.architecture, "the checkpoint says how wide the network is"),
            (measured, args.checkpoint, "an ANN's energy follows from its shape, nothing is run"),
        ],
    )
    if args.architecture:
        return shape_only(args)
    return launch(work, args)


if __name__ == "__main__":
    guard(main)
