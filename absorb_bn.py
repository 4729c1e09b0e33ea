"""Fuse batch norm into the convolutions of a trained ANN or LQ-ANN, prove the result, write <name>_bn_fused.pth.

python absorb_bn.py --architecture RESNET20 --dataset CIFAR10 --bn --bias \
    --pretrained_ann trained_models/ann/ann_resnet20_cifar10.pth
"""

from pathlib import Path

import torch

import models
from cli import parser as cli
from cli import run
from engine import checkpoint
from engine.errors import RunError, UseError, guard
from engine.loop import seed_all
from models import convert


def get_parser():
    parser = cli.Parser(
        prog="absorb_bn.py",
        description="Fuse batch norm into the convolutions and prove the result.",
    )
    network = cli.add_network(parser, 0.2, "kept as a setting; it does not change the result")
    network.add_argument("--bn", action="store_true", help="the ANN has batch norm (it must)")
    network.add_argument(
        "--pretrained_ann", default="", help="checkpoint of ann_ddp.py, or of the published code"
    )
    network.add_argument(
        "--dataset",
        type=str.upper,
        default="CIFAR10",
        choices=cli.DATASETS,
        help="what it was trained on",
    )
    network.add_argument(
        "-s", "--seed", type=cli.seed, default=0, help="of the images that the result is proved on"
    )
    network.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def read(args):
    """(checkpoint, network) of --pretrained_ann, checked against the options that were given."""
    path = args.pretrained_ann
    if not path:
        raise UseError("give --pretrained_ann, the ANN whose batch norm is to be fused")
    content = checkpoint.load(path)
    if content["format"] == "published":
        if args.dataset in ("DIGITS", "FOLDER"):
            raise UseError(
                f"{path} is a file of the published code: --dataset must be CIFAR10, CIFAR100 or IMAGENET"
            )
        about = {
            "num_classes": {"CIFAR10": 10, "CIFAR100": 100, "IMAGENET": 1000}[args.dataset],
            "image_size": 224 if args.dataset == "IMAGENET" else 32,
            "name": args.dataset,
            "source": "unknown",
        }
        net = run.build(
            args, about, models.ReLU(), bn=True, bias=args.bias, head_dropout=args.dropout
        )
        if not any("running_mean" in k for k in content["model"]):
            raise UseError(
                f"{path} holds no batch norm: it is fused already, or was trained without --bn"
            )
        checkpoint.load_into(net, content, path)
        return content | {"data": about, "settings": {}, "kind": "ann"}, net
    if content["kind"] == "snn":
        raise UseError(
            f"{path} holds an SNN, which has no batch norm: give the ANN that it comes from"
        )
    if content["fused"]:
        raise UseError(
            f"{path} holds no batch norm: it is fused already, or was trained without --bn"
        )
    stated = {
        "architecture": content["network"]["name"].upper(),
        "dataset": content["data"]["name"],
        "width_mult": content["network"]["width_mult"],
        "kernel_size": content["network"].get("kernel_size", 3),
    }
    for name, value in stated.items():
        if name in args.given and getattr(args, name) != value:
            raise UseError(f"--{name} {getattr(args, name)} was given, {path} says {value}")
    if "bias" in args.given and not content["network"]["bias"]:
        raise UseError(f"--bias was given, {path} was trained without it")
    return content, checkpoint.rebuild(content)


def rules(args):
    return [(["kernel_size"], args.architecture == "VGG16", "only VGG16 has a free kernel size")]


def result(args):
    """File of the fused network."""
    path = Path(args.pretrained_ann)
    return path.with_name(f"{path.stem}_bn_fused.pth")


def main(argv=None):
    args = get_parser().parse(argv)
    cli.refuse_idle(args, rules(args))
    content, net = read(args)
    seed_all(args.seed)
    size = net.built["image_size"]
    try:
        fused, error = convert.fuse_bn(net, torch.randn(4 if size > 64 else 64, 3, size, size))
    except convert.ConversionError as failure:
        raise RunError(f"{args.pretrained_ann}: {failure}; nothing was written") from None
    path = result(args)
    checkpoint.save(
        path,
        checkpoint.content(
            fused,
            content["kind"],
            content["data"],
            content["settings"],
            accuracy=content.get("accuracy"),
            epoch=content.get("epoch"),
            fused_from=args.pretrained_ann,
            fusion_error=error,
        ),
    )
    print(
        f"fused network equals the original (largest relative error {error:.1e}), written to {path}"
    )
    return {"checkpoint": str(path), "error": error}


if __name__ == "__main__":
    guard(main)
