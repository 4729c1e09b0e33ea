"""The neuron: golden numbers, a trace checked by hand, boundaries, the module. Backends: test_backends.py."""

import re

import numpy as np
import pytest
import torch

from models import MLIF, NeuronConfig, lanes
from models.neuron.backends import dispatch
from models.neuron.reference import surrogate
from tests.helpers import GOLDEN

BACKENDS = [
    "reference",
    "torch",
    "cpp",
    "triton",
]  # on a CPU; `compiled` takes seconds for each case: test_backends.py


def run(config, x, theta=0.8, leak=1.0, backend="torch", grad=None, v=None):
    """(output, final potential, gradients of x, theta, leak) in x's dtype."""
    x = torch.as_tensor(x).clone().requires_grad_()
    theta = torch.tensor(
        theta, dtype=torch.promote_types(x.dtype, torch.float32), requires_grad=True
    )
    leak = torch.tensor(leak, dtype=theta.dtype, requires_grad=True)
    o, last = dispatch.mlif(x, theta, leak, config, v, True, backend)
    if grad is not None:
        o.backward(torch.as_tensor(grad))
    zero = torch.zeros_like(theta)
    return o.detach(), last.detach(), x.grad, theta.grad, zero if leak.grad is None else leak.grad


def close(got, want, tolerance):
    want = torch.as_tensor(want)
    assert (got - want).abs().max() <= tolerance * (1 + want.abs().max()), (got - want).abs().max()


