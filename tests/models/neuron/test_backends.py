"""Every backend against the definition, on a CPU.

The CUDA source is compiled by g++, also launched as on a GPU; Triton is interpreted; of `compiled`,
what is compiled is run without compiling too, which is quick enough for the whole grid.
"""

import types

import numpy as np
import pytest
import torch

from models import NeuronConfig
from models.neuron.backends import compiled, cpp, dispatch, torch_fused
from models.neuron.config import RESETS
from models.neuron.reference import mlif_reference
from tests.models.neuron.parity import (
    ALL_CASES,
    EVERYTHING,
    FIFTH,
    GPU_SHAPE,
    GRID,
    ONE_STEP,
    SAMPLE,
    THREE_STEPS,
    backend,
    both,
    close,
    gradients,
    launched,
    on_grid,
    run,
)

KERNELS = ["torch", "cpp", "triton"]


def test_eager_equals_definition(monkeypatch):
    """float64, the whole grid, with slices that do not divide."""
    monkeypatch.setattr(torch_fused, "SLICE", 17)
    both(backend("torch"), EVERYTHING, torch.float64, ALL_CASES)


@pytest.mark.compiler
def test_cuda_source_equals_definition():
    """float64, so that only the algebra of mlif.cu counts."""
    on_grid(cpp._launcher, FIFTH, torch.float64, [THREE_STEPS])
    on_grid(cpp._launcher, SAMPLE, torch.float64, [ONE_STEP])


@pytest.mark.compiler
@pytest.mark.long
def test_cuda_source_equals_definition_everywhere():
    on_grid(cpp._launcher, EVERYTHING, torch.float64)


@pytest.mark.compiler
@pytest.mark.parametrize("size", [(2, 3, 7), (4, 64)])  # no whole tile fits; all accesses are wide
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-5), (torch.float64, 1e-9), (torch.bfloat16, 2e-2)],
)
def test_cuda_source_in_the_shape_of_a_gpu(size, dtype, tolerance):
    on_grid(GPU_SHAPE, SAMPLE, dtype, size=size, tolerance=tolerance)


def test_interpreted_triton_equals_definition():
    both(backend("triton"), FIFTH, torch.float32, tolerance=2e-5)


@pytest.mark.long
def test_interpreted_triton_equals_definition_everywhere():
    both(backend("triton"), EVERYTHING, torch.float32, ALL_CASES, tolerance=2e-5)


def test_what_is_compiled_equals_definition():
    """The whole grid, not compiled."""
    plain = types.SimpleNamespace(forward=compiled._forward, backward=compiled._backward)
    both(launched(plain), EVERYTHING, torch.float64, ALL_CASES)


@pytest.mark.compiler
def test_compiled_equals_definition():
    both(backend("compiled"), SAMPLE[1::2], torch.float64)


@pytest.mark.compiler
@pytest.mark.long
def test_compiled_equals_definition_on_more():
    both(backend("compiled"), GRID[::7] + SAMPLE, torch.float64)


PLAIN = NeuronConfig.vgg(3)


def outputs(name, x, theta, config=PLAIN):
    """Output and last potential of one backend, without leak."""
    one = torch.tensor(1.0)
    return dispatch.mlif(x, torch.tensor(theta), one, config, want_state=True, backend=name)


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("name", ["reference", *KERNELS, "compiled"])
def test_spikes_beside_every_boundary(name, inclusive):
    """For thresholds all over the range of exponents and mantissas."""
    config = NeuronConfig(levels=3, inclusive=inclusive)
    lower, upper = [0, 1, 2], [1, 2, 4]
    for theta in np.float32([0.8, 1.0, 0.1, 1.9999999, 1.0000001, 3.3e-3, 1e-30, 1e30]):
        boundaries = np.array([theta * 2**k for k in range(3)], np.float32)
        below = np.nextafter(boundaries, np.float32(-np.inf))
        above = np.nextafter(boundaries, np.float32(np.inf))
        for at, expected in (
            (below, lower),
            (boundaries, upper if inclusive else lower),
            (above, upper),
        ):
            o, _ = outputs(name, torch.from_numpy(at)[None], theta, config)
            assert o.flatten().tolist() == expected, (theta, at)


@pytest.mark.parametrize("levels, gamma", [(1, 2), (3, 3)])
@pytest.mark.parametrize("name", [*KERNELS, "compiled"])
def test_a_whole_number_is_divided_by_as_any_other(name, levels, gamma):
    """In the kernels' language 1 / 2 of integers is 0."""
    config = NeuronConfig.vgg(levels, gamma=gamma, surrogate="clipped")
    gradients = []
    for which in ("reference", name):
        x = torch.linspace(-1, 3, 81).view(1, -1).requires_grad_()
        o, _ = outputs(which, x, 1.0, config)
        o.sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert gradients[0].any()


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", ["reference", *KERNELS, "compiled"])
def test_zeros_infinities_and_nan(name, reset):
    config = NeuronConfig(levels=3, reset=reset)
    x = torch.tensor([[0.0, -0.0, -1.0, torch.inf, -torch.inf, 1e38, torch.nan]])
    o, v = outputs(name, x, 1.0, config)
    assert o[0, :6].tolist() == [0, 0, 0, 4, 0, 4]
    assert o[0, 6].isnan() and v[6].isnan()
    narrow, _ = outputs(name, x.bfloat16(), 1.0, config)
    assert torch.equal(narrow.float().nan_to_num(7), o.nan_to_num(7))


