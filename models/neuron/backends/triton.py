"""Backend `triton`: the neuron as two Triton kernels, all T steps in registers.

The equations are those of `reference.py`. With TRITON_INTERPRET=1 the kernels run on a CPU, slowly:
that is how they are tested without a GPU.
"""

import os
from functools import lru_cache

import torch

from .launcher import Launcher, constants

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:  # no wheel for this platform; `why_not` tells
    triton = None

# Triton reads it as well, when a kernel is defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def why_not(device, dtype):
    """Reason why this backend cannot run there, or None."""
    if triton is None:
        return "Triton is missing: pip install triton"
    if device.type != "cuda" and not INTERPRETED:
        return (
            f"it runs on a CUDA GPU, the tensor is on {device}; "
            "TRITON_INTERPRET=1 interprets it on a CPU, for tests"
        )
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no {dtype} kernel"
    return None if INTERPRETED else _broken()


@lru_cache
def _broken():
    """Why Triton cannot start here, or None: then it compiles a part of its driver."""
    # without a GPU it cannot be asked
    if not torch.cuda.is_available():
        return None
    try:
        triton.runtime.driver.active.utils  # noqa: B018
    except Exception as error:  # of any type: no compiler, no headers, no driver
        first, *_ = str(error).splitlines() or [type(error).__name__]
        return (
            f"it cannot start ({first}): install gcc and Python's headers (Debian: apt install gcc "
            "python3-dev)"
        )
    return None


