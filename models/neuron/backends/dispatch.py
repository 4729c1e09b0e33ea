"""Backends by name. `auto` chooses, and `choose` tells what; a named backend runs or raises with the reason."""

from importlib import import_module

import torch

from ..reference import mlif_reference
from . import compiled
from .function import Neuron

BACKENDS = {
    "torch": "torch_fused",
    "compiled": "compiled",
    "cpp": "cpp",
    "cupy": "cupy",
    "triton": "triton",
}
SUPPORTED = ("auto", *BACKENDS, "reference")
PREFERRED = {"cpu": ("cpp", "torch"), "cuda": ("triton", "cupy", "torch")}


def load(name):
    """The backend's module: `forward`, `backward`, `why_not` (see `function.py`)."""
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
    """Reason why a backend cannot run on that device and dtype, with the way out; None if it can."""
    return load(name).why_not(torch.device(device), dtype) if known(name) in BACKENDS else None


def choose(name, device, dtype=torch.float32):
    """Name of the backend that runs for `name` ('auto': the fastest that can).

    Raises:
        ValueError: no backend is called that.
        RuntimeError: the named backend cannot run there; the message says why and what to install.
    """
    device = torch.device(device)
    if name == "auto":
        return next(
            n for n in PREFERRED.get(device.type, ("torch",)) if why_not(n, device, dtype) is None
        )
    reason = why_not(name, device, dtype)
    if reason:
        raise RuntimeError(f"neuron backend {name} cannot run: {reason}")
    return name


def _cut(run, x, v, want_state, length):
    """Run over stretches of at most `length` steps, the potential handed on."""
    if x.shape[0] <= length:
        return run(x, v, want_state)
    parts = x.split(length)
    out = []
    for k, part in enumerate(parts):
        o, v = run(part, v, want_state or k + 1 < len(parts))
        out.append(o)
    return torch.cat(out), v


def mlif(x, theta, leak, config, v=None, want_state=False, backend="auto"):
    """Run the neuron of `config` over time on a backend.

    Args:
        x: input current [T, ...], floating point, any dense layout of a step; kept in the output.
        theta, leak: 0-dim tensors on x's device; v: potential before step 0, [...] or None for zero.
        want_state: also return the potential after the last step.
    Returns:
        (o, v): merged output [T, ...] in x's dtype, potential [...] in float32 or wider (None if not wanted). NaN in
        gives NaN out; a theta that is not positive makes every output NaN.
    Raises:
        ValueError: x is not a floating-point [T, ...] tensor, or theta, leak or v lie on another device.
        RuntimeError: the named backend cannot run here.
    """
    if not x.is_floating_point() or x.dim() < 1 or x.shape[0] < 1:
        raise ValueError(
            f"the neuron expects a floating-point current [T, ...] with T >= 1, "
            f"got {x.dtype} {tuple(x.shape)}"
        )
    for name, other in (("theta", theta), ("leak", leak), ("v", v)):
        if other is not None and other.device != x.device:
            raise ValueError(
                f"{name} is on {other.device}, the input current on {x.device}: move one of them"
            )
    if v is not None and v.shape != x.shape[1:]:
        raise ValueError(
            f"v must have the shape of one step {tuple(x.shape[1:])}, got {tuple(v.shape)}: call reset()"
        )
    with torch.autocast(x.device.type, enabled=False):
        if torch.compiler.is_compiling():
            if backend not in ("auto", "compiled"):
                raise RuntimeError(
                    f"neuron backend {backend} cannot run inside torch.compile: use auto or compiled there"
                )
            return _cut(
                lambda x, v, want: compiled.traced(x, theta, leak, config, v, want),
                x,
                v,
                want_state,
                compiled.MAX_STEPS,
            )
        name = choose(backend, x.device, x.dtype)
        if name == "reference":
            return mlif_reference(x, theta, leak, config, v)
        module = load(name)
        return _cut(
            lambda x, v, want: Neuron.apply(x, theta, leak, v, config, want, module),
            x,
            v,
            want_state,
            getattr(module, "MAX_STEPS", x.shape[0]),
        )
