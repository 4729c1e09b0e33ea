"""From a recording's 80 binary frames to the network's input, for S lanes and T_F frames (SPEC section 6), f = 2^(S-1):

frames    T_F, each the OR of 80 // T_F consecutive ones
counts    sums of f consecutive frames, zeros after the last: Q_F = ceil(T_F / f) of them
lanes     lane k: where 2^k is the power of two nearest to the count, in log2
codes     every lane resized to 48x48 in steps of 1/255, and merged: sum_k 2^k * lane_k, the input of one time step
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import ceil

import torch
from torch.nn import functional as F

from .formats import FRAMES
from .formats import SIDE as SENSOR

SIDE = 48  # of the network's input, pixels


@dataclass(frozen=True)
class Coding:
    """How a recording becomes input: `lanes` S, `frames` T_F, `published` resize (see `resize`)."""

    lanes: int = 1
    frames: int = FRAMES
    published: bool = False

    @property
    def steps(self):
        """Q_F, the time steps."""
        return ceil(self.frames / 2 ** (self.lanes - 1))

    @property
    def used(self):
        """How many of the 80 frames are used."""
        return FRAMES // self.frames * self.frames

    @property
    def dtype(self):
        """Of the codes: the smallest that holds 255 * 2^k for every lane that can fire."""
        return torch.uint8 if self.lanes == 1 else torch.int16


def merge_frames(packed, count):
    """[B, 80, ...] bits in bytes -> [B, count, ...]: the OR over runs of 80 // count frames; what is left over is dropped."""
    runs = packed[:, : FRAMES // count * count].unflatten(1, (count, -1))
    out = runs[:, :, 0]
    for i in range(1, runs.shape[2]):
        out = out | runs[:, :, i]
    return out


@cache
def _eight_pixels(device):
    """The eight 0 / 1 bytes of every packed byte, as one word."""
    bits = (
        torch.arange(256, dtype=torch.uint8)[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8)
        & 1
    )
    return bits.view(torch.int64).flatten().to(device)


def unpack(packed):
    """np.packbits undone: uint8 [..., n] -> 0 / 1, uint8 [..., 8 n]."""
    words = _eight_pixels(packed.device).index_select(0, packed.flatten().int())
    return words.view(torch.uint8).view(*packed.shape[:-1], -1)


def count(frames, lanes):
    """0 / 1 frames [B, T_F, 2, H, W] -> uint8 sums [B, Q_F, 2, H, W] of 2^(S-1) frames each."""
    group = 2 ** (lanes - 1)
    if rest := frames.shape[1] % group:
        frames = F.pad(frames, (0,) * 7 + (group - rest,))
    return frames.unflatten(1, (-1, group)).sum(2, dtype=torch.uint8)


def split_lanes(counts, lanes):
    """Counts [B, Q_F, 2, H, W] up to 2^(S-1) -> bool lanes [B, Q_F, S, 2, H, W]."""
    edges = [
        ceil(2 ** (k - 0.5)) for k in range(lanes + 1)
    ]  # 1, 2, 3, 6, 12 ...: from there on 2^k is the nearest
    return torch.stack([(counts >= low) & (counts < high) for low, high in pairwise(edges)], 2)


@cache
def _taps(device):
    """PIL's antialiased bilinear resize from 128 to 48 pixels as a matrix [48, 128] of multiples of 2^-22."""
    scale = SENSOR / SIDE
    centres = (torch.arange(SIDE, dtype=torch.float64)[:, None] + 0.5) * scale
    weights = (1 - (torch.arange(SENSOR) + 0.5 - centres).abs() / scale).clamp(min=0)
    return ((weights / weights.sum(1, keepdim=True) * 2**22).round() / 2**22).to(device)


def resize(images, published=False):
    """0 / 1 images [..., 2, 128, 128] -> float64 [..., 2, 48, 48] in units of 1/255, to the last digit what PIL makes of them.

    As in PIL columns come first, then rows, each rounded to 8 bits. Every sum is exact on any device: those of 0 / 1 pixels
    need 23 bits and fit a float32, those of the second pass 30. `published`: as one image of a grey channel (OFF) and an alpha
    channel (ON), which blots out OFF events where there is no ON event.
    """
    taps = _taps(images.device)
    if published:
        off, on = images.unbind(-3)
        images = torch.stack([off & on, on], -3)
    x = (images.float() @ taps.T.float()).double().mul_(255).add_(0.5).floor_()
    x = (taps @ x).add_(0.5).floor_()
    if published:
        grey, alpha = x.unbind(-3)
        restored = (255 * grey / alpha).floor().clamp(max=255)
        x = torch.stack([torch.where((alpha > 0) & (alpha < 255), restored, grey), alpha], -3)
    return x


def encode(packed, coding):
    """Recordings uint8 [B, 80, 2, 128, 16] -> merged codes [B, Q_F, 2, 48, 48] in units of 1/255 (see the module's text)."""
    lanes = split_lanes(
        count(unpack(merge_frames(packed, coding.frames)), coding.lanes), coding.lanes
    )
    return sum(2**k * resize(lanes[:, :, k], coding.published) for k in range(coding.lanes)).to(
        coding.dtype
    )


def augment(codes, flip, shift):
    """[B, T, 2, H, W], bool flip [B], int shift [2, B] -> mirrored where `flip`, then rolled by `shift` in y and x.

    y is the horizontal axis of this data set's pictures (see data/events.py), which the published code mirrors, too.
    """
    side = torch.arange(SIDE, device=codes.device)
    rows, columns = ((side - by[:, None]) % SIDE for by in shift)
    rows = torch.where(flip[:, None], SIDE - 1 - rows, rows)
    each = torch.arange(len(codes), device=codes.device)
    return codes[each[:, None, None], :, :, rows[:, :, None], columns[:, None]].permute(
        0, 3, 4, 1, 2
    )