if triton is not None:

    @triton.jit
    def _row(t, stride):
        """Offset of step t as 64 bits: the stride comes as 32 where it fits, t * stride may not."""
        return tl.full([], t, tl.int64) * stride

    @triton.jit
    def _parameters(theta_ptr, leak_ptr, GAIN: constexpr):
        theta = tl.load(theta_ptr)
        leak = tl.load(leak_ptr)
        return theta, leak, theta * GAIN

    @triton.jit
    def _load(pointer, at, real):
        """float32 of the neurons `at` that are real; the others read 0."""
        return tl.load(pointer + at, mask=real, other=0.0).to(tl.float32)

    @triton.jit
    def _store(pointer, at, values, real):
        """Write values to the neurons `at` that are real, in the pointer's type."""
        tl.store(pointer + at, values.to(pointer.dtype.element_ty), mask=real)

    @triton.jit
    def _charge(v, x, leak, EARLIER: constexpr, INPUT_GAIN: constexpr):
        u = x * INPUT_GAIN
        if EARLIER:  # a potential came into this step
            u = leak * v + u
        return u

    @triton.jit
    def _fire(
        u,
        unit,
        LEVELS: constexpr,
        ONE_HOT: constexpr,
        INCLUSIVE: constexpr,
    ):
        o = tl.zeros_like(u)
        for i in tl.static_range(LEVELS):
            boundary = unit * 2.0**i  # exact without a division, as in reference.py
            passed = u >= boundary if INCLUSIVE else u > boundary
            merged = 2.0**i if ONE_HOT else 2.0 ** (i + 1) - 1.0
            o = tl.where(passed, merged, o)
        o = tl.where(unit > 0, o, float("nan"))
        return tl.where(u == u, o, float("nan"))

    @triton.jit
    def _reset(
        u,
        o,
        theta,
        unit,
        LEVELS: constexpr,
        ONE_HOT: constexpr,
        RESET: constexpr,
    ):
        if RESET == "hard":
            v = tl.where(o > 0, 0.0, u)
        elif RESET == "soft_theta":
            v = tl.where(o > 0, u - theta, u)
        elif ONE_HOT:
            v = u - unit * o
        else:
            amount = tl.zeros_like(u)
            for s in tl.static_range(LEVELS):  # lane by lane, in order
                fired = o >= 2.0 ** (s + 1) - 1.0
                amount += tl.where(fired, unit * 2.0**s, 0.0)
            v = u - amount
        return v

    @triton.jit
    def _kept(gv, o, RESET: constexpr):
        """Gradient that reaches u through the reset: a hard one forgets the potential."""
        return tl.where(o > 0, 0.0, gv) if RESET == "hard" else gv

    @triton.jit
    def _bump(
        d,
        weight,
        SURROGATE: constexpr,
        GAMMA: constexpr,
        ALPHA: constexpr,
    ):
        """weight * phi(d), the surrogate around one boundary."""
        distance = tl.abs(d)
        if SURROGATE == "triangle":
            bump = tl.where(distance >= 1.0, 0.0, (1.0 - distance) * (weight * GAMMA))
        else:
            tl.static_assert(SURROGATE == "sigmoid", "_bump does not know this surrogate")
            e = tl.exp(distance * -ALPHA)
            bump = e / ((1.0 + e) * (1.0 + e)) * (weight * ALPHA)
        return bump

    @triton.jit
    def _surrogate(
        r,
        LEVELS: constexpr,
        RELATIVE: constexpr,
        INNER: constexpr,
        SURROGATE: constexpr,
        GAMMA: constexpr,
        ALPHA: constexpr,
    ):
        if SURROGATE == "clipped":
            total = tl.where((r > 0.0) & (r < 2.0 ** (LEVELS - 1) / GAMMA), GAMMA, 0.0).to(r.dtype)
        else:
            total = tl.zeros_like(r)
            for i in tl.static_range(LEVELS):
                d = r * (1.0 / 2.0**i) - 1.0 if RELATIVE else r - 2.0**i
                inner = INNER if RELATIVE else INNER * 2.0 ** (i - 1)
                weight = inner if i > 0 else 1.0
                total += _bump(d, weight, SURROGATE, GAMMA, ALPHA)
        return total

    # The kernels' constants are explained in kernels/mlif.cu. A potential that is not given or not
    # wanted comes as None, which is known at compile time as well.

    @triton.jit
    def _forward(
        x_ptr,  # [T, n] with a stride from step to step
        stride,
        theta_ptr,  # 0-dim
        leak_ptr,
        v_ptr,  # [n]
        o_ptr,  # [T, n]
        last_ptr,  # [n]
        n,
        STEPS: constexpr,
        BLOCK: constexpr,  # neurons of a program
        LEVELS: constexpr,
        ONE_HOT: constexpr,
        INCLUSIVE: constexpr,
        RESET: constexpr,
        GAIN: constexpr,
        INPUT_GAIN: constexpr,
    ):
        program = tl.program_id(0).to(tl.int64)
        at = program * BLOCK + tl.arange(0, BLOCK)
        real = at < n
        theta, leak, unit = _parameters(theta_ptr, leak_ptr, GAIN)

        HAS_V: tl.constexpr = v_ptr is not None
        v = tl.zeros([BLOCK], tl.float32)
        if HAS_V:
            v = _load(v_ptr, at, real)
        for t in tl.static_range(STEPS):
            x = _load(x_ptr + _row(t, stride), at, real)
            u = _charge(v, x, leak, HAS_V or t > 0, INPUT_GAIN)
            o = _fire(u, unit, LEVELS, ONE_HOT, INCLUSIVE)
            v = _reset(u, o, theta, unit, LEVELS, ONE_HOT, RESET)
            _store(o_ptr + _row(t, n), at, o * GAIN, real)
        if last_ptr is not None:
            _store(last_ptr, at, v, real)

    @triton.jit
    def _backward(
        x_ptr, stride, g_ptr, theta_ptr, leak_ptr, v_ptr, g_last_ptr,  # read
        gx_ptr, gv_ptr, partial_ptr, n,  # written
        STEPS: constexpr, BLOCK: constexpr, LEVELS: constexpr,
        ONE_HOT: constexpr, INCLUSIVE: constexpr, RESET: constexpr,
        GAIN: constexpr, INPUT_GAIN: constexpr,
        DETACH: constexpr, RELATIVE: constexpr, INNER: constexpr,
        SURROGATE: constexpr, GAMMA: constexpr, ALPHA: constexpr,
    ):  # fmt: skip
        program = tl.program_id(0).to(tl.int64)
        at = program * BLOCK + tl.arange(0, BLOCK)
        real = at < n
        theta, leak, unit = _parameters(theta_ptr, leak_ptr, GAIN)
        zeros = tl.zeros([BLOCK], tl.float32)

        # The forward again: vs[t] -> us[t] -> vs[t + 1].
        HAS_V: tl.constexpr = v_ptr is not None
        v = _load(v_ptr, at, real) if HAS_V else zeros
        us = ()
        vs = (v,)
        for t in tl.static_range(STEPS):
            x = _load(x_ptr + _row(t, stride), at, real)
            u = _charge(v, x, leak, HAS_V or t > 0, INPUT_GAIN)
            o = _fire(u, unit, LEVELS, ONE_HOT, INCLUSIVE)
            v = _reset(u, o, theta, unit, LEVELS, ONE_HOT, RESET)
            us = us + (u,)  # noqa: RUF005  (Triton has no starred tuples)
            vs = vs + (v,)  # noqa: RUF005

        # Back in time; gv is the gradient of the potential after step t.
        STATE: tl.constexpr = g_last_ptr is not None
        gv = _load(g_last_ptr, at, real) if STATE else zeros
        d_unit = zeros
        d_theta = zeros
        d_leak = zeros
        for t in tl.static_range(STEPS - 1, -1, -1):
            u = us[t]
            r = u / unit
            upstream = _load(g_ptr + _row(t, n), at, real) * GAIN
            if (STATE or t + 1 < STEPS) and not DETACH:
                upstream -= gv * (u if RESET == "hard" else unit)
            slope = _surrogate(r, LEVELS, RELATIVE, INNER, SURROGATE, GAMMA, ALPHA)
            gu = slope * upstream / unit
            d_unit -= r * gu
            if STATE or t + 1 < STEPS:  # a later step used the potential
                o = _fire(u, unit, LEVELS, ONE_HOT, INCLUSIVE)
                gu += _kept(gv, o, RESET)
                if RESET == "soft":
                    d_unit -= o * gv
                if RESET == "soft_theta":
                    d_theta -= tl.where(o > 0, gv, 0.0)
            if HAS_V or t > 0:
                d_leak += gu * vs[t]
            gv = gu * leak
            _store(gx_ptr + _row(t, n), at, gu * INPUT_GAIN, real)
        if HAS_V:
            _store(gv_ptr, at, gv, real)

        # One partial sum of a program: the order of the additions never changes.
        tl.store(partial_ptr + 2 * program, tl.sum(d_unit * GAIN + d_theta))
        tl.store(partial_ptr + 2 * program + 1, tl.sum(d_leak))


