"""Trained networks for anyone: a network that is ready for images, and what these must be."""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from engine import checkpoint
from engine.errors import MALFORMED, UseError, reason
from models import image_side

from .images import IN_MEMORY, MARGIN, fit, to_rgb, turn
from .table import TABLE


@dataclass(frozen=True)
class Transform:
    """A picture, PIL's or uint8 [H, W, 3], as a normalised image float32 [3, side, side].

    PIL's is made RGB without alpha, and turned as the camera says (EXIF). The shorter side is
    scaled and the middle cut out.
    mean, std: per channel, of pixels in [0, 1].
    shorter: pixels of the scaled side, None: as `images.fit` does. interpolation: one of
    torchvision's.
    Raises, when called:
        ValueError: it is no such array. UseError: its white is unknown, see `images.to_rgb`.
    """

    side: int
    mean: tuple
    std: tuple
    shorter: int | None = None
    interpolation: str = "bilinear"

    def __call__(self, picture):
        from PIL import Image
        from torchvision.transforms.v2 import InterpolationMode, functional

        if isinstance(picture, Image.Image):
            picture = to_rgb(picture)
            turn(picture)
        pixels = np.array(picture)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(
                "a picture is PIL's or an array uint8 [H, W, 3], "
                f"got {pixels.dtype} {list(pixels.shape)}"
            )
        if self.shorter is None:
            image = functional.to_image(fit(Image.fromarray(pixels), self.side))
        else:
            kind = InterpolationMode(self.interpolation)
            image = functional.to_image(pixels)
            image = functional.resize(image, self.shorter, kind, antialias=True)
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
    checkpoint.check_own(content, name)
    if content["kind"] == "vggsnn":
        raise UseError(f"{name} takes no images but frames of events: try main_test.py")
    net = checkpoint.rebuild(content, name).eval()
    # a transformer trained with --TET reads out each step, for its loss
    net.per_step = False
    with _told(name):
        net.classes = _classes(content["data"], net)
    net.mean, net.std = normalisation(content, name)
    if net.mean is None:
        raise UseError(
            f"{name} does not say how its images are normalised, which was measured on its "
            "training images: python -m experiments.zoo add stores it"
        )
    with _told(name):
        large = content["data"]["image_size"] > IN_MEMORY
        how = resizing(content, name) if large else {}
        net.transform = Transform(
            content["data"]["image_size"],
            net.mean,
            net.std,
            **how,
        )
    return net


def resizing(content, path):
    """How the evaluation of the network of the checkpoint `path` scales pictures: {"shorter":
    pixels of the shorter side, of which the middle is cut out, "interpolation": torchvision's}.

    Raises:
        UseError: its settings cannot be those.
    """
    with _told(path):
        return _resizing(content)


def _resizing(content):
    side = content["data"]["image_size"]
    if side <= IN_MEMORY:
        return {"shorter": side, "interpolation": "bilinear"}
    if content["kind"] != "sdt":
        return {"shorter": round(side * MARGIN), "interpolation": "bilinear"}
    settings = content["settings"]
    # timm's own where the training named none
    share = float(settings.get("crop_pct") or 0.875)
    kind = settings.get("interpolation") or "bicubic"
    return {"shorter": math.floor(side / share), "interpolation": kind}


@contextmanager
def _told(path):
    """What cannot be read of the images of a checkpoint is told."""
    try:
        yield
    except MALFORMED as error:
        raise UseError(
            f"{path} does not say which images it takes ({type(error).__name__}: {reason(error)}): "
            "give another file, or write it anew"
        ) from None


def class_names(data):
    """Names of the classes of the data that a checkpoint describes, [] if they have none.

    None of a data set that is not known here.
    """
    if data.get("classes"):
        return data["classes"]
    # a list, since a damaged file's name may be what no dictionary takes
    if data["name"] not in list(TABLE):
        return None
    return TABLE[data["name"]].labels.split()


def _classes(data, net):
    """Names of the classes that the data of a checkpoint says of its network's images.

    Raises:
        `MALFORMED`: they cannot be those.
    """
    count = net.head.out_features
    known = class_names(data)
    if known is None:
        raise ValueError(f"the data set {data['name']!r} is not known")
    names = known or [str(number) for number in range(count)]

    side = image_side(net)
    said = (data["image_size"], data["num_classes"], len(names))
    fits = said == (side, count, count)
    words = all(isinstance(name, str) for name in names)
    if not (fits and words):
        raise ValueError(f"{said[0]} pixels, {said[1]} classes with {said[2]} names")
    return names


def normalisation(content, path):
    """(mean, std) per channel, of pixels in [0, 1], with which a checkpoint's network was trained.

    content: what `checkpoint.load(path)` returned. None where a file of an earlier version does not
    say them.

    Raises:
        UseError: they cannot be those.
    """
    data = content["data"]
    # earlier versions have those of a transformer's configuration in its settings alone
    stored = content["settings"] if content["kind"] == "sdt" else {}
    with _told(path):
        entry = TABLE.get(data["name"])
        mean = data.get("mean") or stored.get("mean") or (entry and entry.mean)
        std = data.get("std") or stored.get("std") or (entry and entry.std)
        if mean is None:
            return None, None

        mean = tuple(map(float, mean))
        std = tuple(map(float, std))
        channels = len(mean) == len(std) == 3
        finite = math.isfinite(sum(mean + std))
        if not (channels and finite and min(std) > 0):
            raise ValueError(f"mean {mean}, std {std}")
        return mean, std
