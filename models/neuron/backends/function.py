"""The neuron as one autograd function over any backend, and the views that give backends plain rows.

A backend has two functions on [T, n] rows, n neurons in memory order:
    forward(x, theta, leak, v, config, want_state) -> (o [T, n], last potential [n] or None)
    backward(x, g, theta, leak, v, g_last, config) -> (gradients of x [T, n], v [n] or None, theta, leak 0-dim)
x may have a step stride of 0 (a constant current); theta and leak are 0-dim in the membrane's dtype, as are v, last and
g_last [n]. Saved for the backward: x alone.
"""

import torch


def membrane_dtype(x):
    """float32, or float64 for float64 input."""
    return torch.promote_types(x.dtype, torch.float32)


def rows(x):
    """View x [T, ...] as [T, n] in memory order, or None if a step is not dense."""
    n = 1
    for stride, size in sorted(
        (stride, size) for size, stride in zip(x.shape[1:], x.stride()[1:]) if size > 1
    ):
        if stride != n:
            return None
        n *= size
    step = (
        0 if x.shape[0] == 1 else x.stride(0)
    )  # stride 0: one current for all steps, without copies
    return x.as_strided((x.shape[0], n), (step, 1)) if step in (0, n) and x.numel() else None


def shaped(flat, x):
    """Rows [T, n] (or [n]) back in the shape and inner layout of x [T, ...] (or of one step)."""
    if flat is None:
        return None
    lead = flat.stride()[:1] if flat.dim() == 2 else ()
    return flat.as_strided((*flat.shape[:-1], *x.shape[1:]), (*lead, *x.stride()[1:]))


def step_row(v, x, dtype):
    """A step's tensor [...] as [n] in the memory order of x [T, ...]; None stays None."""
    if v is None:
        return None
    same = torch.empty_strided(x.shape[1:], x.stride()[1:], dtype=dtype, device=x.device)
    return rows(same.copy_(v)[None])[0]


class Neuron(torch.autograd.Function):
    """apply(x, theta, leak, v, config, want_state, backend) -> (o, last)"""

    @staticmethod
    def forward(ctx, x, theta, leak, v, config, want_state, backend):
        dtype = membrane_dtype(x)
        x = x if rows(x) is not None else x.contiguous()
        ctx.save_for_backward(x, theta, leak, v)
        ctx.config, ctx.want_state, ctx.backend = config, want_state, backend
        if not x.numel():
            return torch.empty_like(x), x.new_empty(
                x.shape[1:], dtype=dtype
            ) if want_state else None
        o, last = backend.forward(
            rows(x), theta.to(dtype), leak.to(dtype), step_row(v, x, dtype), config, want_state
        )
        return shaped(o, x), shaped(last, x)

    @staticmethod
    def backward(ctx, g, g_last):
        x, theta, leak, v = ctx.saved_tensors
        if not x.numel():
            zero = torch.zeros_like
            return (
                zero(x),
                zero(theta),
                zero(leak),
                None if v is None else zero(v),
                None,
                None,
                None,
            )
        dtype = membrane_dtype(x)
        if g.stride() != (x[0].numel(), *x.stride()[1:]):
            g = torch.empty_strided(
                x.shape, (x[0].numel(), *x.stride()[1:]), dtype=g.dtype, device=g.device
            ).copy_(g)
        gx, gv, d_theta, d_leak = ctx.backend.backward(
            rows(x),
            rows(g),
            theta.to(dtype),
            leak.to(dtype),
            step_row(v, x, dtype),
            step_row(g_last, x, dtype) if ctx.want_state else None,
            ctx.config,
        )
        return (
            shaped(gx, x),
            d_theta.to(theta.dtype),
            d_leak.to(leak.dtype),
            None if v is None else shaped(gv, x).to(v.dtype),
            None,
            None,
            None,
        )