A1 = np.load(GOLDEN / "A1_vgg_neuron.npz")
A1_TAGS = [
    k.removesuffix("_merged")
    for k in A1.files
    if re.fullmatch(r"(bnd_)?S\d_hw\d_rz\d_T\d_lk[\d.]+_merged", k)
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tag", A1_TAGS)
def test_golden_vgg_neuron(tag, backend):
    levels, hardware, zero, steps, leak = re.search(
        r"S(\d)_hw(\d)_rz(\d)_T(\d)_lk([\d.]+)", tag
    ).groups()
    if zero == "1" and steps != "1":
        pytest.skip(
            "the published hard reset clears neurons that did not fire; ours only those that did"
        )
    config, b = (
        NeuronConfig.vgg(int(levels), int(hardware), zero == "1"),
        "b" if tag.startswith("bnd") else "",
    )
    grad = A1[f"g{b}merged_T{steps}"]
    o, v, gx, gtheta, gleak = run(
        config, A1[f"x{b}_T{steps}"], np.float32(0.8).item(), float(leak), backend, grad
    )
    assert np.array_equal(o, A1[f"{tag}_merged"])
    assert np.array_equal(lanes(o, config), A1[f"{tag}_lanes"])
    if f"{tag}_gx_merged" in A1:
        close(gx, A1[f"{tag}_gx_merged"], 1e-5)
        close(gtheta, A1[f"{tag}_gth_merged"], 1e-5)
        close(gleak, A1[f"{tag}_glk_merged"], 1e-5)
    if f"{tag}_mem" in A1 and zero == "0" and not b:
        close(v, A1[f"{tag}_mem"][-1], 1e-6)


A2 = np.load(GOLDEN / "A2_mlif_nodes.npz")
A2_TAGS = [
    k.removesuffix("_s")
    for k in A2.files
    if re.fullmatch(r"(bnd_)?(mlif|fast)_\w+_th[\d.]+_T\d_s", k)
]


@pytest.mark.parametrize("tag", A2_TAGS)
def test_golden_transformer_neuron(tag):
    kind, reset, det, dec, scaled, levels, theta, steps = re.search(
        r"(mlif|fast)_(hard|soft)_det(\d)_dec(\d)_sc(\d)_C(\d)_th([\d.]+)_T(\d)", tag
    ).groups()
    config = NeuronConfig.transformer(
        int(levels), kind == "fast", reset == "soft", det == "1", dec == "1", scaled == "1"
    )
    bound = tag.startswith("bnd")
    x, grad = (
        (A2[f"xb_th{theta}"], A2[f"gb_th{theta}"])
        if bound
        else (A2[f"x_T{steps}"], A2[f"gout_T{steps}"])
    )
    o, v, gx, *_ = run(config, x, float(theta), 0.5, grad=grad)
    assert np.array_equal(o, A2[f"{tag}_s"])
    close(v, A2[f"{tag}_v"][-1], 1e-6)
    if f"{tag}_gx" in A2:
        close(gx, A2[f"{tag}_gx"], 1e-5)


A3 = np.load(GOLDEN / "A3_lifspike.npz")


@pytest.mark.parametrize("tag", ["mc1_S1", "mc1_S2", "mc1_S3", "mc1_S4", "mc0_S1"])
def test_golden_vggsnn_neuron(tag):
    levels = int(tag[-1])
    config = NeuronConfig.lif() if tag.startswith("mc0") else NeuronConfig.vggsnn(levels)
    o, v, gx, *_ = run(
        config,
        torch.from_numpy(A3["x"]).transpose(0, 1),
        1.0,
        0.5,
        grad=torch.from_numpy(A3["gmerged"]).transpose(0, 1),
    )
    got = (
        lanes(o, config).permute(2, 0, 1, 3, 4, 5) if tag.startswith("mc1") else o.transpose(0, 1)
    )  # [B, T, (S), ...]
    assert np.array_equal(got, A3[f"{tag}_lanes"])
    assert torch.equal(v, torch.from_numpy(A3[f"{tag}_mem"])[:, -1])
    if f"{tag}_gx_merged" in A3:
        close(gx.transpose(0, 1), A3[f"{tag}_gx_merged"], 1e-5)


def test_trace_by_hand():
    """S = 3, theta = 1, soft reset, leak 1/2: every number can be checked on paper."""
    x = torch.tensor([[0.5], [1.0], [3.0], [9.0], [0.0], [-2.0]])
    o, v, *_ = run(NeuronConfig(levels=3), x, 1.0, 0.5)
    # u: 0.5 | 0.25+1=1.25 | 0.125+3=3.125 | 0.5625+9=9.5625 | 2.78125 | 0.390625-2
    assert o.flatten().tolist() == [0, 1, 2, 4, 2, 0]
    assert v.item() == 0.390625 - 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inclusive", [False, True])
def test_boundaries_are_exact(inclusive, backend):
    for theta in (0.8, 1.0, 0.1, 1.9999999, 3.3e-3):
        theta = np.float32(theta)
        edges = np.array([theta * 2**k for k in range(3)], np.float32)
        config = NeuronConfig(levels=3, inclusive=inclusive)
        for offset, expected in (
            (-1, [0, 1, 2]),
            (0, [1, 2, 4] if inclusive else [0, 1, 2]),
            (1, [1, 2, 4]),
        ):
            at = (
                edges
                if not offset
                else np.nextafter(edges, np.float32(np.inf * offset), dtype=np.float32)
            )
            o = run(config, at[None], theta.item(), backend=backend)[0]
            assert o.flatten().tolist() == expected, (theta, offset)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_values(backend):
    x = torch.tensor([[0.0, -0.0, -1.0, float("inf"), -float("inf"), float("nan"), 1e30]])
    for reset in ("soft", "soft_theta", "hard"):
        o, v, *_ = run(NeuronConfig(levels=3, reset=reset), x, 1.0, backend=backend)
        assert o[0, :5].tolist() == [0, 0, 0, 4, 0] and o[0, 6] == 4
        assert o[0, 5].isnan() and v[5].isnan()
    empty = run(NeuronConfig(), torch.empty(2, 0, 3), backend=backend, grad=torch.empty(2, 0, 3))
    assert empty[0].shape == (2, 0, 3) and empty[2].shape == (2, 0, 3) and empty[3] == 0


@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
def test_layout_is_kept_and_upstream_layout_is_free(backend):
    x = torch.randn(2 * 3, 4, 5, 6).to(memory_format=torch.channels_last).unflatten(0, (2, 3))
    o, _, gx, *_ = run(
        NeuronConfig(), x, backend=backend, grad=torch.randn(2, 3, 5, 6, 4).permute(0, 1, 4, 2, 3)
    )
    assert o.stride() == x.stride() and gx.stride() == x.stride()
    grad = torch.randn(2, 3, 4, 6, 5).transpose(-1, -2)
    for layout in (x, x.contiguous(), x[:, :, ::2], x.transpose(0, 1).contiguous().transpose(0, 1)):
        wanted = grad[:, :, ::2] if layout.shape[2] == 2 else grad
        a = run(NeuronConfig(), layout, backend=backend, grad=wanted)
        b = run(NeuronConfig(), layout.contiguous(), backend=backend, grad=wanted.contiguous())
        assert torch.equal(a[0], b[0]) and torch.allclose(a[2], b[2])
        close(a[3], b[3], 1e-5)  # a sum in another order, of terms that cancel


@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
def test_constant_current_is_not_copied(backend):
    x, theta = torch.randn(3, 4), torch.tensor(0.8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        o, _ = dispatch.mlif(
            x[None].expand(5, 3, 4),
            theta.requires_grad_(),
            torch.tensor(1.0),
            NeuronConfig(),
            None,
            True,
            backend,
        )
    assert torch.equal(o, run(NeuronConfig(), x.repeat(5, 1, 1))[0])
    assert max(t.untyped_storage().nbytes() for t in saved) == x.numel() * 4


@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
def test_saves_the_input_alone(backend):
    saved = []
    x, theta = torch.randn(2, 3, 4, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        dispatch.mlif(x, theta, torch.tensor(1.0), NeuronConfig(), backend=backend)
        with torch.no_grad():
            dispatch.mlif(x, theta, torch.tensor(1.0), NeuronConfig(), backend=backend)
    assert sorted(saved) == [1, 1, x.numel()]


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_surrogate_areas(gamma):
    """With gamma = 1 and the paper's inner coefficient, the area of each bump equals the jump it stands for."""
    r = torch.linspace(-1, 20, 200001, dtype=torch.float64)
    for levels in (1, 2, 4):
        config = NeuronConfig(levels=levels, gamma=gamma, edge="paper")
        area = torch.trapezoid(surrogate(r, config), r).item()
        assert area == pytest.approx(gamma * sum(config.jumps), rel=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"levels": 0},
        {"levels": 9},
        {"levels": 2.0},
        {"reset": "none"},
        {"gamma": 0},
        {"surrogate": "atan"},
        {"edge": "x"},
        {"reset": "hard", "detach_reset": False},
    ],
)
def test_config_refuses(arguments):
    with pytest.raises(ValueError, match=r"must be|defined for"):
        NeuronConfig(**arguments)


def test_dispatch_refuses():
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match="floating-point current"):
        dispatch.mlif(torch.ones(1, 2, dtype=torch.int64), one, one, NeuronConfig())
    with pytest.raises(ValueError, match="theta is on meta"):
        dispatch.mlif(torch.ones(1, 2), one.to("meta"), one, NeuronConfig())
    with pytest.raises(ValueError, match="theta must be positive"):
        MLIF(theta=0.0)
    with pytest.raises(ValueError, match="step_mode"):
        MLIF(step_mode="t")


