"""Trained networks for anyone: a network that is ready for images, and what these must be."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from engine import checkpoint
from engine.errors import MALFORMED, UseError, reason

from .table import TABLE


@dataclass(frozen=True)
class Transform:
    """A picture, PIL's in RGB or uint8 [H, W, 3], as a normalised image float32 [3, side, side].

    The shorter side is scaled to `side` pixels and the middle cut out. mean, std: per channel, of
    pixels in [0, 1].
    """

    side: int
    mean: tuple
    std: tuple

    def __call__(self, picture):
        from torchvision.transforms.v2 import functional

        image = functional.to_image(np.array(picture))
        image = functional.resize(image, self.side, antialias=True)
        image = functional.center_crop(image, self.side)
        image = functional.to_dtype(image, torch.float32, scale=True)
        return functional.normalize(image, self.mean, self.std).as_subclass(torch.Tensor)


def from_pretrained(name):
    """The network of a checkpoint, a run folder or a name of trained_models/zoo/zoo.csv.

    Returns:
        In eval mode, normalised images [B, 3, H, W] -> [B, classes], with the attributes `classes`
        (their names, where these are known, else their numbers), `mean` and `std` (per channel, of
        pixels in [0, 1]) and `transform`, see `Transform`.
    Raises:
        UseError: there is no such network, or it takes no images that are known.
    """
    content = checkpoint.load(name)
    if content["format"] == checkpoint.PUBLISHED:
        raise UseError(
            f"{name} is a file of the published code, which says nothing of its network: run "
            "absorb_bn.py or snn_ddp.py on it first"
        )
    if content["kind"] == "vggsnn":
        raise UseError(f"{name} takes no images but frames of events: try main_test.py")
    net = checkpoint.rebuild(content, name).eval()
    try:
        net.classes, net.mean, net.std = _about(content["data"], net)
    except MALFORMED as error:
        raise UseError(
            f"{name} does not say which images it takes ({type(error).__name__}: {reason(error)}): "
            "give another file, or write it anew"
        ) from None
    if net.mean is None:
        raise UseError(
            f"{name} does not say how its images are normalised, which was measured on its "
            "training images: python -m experiments.zoo add stores it"
        )
    net.transform = Transform(content["data"]["image_size"], net.mean, net.std)
    return net


def _about(data, net):
    """(names of the classes, mean, std) that the data of a checkpoint says of its network's images;
    the last two are None where it does not say them.

    Raises:
        `MALFORMED`: they cannot be those.
    """
    entry, count, built = TABLE[data["name"]], net.head.out_features, net.built
    side = built.get("image_size") or built["img_size"]
    classes = data.get("classes") or entry.labels.split() or [str(n) for n in range(count)]
    sizes = data["image_size"], data["num_classes"], len(classes)
    if sizes != (side, count, count) or {*map(type, classes)} != {str}:
        raise ValueError(f"{sizes[0]} pixels, {sizes[1]} classes with {sizes[2]} names")
    mean, std = data.get("mean") or entry.mean, data.get("std") or entry.std
    if mean is None:
        return classes, None, None
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    if len(mean) != 3 or len(std) != 3 or not math.isfinite(sum(mean + std)) or min(std) <= 0:
        raise ValueError(f"mean {mean}, std {std}")
    return classes, mean, std
