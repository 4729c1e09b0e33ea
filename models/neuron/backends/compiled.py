"""Backend `compiled`: the definition's arithmetic in functional form, for torch.compile (Inductor) on a CPU or GPU.

Two users: called by name, each variant is compiled alone on rows of any length; and a network that is compiled as a
whole (`--compile`) traces `traced`, so that the neuron melts into the operations around it. Equations: `reference.py`.
"""

from functools import cache
from types import FunctionType

import torch

from ..reference import surrogate

MAX_STEPS = 16  # unrolled; longer sequences are cut (see dispatch.py)


def why_not(device, dtype):
    """Reason why this backend cannot run there, or None."""
    if not dtype.is_floating_point or dtype.itemsize < 2:
        return f"it has no {dtype} kernel"
    if device.type == "cpu":
        from .cpp import compiler

        return (
            None
            if compiler()
            else "Inductor needs a C++ compiler: install g++ (Debian: apt install g++) or set CXX"
        )
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Inductor needs Triton on a GPU: pip install triton"
    return None


def _charge(v, x, leak, config):
    current = x.to(leak.dtype) * config.input_gain
    return current if v is None else leak * v + current


def _fire(u, theta, config):
    """Merged output before the gain; comparisons as in `torch_fused`, exact without a division."""
    edge = theta * config.gain
    passed = torch.ge if config.inclusive else torch.gt
    o = torch.zeros_like(u)
    for at, jump in zip(config.edges, config.jumps):
        o = o + jump * passed(u, edge * at)
    return torch.where((u == u) & (theta > 0), o, torch.nan)


def _reset(u, o, theta, config):
    edge = theta * config.gain
    if config.reset == "hard":
        return torch.where(o > 0, 0.0, u)
    if config.reset == "soft_theta":
        return u - theta * (o > 0)
    if config.one_hot:
        return u - edge * o
    amount = torch.zeros_like(u)
    for s in range(config.levels):  # lane by lane, in order
        amount = amount + torch.where(o >= 2.0 ** (s + 1) - 1, edge * 2.0**s, 0.0)
    return u - amount


def _forward(x, theta, leak, v, config, want_state):
    out = []
    for t in range(x.shape[0]):
        u = _charge(v, x[t], leak, config)
        o = _fire(u, theta, config)
        v = _reset(u, o, theta, config) if want_state or t + 1 < x.shape[0] else None
        out.append((o * config.gain).to(x.dtype))
    return torch.stack(out), v


def _backward(x, g, theta, leak, v, g_last, config):
    edge, us, os, vs = theta * config.gain, [], [], [v]
    inverse = 1 / edge
    for t in range(x.shape[0]):
        us.append(_charge(vs[t], x[t], leak, config))
        os.append(_fire(us[t], theta, config))
        vs.append(_reset(us[t], os[t], theta, config))
    out, gv = [], g_last
    d_edge = d_theta = d_leak = theta.new_zeros(
        ()
    )  # what has no part in it stays 0-dim: nothing is summed
    for t in reversed(range(x.shape[0])):
        u, o, r = us[t], os[t], us[t] * inverse
        upstream = g[t].to(theta.dtype) * config.gain
        if gv is not None and not config.detach_reset:
            upstream = upstream - gv * (u if config.reset == "hard" else edge)
        gu = surrogate(r, config) * upstream * inverse
        d_edge = d_edge - r * gu
        if gv is not None:
            if config.reset == "soft":
                d_edge = d_edge - o * gv
            if config.reset == "soft_theta":
                d_theta = d_theta - torch.where(o > 0, gv, 0.0)
            gu = gu + (torch.where(o > 0, 0.0, gv) if config.reset == "hard" else gv)
        if vs[t] is not None:
            d_leak = d_leak + gu * vs[t]
        out.append((gu * config.input_gain).to(x.dtype))
        gv = gu * leak
    return (
        torch.stack(out[::-1]),
        None if v is None else gv,
        (d_edge * config.gain + d_theta).sum(),
        d_leak.sum(),
    )


@cache
def _compile(function, *variant):
    """A compilation of its own for every variant: one code object would share one limit of recompilations."""
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return torch.compile(own, dynamic=True, fullgraph=True)


def forward(x, theta, leak, v, config, want_state):
    """See `function.py`."""
    variant = (config, len(x), x.dtype, x.device, v is None, want_state)
    return _compile(_forward, *variant)(x, theta, leak, v, config, want_state)


def backward(x, g, theta, leak, v, g_last, config):
    """See `function.py`."""
    variant = (config, len(x), x.dtype, x.device, v is None, g_last is None)
    return _compile(_backward, *variant)(x, g, theta, leak, v, g_last, config)


class _Traced(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, theta, leak, v, config, want_state):
        ctx.save_for_backward(x, theta, leak, v)
        ctx.config, ctx.want_state = config, want_state
        dtype = torch.promote_types(x.dtype, torch.float32)
        return _forward(x, theta.to(dtype), leak.to(dtype), v, config, want_state)

    @staticmethod
    def backward(ctx, g, g_last):
        x, theta, leak, v = ctx.saved_tensors
        dtype = torch.promote_types(x.dtype, torch.float32)
        gx, gv, d_theta, d_leak = _backward(
            x, g, theta.to(dtype), leak.to(dtype), v, g_last if ctx.want_state else None, ctx.config
        )
        return gx, d_theta.to(theta.dtype), d_leak.to(leak.dtype), gv, None, None


def traced(x, theta, leak, config, v, want_state):
    """The neuron for a function that torch.compile is tracing: any shape [T, ...], same contract as the definition."""
    return _Traced.apply(x, theta, leak, v, config, want_state)
