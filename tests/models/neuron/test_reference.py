"""The neuron: golden numbers, a trace checked by hand, boundaries, special values, surrogate."""

import re

import numpy as np
import pytest
import torch

from models import NeuronConfig, lanes
from models.neuron.reference import surrogate
from tests.helpers import GOLDEN
from tests.models.neuron.parity import close, run

# On a CPU; `compiled` takes seconds for each case: see test_backends.py.
BACKENDS = ["reference", "torch", "cpp", "triton"]

VGG = np.load(GOLDEN / "A1_vgg_neuron.npz")
VGG_TAG = re.compile(r"(bnd_)?S(\d)_hw(\d)_rz(\d)_T(\d)_lk([\d.]+)_merged")
# the published hard reset clears neurons that did not fire; ours only those that did
VGG_CASES = [
    match
    for match in map(VGG_TAG.fullmatch, VGG.files)
    if match and (match[4] == "0" or match[5] == "1")
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", VGG_CASES, ids=lambda case: case[0].removesuffix("_merged"))
def test_golden_vgg_neuron(case, backend):
    tag = case[0].removesuffix("_merged")
    bound, levels, hardware_opt, zero, steps, leak = case.groups()
    config = NeuronConfig.vgg(int(levels), int(hardware_opt), zero == "1")
    kind = "b" if bound else ""  # currents beside the boundaries have arrays of their own
    o, v, gx, gtheta, gleak = run(
        config,
        VGG[f"x{kind}_T{steps}"],
        np.float32(0.8).item(),
        float(leak),
        backend,
        VGG[f"g{kind}merged_T{steps}"],
    )
    assert np.array_equal(o, VGG[f"{tag}_merged"])
    assert np.array_equal(lanes(o, config), VGG[f"{tag}_lanes"])
    if f"{tag}_gx_merged" in VGG:
        close(gx, VGG[f"{tag}_gx_merged"], 1e-5)
        close(gtheta, VGG[f"{tag}_gth_merged"], 1e-5)
        close(gleak, VGG[f"{tag}_glk_merged"], 1e-5)
    if f"{tag}_mem" in VGG and zero == "0" and not bound:
        close(v, VGG[f"{tag}_mem"][-1], 1e-6)


TRANSFORMER = np.load(GOLDEN / "A2_mlif_nodes.npz")
TRANSFORMER_TAG = re.compile(
    r"(bnd_)?(mlif|fast)_(hard|soft)_det(\d)_dec(\d)_sc(\d)_C(\d)_th([\d.]+)_T(\d)_s"
)
TRANSFORMER_CASES = [match for match in map(TRANSFORMER_TAG.fullmatch, TRANSFORMER.files) if match]


@pytest.mark.parametrize("case", TRANSFORMER_CASES, ids=lambda case: case[0].removesuffix("_s"))
def test_golden_transformer_neuron(case):
    tag = case[0].removesuffix("_s")
    bound, kind, reset, detach, decay, scaled, levels, theta, steps = case.groups()
    config = NeuronConfig.transformer(
        int(levels),
        fast=kind == "fast",
        soft=reset == "soft",
        detach_reset=detach == "1",
        decay_input=decay == "1",
        scaled=scaled == "1",
    )
    if bound:
        x, grad = TRANSFORMER[f"xb_th{theta}"], TRANSFORMER[f"gb_th{theta}"]
    else:
        x, grad = TRANSFORMER[f"x_T{steps}"], TRANSFORMER[f"gout_T{steps}"]
    o, v, gx, *_ = run(config, x, float(theta), 0.5, grad=grad)
    assert np.array_equal(o, TRANSFORMER[f"{tag}_s"])
    close(v, TRANSFORMER[f"{tag}_v"][-1], 1e-6)
    if f"{tag}_gx" in TRANSFORMER:
        close(gx, TRANSFORMER[f"{tag}_gx"], 1e-5)


VGGSNN = np.load(GOLDEN / "A3_lifspike.npz")


@pytest.mark.parametrize("tag", ["mc1_S1", "mc1_S2", "mc1_S3", "mc1_S4", "mc0_S1"])
def test_golden_vggsnn_neuron(tag):
    plain = tag.startswith("mc0")
    config = NeuronConfig.lif() if plain else NeuronConfig.vggsnn(int(tag[-1]))
    x = torch.from_numpy(VGGSNN["x"]).transpose(0, 1)  # [T, B, ...]
    grad = torch.from_numpy(VGGSNN["gmerged"]).transpose(0, 1)
    o, v, gx, *_ = run(config, x, 1.0, 0.5, grad=grad)
    got = lanes(o, config).permute(2, 0, 1, 3, 4, 5)  # [B, T, S, ...]
    if plain:
        got = got[:, :, 0]
    assert np.array_equal(got, VGGSNN[f"{tag}_lanes"])
    assert torch.equal(v, torch.from_numpy(VGGSNN[f"{tag}_mem"])[:, -1])
    if f"{tag}_gx_merged" in VGGSNN:
        close(gx.transpose(0, 1), VGGSNN[f"{tag}_gx_merged"], 1e-5)


def test_trace_by_hand():
    """S = 3, theta = 1, soft reset, leak 1/2: every number can be checked on paper."""
    x = torch.tensor([[0.5], [1.0], [3.0], [9.0], [0.0], [-2.0]])
    o, v, *_ = run(NeuronConfig(levels=3), x, 1.0, 0.5)
    # u: 0.5 | 0.25+1=1.25 | 0.125+3=3.125 | 0.5625+9=9.5625 | 2.78125 | 0.390625-2
    assert o.flatten().tolist() == [0, 1, 2, 4, 2, 0]
    assert v.item() == 0.390625 - 2


def test_comparing_needs_no_division():
    """u / unit > 2^i, rounded, exactly where u > unit * 2^i.

    For random units, and potentials one unit in the last place beside each boundary.
    """
    mantissas = np.random.default_rng(0).random(20000, dtype=np.float32) + 1
    exponents = np.arange(20000) % 200 - 100
    for dtype in (np.float32, np.float64):
        unit = np.ldexp(mantissas, exponents).astype(dtype)
        for factor in map(dtype, (1, 2, 128)):
            boundary = unit * factor
            below = np.nextafter(boundary, dtype(0))
            above = np.nextafter(boundary, dtype(np.inf))
            for u in (below, boundary, above):
                assert np.array_equal(u / unit > factor, u > boundary)
                assert np.array_equal(u / unit >= factor, u >= boundary)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fired_plain_lif_neuron_forgets_an_infinite_potential(backend):
    x = torch.tensor([[torch.inf], [0.4]])
    o, v, *_ = run(NeuronConfig.lif(), x, 1.0, backend=backend)
    assert o.flatten().tolist() == [1, 0]
    assert v == x[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_by_theta_is_not_differentiated(backend):
    """S = 2: in the first step u = 1.2 = r, so d_0 = 0.2 and d_1 = -0.4; in the second u = 0.6.

    phi = 0.3 (1 - |d|): 0.24 + 1.5 * 0.18 = 0.51 and 0.18 + 1.5 * 0.09 = 0.315.
    """
    config = NeuronConfig(levels=2, reset="soft_theta", detach_reset=False)
    x = torch.tensor([[1.2], [0.4]])
    gx = run(config, x, 1.0, backend=backend, grad=torch.ones(2, 1))[2]
    assert gx.flatten().tolist() == pytest.approx([0.51 + 0.315, 0.315])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_neurons(backend):
    nothing = torch.empty(2, 0, 3)
    o, _, gx, gtheta, _ = run(NeuronConfig(), nothing, backend=backend, grad=nothing)
    assert o.shape == (2, 0, 3)
    assert gx.shape == (2, 0, 3)
    assert gtheta == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clipped_surrogate_is_a_line_to_the_top_level(backend):
    """x = -1, 0, 1, 20, 21.4, theta 4: r = -0.25, 0, 0.25, 5, 5.35, and 4 / 0.75 is 5.33."""
    config = NeuronConfig.vgg(3, gamma=0.75, surrogate="clipped")
    x = torch.tensor([[-1.0, 0.0, 1.0, 20.0, 21.4]])
    gx = run(config, x, 4.0, backend=backend, grad=torch.ones(1, 5))[2]
    slope = 0.75 / 4
    assert gx.flatten().tolist() == pytest.approx([0, 0, slope, slope, 0])


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_surrogate_areas(gamma, levels):
    """With gamma 1 and the paper's inner slope, the area of a bump is the jump it stands for."""
    r = torch.linspace(-1, 20, 200001, dtype=torch.float64)
    config = NeuronConfig(levels=levels, gamma=gamma, inner_slope="paper")
    area = torch.trapezoid(surrogate(r, config), r).item()
    assert area == pytest.approx(gamma * sum(config.jumps), rel=1e-4)
