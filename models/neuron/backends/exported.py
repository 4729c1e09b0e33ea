"""The neuron in a graph that torch.export draws (for ONNX): comparisons and additions of bytes.

`reference.py` without its gradient, for currents that are numbers and thresholds that are positive.
"""

import torch
from torch.compiler import is_dynamo_compiling, is_exporting

from ..reference import charge, membrane_dtype, reset


def exporting():
    """Whether a graph for others is drawn.

    Dynamo of torch 2.11 says so of every graph that it traces for torch.compile, too, in which the
    neuron needs its gradient.
    """
    return is_exporting() and not is_dynamo_compiling()


def fire(u, unit, config):
    """Merged output of all lanes, before the gain: uint8, whose additions take a quarter of the
    memory's time.
    """
    passed = torch.ge if config.inclusive else torch.gt
    lanes = []
    for boundary, jump in zip(config.boundaries, config.jumps, strict=True):
        lane = passed(u, unit * boundary).to(torch.uint8)
        lanes.append(lane if jump == 1 else lane * int(jump))
    first, *rest = lanes
    return sum(rest, first)


def mlif(currents, theta, leak, config, v=None, want_state=False):
    """The neuron over `currents`, a list of one [...] for each step, otherwise as `dispatch.mlif`.

    Returns:
        (o, v): list of the outputs, and the last potential, None where nobody wants it.
    """
    dtype = membrane_dtype(currents[0].dtype)
    theta = theta.to(dtype)
    leak = leak.to(dtype)
    v = None if v is None else v.to(dtype)
    unit = theta * config.gain

    out = []
    for step, current in enumerate(currents, start=1):
        u = charge(v, current, leak, config)
        o = fire(u, unit, config).to(dtype)
        goes_on = want_state or step < len(currents)
        v = reset(u, o, theta, unit, config) if goes_on else None
        if config.scaled:
            o = o * config.gain
        out.append(o.to(current.dtype))
    return out, v
