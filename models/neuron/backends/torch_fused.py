"""Backend `torch`: eager PyTorch on any device and dtype, the one that always runs.

The rows are walked in slices that stay in the processor's caches; inside a slice all T steps run forwards, and, for
the backward, forwards again and then in reverse. No lane tensors, no `.item()`. Equations: `reference.py`.
"""

import torch

from ..reference import reset_amount, surrogate

SLICE = (
    1 << 17
)  # elements per slice on a CPU: the few float32 buffers of a slice fit into the L2 and L3 caches


def why_not(device, dtype):
    """None: it runs everywhere."""


def _slices(x):
    n = x.shape[1]
    width = SLICE if x.device.type == "cpu" else n
    return [slice(lo, min(lo + width, n)) for lo in range(0, n, width)]


def _charge(v, current, leak, config, out):
    """u = leak * v + input_gain * current into `out`; v None means 0, and then u may be the current itself."""
    if v is None and config.input_gain == 1 and current.dtype == out.dtype:
        return current
    if v is None:
        return out.copy_(current).mul_(config.input_gain)
    return torch.mul(v, leak, out=out).add_(current, alpha=config.input_gain)


def _fire(u, edges, lowest, config, o, scratch):
    """Merged output before the gain into `o`; scratch is overwritten.

    u / edge > 2^i, rounded, is u > edge * 2^i exactly: the product is exact, and no quotient rounds across 1.
    """
    passed = torch.ge if config.inclusive else torch.gt
    passed(u, edges[0], out=o)
    for at, jump in zip(edges[1:], config.jumps[1:]):
        passed(u, at, out=scratch)
        o.add_(scratch, alpha=jump)
    o.div_(
        torch.ge(u, lowest, out=scratch)
    )  # NaN stays NaN (0 / 0), everything else is divided by 1


def _reset(u, o, theta, edge, config, out):
    """v after the reset into `out`, which may be u."""
    if config.reset == "soft":
        return torch.sub(u, reset_amount(o, edge, config), out=out)
    if config.reset == "soft_theta":
        return torch.sub(u, theta * (o > 0), out=out)
    return out.copy_(u).masked_fill_(o > 0, 0.0)


def _constants(theta, config):
    """(edge, all edges, lowest potential that is a number); all NaN if theta is not positive, so that nothing passes."""
    edge = torch.where(theta > 0, theta, torch.nan) * config.gain
    lowest = torch.where(theta > 0, -torch.inf, torch.nan).to(theta.dtype)
    return edge, [edge * factor for factor in config.edges], lowest


def forward(x, theta, leak, v, config, want_state):
    """See `function.py`."""
    steps, dtype = x.shape[0], theta.dtype
    out, last = (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty_like(x[0], dtype=dtype),
    )
    edge, edges, lowest = _constants(theta, config)
    direct = config.gain == 1 and x.dtype == dtype
    for at in _slices(x):
        potential, after, scratch, o = torch.empty(
            (4, at.stop - at.start), dtype=dtype, device=x.device
        )
        before = None if v is None else v[at]
        for t in range(steps):
            u = _charge(before, x[t, at], leak, config, potential)
            o = out[t, at] if direct else o
            _fire(u, edges, lowest, config, o, scratch)
            if t + 1 < steps or want_state:
                before = _reset(u, o, theta, edge, config, after)
            if not direct:
                torch.mul(o, config.gain, out=out[t, at])
        if want_state:
            last[at].copy_(before)
    return out, last if want_state else None


def _pieces(config):
    """The relative triangle surrogate is piecewise linear in r: (knots, offset, slopes) for a gamma of 1.

    All three are small dyadic numbers, so the sum is exactly zero outside the support.
    """
    if config.surrogate != "triangle" or not config.relative:
        return None
    knots = [0.0, *config.edges, 2 * config.edges[-1]]
    at = [
        sum(c * max(0.0, 1 - abs(k / e - 1)) for c, e in zip(config.slopes, config.edges))
        for k in knots
    ]
    slopes = [(b - a) / (k - j) for a, b, j, k in zip(at, at[1:], knots, knots[1:])]
    return knots, -sum(s * k for s, k in zip(slopes, knots)), slopes


def _surrogate(r, config, pieces, f, scratch):
    """(d staircase / d r) / gamma of the triangle, or d staircase / d r, into f."""
    if pieces is None:
        f.copy_(surrogate(r, config))
        return
    knots, offset, slopes = pieces
    for i, slope in enumerate(slopes):
        torch.clamp(r, knots[i], knots[i + 1], out=scratch)
        torch.add(f if i else offset, scratch, alpha=slope, out=f)


def backward(x, g, theta, leak, v, g_last, config):
    """See `function.py`."""
    steps, dtype = x.shape[0], theta.dtype
    sums = {
        "edge": [],
        "theta": [],
        "leak": [],
    }  # one partial sum per slice and step, added up in a fixed order
    gx, gv_first = torch.empty_like(g), None if v is None else torch.empty_like(v)
    edge, edges, lowest = _constants(theta, config)
    pieces = _pieces(config)
    surrogate_edge = edge / config.gamma if pieces else edge
    for at in _slices(x):
        buffers = torch.empty((3 * steps + 3, at.stop - at.start), dtype=dtype, device=x.device)
        r, f, scratch = buffers[:3]
        us, os, vs = [], buffers[3 : 3 + steps], [None if v is None else v[at]]
        for t in range(steps):  # the forward again: vs[t] -> us[t] -> os[t] -> vs[t + 1]
            us.append(_charge(vs[t], x[t, at], leak, config, buffers[3 + steps + t]))
            if t + 1 < steps or g_last is not None:
                _fire(us[t], edges, lowest, config, os[t], scratch)
                vs.append(_reset(us[t], os[t], theta, edge, config, buffers[3 + 2 * steps + t]))
        gv = None if g_last is None else g_last[at]  # gradient of v[t], from the steps after t
        for t in reversed(range(steps)):
            u, o = us[t], os[t]
            torch.div(u, edge, out=r)
            _surrogate(r, config, pieces, f, scratch)
            upstream = g[t, at] if config.gain == 1 else g[t, at] * config.gain
            if gv is not None and not config.detach_reset:
                upstream = upstream - gv * (u if config.reset == "hard" else edge)
            gu = f.mul_(upstream).div_(surrogate_edge)
            sums["edge"].append(-torch.dot(r, gu))
            if gv is not None:
                if config.reset == "soft":
                    sums["edge"].append(-torch.dot(o, gv))
                if config.reset == "soft_theta":
                    sums["theta"].append(-(gv * (o > 0)).sum())
                gu.add_(gv.masked_fill(o > 0, 0.0) if config.reset == "hard" else gv)
            if vs[t] is not None:
                sums["leak"].append(torch.dot(gu, vs[t]))
            torch.mul(gu, config.input_gain, out=gx[t, at])
            gv = gu * leak if t or v is not None else None
        if v is not None:
            gv_first[at].copy_(gv)
    edge_sum, theta_sum, leak_sum = (
        torch.stack([p.double() for p in parts]).sum() if parts else theta.new_zeros(())
        for parts in sums.values()
    )
    return gx, gv_first, edge_sum * config.gain + theta_sum, leak_sum