@pytest.mark.parametrize("theta", [0.0, -1.0, torch.nan])
@pytest.mark.parametrize("name", ["reference", *KERNELS, "compiled"])
def test_a_theta_that_is_not_positive_makes_every_output_nan(name, theta):
    x = torch.tensor([[0.0, -0.0, -1.0, torch.inf, -torch.inf, 1e38, torch.nan]])
    o, _ = outputs(name, x, theta)
    assert o.isnan().all()


@pytest.mark.parametrize("name", KERNELS)
def test_every_product_of_the_charge_is_rounded(name):
    """Also where the gain of the current is no power of two: one ulp decides about a spike."""
    config = NeuronConfig.transformer(3, fast=True, soft=True, tau=3.0)
    x = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0)) * 4
    theta, leak = torch.tensor(0.8), torch.tensor(0.9)
    wanted = mlif_reference(x, theta, leak, config)
    got = dispatch.mlif(x, theta, leak, config, want_state=True, backend=name)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WITH_DTYPES = [(name, dtype) for name in KERNELS for dtype in DTYPES]
WITH_DTYPES += [
    ("compiled", torch.bfloat16),
    pytest.param("compiled", torch.float32, marks=pytest.mark.long),
    pytest.param("compiled", torch.float16, marks=pytest.mark.long),
]


@pytest.mark.parametrize(
    "config",
    [NeuronConfig.vgg(3), NeuronConfig.transformer(3, fast=True)],
    ids=["vgg", "transformer"],
)
@pytest.mark.parametrize(("name", "dtype"), WITH_DTYPES)
def test_gradients_err_at_most_twice_as_much_as_pytorch(name, dtype, config):
    """Against float64 on the same rounded input.

    And the membrane is float32: the output is that of the widened input.
    """
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(4, 3000, generator=generator) + 0.6).to(dtype)
    grad = torch.randn(x.shape, generator=generator).to(dtype)
    last = torch.zeros(3000)
    narrow = (x, grad.float(), last, False, config)
    o, _, *got = gradients(backend(name), *narrow)
    plain_o, _, *plain = gradients(mlif_reference, *narrow)
    wide = (x.double(), grad.double(), last, False, config)
    exact_o, _, *exact = gradients(mlif_reference, *wide)

    assert o.dtype == dtype
    assert torch.equal(o, plain_o)
    same = (plain_o.double() == exact_o).all(0)  # neurons whose spikes float64 has too
    for a, b, truth in zip(got, plain, exact, strict=True):
        if truth.dim():
            a, b, truth = (each[:, same] for each in (a, b, truth))
        error = (a.double() - truth).norm()
        allowed = (b.double() - truth).norm()
        assert error <= 2 * allowed + 1e-6 * truth.norm(), (truth.dim(), error, allowed)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("torch", torch.bfloat16),
        ("torch", torch.float16),
        ("cpp", torch.bfloat16),
        ("cpp", torch.float16),
        ("triton", torch.float16),  # its interpreter rounds bfloat16 its own way
    ],
)
def test_gradients_are_rounded_once_to_nearest(name, dtype):
    """The gradient of a narrow input is that of the widened one, rounded.

    Ties go to even; NaN and infinity are kept.
    """
    x = (torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)) + 0.6).to(dtype)
    grad = torch.randint(-512, 512, (1, 5000)).to(dtype)  # steep and exact: many ties
    grad[0, :2] = torch.tensor([torch.nan, torch.inf])
    x[0, :2] = 1.0
    others = (grad.float(), torch.zeros(5000), False, NeuronConfig(levels=1, gamma=1.0))
    narrow = gradients(backend(name), x, *others)[2]
    wide = gradients(backend(name), x.float(), *others)[2]
    assert narrow.dtype == dtype
    assert torch.equal(narrow.nan_to_num(7, 8), wide.to(dtype).nan_to_num(7, 8))


@pytest.mark.parametrize("name", KERNELS)
def test_small_gradients_of_scaled_neurons_keep_their_bits(name):
    """The gain of eight lanes, 2^-7, would make them denormal in half precision."""
    x = (torch.rand(1, 500, generator=torch.Generator().manual_seed(0)) + 0.6).half()
    grad = torch.full((1, 500), 0.7 * 2**-13).half()
    others = (grad.float(), torch.zeros(500), False, NeuronConfig(levels=8, scaled=True))
    got = gradients(backend(name), x, *others)[2]
    wanted = gradients(mlif_reference, x, *others)[2]
    torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2**-24)
    assert wanted.count_nonzero() > 100


