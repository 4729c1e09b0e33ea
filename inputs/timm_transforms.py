"""timm's augmentation of the transformer's images, one by one in worker processes; and what of it
the in-memory path does in batches on the device.
"""

from dataclasses import dataclass, replace
from functools import partial

from timm.data import create_transform

from engine.errors import UseError
from engine.recipes.timm_parts import timms_errors
from engine.settings import (
    finite,
    nonnegative_float,
    number,
    option,
    positive_float,
    share,
)

from .images import IN_MEMORY, Memory

RESIZINGS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class AugmentOptions:
    """augmentation"""

    no_aug: bool = option(False, "train on the plain images")
    # the crop is drawn from these bounds, then resized to the side of the network's input
    scale: tuple = option(
        (0.08, 1.0),
        "smallest and largest area of the random crop, as shares of the image",
        finite,
        nargs=2,
    )
    ratio: tuple = option(
        (3 / 4, 4 / 3),
        "smallest and largest ratio of width to height of the random crop",
        finite,
        nargs=2,
    )
    # in the place of that crop
    pad_crop: int = option(
        0,
        "zeros around an image before a random crop on the device; needs --scale 1 1, "
        "--ratio 1 1, --hflip 0 or 0.5 and no further augmentation than mixing",
        number(int, low=0, high=IN_MEMORY),
        unit="pixels",
    )
    hflip: float = option(0.5, "chance of a horizontal flip", share)
    vflip: float = option(0.0, "chance of a vertical flip", share)
    color_jitter: float = option(
        0.4, "strength of the colour jitter without --aa", nonnegative_float
    )
    aa: str | None = option(None, "automatic augmentation, e.g. rand-m9-n1-mstd0.4-inc1")
    reprob: float = option(0.0, "chance of random erasing", share)
    # zeros, one colour, or a colour for every pixel
    remode: str = option("const", "what random erasing puts", choices=("const", "rand", "pixel"))
    recount: int = option(1, "patches of random erasing in an image", number(int, low=1, high=100))
    train_interpolation: str = option(
        "random", "interpolation of resizing in training", choices=("random", *RESIZINGS)
    )
    aug_repeats: int = option(
        0,
        "how often an epoch shows an image (and as many times fewer images)",
        number(int, low=0, high=100),
    )

    # these govern the evaluation, too: a network is measured by what it was trained with
    interpolation: str = option(
        "bicubic", "interpolation of resizing in evaluation", choices=RESIZINGS
    )
    crop_pct: float | None = option(
        None,
        "share of the side of an image that is evaluated; default: timm's",
        number(float, above=0, high=1),
    )
    # of pixels in [0, 1]
    mean: tuple | None = option(
        None, "mean of each channel; default: the data set's", finite, nargs=3
    )
    std: tuple | None = option(
        None, "deviation of each channel; default: the data set's", positive_float, nargs=3
    )

    @property
    def device_side(self):
        """Whether it is what the in-memory path does on the device: crop, flip (and mixing)."""
        further = any((self.aa, self.reprob, self.vflip, self.color_jitter))
        resized = {*self.scale, *self.ratio} != {1}
        # that path flips half of the images, or none
        return self.no_aug or not (further or resized or self.hflip not in (0, 0.5))


@timms_errors()
def make_transform(options: AugmentOptions, common, training):
    """timm's transform of a PIL image to float32 [3, side, side].

    common: {"input_size": side in pixels, "mean", "std"}.
    Raises:
        UseError: timm refuses one of the options.
    """
    if not training:
        return create_transform(
            **common, interpolation=options.interpolation, crop_pct=options.crop_pct
        )
    return create_transform(
        **common,
        is_training=True,
        no_aug=options.no_aug,
        scale=options.scale,
        ratio=options.ratio,
        hflip=options.hflip,
        vflip=options.vflip,
        color_jitter=options.color_jitter,
        auto_augment=options.aa,
        interpolation=options.train_interpolation,
        re_prob=options.reprob,
        re_mode=options.remode,
        re_count=options.recount,
    )


def _check_values(options: AugmentOptions):
    """Refuse what timm would refuse only in the middle of a run.

    Raises:
        UseError: bounds that no crop is between, or a filter that --aa does not turn pictures with.
    """
    for name in ("scale", "ratio"):
        low, high = getattr(options, name)
        if not 0 < low <= high:
            raise UseError(f"--{name} {low:g} {high:g}: expected 0 < smallest <= largest")
    filter_ = options.train_interpolation
    if options.aa and filter_ in ("box", "hamming", "lanczos"):
        raise UseError(
            f"--aa does not turn pictures with --train_interpolation {filter_}: "
            "give nearest, bilinear or bicubic"
        )


def augmented(data, options: AugmentOptions):
    """The `Data` with the augmentation and normalisation of `AugmentOptions`.

    Raises:
        UseError: timm refuses one of the options.
    """
    _check_values(options)
    # digits are never mirrored
    if not data.flip:
        options = replace(options, hflip=0.0)
    mean, std = options.mean or data.mean, options.std or data.std
    common = {"input_size": data.about["image_size"], "mean": mean, "std": std}
    # worker processes can receive a partial, but not a closure
    transforms = partial(make_transform, options, common)
    # a refused value is told of at once, not by a worker in the middle of the run
    transforms(True)
    in_memory = isinstance(data.train, Memory) and options.device_side
    return replace(
        data,
        about=data.about | {"mean": list(mean), "std": list(std)},
        mean=mean,
        std=std,
        crop=0 if options.no_aug else options.pad_crop,
        flip=options.hflip > 0 and not options.no_aug,
        repeats=max(1, options.aug_repeats),
        drop_last=True,
        transforms=None if in_memory else transforms,
    )
