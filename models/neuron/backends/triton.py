"""Backend `triton`: the neuron as two Triton kernels, all T steps in registers. Equations: `reference.py`.

With TRITON_INTERPRET=1 the kernels run on a CPU, slowly: that is how they are tested without a GPU.
"""

import os
from functools import lru_cache

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # no wheel for this platform; `why_not` tells
    triton = None

MAX_STEPS = 16  # unrolled; longer sequences are cut (see dispatch.py)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def why_not(device, dtype):
    """Reason why this backend cannot run there, or None."""
    if triton is None:
        return "Triton is missing: pip install triton"
    if device.type != "cuda" and not INTERPRETED:
        return f"it runs on a CUDA GPU, the tensor is on {device}; TRITON_INTERPRET=1 interprets it on a CPU, for tests"
    return (
        None
        if dtype in (torch.float32, torch.bfloat16, torch.float16)
        else f"it has no {dtype} kernel"
    )


if triton is not None:

    @triton.jit
    def _wide(number):
        """As 64 bits: n comes as 32 where it fits, t * n may not."""
        return tl.full([], number, tl.int64)

    @triton.jit
    def _charge(v, x, leak, EARLIER: tl.constexpr, INPUT_GAIN: tl.constexpr):
        u = x * INPUT_GAIN if INPUT_GAIN != 1.0 else x
        if EARLIER:
            u = leak * v + u
        return u

    @triton.jit
    def _fire(u, edge, LEVELS: tl.constexpr, ONE_HOT: tl.constexpr, INCLUSIVE: tl.constexpr):
        o = tl.zeros_like(u)  # comparisons as in torch_fused: exact without a division
        for i in tl.static_range(LEVELS):
            at = edge * (2.0**i)
            over = u >= at if INCLUSIVE else u > at
            o = tl.where(over, 2.0**i if ONE_HOT else 2.0 ** (i + 1) - 1.0, o)
        return tl.where(u == u, tl.where(edge > 0, o, float("nan")), float("nan"))

    @triton.jit
    def _reset(u, o, theta, edge, LEVELS: tl.constexpr, ONE_HOT: tl.constexpr, RESET: tl.constexpr):
        if RESET == "hard":
            v = tl.where(o > 0, 0.0, u)
        elif RESET == "soft_theta":
            v = tl.where(o > 0, u - theta, u)
        elif ONE_HOT:
            v = u - edge * o
        else:
            amount = tl.zeros_like(u)
            for s in tl.static_range(LEVELS):  # lane by lane, in order
                amount += tl.where(o >= 2.0 ** (s + 1) - 1.0, edge * (2.0**s), 0.0)
            v = u - amount
        return v

    @triton.jit
    def _surrogate(
        r,
        LEVELS: tl.constexpr,
        ONE_HOT: tl.constexpr,
        SIGMOID: tl.constexpr,
        RELATIVE: tl.constexpr,
        GAMMA: tl.constexpr,
        ALPHA: tl.constexpr,
        INNER: tl.constexpr,
    ):
        total = tl.zeros_like(r)
        for i in tl.static_range(LEVELS):
            d = tl.abs(r * (1.0 / 2.0**i) - 1.0) if RELATIVE else tl.abs(r - 2.0**i)
            weight = (
                1.0 if i == 0 else (INNER if RELATIVE else (2.0 ** (i - 1) if ONE_HOT else 2.0**i))
            )
            if SIGMOID:
                e = tl.exp(d * -ALPHA)
                total += e / ((1.0 + e) * (1.0 + e)) * (weight * ALPHA)
            else:
                total += tl.where(d >= 1.0, 0.0, (1.0 - d) * (weight * GAMMA))
        return total

    @triton.jit
    def _forward(
        x_ptr,
        stride,
        theta_ptr,
        leak_ptr,
        v_ptr,
        o_ptr,
        last_ptr,
        n,
        STEPS: tl.constexpr,
        HAS_V: tl.constexpr,
        STATE: tl.constexpr,
        BLOCK: tl.constexpr,
        LEVELS: tl.constexpr,
        ONE_HOT: tl.constexpr,
        INCLUSIVE: tl.constexpr,
        RESET: tl.constexpr,
        GAIN: tl.constexpr,
        INPUT_GAIN: tl.constexpr,
    ):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        real = at < n
        stride, n = _wide(stride), _wide(n)
        theta, leak = tl.load(theta_ptr), tl.load(leak_ptr)
        edge = theta * GAIN
        v = tl.load(v_ptr + at, mask=real, other=0.0) if HAS_V else tl.zeros([BLOCK], tl.float32)
        for t in tl.static_range(STEPS):
            x = tl.load(x_ptr + t * stride + at, mask=real, other=0.0).to(tl.float32)
            u = _charge(v, x, leak, HAS_V or t > 0, INPUT_GAIN)
            o = _fire(u, edge, LEVELS, ONE_HOT, INCLUSIVE)
            v = _reset(u, o, theta, edge, LEVELS, ONE_HOT, RESET)
            tl.store(o_ptr + t * n + at, (o * GAIN).to(o_ptr.dtype.element_ty), mask=real)
        if STATE:
            tl.store(last_ptr + at, v, mask=real)

    @triton.jit
    def _backward(
        x_ptr,
        stride,
        g_ptr,
        theta_ptr,
        leak_ptr,
        v_ptr,
        g_last_ptr,
        gx_ptr,
        gv_ptr,
        partial_ptr,
        n,
        STEPS: tl.constexpr,
        HAS_V: tl.constexpr,
        STATE: tl.constexpr,
        BLOCK: tl.constexpr,
        LEVELS: tl.constexpr,
        ONE_HOT: tl.constexpr,
        INCLUSIVE: tl.constexpr,
        RESET: tl.constexpr,
        GAIN: tl.constexpr,
        INPUT_GAIN: tl.constexpr,
        DETACH: tl.constexpr,
        SIGMOID: tl.constexpr,
        RELATIVE: tl.constexpr,
        GAMMA: tl.constexpr,
        ALPHA: tl.constexpr,
        INNER: tl.constexpr,
    ):
        program = tl.program_id(0).to(tl.int64)
        at = program * BLOCK + tl.arange(0, BLOCK)
        real = at < n
        stride, n = _wide(stride), _wide(n)
        theta, leak = tl.load(theta_ptr), tl.load(leak_ptr)
        edge = theta * GAIN
        v = tl.load(v_ptr + at, mask=real, other=0.0) if HAS_V else tl.zeros([BLOCK], tl.float32)
        us, vs = (), (v,)
        for t in tl.static_range(STEPS):  # the forward again: vs[t] -> us[t] -> vs[t + 1]
            x = tl.load(x_ptr + t * stride + at, mask=real, other=0.0).to(tl.float32)
            u = _charge(v, x, leak, HAS_V or t > 0, INPUT_GAIN)
            v = _reset(
                u, _fire(u, edge, LEVELS, ONE_HOT, INCLUSIVE), theta, edge, LEVELS, ONE_HOT, RESET
            )
            us, vs = us + (u,), vs + (v,)  # noqa: RUF005  (Triton has no starred tuples)
        gv = (
            tl.load(g_last_ptr + at, mask=real, other=0.0)
            if STATE
            else tl.zeros([BLOCK], tl.float32)
        )
        d_edge, d_theta, d_leak = (
            tl.zeros([BLOCK], tl.float32),
            tl.zeros([BLOCK], tl.float32),
            tl.zeros([BLOCK], tl.float32),
        )
        for t in tl.static_range(STEPS - 1, -1, -1):
            u = us[t]
            r = u / edge
            upstream = tl.load(g_ptr + t * n + at, mask=real, other=0.0).to(tl.float32) * GAIN
            if (STATE or t + 1 < STEPS) and not DETACH:
                upstream -= gv * (u if RESET == "hard" else edge)
            gu = (
                _surrogate(r, LEVELS, ONE_HOT, SIGMOID, RELATIVE, GAMMA, ALPHA, INNER)
                * upstream
                / edge
            )
            d_edge -= r * gu
            if STATE or t + 1 < STEPS:
                o = _fire(u, edge, LEVELS, ONE_HOT, INCLUSIVE)
                if RESET == "hard":
                    gu += tl.where(o > 0, 0.0, gv)
                else:
                    gu += gv
                if RESET == "soft":
                    d_edge -= o * gv
                if RESET == "soft_theta":
                    d_theta -= tl.where(o > 0, gv, 0.0)
            if HAS_V or t > 0:
                d_leak += gu * vs[t]
            gv = gu * leak
            tl.store(gx_ptr + t * n + at, (gu * INPUT_GAIN).to(gx_ptr.dtype.element_ty), mask=real)
        if HAS_V:
            tl.store(gv_ptr + at, gv, mask=real)
        tl.store(
            partial_ptr + 2 * program, tl.sum(d_edge * GAIN + d_theta)
        )  # one partial sum per program: deterministic
        tl.store(partial_ptr + 2 * program + 1, tl.sum(d_leak))