def test_module_carries_its_state_like_a_spikingjelly_neuron():
    neuron = MLIF(NeuronConfig(levels=3), leak=0.9)
    x = torch.randn(6, 2, 5)
    whole = neuron(x)
    neuron.reset()
    assert torch.equal(torch.cat([neuron(x[:2]), neuron(x[2:])]), whole)
    neuron.reset()
    neuron.step_mode = "s"
    assert torch.equal(torch.stack([neuron(step) for step in x]), whole)
    assert set(neuron.state_dict()) == {"theta", "leak"}
    neuron.reset()
    assert neuron.v is None
    with pytest.raises(ValueError, match="shape of one step"):
        neuron(x[0])
        neuron(x[0, :1])


def test_gradient_flows_through_the_carried_potential():
    x = torch.randn(4, 3, dtype=torch.float64)
    grads = []
    for cut in (4, 2):
        neuron = MLIF(NeuronConfig(levels=2), theta=0.5, leak=0.9).double()
        torch.cat([neuron(part) for part in x.split(cut)]).square().sum().backward()
        grads.append((neuron.theta.grad, neuron.leak.grad))
    assert torch.allclose(grads[0][0], grads[1][0]) and torch.allclose(grads[0][1], grads[1][1])


def test_drops_into_a_spikingjelly_network():
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), MLIF(NeuronConfig(levels=1), leak=0.5))
    x = torch.randn(3, 2, 4)
    first = net(x)
    functional.reset_net(net)
    assert torch.equal(net(x), first)
    functional.set_step_mode(net, "s")
    functional.reset_net(net)
    assert torch.equal(torch.stack([net(step) for step in x]), first)
    assert "torch" in net[1].supported_backends


def test_one_lane_agrees_with_spikingjelly():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    x = torch.rand(5, 4, 33) * 2
    ours = MLIF(NeuronConfig(levels=1, inclusive=True, reset="hard", input_gain=0.5), leak=0.5)
    theirs = neuron.LIFNode(tau=2.0, decay_input=True, v_threshold=1.0, v_reset=0.0, step_mode="m")
    assert torch.equal(ours(x), theirs(x))
