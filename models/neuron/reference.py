"""The definition of the multi-level LIF neuron in plain PyTorch; every backend is proved equal to this file.

    u[t] = leak * v[t-1] + input_gain * x[t]                          charge
    o[t] = gain * sum_i jump_i * [u[t] / (theta * gain) > 2^i]        fire (merged lanes)
    v[t] = u[t] - theta * o[t]  |  u[t] - theta * [fired]  |  u[t] * (1 - [fired])      reset

Surrogate gradient: do/du = 1/theta * sum_i c_i * phi(d_i) (SPEC section 1). The membrane is float32 or wider.
"""

import torch


def staircase(r, config):
    """Merged output before the gain, of r = u / (theta * gain); NaN stays NaN."""
    passed = torch.ge if config.inclusive else torch.gt
    o = sum(
        jump * passed(r, edge).to(r.dtype)
        for jump, edge in zip(config.jumps, config.edges, strict=True)
    )
    return torch.where(r.isnan(), r, o)


def surrogate(r, config):
    """d staircase / d r, any shape: sum_i c_i * phi(d_i)."""
    total = torch.zeros_like(r)
    for slope, edge in zip(config.slopes, config.edges, strict=True):
        d = r / edge - 1 if config.relative else r - edge
        if config.surrogate == "triangle":
            phi = config.gamma * (1 - d.abs()).clamp(min=0)
        else:
            alpha = config.alpha if config.relative else config.alpha * config.gain
            s = torch.sigmoid(alpha * d)
            phi = alpha * s * (1 - s)
        total = total + slope * phi
    return total


def reset_amount(o, edge, config):
    """What a soft reset subtracts, `edge * o`, rounded as the sum of the lanes' amounts `edge * 2^s` in lane order.

    o: output before the gain; edge: theta * gain. (For one lane that product is exact; for several it fixes the order.)
    """
    if config.one_hot:
        return edge * o
    exact = sum(edge * 2.0**s * (o >= 2.0 ** (s + 1) - 1) for s in range(config.levels))
    return edge * o + (exact - edge * o).detach()


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, r, config):
        ctx.save_for_backward(r)
        ctx.config = config
        return staircase(r, config)

    @staticmethod
    def backward(ctx, grad):
        (r,) = ctx.saved_tensors
        return grad * surrogate(r, ctx.config), None


def mlif_reference(x, theta, leak, config, v=None):
    """Run the neuron over time.

    Args:
        x: input current, [T, ...]; theta, leak: 0-dim tensors; v: potential before step 0, [...] (None: zero).
    Returns:
        (o, v): merged output [T, ...] in x's dtype, and the potential after the last step [...]. NaN in gives NaN out; a
        theta that is not positive makes every output NaN.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    theta, leak = theta.to(compute), leak.to(compute)
    edge = torch.where(theta > 0, theta, torch.nan) * config.gain
    v = torch.zeros_like(x[0], dtype=compute) if v is None else v.to(compute)
    out = []
    for current in x.to(compute):
        u = leak * v + config.input_gain * current
        o = _Fire.apply(u / edge, config)
        kept = o.detach() if config.detach_reset else o
        if config.reset == "soft":
            v = u - reset_amount(kept, edge, config)
        elif config.reset == "soft_theta":
            v = u - theta * (kept.detach() > 0).to(compute)
        else:
            v = u * (1 - kept) if not config.detach_reset else torch.where(kept > 0, 0.0, u)
        out.append(o * config.gain)
    return torch.stack(out).to(x.dtype), v


def lanes(o, config):
    """The merged output as binary lanes: [T, ...] -> [T, S, ...] of 0 / 1, lane s worth 2^s (times the gain)."""
    value = o / config.gain
    if config.one_hot:
        return torch.stack([(value == edge).to(o.dtype) for edge in config.edges], dim=1)
    return torch.stack([(value >= 2 * edge - 1).to(o.dtype) for edge in config.edges], dim=1)
