"""From frames to the network's input: recorded numbers, the resize of Pillow, augmentation."""

import numpy as np
import pytest
import torch
from PIL import Image

from inputs.events import coding
from inputs.events.coding import Coding
from tests.helpers import GOLDEN
from tests.inputs.events.made import digest

NUMBERS = np.load(GOLDEN / "C_dvs_pack.npz")
FRAMES = torch.from_numpy(NUMBERS["frames"])[None]  # one recording, packed
TAGS = [k.removesuffix("_before_shape") for k in NUMBERS.files if k.endswith("_before_shape")]
BOTH = pytest.mark.parametrize("tag", TAGS)


def lanes_of(packed, levels, frames):
    counts = coding.count(packed, Coding(levels, frames))
    return coding.split_lanes(counts, levels)[0]


def recorded(tag):
    """The lanes of the recording that a tag such as S4_Tp80 means."""
    return lanes_of(FRAMES, int(tag[1]), int(tag.partition("Tp")[2]))


# ---- recorded numbers ----


@BOTH
def test_lanes_are_the_published_ones(tag):
    lanes = recorded(tag)
    assert lanes.shape == tuple(NUMBERS[f"{tag}_before_shape"])
    assert digest(np.packbits(lanes)) == NUMBERS[f"{tag}_before_sha256"]


@BOTH
def test_the_published_resize(tag):
    published = coding.resize(recorded(tag), published=True)
    if f"{tag}_after_u8" in NUMBERS:
        assert np.array_equal(published, NUMBERS[f"{tag}_after_u8"])
    else:
        assert digest(published.to(torch.uint8)) == NUMBERS[f"{tag}_after_sha256"]


@BOTH
def test_the_plain_resize_of_the_polarity_that_the_published_one_leaves_alone(tag):
    lanes = recorded(tag)
    plain, published = coding.resize(lanes), coding.resize(lanes, published=True)
    assert (plain[:, :, 1] - published[:, :, 1]).abs().max() <= 1


def test_plain_lif_at_all_frames():
    first = coding.resize(coding.unpack(FRAMES[0, :4]), published=True)
    assert np.array_equal(first, NUMBERS["mc0_Tp0_after_u8"])


def test_plain_lif_at_ten_frames():
    codes = coding.encode(FRAMES, Coding(1, 10, published=True))
    assert digest(codes[0]) == NUMBERS["mc0_Tp10_after_sha256"]


# ---- by hand ----


def test_unpacking_is_the_inverse_of_packing():
    bits = np.random.default_rng(0).integers(0, 2, (3, 5, 128), np.uint8)
    packed = torch.from_numpy(np.packbits(bits, axis=-1))
    assert packed.shape == (3, 5, 16)
    assert np.array_equal(coding.unpack(packed), bits)


def test_the_first_of_eight_pixels_is_the_highest_bit():
    pixels = coding.unpack(torch.tensor([0b01000000], dtype=torch.uint8))
    assert pixels.tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


def test_resize_is_pillows():
    density = np.linspace(0.01, 0.9, 20)[:, None, None, None]
    images = np.random.default_rng(0).random((20, 2, 128, 128)) < density
    resized = coding.resize(torch.from_numpy(images))
    for got, pair in zip(resized, images):
        for polarity in (0, 1):
            image = Image.fromarray(pair[polarity] * np.uint8(255))
            want = image.resize((48, 48), Image.Resampling.BILINEAR)
            assert np.array_equal(got[polarity], want)


def test_counts_become_the_nearest_power():
    counts = torch.arange(9, dtype=torch.uint8).view(1, 9, 1, 1, 1)
    lanes = coding.split_lanes(counts, 4)[0, :, :, 0, 0, 0]
    worth = (lanes.long() * torch.tensor([1, 2, 4, 8])).sum(1)
    assert worth.tolist() == [0, 1, 2, 4, 4, 4, 8, 8, 8]
    assert lanes.sum(1).max() == 1


@pytest.mark.parametrize(
    ("levels", "frames", "steps"),
    [
        (4, 80, 10),
        (3, 40, 10),
        (4, 40, 5),
        (3, 20, 5),
        (4, 20, 3),
        (3, 10, 3),
        (1, 80, 80),
        (1, 10, 10),
        (3, 9, 3),
        (4, 10, 2),
    ],
)
def test_steps(levels, frames, steps):
    how = Coding(levels, frames)
    assert how.steps == steps == len(lanes_of(FRAMES, levels, frames))
    assert coding.encode(FRAMES, how).shape == (1, steps, 2, 48, 48)


def test_a_frame_is_the_or_of_a_run():
    frames = coding.count(FRAMES, Coding(1, 20))[0]  # one lane: a count is a frame
    run = FRAMES[0, 0] | FRAMES[0, 1] | FRAMES[0, 2] | FRAMES[0, 3]
    assert torch.equal(frames[0], coding.unpack(run))


def test_the_last_group_is_filled_up_with_zeros():
    frames = coding.count(FRAMES, Coding(1, 20))[0]
    last = frames[16:].sum(0)
    worth = torch.tensor([1, 2, 4, 8]).view(4, 1, 1, 1)
    got = (lanes_of(FRAMES, 4, 20)[2].long() * worth).sum(0)
    assert torch.equal(got, torch.where(last == 3, 4, last))


def test_codes_merge_the_lanes():
    """Input of a step by hand: the sum over the lanes of 2^k times the resized lane."""
    codes = coding.encode(FRAMES, Coding(4, 20))
    lanes = lanes_of(FRAMES, 4, 20)
    want = sum(2**k * coding.resize(lanes[:, k]) for k in range(4))
    assert codes.dtype == torch.int16
    assert torch.equal(codes[0].double(), want)


def test_augmentation_is_flip_then_roll():
    codes = torch.arange(3 * 2 * 2 * 48 * 48).view(3, 2, 2, 48, 48)
    flip = torch.tensor([False, True, True])
    shift = torch.tensor([[5, 0, -3], [-2, 0, 4]])
    out = coding.augment(codes, flip, shift)
    assert torch.equal(out[0], codes[0].roll((5, -2), (-2, -1)))
    assert torch.equal(out[1], codes[1].flip(-2))  # y: the last axis of the published [p, x, y]
    assert torch.equal(out[2], codes[2].flip(-2).roll((-3, 4), (-2, -1)))
