"""Energy under every model, bits moved, agreement with SpikingJelly's counters, and energy.py."""

import csv
import json

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import op_counter
from torch import nn

import energy as command
import models
from analysis.energy import MODELS, Row, marks, measure
from engine import checkpoint
from models import NeuronConfig, Spiking
from models.layers import Layer, Network, Synapse
from tests.helpers import GOLDEN, ROOT

PUBLISHED = {
    ("vgg16", 10, 32): (338_403_328, "1.557E+03"),
    ("vgg16", 1000, 224): (15_470_264_320, "7.116E+04"),
    ("resnet20", 10, 32): (215_699_456, "9.922E+02"),
}  # MACs, uJ as an ANN


@pytest.mark.parametrize("key", PUBLISHED)
def test_ann_energies_to_the_digit(key, capsys):
    name, classes, _ = key
    data = {10: "CIFAR10", 1000: "IMAGENET"}[classes]
    energy = command.main(["-a", name, "--dataset", data])
    assert (energy.macs, f"{energy.ann_uj:.3E}") == PUBLISHED[key]
    assert (
        energy.total_uj == pytest.approx(energy.ann_uj)
        and f"{PUBLISHED[key][1]} uJ" in capsys.readouterr().out
    )
    golden = np.load(GOLDEN / "D_macs.npz")[f"{name}_{data}_mac_true_i64"]
    assert sorted(r.macs for r in energy.layers) == sorted(golden.tolist())


@pytest.mark.parametrize("key", ["VGG16_T1_S3", "VGG16_T3_S1", "RESNET20_T1_S3", "RESNET20_T3_S1"])
def test_published_operation_table(key):
    """rate = spikes / inputs and operations = rate * MACs, as in the published table; the first layer is billed as MACs."""
    table = np.load(GOLDEN / "D2_ops_energy.npz")[f"{key}_mac_spikes_neurons_rate_snnop"].astype(
        np.float64
    )
    for macs, spikes, neurons, rate, operations in table[1:]:
        row = Row("layer", macs, neurons, step_rates=[spikes / neurons])
        assert row.rate == pytest.approx(rate, rel=1e-5)
        assert row.energy_uj == pytest.approx(0.9e-6 * operations, rel=1e-5)
    assert Row("first", *table[0, [0, 2]], dense=[1.0]).energy_uj == pytest.approx(
        4.6e-6 * table[0, 0]
    )


