"""timm's augmentation: in worker processes or on the device, and drawn alike for any of them."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from engine.dist import World
from engine.errors import UseError
from inputs.images import Files
from inputs.loader import BatchOptions, loaders
from inputs.table import DataOptions, load
from inputs.timm_transforms import AugmentOptions, augmented, make_transform

WORLD = World()
# all that is not crop, flip or mixing is off
DEVICE_SIDE = AugmentOptions(scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=0.0)
COMMON = {"input_size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture(scope="module")
def digits():
    return load(DataOptions("DIGITS"), WORLD)


def first_batch(data, workers=0, size=8):
    """The first training batch [B, 3, H, W], and its loader."""
    loader, *_ = loaders(data, BatchOptions(size, workers=workers), 0, WORLD)
    images, *_ = next(loader.epoch(1))
    return images, loader


@pytest.mark.parametrize(
    ("changes", "device_side"),
    [
        ({}, True),
        ({"pad_crop": 4, "hflip": 0.0}, True),
        ({"aa": "rand-m9", "no_aug": True}, True),
        ({"aa": "rand-m9"}, False),
        ({"reprob": 0.1}, False),
        ({"vflip": 0.5}, False),
        ({"color_jitter": 0.4}, False),
        ({"scale": (0.9, 1.0)}, False),
        ({"ratio": (1.0, 1.1)}, False),
        ({"hflip": 0.3}, False),
    ],
    ids=str,
)
def test_what_the_device_does_alone(changes, device_side, digits):
    options = replace(DEVICE_SIDE, **changes)
    assert options.device_side is device_side
    data = augmented(replace(digits, flip=True), options)
    assert (data.transforms is None) is device_side


def test_image_files_are_augmented_by_timm(digits):
    files = Files(["a.png"], torch.zeros(1, dtype=torch.long))
    data = augmented(replace(digits, train=files, flip=True), replace(DEVICE_SIDE, pad_crop=4))
    assert data.transforms is not None
    assert (data.crop, data.flip, data.drop_last) == (4, True, True)


@pytest.mark.parametrize(
    ("changes", "crop", "flip"),
    [({}, 4, True), ({"hflip": 0.0}, 4, False), ({"no_aug": True}, 0, False)],
    ids=str,
)
def test_crop_and_flip_of_the_device(changes, crop, flip, digits):
    data = augmented(replace(digits, flip=True), replace(DEVICE_SIDE, pad_crop=4, **changes))
    assert (data.crop, data.flip) == (crop, flip)
    assert not augmented(digits, DEVICE_SIDE).flip  # digits are not mirrored


def test_normalisation_is_the_data_sets_or_the_options(digits):
    data = augmented(digits, DEVICE_SIDE)
    assert (data.mean, data.std) == (digits.mean, digits.std)
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    data = augmented(digits, replace(DEVICE_SIDE, **own))
    assert {"mean": data.mean, "std": data.std} == own
    grey = make_transform(AugmentOptions(), {"input_size": 32} | own, False)
    pixels = grey(Image.new("RGB", (32, 32), (0, 0, 0)))
    assert pixels[:, 5, 5].tolist() == pytest.approx([-0.25, -0.4, -0.5])


def test_images_are_the_same_for_any_number_of_workers(digits):
    options = AugmentOptions(aa="rand-m9-n1-mstd0.4-inc1", reprob=0.5, aug_repeats=2)
    data = augmented(digits, options)
    images, loader = first_batch(data)
    assert torch.equal(images, first_batch(data, workers=2)[0])
    # the same image stands twice in a row, augmented anew
    _, order, *_ = next(loader.shares(1))
    assert order[0] == order[1]
    assert not torch.equal(images[0], images[1])


def names(transform):
    return [type(part).__name__ for part in transform.transforms]


def test_training_and_evaluation_have_the_transforms_that_are_asked_for():
    options = AugmentOptions(aa="rand-m9", reprob=0.5, vflip=0.5, crop_pct=0.8)
    training = names(make_transform(options, COMMON, True))
    for part in ("RandAugment", "RandomErasing", "RandomVerticalFlip"):
        assert part in training
    plain = names(make_transform(replace(options, no_aug=True), COMMON, True))
    assert not {"RandAugment", "RandomErasing", "RandomVerticalFlip"} & {*plain}
    resize, crop, *_ = make_transform(options, COMMON, False).transforms
    assert (resize.size, crop.size) == (40, (32, 32))  # 32 / 0.8


def test_digits_are_mirrored_nowhere(digits):
    """The workers' transforms heed the data set as the device does."""
    flip = "RandomHorizontalFlip"
    for mirrored in (False, True):
        data = augmented(replace(digits, flip=mirrored), AugmentOptions())
        assert (flip in names(data.transforms(True))) == mirrored


def test_a_refused_value_is_told_of_before_training(digits):
    with pytest.raises(UseError, match="timm refuses one of the options"):
        augmented(digits, AugmentOptions(aa="foo-m9"))
