"""Backends by name. `auto` may choose and says what it chose; a named backend runs or raises with the reason."""

import torch

from .reference import mlif_reference
from .torch_fused import mlif_torch


def _reference(x, theta, leak, config, v=None, want_state=False):
    return mlif_reference(x, theta, leak, config, v)


BACKENDS = {"torch": mlif_torch, "reference": _reference}
SUPPORTED = ("auto", *BACKENDS)


def choose(name="auto"):
    """Name of the backend that runs for `name`.

    Raises:
        ValueError: no backend is called that.
    """
    if name not in SUPPORTED:
        raise ValueError(f"neuron backend must be one of {', '.join(SUPPORTED)}, got {name!r}")
    return "torch" if name == "auto" else name


def mlif(x, theta, leak, config, v=None, want_state=False, backend="auto"):
    """Run the neuron of `config` over time on a backend.

    Args:
        x: input current [T, ...], floating point, any dense layout of a step; kept in the output.
        theta, leak: 0-dim tensors on x's device; v: potential before step 0, [...] or None for zero.
        want_state: also return the potential after the last step.
    Returns:
        (o, v): merged output [T, ...] in x's dtype, potential [...] in float32 or wider (None if not wanted).
    Raises:
        ValueError: x is not a floating-point [T, ...] tensor, or theta, leak or v lie on another device.
    """
    if not x.is_floating_point() or x.dim() < 1 or x.shape[0] < 1:
        raise ValueError(f"the neuron expects a floating-point current [T, ...] with T >= 1, "
                         f"got {x.dtype} {tuple(x.shape)}")
    for name, other in (("theta", theta), ("leak", leak), ("v", v)):
        if other is not None and other.device != x.device:
            raise ValueError(f"{name} is on {other.device}, the input current on {x.device}: move one of them")
    if v is not None and v.shape != x.shape[1:]:
        raise ValueError(f"v must have the shape of one step {tuple(x.shape[1:])}, got {tuple(v.shape)}: call reset()")
    with torch.autocast(x.device.type, enabled=False):
        return BACKENDS[choose(backend)](x, theta, leak, config, v, want_state)
