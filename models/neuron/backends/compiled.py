"""Backend `compiled`: the step of `reference.py` for torch.compile (Inductor) on a CPU or GPU.

Two users: called by name, each variant is compiled alone on rows of any length; and a network that
is compiled as a whole (`--compile`) traces `traced`, so that the neuron melts into the operations
around it. The backward is written out, so that x alone is saved and all steps are one kernel.
"""

import os
import shutil
import sys
from functools import cache, partial
from types import FunctionType

import torch

from ..reference import charge, fire, membrane_dtype, reset, surrogate


def why_not(device, dtype):
    """Reason why this backend cannot run there, or None."""
    if not dtype.is_floating_point or dtype.itemsize < 2:
        return f"it has no {dtype} kernel"
    if device.type == "cpu":
        # Inductor looks for no other; of a path with blanks it makes several words
        standard = "clang++" if sys.platform == "darwin" else "g++"
        chosen = os.environ.get("CXX", "").split() or [standard]
        if shutil.which(chosen[0]):
            return None
        return "Inductor needs a C++ compiler: install g++ (Debian: apt install g++) or set CXX"
    from . import triton

    reason = triton.why_not(device, torch.float32)
    return f"Inductor needs Triton on a GPU: {reason}" if reason else None


def _forward(
    x,  # [T, ...]
    theta,
    leak,
    v,  # [...] or None
    config,
    want_state,
):
    unit = theta * config.gain
    out = []
    for t in range(x.shape[0]):
        u = charge(v, x[t], leak, config)
        o = fire(u, unit, config)
        v = reset(u, o, theta, unit, config)
        spikes = o * config.gain
        out.append(spikes.to(x.dtype))
    # A reset that nobody asks for is not compiled.
    return torch.stack(out), v if want_state else None


def _backward(
    x,  # [T, ...]
    g,  # [T, ...]
    theta,
    leak,
    v,  # [...] or None
    g_last,  # [...] or None
    config,
):
    unit = theta * config.gain
    inverse = 1 / unit

    # The forward again: vs[t] -> us[t] -> os[t] -> vs[t + 1].
    us = []
    os = []
    vs = [v]
    for t in range(x.shape[0]):
        u = charge(vs[t], x[t], leak, config)
        o = fire(u, unit, config)
        us.append(u)
        os.append(o)
        vs.append(reset(u, o, theta, unit, config))

    # What has no part in a gradient leaves it 0-dim: nothing is summed over the neurons.
    d_unit = d_theta = d_leak = theta.new_zeros(())
    gx = []
    hard = config.reset == "hard"
    gv = g_last  # gradient of the potential after step t; None: it is not used
    for t in reversed(range(x.shape[0])):
        u = us[t]
        o = os[t]
        r = u * inverse
        upstream = g[t].to(theta.dtype) * config.gain
        if gv is not None and not config.detach_reset:
            upstream = upstream - gv * (u if hard else unit)
        gu = surrogate(r, config) * upstream * inverse
        d_unit = d_unit - r * gu
        if gv is not None:
            if config.reset == "soft":
                d_unit = d_unit - o * gv
            if config.reset == "soft_theta":
                d_theta = d_theta - torch.where(o > 0, gv, 0.0)
            if hard:
                gv = torch.where(o > 0, 0.0, gv)
            gu = gu + gv
        if vs[t] is not None:
            d_leak = d_leak + gu * vs[t]
        current = gu * config.input_gain
        gx.append(current.to(x.dtype))
        gv = gu * leak

    gx.reverse()
    if v is None:
        gv = None
    d_theta = d_theta + d_unit * config.gain
    return torch.stack(gx), gv, d_theta.sum(), d_leak.sum()


@cache
def _compile(function, *variant):
    """A compilation of its own for every variant: one code object shares one recompile limit."""
    code = function.__code__.replace()  # a copy
    own = FunctionType(code, function.__globals__, function.__name__)
    return torch.compile(own, dynamic=True, fullgraph=True)


def _call(function, x, *others):
    # Tensors of any values share a compilation; None, config and want_state make it another one.
    variant = [torch.Tensor if torch.is_tensor(each) else each for each in others]
    run = _compile(function, len(x), x.dtype, x.device, *variant)
    return run(x, *others)


forward = partial(_call, _forward)  # see `function.py`
backward = partial(_call, _backward)


class _Traced(torch.autograd.Function):
    """The neuron inside a larger graph: no rows are needed, for Inductor knows the strides."""

    @staticmethod
    def forward(ctx, x, theta, leak, v, config, want_state):
        ctx.save_for_backward(x, theta, leak, v)
        ctx.config = config
        ctx.want_state = want_state
        dtype = membrane_dtype(x.dtype)
        theta = theta.to(dtype)
        leak = leak.to(dtype)
        v = None if v is None else v.to(dtype)
        return _forward(x, theta, leak, v, config, want_state)

    @staticmethod
    def backward(ctx, g, g_last):
        x, theta, leak, v = ctx.saved_tensors
        dtype = membrane_dtype(x.dtype)
        if not ctx.want_state:
            g_last = None
        gx, gv, d_theta, d_leak = _backward(
            x,
            g,
            theta.to(dtype),
            leak.to(dtype),
            None if v is None else v.to(dtype),
            g_last,
            ctx.config,
        )
        return (
            gx,
            d_theta.to(theta.dtype),
            d_leak.to(leak.dtype),
            None if v is None else gv.to(v.dtype),
            None,  # config and want_state are no tensors
            None,
        )


def traced(x, theta, leak, v, config, want_state):
    """The neuron for a function that torch.compile is tracing, on any shape [T, ...] of x.

    theta, leak and v as in `dispatch.mlif`; returns (o, last) as `function.py` says.
    """
    return _Traced.apply(x, theta, leak, v, config, want_state)