def block_size(steps):
    """Neurons of a program: 4 to 8 of a thread, fewer where their T potentials fill registers."""
    if steps <= 4:
        return 1024  # for the 128 threads of 4 warps
    return 512 if steps <= 8 else 256


@lru_cache
def fixed(kernel, config, steps):
    """The compile-time arguments of a kernel."""
    values = constants(config)  # the forward takes some of them
    values["STEPS"] = steps
    values["BLOCK"] = block_size(steps)
    return {name: values[name] for name in kernel.arg_names if name in values}


class Triton(Launcher):
    """Launches on the tensors' device and its current stream."""

    def programs(self, x):
        steps, n = x.shape
        return triton.cdiv(n, block_size(steps))

    def run(self, kernel, config, x, v, state, tensors):
        steps, n = x.shape
        kernel = _forward if kernel == "forward" else _backward
        launch = kernel[(self.programs(x),)]
        arguments = (x, x.stride(0), *tensors, n)
        constexprs = fixed(kernel, config, steps)
        if x.device.type != "cuda":
            launch(*arguments, **constexprs)
            return
        with torch.cuda.device(x.device):
            # Without fusion every product and sum is rounded by itself, as in the definition.
            launch(*arguments, **constexprs, num_warps=4, enable_fp_fusion=False)


_launcher = Triton()
forward, backward = _launcher.forward, _launcher.backward
