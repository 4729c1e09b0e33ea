"""Trained networks for anyone: a network that is ready for images, and what these must be."""

from dataclasses import dataclass

import numpy as np
import torch

from engine import checkpoint
from engine.errors import UseError

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
    about = content["data"]
    if content["kind"] == "vggsnn":
        raise UseError(f"{name} takes no images but frames of events: try main_test.py")
    entry = TABLE[about["name"]]
    mean, std = about.get("mean") or entry.mean, about.get("std") or entry.std
    if mean is None:
        raise UseError(
            f"{name} does not say how its images are normalised, which was measured on its "
            "training images: python -m experiments.zoo add stores it"
        )
    numbers = [str(label) for label in range(about["num_classes"])]
    net = checkpoint.rebuild(content).eval()
    net.classes = about.get("classes") or entry.labels.split() or numbers
    net.mean, net.std = tuple(mean), tuple(std)
    net.transform = Transform(about["image_size"], net.mean, net.std)
    return net