@lru_cache
def constants(config, backward):
    """Compile-time arguments that the neuron decides."""
    c = config
    both = {
        "LEVELS": c.levels,
        "ONE_HOT": c.one_hot,
        "INCLUSIVE": c.inclusive,
        "RESET": c.reset,
        "GAIN": c.gain,
        "INPUT_GAIN": float(c.input_gain),
    }
    return (
        both
        if not backward
        else both
        | {
            "DETACH": c.detach_reset,
            "SIGMOID": c.surrogate == "sigmoid",
            "RELATIVE": c.relative,
            "GAMMA": float(c.gamma),
            "ALPHA": float(c.alpha if c.relative else c.alpha * c.gain),
            "INNER": float(c.slopes[-1]),
        }
    )


def shape(x, v, state):
    """(programs, compile-time arguments that the tensors decide): 4 to 8 neurons per thread, fewer for long sequences."""
    block = 1024 if len(x) <= 4 else 512 if len(x) <= 8 else 256
    return (triton.cdiv(x.shape[1], block),), {
        "STEPS": len(x),
        "HAS_V": v is not None,
        "STATE": state,
        "BLOCK": block,
    }


def _launch(kernel, grid, device, *tensors, **constexprs):
    """On the tensors' device and its current stream, with every product and sum rounded by itself."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](*tensors, **constexprs, num_warps=4, enable_fp_fusion=False)
    else:
        kernel[grid](*tensors, **constexprs)


def forward(x, theta, leak, v, config, want_state):
    """See `function.py`."""
    o = torch.empty_like(x, memory_format=torch.contiguous_format)
    last = torch.empty_like(x[0], dtype=theta.dtype) if want_state else None
    grid, sizes = shape(x, v, want_state)
    _launch(
        _forward,
        grid,
        x.device,
        x,
        x.stride(0),
        theta,
        leak,
        v,
        o,
        last,
        x.shape[1],
        **sizes,
        **constants(config, False),
    )
    return o, last


def backward(x, g, theta, leak, v, g_last, config):
    """See `function.py`."""
    gx, gv = torch.empty_like(g), None if v is None else torch.empty_like(v)
    grid, sizes = shape(x, v, g_last is not None)
    partial = torch.empty((*grid, 2), dtype=theta.dtype, device=x.device)
    _launch(
        _backward,
        grid,
        x.device,
        x,
        x.stride(0),
        g,
        theta,
        leak,
        v,
        g_last,
        gx,
        gv,
        partial,
        x.shape[1],
        **sizes,
        **constants(config, True),
    )
    return gx, gv, *partial.sum(0, dtype=torch.float64)
