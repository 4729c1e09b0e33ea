"""A backend beside the definition: what is compared, and how."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import torch

from models import NeuronConfig
from models.neuron.backends import cpp, cupy, dispatch, source
from models.neuron.backends.function import Neuron
from models.neuron.config import RESETS, SURROGATES
from models.neuron.reference import mlif_reference

THETA = 0.8
LEAK = 0.9
START = 0.3  # potential before the first step
ONE_STEP = (1, False)  # (T, whether a potential comes in)
THREE_STEPS = (3, True)
ALL_CASES = tuple(itertools.product((1, 3), (False, True)))
LIBRARY = 64  # variants of the CUDA source that are compiled together

# Combinations of all that is decided at compile time; a new surrogate joins by its name.
GRID = [
    NeuronConfig(
        levels=levels,
        one_hot=one_hot,
        inclusive=inclusive,
        reset=reset,
        scaled=scaled,
        surrogate=surrogate,
        relative=relative,
        inner_slope="paper",
        input_gain=input_gain,
    )
    for levels, one_hot, inclusive, reset, scaled, surrogate, relative, input_gain in (
        itertools.product(
            (1, 4),
            (True, False),
            (True, False),
            RESETS,
            (True, False),
            SURROGATES,
            (True, False),
            (1.0, 0.5),
        )
    )
]
SPECIAL = [
    NeuronConfig(levels=8),
    NeuronConfig(levels=8, one_hot=False),
    NeuronConfig.lif(),
    NeuronConfig(detach_reset=False),
    NeuronConfig.transformer(3, fast=True, soft=True, detach_reset=False),
    NeuronConfig(levels=3, one_hot=False, detach_reset=False),
]
EVERYTHING = GRID + SPECIAL
FIFTH = GRID[::5] + SPECIAL  # no option's period divides five: each of its values is met
assert {config.surrogate for config in FIFTH} == set(SURROGATES)

# What the networks use.
SAMPLE = [
    NeuronConfig.vgg(3),
    NeuronConfig.vgg(3, 2),
    NeuronConfig.vgg(1),
    NeuronConfig.vgg(3, gamma=0.75, surrogate="clipped"),
    NeuronConfig.transformer(3),
    NeuronConfig.transformer(3, fast=True, soft=True, detach_reset=False),
    NeuronConfig.lif(),
]
SAMPLE += [
    NeuronConfig(surrogate=name)
    for name in SURROGATES
    if name not in {config.surrogate for config in SAMPLE}
]


class GPUShape(cpp.Cpp):
    """mlif.cu as a GPU runs it: blocks of threads, few neurons of a thread, wide accesses."""

    block = cupy.BLOCK
    tile = source.CudaSource.tile


GPU_SHAPE = GPUShape()


def backend(name):
    """A backend as a function like `mlif_reference`."""

    def run(x, theta, leak, config, v):
        return dispatch.mlif(x, theta, leak, config, v=v, want_state=True, backend=name)

    return run


def launched(module):
    """The same of a backend that has no name."""

    def run(x, theta, leak, config, v):
        return Neuron.apply(module, x, theta, leak, v, config, True)

    return run


def gradients(run, x, grad, grad_last, start, config):
    """(output, last potential, gradients of x, theta, leak, v) of `run` on copies of the inputs.

    grad [T, ...], grad_last [...]: upstream gradients of the outputs and of the last potential.
    start: whether a potential comes in; the gradients that this leaves out are left out.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)

    def tensor(shape, value):
        return torch.full(shape, value, dtype=dtype, device=x.device, requires_grad=True)

    x = x.clone().requires_grad_()
    theta = tensor((), THETA)
    leak = tensor((), LEAK)
    v = tensor(x.shape[1:], START)
    o, last = run(x, theta, leak, config, v if start else None)

    inputs = [x, theta]
    if start or len(x) > 1:
        inputs.append(leak)
    if start:
        inputs.append(v)
    loss = (o.to(last.dtype) * grad).sum() + (last * grad_last).sum()
    return [o.detach(), last.detach(), *torch.autograd.grad(loss, inputs)]


def both(
    run,
    configs,
    dtype,
    cases=(ONE_STEP, THREE_STEPS),
    size=(2, 3, 7),
    tolerance=1e-9,
    device="cpu",
):
    """Compare `run` with the definition: equal outputs, and gradients within the tolerance."""
    wide = torch.promote_types(dtype, torch.float32)
    generator = torch.Generator().manual_seed(1)
    for config, (steps, start) in itertools.product(configs, cases):
        x = torch.randn(steps, *size, generator=generator) * 2 + 0.6
        x = x.to(device, dtype)
        grad = torch.randn(x.shape, generator=generator).to(device, wide)
        arguments = (x, grad, torch.ones_like(grad[0]), start, config)
        o, *got = gradients(run, *arguments)
        want_o, *want = gradients(mlif_reference, *arguments)
        assert torch.equal(o, want_o), (config, steps, start)
        for a, b in zip(got, want, strict=True):
            error = (a - b).abs().max()
            assert error <= tolerance * (1 + b.abs().max()), (config, steps, start, a, b)


def prepare(launcher, configs, dtype, cases):
    """Compile all variants of the CUDA source that are needed, at once; returns them."""
    variants = [
        launcher.variant(config, steps, dtype, start, True)
        for config in configs
        for steps, start in cases
    ]
    libraries = [variants[at : at + LIBRARY] for at in range(0, len(variants), LIBRARY)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(cpp.prepare, libraries))
    return variants


def on_grid(launcher, configs, dtype, cases=(ONE_STEP, THREE_STEPS), **more):
    """Compare a launcher of the CUDA source with the definition."""
    prepare(launcher, configs, dtype, cases)
    both(launched(launcher), configs, dtype, cases, **more)


def run(config, x, theta=0.8, leak=1.0, backend="torch", grad=None, v=None):
    """(output, last potential, gradients of x, theta, leak) in x's dtype."""
    x = torch.as_tensor(x).clone().requires_grad_()
    dtype = torch.promote_types(x.dtype, torch.float32)
    theta = torch.tensor(theta, dtype=dtype, requires_grad=True)
    leak = torch.tensor(leak, dtype=dtype, requires_grad=True)
    o, last = dispatch.mlif(x, theta, leak, config, v=v, want_state=True, backend=backend)
    if grad is not None:
        o.backward(torch.as_tensor(grad))
    if leak.grad is None:
        leak.grad = torch.zeros_like(leak)
    return o.detach(), last.detach(), x.grad, theta.grad, leak.grad


def close(got, want, tolerance):
    """Assert that no error exceeds the tolerance, relative to 1 plus the largest magnitude."""
    want = torch.as_tensor(want)
    error = (got - want).abs().max()
    assert error <= tolerance * (1 + want.abs().max()), error
