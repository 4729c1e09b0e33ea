"""From the 80 binary frames of a recording to the input of the network.

With S = levels, T_F = frames and f = 2^(S-1)                       (docs/method.md, section 6):

frames    T_F, each the OR of 80 // T_F consecutive ones
counts    sums of f consecutive frames, zeros after the last: Q_F = ceil(T_F / f) of them
lanes     lane k: where 2^k is the power of two nearest to the count, in log2
codes     every lane resized to 48x48 in steps of 1/255, and merged: sum_k 2^k * lane_k
"""

from dataclasses import dataclass
from functools import cache, reduce
from itertools import pairwise
from math import ceil

import numpy as np
import torch
from torch.nn import functional as F

from .formats import FRAMES
from .formats import SIDE as SENSOR

SIDE = 48  # of the network's input, pixels
FINEST = 2**22  # the weights of the resize are multiples of 1 / FINEST, as in PIL


@dataclass(frozen=True)
class Coding:
    """How a recording becomes input.

    levels: S. frames: T_F. published: the published resize, see `resize`.
    """

    levels: int = 1
    frames: int = FRAMES
    published: bool = False

    @property
    def steps(self):
        """Q_F, the timesteps of the network."""
        return ceil(self.frames / 2 ** (self.levels - 1))

    @property
    def used(self):
        """How many of the 80 frames are used."""
        return FRAMES // self.frames * self.frames

    @property
    def dtype(self):
        """Type of the codes: the smallest that holds 255 * 2^k for every lane that can fire."""
        return torch.uint8 if self.levels == 1 else torch.int16


@cache
def _pixels_of_byte(device):
    """int64 [256]: the eight 0 / 1 bytes of every packed byte, as one word."""
    pixels = np.unpackbits(np.arange(256, dtype=np.uint8))
    return torch.from_numpy(pixels.view(np.int64)).to(device)


def unpack(packed):
    """np.packbits undone: uint8 [..., n] -> 0 / 1, uint8 [..., 8 n]."""
    # a look-up is ten times as fast as shifts
    words = _pixels_of_byte(packed.device).index_select(0, packed.flatten().int())
    return words.view(packed.shape).view(torch.uint8)


def count(packed, coding: Coding):
    """Recordings uint8 [B, 80, 2, 128, 16] -> uint8 counts [B, Q_F, 2, 128, 128]."""
    used = packed[:, : coding.used]
    runs = used.unflatten(1, (coding.frames, -1))  # [B, T_F, 80 // T_F, 2, 128, 16]
    # eight pixels at a time
    frames = unpack(reduce(torch.bitwise_or, runs.unbind(2)))  # [B, T_F, 2, 128, 128]

    group = 2 ** (coding.levels - 1)
    missing = -coding.frames % group
    if missing:
        # F.pad lists the last dimension first
        frames = F.pad(frames, (0,) * 7 + (missing,))
    groups = frames.unflatten(1, (-1, group))
    return groups.sum(2, dtype=torch.uint8)


def split_lanes(counts, levels):
    """Counts [B, Q_F, 2, H, W] up to 2^(S-1) -> bool lanes [B, Q_F, S, 2, H, W]."""
    # 1, 2, 3, 6, 12, ...: from there on 2^k is the nearest power
    first = [ceil(2 ** (k - 0.5)) for k in range(levels + 1)]
    lanes = [(counts >= low) & (counts < high) for low, high in pairwise(first)]
    return torch.stack(lanes, 2)


@cache
def _taps(device):
    """PIL's antialiased bilinear resize from 128 to 48 pixels as a matrix, float64 [48, 128]."""
    scale = SENSOR / SIDE
    middles = torch.arange(SIDE, dtype=torch.float64) + 0.5
    centres = middles[:, None] * scale  # [48, 1], in pixels of the sensor
    distances = (torch.arange(SENSOR) + 0.5 - centres).abs() / scale
    weights = (1 - distances).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    return ((weights * FINEST).round() / FINEST).to(device)


def resize(images, published=False):
    """0 / 1 images [..., 2, 128, 128] -> float64 [..., 2, 48, 48] in units of 1/255.

    To the last digit what PIL makes of them: columns come first, then rows, each rounded to 8 bits.
    Every sum is exact on any device: those of 0 / 1 pixels need 23 bits and fit a float32, those of
    the second pass 30.

    published: as one image of a grey channel (OFF) and an alpha channel (ON), which blots out OFF
    events where there is no ON event.
    """
    taps = _taps(images.device)
    if published:
        off, on = images.unbind(-3)
        images = torch.stack([off & on, on], -3)

    columns = images.float() @ taps.T.float()  # [..., 2, 128, 48]
    columns = columns.double().mul_(255).add_(0.5).floor_()
    resized = (taps @ columns).add_(0.5).floor_()  # [..., 2, 48, 48]
    return _without_alpha(resized) if published else resized


def _without_alpha(resized):
    """Grey that was multiplied by alpha [..., 2, H, W], as PIL divides it again."""
    grey, alpha = resized.unbind(-3)
    restored = (255 * grey / alpha).floor().clamp(max=255)
    partial = (alpha > 0) & (alpha < 255)
    return torch.stack([torch.where(partial, restored, grey), alpha], -3)


def merge_lanes(lanes, coding: Coding):
    """Lanes [B, Q_F, S, 2, 128, 128] -> merged codes [B, Q_F, 2, 48, 48] in units of 1/255."""
    codes = 0
    for k, lane in enumerate(lanes.unbind(2)):
        codes = codes + 2**k * resize(lane, coding.published)
    return codes.to(coding.dtype)


def encode(packed, coding: Coding):
    """Recordings uint8 [B, 80, 2, 128, 16] -> merged codes [B, Q_F, 2, 48, 48], units of 1/255."""
    return merge_lanes(split_lanes(count(packed, coding), coding.levels), coding)


def augment(codes, flip, shift):
    """Codes [B, T, 2, H, W] mirrored where `flip` (bool [B]), then rolled by `shift` (int [2, B]).

    shift: in y and x. y is the horizontal axis of the pictures (see `formats`), which the published
    code mirrors, too.
    """
    side = torch.arange(SIDE, device=codes.device)
    rows, columns = ((side - by[:, None]) % SIDE for by in shift)  # [B, 48]
    rows = torch.where(flip[:, None], SIDE - 1 - rows, rows)
    recording = torch.arange(len(codes), device=codes.device)[:, None, None]
    moved = codes[recording, :, :, rows[:, :, None], columns[:, None]]  # [B, H, W, T, 2]
    return moved.permute(0, 3, 4, 1, 2)
