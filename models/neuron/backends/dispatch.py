"""Backends by name. `auto` chooses, and `choose` tells what; a named backend runs or raises."""

from functools import partial
from importlib import import_module

import torch

from ..reference import mlif_reference
from . import compiled, exported
from .function import Neuron

# Name of a backend: its module, which is imported when it is asked for.
BACKENDS = {
    "torch": "torch_fused",
    "compiled": "compiled",
    "cpp": "cpp",
    "cupy": "cupy",
    "triton": "triton",
}
SUPPORTED = ("auto", *BACKENDS, "reference")
PREFERRED = {"cpu": ["cpp"], "cuda": ["triton", "cupy"]}  # before torch
MAX_STEPS = 16  # that a kernel unrolls; longer sequences run in stretches


def load(name):
    """The backend's module: `forward`, `backward` (see `function.py`) and `why_not`."""
    return import_module(f".{BACKENDS[name]}", __package__)


def known(name):
    """The name itself.

    Raises:
        ValueError: no backend is called that.
    """
    if name not in SUPPORTED:
        raise ValueError(f"neuron backend must be one of {', '.join(SUPPORTED)}, got {name!r}")
    return name


def why_not(name, device, dtype=torch.float32):
    """Why a backend cannot run on that device and dtype, with the way out; None if it can."""
    if known(name) not in BACKENDS:
        return None
    return load(name).why_not(torch.device(device), dtype)


def choose(name, device, dtype=torch.float32):
    """Name of the backend that runs for `name` ('auto': the fastest that can).

    Raises:
        ValueError: no backend is called that.
        RuntimeError: the named backend cannot run there; the message says why and what to install.
    """
    device = torch.device(device)
    if name == "auto":
        for candidate in PREFERRED.get(device.type, []):
            if why_not(candidate, device, dtype) is None:
                return candidate
        return "torch"  # runs everywhere
    reason = why_not(name, device, dtype)
    if reason:
        raise RuntimeError(f"neuron backend {name} cannot run: {reason}")
    return name


def mlif(
    x,
    theta,
    leak,
    config,
    *,
    v=None,
    want_state=False,
    backend="auto",
):
    """Run the neuron of `config` over time on a backend.

    Args:
        x: input current [T, ...], floating point, any dense layout of a step; kept in the output.
        theta, leak: 0-dim tensors on x's device.
        v: potential before step 0, [...]; None means zero.
        want_state: also return the potential after the last step.
    Returns:
        (o, v): merged output [T, ...] in x's dtype, and the potential [...] in float32 or wider
        (only if wanted). NaN in gives NaN out; a theta that is not positive makes every output NaN.
    Raises:
        ValueError: x is not a floating-point [T, ...] tensor, theta or leak is not 0-dim, v has
            another shape than a step of it, or one of them lies on another device.
        RuntimeError: the named backend cannot run here.
    """
    _check(x, theta, leak, v)
    if x.is_meta:  # shapes alone, which no backend need launch anything for
        return _by_definition(x, theta, leak, v, config, want_state)
    arguments = (x, theta, leak, v, config, want_state)
    if exported.exporting():  # a graph for others knows no backend
        out, v = exported.mlif(list(x), theta, leak, config, v, want_state)
        return torch.stack(out), v
    with torch.autocast(x.device.type, enabled=False):  # the potential stays in its own type
        # of this thread: `is_compiling` is true of all while one compiles
        if torch.compiler.is_dynamo_compiling():
            if backend not in ("auto", "compiled"):
                raise RuntimeError(
                    f"neuron backend {backend} cannot run inside torch.compile: "
                    "use auto or compiled there"
                )
            return _in_stretches(compiled.traced, *arguments)

        name = choose(backend, x.device, x.dtype)
        if name == "reference" or not x.numel():  # no kernel is launched on nothing
            return _by_definition(*arguments)
        run = partial(Neuron.apply, load(name))
        if name == "torch":  # it unrolls nothing
            return run(*arguments)
        return _in_stretches(run, *arguments)


def _by_definition(x, theta, leak, v, config, want_state):
    o, v = mlif_reference(x, theta, leak, config, v)
    return o, v if want_state else None


def _check(x, theta, leak, v):
    has_steps = x.dim() > 0 and x.shape[0] > 0
    if not x.is_floating_point() or not has_steps:
        raise ValueError(
            "the neuron expects a floating-point current [T, ...] with T >= 1, "
            f"got {x.dtype} {tuple(x.shape)}"
        )
    for name, one in {"theta": theta, "leak": leak}.items():
        if one.dim():
            raise ValueError(f"{name} must be 0-dim, one for all neurons, got {tuple(one.shape)}")
    others = {"theta": theta, "leak": leak, "v": v}
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(
                f"{name} is on {other.device}, the input current on {x.device}: move one of them"
            )
    step = x.shape[1:]
    if v is not None and v.shape != step:
        raise ValueError(
            f"v must have the shape of one step {tuple(step)}, got {tuple(v.shape)}: call reset()"
        )


def _in_stretches(run, x, theta, leak, v, config, want_state):
    """`run` over at most MAX_STEPS steps at a time, the potential handed on."""
    if x.shape[0] <= MAX_STEPS:
        return run(x, theta, leak, v, config, want_state)
    parts = x.split(MAX_STEPS)
    out = []  # one for each part
    for number, part in enumerate(parts, start=1):
        goes_on = want_state or number < len(parts)
        o, v = run(part, theta, leak, v, config, goes_on)
        out.append(o)
    return _joined(out), v


def _joined(parts):
    """The parts of a sequence in one tensor, with a step's layout in memory that of theirs."""
    first = parts[0]
    # `torch.cat` alone would make any layout a contiguous one
    step = sorted(range(1, first.dim()), key=first.stride, reverse=True)
    order = [0, *step]
    back = [order.index(dim) for dim in range(first.dim())]
    return torch.cat([part.permute(order) for part in parts]).permute(back)