@pytest.mark.parametrize("name", KERNELS)
def test_any_number_of_steps(name):
    """Sequences longer than a kernel unrolls are cut, without a seam."""
    long = ((40, True), (17, False))
    both(backend(name), [NeuronConfig(levels=3)], torch.float32, long, tolerance=1e-4)


@pytest.mark.parametrize("name", KERNELS)
def test_the_potential_is_handed_on_even_if_the_last_is_not_wanted(name):
    x = torch.full((40, 5), 0.3)
    theta, leak = torch.tensor(1.0), torch.tensor(1.0)
    o, _ = dispatch.mlif(x, theta, leak, NeuronConfig(), backend=name)
    assert torch.equal(o, mlif_reference(x, theta, leak, NeuronConfig())[0])


@pytest.mark.long
@pytest.mark.parametrize("name", ["torch", "cpp"])
def test_more_elements_than_32_bits_count(name):
    x = torch.zeros(1, 2**31 + 5, dtype=torch.bfloat16)
    x[0, -3:] = torch.tensor([1.5, 3.0, 9.0])
    one = torch.tensor(1.0)
    with torch.no_grad():
        o, _ = dispatch.mlif(x, one, one, NeuronConfig(levels=3), backend=name)
    assert o[0, -3:].tolist() == [1, 2, 4]
    assert o[0, :1000].sum() == 0


@pytest.mark.parametrize("steps", [2, 40])
@pytest.mark.parametrize("name", KERNELS)
def test_layout_is_kept(name, steps):
    x = torch.randn(steps * 3, 4, 5, 6).to(memory_format=torch.channels_last)
    x = x.unflatten(0, (steps, 3))
    grad = torch.randn(steps, 3, 5, 6, 4).permute(0, 1, 4, 2, 3)
    o, _, gx, *_ = run(NeuronConfig(), x, backend=name, grad=grad)
    assert o.stride() == x.stride()
    assert gx.stride() == x.stride()


@pytest.mark.parametrize("name", ["reference", *KERNELS, "compiled"])
def test_a_second_derivative_is_refused(name):
    """Also where other terms have one, which would be taken for all of it."""
    x = torch.randn(1, 3, requires_grad=True)
    o, _ = outputs(name, x, 0.8)
    with pytest.raises(RuntimeError, match="the neuron has no second derivative"):
        torch.autograd.grad(o.sum() + x.square().sum(), x, create_graph=True)


LAYOUTS = {
    "channels last": lambda x: x,
    "contiguous": torch.Tensor.contiguous,
    "gaps": lambda x: x[:, :, ::2],
    "steps inside": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", KERNELS)
def test_results_do_not_depend_on_the_layout(name, layout):
    """Neither on that of the current nor on that of the upstream gradient."""
    x = torch.randn(2 * 3, 4, 5, 6).to(memory_format=torch.channels_last).unflatten(0, (2, 3))
    x = LAYOUTS[layout](x)
    grad = torch.randn(*x.shape[:3], 6, 5).transpose(-1, -2)
    o, _, gx, gtheta, _ = run(NeuronConfig(), x, backend=name, grad=grad)
    plain = run(NeuronConfig(), x.contiguous(), backend=name, grad=grad.contiguous())
    assert torch.equal(o, plain[0])
    assert torch.allclose(gx, plain[2])
    close(gtheta, plain[3], 1e-5)  # a sum in another order, of terms that cancel


@pytest.fixture
def saved():
    """Tensors that autograd saves while the test runs."""
    found = []

    def keep(tensor):
        found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, keep_as_is):
        yield found


def keep_as_is(tensor):
    return tensor


@pytest.mark.parametrize("name", KERNELS)
def test_constant_current_is_not_copied(name, saved):
    x = torch.randn(3, 4)
    theta = torch.tensor(0.8, requires_grad=True)
    leak = torch.tensor(1.0)
    constant = x[None].expand(5, 3, 4)
    o, _ = dispatch.mlif(constant, theta, leak, NeuronConfig(), want_state=True, backend=name)
    assert max(tensor.untyped_storage().nbytes() for tensor in saved) == x.numel() * 4
    assert torch.equal(o, run(NeuronConfig(), x.repeat(5, 1, 1))[0])


@pytest.mark.parametrize("name", KERNELS)
def test_saves_the_input_alone(name, saved):
    x = torch.randn(2, 3, 4, requires_grad=True)
    theta = torch.tensor(1.0, requires_grad=True)
    leak = torch.tensor(1.0)
    dispatch.mlif(x, theta, leak, NeuronConfig(), backend=name)
    with torch.no_grad():
        dispatch.mlif(x, theta, leak, NeuronConfig(), backend=name)
    assert sorted(tensor.numel() for tensor in saved) == [1, 1, x.numel()]


@pytest.mark.compiler
def test_results_do_not_depend_on_the_number_of_threads():
    x = torch.randn(1, 300_001, generator=torch.Generator().manual_seed(0)) * 2
    ones = torch.ones_like(x)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found = gradients(backend("cpp"), x, ones, torch.zeros(300_001), False, NeuronConfig())
        finally:
            torch.set_num_threads(1)
        results.append(found)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
