"""The neuron as one autograd function over any backend, and views that give backends plain rows.

A backend has two functions on [T, n] rows, n neurons in memory order:
    forward(x, theta, leak, v, config, want_state) -> (o [T, n], last potential [n] or None)
    backward(x, g, theta, leak, v, g_last, config)
        -> (gradients of x [T, n], of v [n] or None, of theta and leak, 0-dim)
x may have a step stride of 0 (a constant current). theta and leak are 0-dim in the membrane's
dtype, as are v, last and g_last [n]. x alone is saved for the backward.
"""

import torch

from ..reference import membrane_dtype, refuse_second_derivative


def rows(x):
    """View of x [T, ...] as [T, n] in memory order, or None if a step is not dense."""
    n = 1  # neurons of the axes so far, and the stride that the next axis must have
    step = x[0]
    axes = zip(step.stride(), step.shape, strict=True)
    for stride, size in sorted(axes):
        if size > 1 and stride != n:
            return None
        n *= size

    steps = x.shape[0]
    stride = x.stride(0) if steps > 1 else 0  # 0: one current for all steps, without copies
    if stride not in (0, n):
        return None
    return x.as_strided((steps, n), (stride, 1))


def rows_like(tensor, x, dtype):
    """Rows [T', n] of a tensor [T', ...] in the memory order of x [T, ...]; copied if need be."""
    step = x[0]
    strides = (step.numel(), *step.stride())
    if tensor.stride() != strides or tensor.dtype != dtype:
        copy = x.new_empty_strided(tensor.shape, strides, dtype=dtype)
        tensor = copy.copy_(tensor)
    return rows(tensor)


def step_row(v, x, dtype):
    """One step's tensor [...] as [n] in the memory order of x [T, ...]; None stays None."""
    if v is None:
        return None
    return rows_like(v[None], x, dtype)[0]


def shaped(flat, x):
    """Rows [T, n] (or [n]) back in the shape and inner layout of x [T, ...] (or of one step)."""
    if flat is None:
        return None
    step = x[0]
    sizes = (*flat.shape[:-1], *step.shape)
    strides = (*flat.stride()[:-1], *step.stride())
    # detached, it is no view to autograd, which would refuse to change one in place
    return flat.as_strided(sizes, strides).detach()


class Neuron(torch.autograd.Function):
    """apply(backend, x, theta, leak, v, config, want_state) -> (o, last); x is not empty"""

    @staticmethod
    def forward(
        ctx,
        backend,
        x,  # [T, ...]
        theta,  # 0-dim
        leak,  # 0-dim
        v,  # [...] or None
        config,
        want_state,
    ):
        if rows(x) is None:
            x = x.contiguous()
        ctx.save_for_backward(x, theta, leak, v)
        ctx.backend = backend
        ctx.config = config
        ctx.want_state = want_state
        dtype = membrane_dtype(x.dtype)
        o, last = backend.forward(
            rows(x),
            theta.to(dtype),
            leak.to(dtype),
            step_row(v, x, dtype),
            config,
            want_state,
        )
        return shaped(o, x), shaped(last, x)

    @staticmethod
    def backward(ctx, g, g_last):
        refuse_second_derivative()
        x, theta, leak, v = ctx.saved_tensors
        dtype = membrane_dtype(x.dtype)
        if not ctx.want_state:  # autograd brings zeros, which would be computed with
            g_last = None
        gx, gv, d_theta, d_leak = ctx.backend.backward(
            rows(x),
            rows_like(g, x, g.dtype),
            theta.to(dtype),
            leak.to(dtype),
            step_row(v, x, dtype),
            step_row(g_last, x, dtype),
            ctx.config,
        )
        # Autograd brings each gradient into its input's type; backend, config and want_state are
        # no tensors.
        gx = shaped(gx, x)
        gv = shaped(gv, x)
        return None, gx, d_theta, d_leak, gv, None, None
