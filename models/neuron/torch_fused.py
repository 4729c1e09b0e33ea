"""The default backend: eager PyTorch with a hand-written backward that saves the input current alone.

The tensor is walked in slices that stay in the processor's caches; inside a slice all T steps run forwards, and, for
the backward, forwards again and then in reverse. No lane tensors, no `.item()`. Equations: `reference.py`.
"""

import torch

from .reference import reset_amount, surrogate

SLICE = 1 << 17  # elements per slice on a CPU: the few float32 buffers of a slice fit into the L2 and L3 caches


def _rows(x):
    """View x [T, ...] as [T, n] in memory order, or None if a step is not dense."""
    n = 1
    for stride, size in sorted((stride, size) for size, stride in zip(x.shape[1:], x.stride()[1:]) if size > 1):
        if stride != n:
            return None
        n *= size
    step = 0 if x.shape[0] == 1 else x.stride(0)  # stride 0: one current for all steps, without copies
    return x.as_strided((x.shape[0], n), (step, 1)) if step in (0, n) and x.numel() else None


def _step_like(x, dtype, source=None):
    """[n] view and tensor of one step in x's inner layout, uninitialised or a copy of `source`."""
    step = torch.empty_strided(x.shape[1:], x.stride()[1:], dtype=dtype, device=x.device)
    if source is not None:
        step.copy_(source)
    return _rows(step[None])[0], step


def _like(x):
    """Uninitialised tensor of x's shape, dtype and inner layout, with its steps apart."""
    return torch.empty_strided(x.shape, (x[0].numel(), *x.stride()[1:]), dtype=x.dtype, device=x.device)


def _slices(n, device):
    width = SLICE if device.type == "cpu" else n
    return [slice(lo, min(lo + width, n)) for lo in range(0, n, width)]


def _charge(v, current, leak, config, out):
    """u = leak * v + input_gain * current into `out`; v None means 0, and then u may be the current itself."""
    if v is None and config.input_gain == 1 and current.dtype == out.dtype:
        return current
    if v is None:
        return out.copy_(current).mul_(config.input_gain)
    return torch.mul(v, leak, out=out).add_(current, alpha=config.input_gain)


def _fire(u, edge, config, o, r, scratch):
    """Merged output before the gain into `o`; r and scratch are overwritten."""
    passed = torch.ge if config.inclusive else torch.gt
    torch.div(u, edge, out=r)
    passed(r, config.edges[0], out=o)
    for at, jump in zip(config.edges[1:], config.jumps[1:]):
        passed(r, at, out=scratch)
        o.add_(scratch, alpha=jump)
    o.add_(r.clamp_(-1.0, 1.0), alpha=0.0)  # NaN stays NaN; everything else adds zero


def _reset(u, o, theta, edge, config, out):
    """v after the reset into `out`, which may be u."""
    if config.reset == "soft":
        return torch.sub(u, reset_amount(o, edge, config), out=out)
    if config.reset == "soft_theta":
        return torch.sub(u, theta * (o > 0), out=out)
    return out.copy_(u).masked_fill_(o > 0, 0.0)


def _pieces(config):
    """The relative triangle surrogate is piecewise linear in r: (knots, offset, slopes) for a gamma of 1.

    All three are small dyadic numbers, so the sum is exactly zero outside the support.
    """
    knots = [0.0, *config.edges, 2 * config.edges[-1]]
    at = [sum(c * max(0.0, 1 - abs(k / e - 1)) for c, e in zip(config.slopes, config.edges)) for k in knots]
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


