"""VGGSNN: recorded numbers, operations and energy, published weights, TET loss."""

import numpy as np
import pytest
import torch

import models
from analysis.energy import measure
from analysis.pricing import E_AC
from engine.recipes.tet import TETOptions, tet_loss
from models import published, vggsnn
from models.published import Misfit
from tests.helpers import GOLDEN
from tests.models.golden import check_gradients, close

NUMBERS = np.load(GOLDEN / "B4_vggsnn_w8.npz")
TAGS = {"mc1_S3": 3, "mc0_S1": 0}  # tag of the recording: levels, 0 for plain LIF
BOTH = pytest.mark.parametrize("tag", TAGS)
SETTINGS = ("theta", "leak")


def tensor(key):
    return torch.from_numpy(NUMBERS[key])


def state(tag):
    """Published weights; the LIF baseline's differ from M-LIF's in batch norm's statistics."""
    return {
        key.partition("_w/")[2]: tensor(key)
        for name in ("mc1_S3", tag)
        for key in NUMBERS.files
        if key.startswith(f"{name}_w/")
    }


def recorded(tag):
    """(network, its merged input frames [B, T, 2, 48, 48]), whose recording has x before y."""
    net = models.build("vggsnn", vggsnn.activation(TAGS[tag], steps=3), width_mult=1 / 8)
    published.fit(net, published.rename(net, state(tag)), new=SETTINGS)
    x = tensor(f"{tag}_x").float()
    if TAGS[tag]:
        x = (x * 2.0 ** torch.arange(3).view(3, 1, 1, 1)).sum(2)  # [B, T, S, ...]
    return net, x.transpose(-1, -2).contiguous()


def small(levels=2, steps=3):
    net = models.build("vggsnn", vggsnn.activation(levels, steps), width_mult=1 / 16)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(m.weight, 3.0)
    return net


# ---- recorded numbers


@BOTH
def test_readout_of_every_step(tag):
    net, x = recorded(tag)
    with torch.no_grad():
        out = net.eval()(x)
    assert (out.transpose(0, 1) - tensor(f"{tag}_eval_logits")).abs().max() <= 1e-5


@BOTH
def test_counted_operations(tag):
    """Nonzero inputs of each layer, over the steps and images."""
    net, x = recorded(tag)
    rows = measure(net, [x]).layers
    counts = [round(row.rate * row.inputs * len(x)) for row in rows]
    assert counts == NUMBERS[f"{tag}_eval_ops"].tolist()


@BOTH
@pytest.mark.parametrize(("lamb", "means"), [(0.001, 1), (0, 1), (0.05, 0.5)])
def test_tet_loss(tag, lamb, means):
    out = tensor(f"{tag}_eval_logits").transpose(0, 1)
    loss = tet_loss(out, tensor("target").long(), TETOptions(lamb=lamb, means=means)) / len(out[0])
    wanted = tensor(f"{tag}_TET_dvs_l{lamb}_m{means}").item()
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


@BOTH
def test_a_training_step(tag):
    net, x = recorded(tag)
    out = net.train()(x)
    close(out.transpose(0, 1), tensor(f"{tag}_train_logits"), 1e-5)
    loss = tet_loss(out, tensor("target").long(), TETOptions()) / len(x)
    assert loss.item() == pytest.approx(tensor(f"{tag}_train_loss").item(), rel=1e-5)
    loss.backward()
    prefix = f"{tag}_grad/"
    keys = [key for key in NUMBERS.files if key.startswith(prefix)]
    gradients = {key.removeprefix(prefix): published.upright(tensor(key), 3) for key in keys}
    assert len(gradients) == 5
    weights = {key: value for key, value in state(tag).items() if "ops" not in key}
    check_gradients(net, weights, gradients)


# ---- operations and energy