def chain(act, *middle):
    """A network of a 1x1 convolution of weight 1, the stages `middle` and a readout of 4 inputs and 2 outputs."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    net = Network(
        act,
        [Layer(Synapse(conv), act.layer(first=True)), *middle, nn.Flatten()],
        nn.Linear(4, 2, bias=False),
    )
    conv.weight.data.fill_(1.0)
    return net


IMAGE = torch.tensor([[[[0.5, 1.5], [2.5, 0.6]]]])
# theta 1, soft reset, S = 2. step 1: o = 0, 1, 2, 0, potentials 0.5, 0.5, 0.5, 0.6; step 2: u = 1, 2, 3, 1.2, o = 0, 1, 2, 1


def test_every_model_by_hand():
    """A 3x3 convolution on 2x2 pixels: each input meets 4 of 9 weights, the others fall on padding. Its neurons are silent."""
    act = Spiking(NeuronConfig.vgg(2), 2)
    inner = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    net = chain(act, Layer(Synapse(inner), act.layer()))
    inner.weight.data.zero_()
    energy = measure(net, [IMAGE])
    assert [r.macs for r in energy.layers] == [4, 36, 8] and [
        r.step_rates for r in energy.layers[1:]
    ] == [[0.5, 0.75], [0, 0]]
    assert energy.layers[1].additions == [8, 12]
    wanted = {
        "paper": 4.6 * 4 + 0.9 * 36 * 1.25,
        "exact": 4.6 * 4 + 0.9 * 20,
        "int8": 0.23 * 4 + 0.03 * 20,
        "shift-add": 0.23 * 4 + 0.03 * 20 + 0.024 * 8 + 0.23 * 8 * 2,
    }  # two spikes are worth 2; the readout at both steps
    assert wanted.keys() == MODELS.keys()
    for name, picojoule in wanted.items():
        assert energy.uj(name) == pytest.approx(picojoule * 1e-6)
        assert sum(sum(step.values()) for step in energy.by_lane(name)) == pytest.approx(
            picojoule * 1e-6
        )
    first, second = energy.by_lane("shift-add")
    assert first == pytest.approx({"all": 0.23 * 12e-6, 1: 0.03 * 4e-6, 2: 0.054 * 4e-6})
    assert second == pytest.approx({"all": 0.23 * 8e-6, 1: 0.03 * 8e-6, 2: 0.054 * 4e-6})
    assert energy.lane_rates == pytest.approx(
        [3 / 8, 2 / 8]
    )  # of eight neurons, four of them silent
    # the image once, then 4 spikes of 2 bits at 2 steps, twice; 1 + 9 + 8 weights
    assert energy.bits("paper") == energy.bits("exact") == (4 * 32 + 16 + 16, 18 * 32)
    assert energy.bits("int8") == energy.bits("shift-add") == (4 * 8 + 16 + 16, 18 * 8)


def test_averages_multi_hot_spikes_and_analog_values():
    """What is no one-hot spike: a shift and addition for each binary digit, a MAC where there are none."""
    act = Spiking(NeuronConfig.vgg(2), 1)
    after = Layer(Synapse(nn.Conv2d(1, 4, 1, bias=False)), act.layer())
    row = measure(chain(act, nn.AvgPool2d(2), after), [IMAGE]).layers[1]  # (0 + 1 + 2 + 0) / 4
    assert row.lane_rates == {0.25: [1], 0.5: [1]} and not row.one_hot and row.additions == [4]
    assert row.uj(MODELS["exact"]) == pytest.approx(0.9 * 4e-6)  # an addition, as published
    assert row.uj(MODELS["shift-add"]) == pytest.approx(2 * 4 * 0.054e-6)
    multi = Spiking(NeuronConfig.vgg(2, hardware_opt=2), 1)
    middle = Layer(Synapse(nn.Conv2d(1, 1, 1, bias=False)), multi.layer())
    row = measure(chain(multi, middle), [2 * IMAGE]).layers[1]  # u = 1, 3, 5, 1.2 -> 0, 3, 3, 1
    assert row.lane_rates == {1: [3 / 4], 2: [2 / 4]} and row.code == 2
    scaled = Spiking(NeuronConfig.vgg(2), 1, scale=True)
    net = chain(scaled, Layer(Synapse(nn.Conv2d(1, 1, 1, bias=False)), scaled.layer()))
    net.stages[0].act.scale.data.fill_(0.3)
    row = measure(net, [IMAGE]).layers[1]  # 0, 0.3, 0.6, 0
    assert row.other == [2] and row.uj(MODELS["shift-add"]) == pytest.approx(0.23 * 2e-6)
    assert row.bits(MODELS["int8"]) == (4 * 8, 8)


def test_digits_of_spikes():
    """One step of five inputs, S = 3: digits from 1/64 to 4; negative, large and fractional values have none."""
    x = torch.tensor([0.0, 4.0, 0.75, 1 / 64, 0.3, -1.0, 8.0])
    nonzero, other, *digits = torch.stack(list(marks(x, 3))).tolist()
    assert nonzero == [0, 1, 1, 1, 1, 1, 1] and other == [0, 0, 0, 0, 1, 1, 1]
    assert [sum(2.0 ** (k - 6) * digit[i] for k, digit in enumerate(digits)) for i in range(7)] == [
        0,
        4,
        0.75,
        1 / 64,
        0,
        0,
        0,
    ]


def spiking(name, levels, steps, pool=nn.AvgPool2d):
    torch.manual_seed(0)
    net = models.build(
        name, Spiking(NeuronConfig.vgg(levels), steps, theta=0.3), width_mult=1 / 8, bn=False
    ).eval()
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(m.weight, 0, (2 / m.weight[0].numel()) ** 0.5)
    for i, m in enumerate(net.stages):
        net.stages[i] = pool(2) if isinstance(m, nn.AvgPool2d) else m
    return net


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_one_lane_agrees_with_spikingjelly(name, steps, pool):
    """The same images under both counters, priced by SpikingJelly: equal for binary inputs, in all and layer by layer.

    An average of spikes is no spike to SpikingJelly: such a layer is all MACs there. Its AC counter, unlike its counter of
    synaptic operations, also takes the additions of poolings, shortcuts and the readout's mean, which no model here bills.
    """
    net, images = spiking(name, 1, steps, pool), torch.randn(2, 3, 32, 32)
    mac, synapses = op_counter.MACCounter(), op_counter.SynOpCounter()
    ac = op_counter.ACCounter(extra_ignore_modules=[models.SpikingLayer])
    with torch.no_grad(), op_counter.DispatchCounterMode([mac, synapses, ac]):
        net(images)
    energy, dense = measure(net, [images]), 0
    assert sum(0.02 < r.rate / steps < 0.98 for r in energy.layers[1:]) > len(energy.layers) / 2
    for r in energy.layers:
        counts = [
            sum(c.get_counts()[f"{type(net).__name__}.{r.name}"].values()) / len(images)
            for c in (mac, synapses)
        ]
        averaged = r.dense is None and not r.one_hot
        dense += averaged
        assert counts == pytest.approx(
            [r.macs, 0] if r.dense else [r.macs * steps, 0] if averaged else [0, sum(r.additions)]
        )
    assert dense == (0 if pool is nn.MaxPool2d else 4 if name == "vgg16" else 1)
    rest = {
        str(op): n
        for op, n in ac.get_counts()["Global"].items()
        if op not in synapses.get_counts()["Global"]
    }
    assert rest.keys() <= {"aten.avg_pool2d.default", "aten.add.Tensor", "aten.mean.dim"}
    assert ac.get_total() - sum(rest.values()) == synapses.get_total()
    if not dense:
        for ours, theirs in (("exact", "fp32"), ("int8", "int8")):
            theirs = getattr(op_counter.SimpleEnergyCostConfig, theirs)()
            picojoule = theirs.e_mac_pj * mac.get_total() + theirs.e_ac_pj * synapses.get_total()
            assert energy.uj(ours) == pytest.approx(picojoule * 1e-6 / len(images), rel=1e-3)


@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
def test_lanes_sum_to_the_merged_rate(name):
    energy = measure(spiking(name, 3, 2), [torch.randn(2, 3, 32, 32), torch.randn(1, 3, 32, 32)])
    one_hot = [r for r in energy.layers if r.one_hot]
    assert len(one_hot) == len(energy.layers) - (
        5 if name == "vgg16" else 2
    )  # the image and what follows an average
    for r in one_hot:
        assert set(r.lane_rates) <= {1, 2, 4} and r.code == 2
        for lanes, merged in ((r.lane_rates, r.step_rates), (r.lane_additions, r.additions)):
            assert [sum(steps) for steps in zip(*lanes.values(), strict=True)] == pytest.approx(
                merged
            )
    assert len({lane for r in one_hot for lane in r.lane_rates}) == 3


def test_command(cifar, tmp_path, capsys, fails):
    """energy.py on a checkpoint: the table under the chosen model, all models in the files; what it refuses."""
    net, path = spiking("vgg16", 3, 1), tmp_path / "snn.pth"
    checkpoint.save(
        path,
        checkpoint.content(
            net,
            "snn",
            {"num_classes": 10, "image_size": 32},
            {"dataset": "CIFAR10", "data_root": str(cifar)},
        ),
    )
    found = command.main([str(path), "--device", "cpu", "--energy_model", "shift-add"])["energy"]
    out = capsys.readouterr().out
    assert (
        f"{found.uj('shift-add'):.4g} uJ per image (shift-add)" in out
        and f"paper {found.total_uj:.4g} uJ" in out
    )
    stored = json.loads((tmp_path / "snn_energy.json").read_text())
    assert stored["total_uj"] == pytest.approx(found.total_uj) and stored["images"] == 12
    for name in MODELS:
        assert stored["models"][name]["total_uj"] == pytest.approx(
            sum(r["energy_uj"][name] for r in stored["layers"])
        )
        assert (
            stored["models"][name]["bits"] == list(found.bits(name))
            and stored["models"][name]["source"]
        )
    lines = list(csv.DictReader((tmp_path / "snn_energy.csv").read_text().splitlines()))
    assert [float(line["int8_uj"]) for line in lines] == pytest.approx(
        [r.uj(MODELS["int8"]) for r in found.layers]
    )
    for words, *wanted in (
        (f"{path} --energy_model int4", "int4", *MODELS),
        (f"{path} -a VGG16", "not both"),
        (f"{path} --width_mult 2", "--width_mult does nothing here"),
        ("", "give a checkpoint"),
        ("-a VGG16 --batch_size 4", "--batch_size does nothing here"),
        ("-a RESNET20 --dataset DIGITS", "CIFAR100", "got DIGITS"),
        ("-a SDT", "VGG16", "RESNET20"),
    ):
        fails(command.main, words, *wanted)


def test_readme_shows_the_models():
    readme = (ROOT / "README.md").read_text()
    for name, m in MODELS.items():
        assert f"| `{name}` | {m.mac} | {m.add} | {m.shift or '-'} | {m.bits} |" in readme