class _MLIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, theta, leak, v, config, want_state):
        compute = torch.promote_types(x.dtype, torch.float32)
        if _rows(x) is None:
            x = x.contiguous()
        ctx.save_for_backward(x, theta, leak, v)
        ctx.config = config
        if not x.numel():
            return torch.empty_like(x), x.new_zeros(x.shape[1:], dtype=compute) if want_state else None
        rows, out = _rows(x), _like(x)
        out_rows, steps = _rows(out), x.shape[0]
        theta, leak = theta.to(compute), leak.to(compute)
        edge = theta * config.gain
        v_row, _ = (None, None) if v is None else _step_like(x, compute, v)
        last_row, last = _step_like(x, compute) if want_state else (None, None)
        direct = config.gain == 1 and x.dtype == compute
        for at in _slices(rows.shape[1], x.device):
            potential, after, r, scratch, o = torch.empty((5, at.stop - at.start), dtype=compute, device=x.device)
            before = None if v is None else v_row[at]
            for t in range(steps):
                u = _charge(before, rows[t, at], leak, config, potential)
                o = out_rows[t, at] if direct else o
                _fire(u, edge, config, o, r, scratch)
                if t + 1 < steps or want_state:
                    before = _reset(u, o, theta, edge, config, after)
                if not direct:
                    torch.mul(o, config.gain, out=out_rows[t, at])
            if want_state:
                last_row[at].copy_(before)
        return out, last

    @staticmethod
    def backward(ctx, grad, grad_last):
        x, theta_in, leak_in, v = ctx.saved_tensors
        config, (_, need_theta, need_leak, need_v, *_) = ctx.config, ctx.needs_input_grad
        compute = torch.promote_types(x.dtype, torch.float32)
        theta, leak = theta_in.to(compute), leak_in.to(compute)
        sums = {"edge": [], "theta": [], "leak": []}  # one partial sum per slice and step, added up in a fixed order

        def total(name):
            parts = [part.double() for part in sums[name]]
            return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64, device=x.device)

        grad_x = _like(x) if x.numel() else torch.empty_like(x)
        grad_v_row, grad_v = _step_like(x, compute) if need_v and x.numel() else (None, v)
        edge, steps = theta * config.gain, x.shape[0]
        pieces = _pieces(config) if config.surrogate == "triangle" and config.relative else None
        surrogate_edge = edge / config.gamma if pieces else edge
        if x.numel():
            rows, grad_x_rows = _rows(x), _rows(grad_x)
            grad_rows = _rows(grad if grad.stride() == grad_x.stride() else _like(x).copy_(grad))
            v_row, _ = (None, None) if v is None else _step_like(x, compute, v)
            last_row, _ = (None, None) if grad_last is None else _step_like(x, compute, grad_last)
        for at in _slices(x.numel() // steps, x.device):
            buffers = torch.empty((3 * steps + 3, at.stop - at.start), dtype=compute, device=x.device)
            r, f, scratch = buffers[:3]
            us, os, vs = [], buffers[3:3 + steps], [None if v is None else v_row[at]]
            for t in range(steps):  # the forward again: vs[t] -> us[t] -> os[t] -> vs[t + 1]
                us.append(_charge(vs[t], rows[t, at], leak, config, buffers[3 + steps + t]))
                if t + 1 < steps or grad_last is not None:
                    _fire(us[t], edge, config, os[t], r, scratch)
                    vs.append(_reset(us[t], os[t], theta, edge, config, buffers[3 + 2 * steps + t]))
            gv = None if grad_last is None else last_row[at]  # gradient of v[t], from the steps after t
            for t in reversed(range(steps)):
                u, o = us[t], os[t]
                torch.div(u, edge, out=r)
                _surrogate(r, config, pieces, f, scratch)
                upstream = grad_rows[t, at] if config.gain == 1 else grad_rows[t, at] * config.gain
                if gv is not None and not config.detach_reset:
                    upstream = upstream - gv * (u if config.reset == "hard" else edge)
                gu = f.mul_(upstream).div_(surrogate_edge)
                if need_theta:
                    sums["edge"].append(-torch.dot(r, gu))
                if gv is not None:
                    if need_theta and config.reset == "soft":
                        sums["edge"].append(-torch.dot(o, gv))
                    if need_theta and config.reset == "soft_theta":
                        sums["theta"].append(-(gv * (o > 0)).sum())
                    gu.add_(gv.masked_fill(o > 0, 0.0) if config.reset == "hard" else gv)
                if need_leak and vs[t] is not None:
                    sums["leak"].append(torch.dot(gu, vs[t]))
                torch.mul(gu, config.input_gain, out=grad_x_rows[t, at])
                gv = gu * leak if t or need_v else None
            if need_v:
                grad_v_row[at].copy_(gv)
        return (grad_x, (total("edge") * config.gain + total("theta")).to(theta_in.dtype) if need_theta else None,
                total("leak").to(leak_in.dtype) if need_leak else None, grad_v if need_v else None, None, None)


def mlif_torch(x, theta, leak, config, v=None, want_state=False):
    """Same contract as `reference.mlif_reference`; the second result is None unless `want_state`."""
    return _MLIF.apply(x, theta, leak, v, config, want_state)