def test_published_macs():
    net = models.build("vggsnn", vggsnn.activation(3, 1)).eval()
    for site in net.sites():
        site.forward = lambda x: x
    energy = measure(net, [torch.ones(1, 1, 2, 48, 48)])
    recorded_macs = np.load(GOLDEN / "D_macs.npz")["vggsnn_mac_per_row_i64"]
    assert [row.macs for row in energy.layers] == recorded_macs.tolist()
    assert energy.macs == 660_943_872


def test_energy_by_hand():
    """Every layer, the first included, at 0.9 pJ by the share of its inputs that is nonzero."""
    net = small(steps=2).eval()
    x = torch.zeros(3, 2, 2, 48, 48)
    x[:, 0, 0] = 4.0  # half of the first step's input, a quarter of the second's
    x[:, 1, 1, :24] = 1.0
    energy = measure(net, [x])
    first = energy.layers[0]
    assert first.step_rates == [0.5, 0.25] and first.macs == 48 * 48 * 9 * 2 * 4
    assert first.energy_uj == pytest.approx(0.9 * 0.75 * first.macs * 1e-6)
    additions = sum(E_AC * row.rate * row.macs for row in energy.layers)
    assert energy.total_uj == pytest.approx(additions * 1e-6)


def test_nothing_counted_is_stored():
    net = small()
    names = list(net.state_dict())
    measure(net, [torch.ones(1, 3, 2, 48, 48)])
    assert list(net.state_dict()) == names


# ---- neurons and frames


def test_theta_and_leak_are_fixed():
    net = small(levels=3)
    assert {(site.theta.item(), site.leak.item()) for site in net.sites()} == {(1.0, 0.5)}
    assert not any(name.endswith(SETTINGS) for name, _ in net.named_parameters())


@pytest.mark.parametrize("levels", [0, 1, 4])
def test_every_parameter_learns(levels):
    net = small(levels)
    net(torch.randint(0, 8, (4, 3, 2, 48, 48)).float()).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        # batch norm takes the bias before it out again
        assert parameter.grad.any() or name.endswith("map.bias"), name


def test_steps_are_a_sequence():
    """Frames are shown in their order: a step sees those before it, and no other recording's."""
    net = small().eval()
    x = torch.randint(0, 4, (2, 3, 2, 48, 48)).float()
    y = x.clone()
    y[0, 2] = 0
    with torch.no_grad():
        before, after = net(x), net(y)  # [T, B, classes]
    assert torch.equal(before[:2], after[:2]) and torch.equal(before[:, 1], after[:, 1])
    assert not torch.equal(before[2, 0], after[2, 0])


# ---- published weights


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"features.0.fwd.module.2.weight": torch.zeros(1)},
            r"1 unknown.*features\.0\.fwd\.module\.2\.weight",
        ),
        ({"features.0.opsy": torch.zeros(1)}, r"1 unknown.*features\.0\.opsy"),
        ({"classifier.module.bias": None}, r"1 missing.*no head\.bias"),
        (
            {"classifier.module.bias": torch.zeros(11)},
            r"1 of another size\): head\.bias is \(11,\), expected \(10,\)",
        ),
    ],
)
def test_published_weights_are_strict(change, words):
    net, _ = recorded("mc1_S3")
    changed = {k: v for k, v in (state("mc1_S3") | change).items() if v is not None}
    with pytest.raises(Misfit, match=words):
        published.fit(net, published.rename(net, changed), new=SETTINGS)


# ---- the loss


def test_tet_loss_by_hand():
    out, labels = torch.randn(3, 2, 5), torch.tensor([1, 4])
    options = TETOptions(lamb=0.1, means=0.5)
    entropy = torch.stack([torch.nn.functional.cross_entropy(y, labels) for y in out]).mean()
    want = 0.9 * entropy + 0.1 * (out - 0.5).square().mean()
    assert tet_loss(out, labels, options).item() == pytest.approx(2 * want.item(), rel=1e-5)
    mixed = torch.nn.functional.one_hot(labels, 5).float()
    assert tet_loss(out, mixed, options).item() == pytest.approx(2 * want.item(), rel=1e-5)
