"""The definition of the multi-level LIF neuron in plain PyTorch; every backend equals this file.

    u[t] = leak * v[t-1] + input_gain * x[t]                                             charge
    o[t] = gain * sum_i jump_i * [u[t] > unit * 2^i],  unit = theta * gain               fire
    v[t] = u[t] - theta * o[t]  |  u[t] - theta * [fired]  |  u[t] * (1 - [fired])       reset

Surrogate gradient: do/du = 1/theta * sum_i c_i * phi(d_i) (docs/method.md, section 1). Inside, `o`
is the output before the gain, and the potential is float32 or wider. The four functions of a step
take tensors of any shape; backends/compiled.py compiles these same functions.
"""

import torch


def membrane_dtype(dtype):
    """Type of the potential for a current of `dtype`: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def charge(v, x, leak, config):
    """Potential before firing, in leak's dtype; v None means zero."""
    current = x.to(leak.dtype)  # narrow types are widened first
    if config.input_gain != 1:
        current = current * config.input_gain
    return current if v is None else leak * v + current


def fire(u, unit, config):
    """Merged output of all lanes, before the gain; NaN where u is, or the unit is not positive.

    u / unit > 2^i, rounded, is u > unit * 2^i exactly: that product is exact, and no quotient
    rounds across 1.
    """
    passed = torch.ge if config.inclusive else torch.gt  # NaN passes nothing
    o = torch.zeros_like(u)
    for boundary, jump in zip(config.boundaries, config.jumps, strict=True):
        o = o + jump * passed(u, unit * boundary).to(u.dtype)
    return torch.where((u == u) & (unit > 0), o, torch.nan)


def reset(u, o, theta, unit, config):
    """Potential after firing `o`, which takes no part in the gradient."""
    if config.reset == "hard":
        return torch.where(o > 0, 0.0, u)
    if config.reset == "soft_theta":
        return u - theta * (o > 0)
    if config.one_hot:
        return u - unit * o
    # unit * o again, but rounded as the sum over the lanes in this order.
    amount = 0.0
    for worth in config.boundaries:
        fired = o >= 2 * worth - 1  # this lane and all below it
        amount = amount + unit * worth * fired
    return u - amount


def triangle(d, config):
    """gamma * max(0, 1 - |d|)"""
    gamma = config.surrogate_parameters["gamma"]
    return gamma * (1 - d.abs()).clamp(min=0)


def sigmoid(d, config):
    """alpha * s * (1 - s) with s = 1 / (1 + exp(-alpha * d))"""
    alpha = config.surrogate_parameters["alpha"]
    s = torch.sigmoid(alpha * d)
    return alpha * s * (1 - s)


PHI = {"triangle": triangle, "sigmoid": sigmoid}  # of config.SURROGATES, those around a boundary


def clipped(r, config):
    """gamma where 0 < r < top / gamma: straight through the staircase, up to the top output."""
    gamma, top = config.gamma, config.boundaries[-1]
    return gamma * ((r > 0) & (r < top / gamma)).to(r.dtype)


def surrogate(r, config):
    """d o / d r at r = u / unit: sum_i c_i * phi(d_i), or `clipped`."""
    if config.surrogate == "clipped":
        return clipped(r, config)
    phi = PHI[config.surrogate]
    total = torch.zeros_like(r)
    for slope, boundary in zip(config.slopes, config.boundaries, strict=True):
        d = r / boundary - 1 if config.relative else r - boundary
        total = total + slope * phi(d, config)
    return total


def refuse_second_derivative():
    """Raises RuntimeError in a backward pass that is to be differentiated itself."""
    if torch.is_grad_enabled():  # as create_graph asks for
        raise RuntimeError(
            "the neuron has no second derivative: take its gradient without create_graph=True"
        )


class _Fire(torch.autograd.Function):
    """`fire` with the surrogate as its derivative, by u and by the 0-dim unit."""

    @staticmethod
    def forward(ctx, u, unit, config):
        ctx.save_for_backward(u, unit)
        ctx.config = config
        return fire(u, unit, config)

    @staticmethod
    def backward(ctx, grad):
        refuse_second_derivative()
        u, unit = ctx.saved_tensors
        r = u / unit
        gu = grad * surrogate(r, ctx.config) / unit
        g_unit = -(r * gu).sum()  # since d o / d unit = -r * d o / d u
        return gu, g_unit, None


def _differentiated_reset(u, o, theta, unit, config):
    """`reset` with a gradient through the firing decision as well (detach_reset=False)."""
    if config.reset == "hard":
        finite = u.clamp(max=torch.finfo(u.dtype).max)  # infinity times 0 is no number
        return finite * (1 - o)  # o is 0 or 1: see NeuronConfig
    decided = o.detach()
    v = reset(u, decided, theta, unit, config)
    return v - unit * (o - decided)  # subtracts zero, for the sake of its gradient


def mlif_reference(x, theta, leak, config, v=None):
    """Run the neuron over time.

    Args:
        x: input current [T, ...]; theta, leak: 0-dim tensors.
        v: potential before step 0, [...]; None means zero.
    Returns:
        (o, v): merged output [T, ...] in x's dtype, and the potential after the last step [...].
        NaN in gives NaN out; a theta that is not positive makes every output NaN.
    """
    dtype = membrane_dtype(x.dtype)
    theta = theta.to(dtype)
    leak = leak.to(dtype)
    unit = theta * config.gain
    if v is None:
        v = torch.zeros_like(x[0])
    v = v.to(dtype)

    out = []
    for current in x:
        u = charge(v, current, leak, config)
        o = _Fire.apply(u, unit, config)
        if config.detach_reset:
            v = reset(u, o.detach(), theta, unit, config)
        else:
            v = _differentiated_reset(u, o, theta, unit, config)
        out.append(o * config.gain)
    spikes = torch.stack(out)  # [T, ...]
    return spikes.to(x.dtype), v
