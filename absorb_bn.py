"""Fuse batch norm into the convolutions of a trained ANN or LQ-ANN, prove the result, write
<name>_bn_fused.pth.

python absorb_bn.py --architecture RESNET20 --dataset CIFAR10 --bn --bias \
    --pretrained_ann trained_models/ann/ann_resnet20_cifar10.pth
"""

from dataclasses import dataclass
from pathlib import Path

import torch

import models
from cli import checks, run
from cli.options import NetworkOptions
from cli.parser import Parser, refuse_idle
from engine import checkpoint
from engine.errors import RunError, UseError, guard
from engine.generators import seed_all
from engine.loop import ComputeOptions
from engine.settings import Settings, group
from inputs.table import PUBLISHED_DATA, TABLE, DataOptions
from models import convert


@dataclass(frozen=True)
class FuseSettings(Settings):
    """Options of absorb_bn.py."""

    network: NetworkOptions = group(
        hidden=("pretrained_snn",),
        dropout={"help": "kept as a setting; does not change the result"},
        bn={"help": "accepted as published, the checkpoint says whether there is one"},
        pretrained_ann={"help": "checkpoint of ann_ddp.py, or of the published code"},
    )
    data: DataOptions = group(only=("dataset",), dataset={"help": "what the ANN was trained on"})
    compute: ComputeOptions = group(
        only=("seed",), seed={"help": "seed of the images that the result is proved on"}
    )


def get_parser():
    """Its command line."""
    about = "Fuse batch norm into the convolutions and prove the result."
    return Parser("absorb_bn.py", about, FuseSettings)


def read_published(content, asked: FuseSettings):
    """(checkpoint, network) of a file of the published code, which says nothing of its network."""
    path, network = asked.network.pretrained_ann, asked.network
    entry = TABLE[asked.data.dataset]
    if entry.name not in PUBLISHED_DATA:
        raise UseError(
            f"{path} is a file of the published code: --dataset must be "
            f"{', '.join(PUBLISHED_DATA[:-1])} or {PUBLISHED_DATA[-1]}"
        )
    # what a checkpoint of this project would say of its data
    about = {
        "num_classes": entry.classes,
        "image_size": entry.side,
        "name": entry.name,
        "source": "unknown",
    }
    net = run.build(network, about, models.ReLU(), bn=True, head_dropout=network.dropout)
    # asked before the weights are matched, since it says what is really wrong
    if not any("running_mean" in key for key in content["model"]):
        raise UseError(f"{path} holds no batch norm: it is fused already, or trained without --bn")
    checkpoint.load_into(net, content, path)
    print(checkpoint.told(content, path))
    return content | {"data": about, "settings": {}, "kind": "ann"}, net


def check_stated(content, asked: FuseSettings):
    """Refuse options that contradict the checkpoint."""
    path, built = asked.network.pretrained_ann, content["network"]
    given = {
        "architecture": (asked.network.architecture, built["name"].upper()),
        "dataset": (asked.data.dataset, content["data"]["name"]),
        "width_mult": (asked.network.width_mult, built["width_mult"]),
        "kernel_size": (asked.network.kernel_size, built.get("kernel_size", 3)),
    }
    # defaults do not contradict: only what was said can be wrong
    for name, (here, there) in given.items():
        if name in asked.given and here != there:
            raise UseError(f"--{name} {here} was given, {path} says {there}")
    if "bias" in asked.given and not built["bias"]:
        raise UseError(f"--bias was given, {path} was trained without it")


def read(asked: FuseSettings):
    """(checkpoint, network) of --pretrained_ann, checked against the options that were given."""
    path = asked.network.pretrained_ann
    if not path:
        raise UseError("give --pretrained_ann, the ANN whose batch norm is to be fused")
    content = checkpoint.load(path)
    # of a published file: what its names are
    held = content.get("network", {"name": content["kind"]})["name"]
    if held in models.NETWORKS.keys() - models.CNNS.keys():
        raise UseError(
            f"{path} holds a {held}, which keeps its batch norm: "
            "give a VGG16 or ResNet20 of ann_ddp.py"
        )
    if content["format"] == checkpoint.PUBLISHED:
        return read_published(content, asked)
    if content["kind"] == "snn":
        raise UseError(
            f"{path} holds an SNN, which has no batch norm: give the ANN that it comes from"
        )
    if content["fused"]:
        raise UseError(f"{path} holds no batch norm: it is fused already, or trained without --bn")
    check_stated(content, asked)
    return content, checkpoint.rebuild(content, path)


def rules(asked: FuseSettings):
    """Options that do nothing for what is asked."""
    return [checks.kernel_rule(asked.network)]


def result(asked: FuseSettings):
    """File of the fused network."""
    return Path(f"{checkpoint.bare(asked.network.pretrained_ann)}_bn_fused.pth")


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    refuse_idle(asked.given, rules(asked))
    source = asked.network.pretrained_ann
    content, net = read(asked)
    seed_all(asked.compute.seed)
    size = net.built["image_size"]
    # noise excites every channel; the proof is about arithmetic, not about pictures
    images = torch.randn(run.random_count(size), 3, size, size)
    try:
        fused, error = convert.fuse_bn(net, images)
    except convert.ConversionError as failure:
        raise RunError(f"{source}: {failure}; nothing was written") from None

    # the fused network is the ANN's equal, so the accuracy still holds
    more = {name: content.get(name) for name in ("accuracy", "epoch")}
    more |= {"fused_from": source, "fusion_error": error}
    kind, data, settings = content["kind"], content["data"], content["settings"]
    path = result(asked)
    checkpoint.save(path, checkpoint.content(fused, kind, data, settings, **more))
    print(
        f"fused network equals the original (largest relative error {error:.1e}), written to {path}"
    )
    return {"checkpoint": str(path), "error": error}


if __name__ == "__main__":
    guard(main)
