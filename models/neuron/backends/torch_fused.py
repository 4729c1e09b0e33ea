"""Backend `torch`: eager PyTorch on any device and dtype, the one that always runs.

The rows are walked in slices that stay in the processor's caches. Inside a slice all T steps run
forwards, and, for the backward, forwards again and then in reverse. These are the equations of
`reference.py`, written into buffers where that spares passes over memory; no `.item()`.
"""

from dataclasses import replace
from functools import lru_cache

import torch

from ..reference import charge, reset, surrogate

SLICE = 1 << 17  # elements of a slice on a CPU, whose float32 buffers fit into the L2 and L3 caches


def why_not(device, dtype):
    """None: it runs everywhere."""


def _slices(x, *tensors):
    """Tensors [T, n] or [n], cut alike along n; None stays None."""
    n = x.shape[1]
    width = SLICE if x.device.type == "cpu" else n  # a GPU gains nothing from slices
    for start in range(0, n, width):
        at = slice(start, start + width)
        yield [None if each is None else each[..., at] for each in (x, *tensors)]


class _Step:
    """Fire and reset on rows [w]."""

    def __init__(self, theta, leak, config):
        self.theta = theta
        self.leak = leak
        self.config = config
        # With a theta that is not positive nothing is passed, and no potential is high enough to
        # count as a number.
        valid = torch.where(theta > 0, theta, torch.nan)
        self.unit = valid * config.gain
        self.lowest = torch.where(theta > 0, -torch.inf, torch.nan)
        self.boundaries = [self.unit * boundary for boundary in config.boundaries]

    def fire(self, u, scratch, out):
        """Merged output before the gain."""
        passed = torch.ge if self.config.inclusive else torch.gt
        passed(u, self.unit, out=out)
        for i in range(1, self.config.levels):
            passed(u, self.boundaries[i], out=scratch)
            out.add_(scratch, alpha=self.config.jumps[i])
        # 0 / 0 where u is NaN, which passes nothing; a division by 1 elsewhere.
        torch.ge(u, self.lowest, out=scratch)
        out.div_(scratch)

    def reset(self, u, o):
        """Potential after firing `o`."""
        return reset(u, o, self.theta, self.unit, self.config)


def forward(x, theta, leak, v, config, want_state):
    """See `function.py`."""
    step = _Step(theta, leak, config)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    last = None
    if want_state:
        last = torch.empty_like(x[0], dtype=theta.dtype)
    for part in _slices(x, v, out, last):
        _forward_slice(step, *part)
    return out, last


def _forward_slice(step, x, v, out, last):
    """Write the output of a slice x [T, w] and, if it is wanted, the last potential [w]."""
    steps, width = x.shape
    gain = step.config.gain
    dtype = step.unit.dtype
    scratch, o = x.new_empty((2, width), dtype=dtype)
    in_place = gain == 1 and out.dtype == dtype  # the output is computed where it belongs
    for t in range(steps):
        u = charge(v, x[t], step.leak, step.config)
        if in_place:
            o = out[t]
        step.fire(u, scratch, o)
        if not in_place:
            torch.mul(o, gain, out=out[t])
        if last is not None or t + 1 < steps:
            v = step.reset(u, o)
    if last is not None:
        last.copy_(v)


@lru_cache
def _linear_pieces(config):
    """([(slope, start, stop)], offset) of a surrogate that is piecewise linear in r, else None.

    The relative triangle is gamma * (offset + sum of slope * clamp(r, start, stop)). Each number
    is small and dyadic, so that the sum is exactly zero outside the support.
    """
    if config.surrogate != "triangle" or not config.relative:
        return None
    last = config.boundaries[-1]
    places = [0.0, *config.boundaries, 2 * last]  # where a bump starts, peaks or ends
    knots = torch.tensor(places, dtype=torch.float64, device="cpu")
    heights = surrogate(knots, replace(config, gamma=1.0))
    slopes = heights.diff() / knots.diff()
    starts = knots[:-1]
    offset = -(slopes * starts).sum()
    pieces = zip(slopes.tolist(), places, places[1:])
    return list(pieces), offset.item()


def _surrogate(r, config, linear, scratch, out):
    """d o / d r into `out`, without the factor gamma if it is linear in pieces."""
    if linear is None:
        out.copy_(surrogate(r, config))
        return
    pieces, total = linear  # the first piece is added to the offset, the others to `out`
    for slope, start, stop in pieces:
        torch.clamp(r, start, stop, out=scratch)
        total = torch.add(total, scratch, alpha=slope, out=out)


def backward(x, g, theta, leak, v, g_last, config):
    """See `function.py`."""
    step = _Step(theta, leak, config)
    gx = torch.empty_like(g)
    gv = None if v is None else torch.empty_like(v)
    # Added to slice by slice and step by step, in the same order at every run.
    sums = theta.new_zeros(3, dtype=torch.float64)
    for part in _slices(x, g, v, g_last, gx, gv):
        _backward_slice(step, sums, *part)
    d_unit, d_theta, d_leak = sums
    d_theta += d_unit * config.gain
    return gx, gv, d_theta, d_leak


def _backward_slice(
    step,
    sums,  # [3], gradients of the unit, of theta apart from it, of the leak
    x,  # [T, w]
    g,  # [T, w]
    v,  # [w]
    g_last,  # [w]
    gx,  # [T, w]
    gv_first,  # [w]
):
    """Write the gradients of a slice x and of v, and add to the sums."""
    config = step.config
    unit = step.unit
    hard = config.reset == "hard"
    d_unit, d_theta, d_leak = sums
    steps, width = x.shape
    r, f, scratch = x.new_empty((3, width), dtype=unit.dtype)
    us, os, vs = _forward_again(step, x, v, g_last is not None, scratch)
    linear = _linear_pieces(config)
    divisor = unit / config.gamma if linear else unit

    gv = g_last  # gradient of the potential after step t; None: it is not used
    for t in reversed(range(steps)):
        u = us[t]
        o = os[t]
        torch.div(u, unit, out=r)
        _surrogate(r, config, linear, scratch, out=f)
        upstream = g[t]
        if config.gain != 1:
            # in its own type a small gradient would lose its last bits
            upstream = upstream.to(unit.dtype) * config.gain
        if gv is not None and not config.detach_reset:
            upstream = upstream - gv * (u if hard else unit)
        gu = f.mul_(upstream).div_(divisor)
        d_unit -= torch.dot(r, gu)

        if gv is not None:
            if config.reset == "soft":
                d_unit -= torch.dot(o, gv)
            elif hard:
                gv = gv.masked_fill(o > 0, 0.0)
            else:
                d_theta -= (gv * (o > 0)).sum()
            gu.add_(gv)
        torch.mul(gu, config.input_gain, out=gx[t])
        if vs[t] is not None:
            d_leak += torch.dot(gu, vs[t])
            gv = gu * step.leak
    if gv_first is not None:
        gv_first.copy_(gv)


def _forward_again(step, x, v, want_state, scratch):
    """Potentials before (us) and after (vs[1:]) the resets of a slice, and outputs before the gain.

    vs[t] -> us[t] -> os[t] -> vs[t + 1]; the last two are left out of the last step if not wanted.
    """
    steps, width = x.shape
    os = x.new_empty((steps, width), dtype=step.unit.dtype)
    us = []
    vs = [v]
    for t in range(steps):
        u = charge(vs[t], x[t], step.leak, step.config)
        us.append(u)
        if want_state or t + 1 < steps:
            step.fire(u, scratch, os[t])
            v = step.reset(u, os[t])
            vs.append(v)
    return us, os, vs
