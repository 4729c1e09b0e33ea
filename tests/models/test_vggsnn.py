"""VGGSNN: golden numbers, operations and energy, published weights, TET loss."""

import numpy as np
import pytest
import torch

import models
from analysis.energy import E_AC, Counter, measure
from engine.recipes.cnn import tet_loss
from models import vggsnn
from neuromorphic_tasks import demo
from tests.helpers import GOLDEN

NUMBERS = np.load(GOLDEN / "B4_vggsnn_w8.npz")
MACS = np.load(GOLDEN / "D_macs.npz")["vggsnn_mac_per_row_i64"]
TAGS = {"mc1_S3": 3, "mc0_S1": 0}  # tag: lanes, 0 for plain LIF


def tensor(key):
    return torch.from_numpy(NUMBERS[key])


def state(tag):
    """Published weights; the LIF baseline's differ from M-LIF's in batch norm's statistics alone."""
    return {
        k.partition("_w/")[2]: tensor(k)
        for name in ("mc1_S3", tag)
        for k in NUMBERS.files
        if k.startswith(f"{name}_w/")
    }


def golden(tag):
    """(network, its merged input frames [B, T, 2, 48, 48])"""
    net = models.build("vggsnn", vggsnn.neurons(TAGS[tag], steps=3), width_mult=1 / 8)
    net.load_state_dict(vggsnn.from_published(state(tag), net))
    x = tensor(f"{tag}_x").float()
    return net, (x * 2.0 ** torch.arange(3).view(3, 1, 1, 1)).sum(2) if TAGS[tag] else x


def small(levels=2, steps=3, width_mult=1 / 16, **arguments):
    torch.manual_seed(0)
    net = models.build("vggsnn", vggsnn.neurons(levels, steps, **arguments), width_mult=width_mult)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(m.weight, 3.0)
    return net


@pytest.mark.parametrize("tag", TAGS)
def test_golden(tag):
    """Readout of every step and counted inputs in eval mode; readout, loss and gradients in training."""
    net, x = golden(tag)
    with torch.no_grad(), Counter(net.eval()) as counter:
        out = net(x)
    assert (out.transpose(0, 1) - tensor(f"{tag}_eval_logits")).abs().max() <= 1e-5
    assert [count[0, :, 0].sum().item() for count in counter.counts.values()] == NUMBERS[
        f"{tag}_eval_ops"
    ].tolist()
    labels = tensor("target").long()
    for lamb, means in ((0.001, 1), (0, 1), (0.05, 0.5)):
        loss = tet_loss(out, labels, lamb, means) / 2
        assert loss.item() == pytest.approx(
            NUMBERS[f"{tag}_TET_dvs_l{lamb}_m{means}"].item(), rel=1e-5
        )
    out = net.train()(x)
    assert (out.transpose(0, 1) - tensor(f"{tag}_train_logits")).abs().max() <= 1e-5 * tensor(
        f"{tag}_train_logits"
    ).abs().max()
    loss = tet_loss(out, labels, 1e-3, 1.0) / 2
    assert loss.item() == pytest.approx(NUMBERS[f"{tag}_train_loss"].item(), rel=1e-5)
    loss.backward()
    keys = [k for k in NUMBERS.files if k.startswith(f"{tag}_grad/")]
    assert len(keys) == 5
    for key in keys:
        marks = {
            k: torch.full(v.shape, float(k == key.partition("/")[2])) for k, v in state(tag).items()
        }
        (name,) = (
            k
            for k, v in vggsnn.from_published(marks, net).items()
            if "act" not in k and v.min() == 1
        )
        want = tensor(key)
        assert (net.get_parameter(name).grad - want).abs().max() <= 1e-4 * want.abs().max(), key


def test_published_macs():
    net = models.build("vggsnn", vggsnn.neurons(3, 1)).eval()
    for site in net.sites():
        site.forward = lambda x: x
    energy = measure(net, [torch.ones(1, 1, 2, 48, 48)])
    assert [r.macs for r in energy.layers] == MACS.tolist() and energy.macs == 660_943_872


def test_energy_by_hand():
    """Every layer, the first included, at 0.9 pJ by the share of its inputs that is nonzero; nothing counted is stored."""
    net, x = small(steps=2).eval(), torch.zeros(3, 2, 2, 48, 48)
    x[:, 0, 0] = 4.0  # half of the first step's input, a quarter of the second's
    x[:, 1, 1, :24] = 1.0
    energy = measure(net, [x])
    first = energy.layers[0]
    assert first.step_rates == [0.5, 0.25] and first.macs == 48 * 48 * 9 * 2 * 4
    assert first.energy_uj == pytest.approx(0.9 * 0.75 * first.macs * 1e-6)
    assert energy.total_uj == pytest.approx(
        sum(E_AC * r.rate * r.macs for r in energy.layers) * 1e-6
    )
    assert not any("ops" in k or "count" in k for k in net.state_dict())


def test_theta_and_leak_are_fixed():
    net = small(levels=3)
    assert {(s.theta.item(), s.leak.item()) for s in net.sites()} == {(1.0, 0.5)}
    assert not any(n.endswith(("theta", "leak")) for n, _ in net.named_parameters())


@pytest.mark.parametrize("levels", [0, 1, 4])
def test_every_parameter_learns(levels):
    net = small(levels)
    net(torch.randint(0, 8, (4, 3, 2, 48, 48)).float()).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0
        for n, p in net.named_parameters()
        if not n.endswith("map.bias")
    )  # batch norm takes the bias out again


def test_steps_are_a_sequence():
    """The frames are shown in their order: a step sees those before it, and no other recording's."""
    net, x = small().eval(), torch.randint(0, 4, (2, 3, 2, 48, 48)).float()
    y = x.clone()
    y[0, 2] = 0
    with torch.no_grad():
        before, after = net(x), net(y)
    assert torch.equal(before[:2], after[:2]) and torch.equal(before[:, 1], after[:, 1])
    assert not torch.equal(before[2, 0], after[2, 0])
    with pytest.raises(
        ValueError,
        match=r"expected frames \[B, 3, \.\.\.\], one for each step, got \[2, 4, 2, 48, 48\]",
    ):
        net(torch.zeros(2, 4, 2, 48, 48))


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
    net, changed = (
        golden("mc1_S3")[0],
        {k: v for k, v in (state("mc1_S3") | change).items() if v is not None},
    )
    with pytest.raises(ValueError, match=words):
        vggsnn.from_published(changed, net)


def test_tet_loss_by_hand():
    out, labels = torch.randn(3, 2, 5), torch.tensor([1, 4])
    entropy = torch.stack([torch.nn.functional.cross_entropy(y, labels) for y in out]).mean()
    want = 0.9 * entropy + 0.1 * (out - 0.5).square().mean()
    assert tet_loss(out, labels, 0.1, 0.5).item() == pytest.approx(2 * want.item(), rel=1e-5)
    mixed = torch.nn.functional.one_hot(labels, 5).float()
    assert tet_loss(out, mixed, 0.1, 0.5).item() == pytest.approx(2 * want.item(), rel=1e-5)


def test_the_demo_from_recordings_to_its_table(tmp_path, capsys):
    summary = demo.main(
        ["--output_dir", str(tmp_path), "--per_class", "2", "--T_prime", "4", "--epochs", "1"]
    )
    assert [s["steps"] for s in summary["settings"].values()] == [1, 4]
    assert summary["data"] == "simulated events of scikit-learn digits, split first900"
    assert summary["energy_share"] > 0 and (tmp_path / "recording.png").stat().st_size > 10_000
    assert "1/4 of its steps" in capsys.readouterr().out
