"""What is counted: by hand, as SpikingJelly counts, over processes, and of an ANN's shape."""

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import op_counter
from torch import nn

import energy as command
import models
from analysis.energy import Counter, Counts, lane_curves, marks, measure, of_ann, worths
from analysis.pricing import MODELS
from engine.dist import World
from models import NeuronConfig, Spiking
from tests.analysis.networks import IMAGE, chain, layer, silent_chain, spiking
from tests.helpers import GOLDEN

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
    assert energy.total_uj == pytest.approx(energy.ann_uj)
    assert f"{PUBLISHED[key][1]} uJ" in capsys.readouterr().out
    golden = np.load(GOLDEN / "D_macs.npz")[f"{name}_{data}_mac_true_i64"]
    assert sorted(r.macs for r in energy.layers) == sorted(golden.tolist())


def test_a_measured_ann_is_its_shape():
    """Measured on images, an ANN is billed as from its shape alone; all its inputs are analog."""
    net = models.build("resnet20", models.ReLU(), width_mult=1 / 8).eval()
    measured = measure(net, [torch.randn(2, 3, 32, 32)])
    shape = of_ann("resnet20", width_mult=1 / 8)
    assert measured.ann_uj == shape.ann_uj
    for name in MODELS:
        assert measured.uj(name) == pytest.approx(shape.uj(name))
    assert {(r.code, r.reads, *r.dense) for r in measured.layers} == {(0, 1, 1.0)}
    assert measured.lane_rates == [] and measured.lane_rates_per_layer == {}


def test_an_snn_is_compared_with_the_ann_of_its_shape():
    act = models.Spiking(models.NeuronConfig.vgg(3), steps=2)
    snn = measure(models.build("resnet20", act, width_mult=1 / 8), [torch.randn(2, 3, 32, 32)])
    shape = of_ann("resnet20", width_mult=1 / 8)
    for name in MODELS:
        assert snn.ann(name) == pytest.approx(shape.uj(name))


@pytest.mark.parametrize("how", [{"padding": "same"}, {"padding_mode": "circular"}])
def test_a_padding_that_is_not_counted_is_refused(how):
    net = silent_chain()
    net.stages.insert(1, nn.Conv2d(1, 1, 3, **how))
    with pytest.raises(ValueError, match=r"stages\.1 pads by .*: what is counted are zeros"):
        measure(net, [IMAGE])


def test_counts_by_hand():
    """A 3x3 convolution on 2x2 pixels: each input meets 4 of 9 weights, the rest is padding."""
    energy = measure(silent_chain(), [IMAGE])
    assert [r.macs for r in energy.layers] == [4, 36, 8]
    assert [r.step_rates for r in energy.layers[1:]] == [[0.5, 0.75], [0, 0]]
    assert energy.layers[1].additions == [8, 12]
    assert energy.layers[1].lane_additions == {1: [4, 8], 2: [4, 4]}


def test_firing_rates_by_hand():
    """Of eight neurons, four of them silent; sums over the steps, but for the rates per step."""
    net = silent_chain()
    energy = measure(net, [IMAGE])
    assert energy.lane_rates == pytest.approx([3 / 8, 2 / 8])
    assert energy.lane_rates_per_layer == {"stages.0.act": [3 / 4, 2 / 4], "stages.1.act": [0, 0]}
    assert energy.lane_rates_per_step["stages.0.act"] == [[1 / 4, 1 / 4], [2 / 4, 1 / 4]]
    curves = lane_curves(net, IMAGE)
    assert curves["rate/stages.0.act/lane1"] == 3 / 4
    assert curves["rate/stages.0.act/lane2"] == 2 / 4
    assert len(curves) == 4


def test_the_image_is_read_once_or_at_every_step():
    """The first layer is dense once, or, where the network says so, at the image's nonzero rate."""
    net = chain(Spiking(NeuronConfig.vgg(2), 4))
    image = IMAGE * torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    once = measure(net, [image]).layers[0]
    assert (once.dense, once.reads, once.rate) == ([1, 0, 0, 0], 1, 0.75)
    assert once.step_rates == [0.75, 0, 0, 0]
    net.each_step = True
    always = measure(net, [image]).layers[0]
    assert (always.dense, always.reads, always.rate) == ([0.75] * 4, 4, 3)


def test_bits_of_the_first_layers_inputs():
    """Shown directly, an image is analog, whatever its values; as Bernoulli spikes it has a bit."""
    image = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    for encoding, bits in (("direct", 0), ("rate", 1)):
        net = chain(Spiking(NeuronConfig.vgg(2), 3, encoding=encoding))
        row = measure(net, [image]).layers[0]
        assert (row.one_hot, row.code) == (True, bits)
    assert row.dense is None and row.reads == 3 and row.step_rates == [0.5] * 3


def test_averages_have_several_digits():
    """(0 + 1 + 2 + 0) / 4 is 0.25 + 0.5."""
    act = Spiking(NeuronConfig.vgg(2), 1)
    row = measure(chain(act, nn.AvgPool2d(2), layer(act, 1, 4, 1)), [IMAGE]).layers[1]
    assert row.lane_rates == {0.25: [1], 0.5: [1]} and not row.one_hot and row.additions == [4]
    assert row.uj(MODELS["exact"]) == pytest.approx(0.9 * 4e-6)  # an addition, as published
    assert row.uj(MODELS["shift-add"]) == pytest.approx(2 * 4 * 0.054e-6)


def test_multi_hot_spikes_have_a_digit_per_lane():
    """u = 1, 3, 5, 1.2 give 0, 3, 3, 1."""
    act = Spiking(NeuronConfig.vgg(2, hardware_opt=2), 1)
    row = measure(chain(act, layer(act, 1, 1, 1)), [2 * IMAGE]).layers[1]
    assert row.lane_rates == {1: [3 / 4], 2: [2 / 4]} and row.code == 2
    assert row.step_rates == [3 / 4] and not row.one_hot


def test_analog_values_have_no_digits():
    """Spikes times 0.3, as in matched conversion: a MAC where there are no digits."""
    act = Spiking(NeuronConfig.vgg(2), 1, scale=True)
    net = chain(act, layer(act, 1, 1, 1))
    net.stages[0].act.scale.data.fill_(0.3)
    energy = measure(net, [IMAGE])
    row = energy.layers[1]  # 0, 0.3, 0.6, 0
    assert row.other == [2] and row.uj(MODELS["shift-add"]) == pytest.approx(0.23 * 2e-6)
    assert row.bits(MODELS["int8"]) == (4 * 8, 8)
    assert energy.lane_rates_per_layer["stages.0.act"] == [1 / 4, 1 / 4]  # the scale is undone


def test_scaled_neurons_with_a_scale_fire_in_their_lanes():
    """u = 0.5, 1.5, 2.5, 0.6 give 0, 1, 1, 0.5, whatever scale follows."""
    act = Spiking(NeuronConfig(levels=2, scaled=True), 1, scale=True)
    net = chain(act)
    net.stages[0].act.scale.data.fill_(0.3)
    with Counter(net) as counter:
        net(IMAGE)
    assert counter.energy().lane_rates_per_layer["stages.0.act"] == [1 / 4, 2 / 4]


def test_digits_of_spikes():
    """S = 3: digits from 1/64 to 16, as a gated spike; negative, large and fractional values have
    none.
    """
    x = torch.tensor([16.0, 4.0, 0.75, 1 / 64, 0.3, -1.0, 32.0])
    kinds = torch.stack(list(marks(x, 3)), -1)  # a column per kind, as `Counts` names them
    counts = Counts.of(kinds, 3)
    assert counts.nonzero == [1] * 7 and counts.other == [0, 0, 0, 0, 1, 1, 1]
    assert list(counts.digits) == worths(3) == [2.0**k for k in range(-6, 5)]
    values = [sum(w * digit[i] for w, digit in counts.digits.items()) for i in range(7)]
    assert values == [16, 4, 0.75, 1 / 64, 0, 0, 0]
    assert not torch.stack(list(marks(torch.zeros(2), 3))).any()


def test_processes_are_summed():
    """Two processes with the same images: twice as many, and all means and shares as of one."""

    class Two(World):
        def sum(self, tensor):
            return tensor.mul_(2)

    net = silent_chain()
    with torch.no_grad(), Counter(net) as counter:
        net(IMAGE)
        net(IMAGE)
    one, two = counter.energy(), counter.energy(Two())
    assert (one.images, two.images) == (2, 4)
    assert two.as_dict() == one.as_dict() | {"images": 4}


def test_hooks_are_gone_afterwards():
    net = silent_chain()
    with torch.no_grad(), Counter(net) as counter:
        net(IMAGE)
    net(IMAGE)
    assert counter.images == 1
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in net.modules()]
    assert not any(hooks)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_one_lane_agrees_with_spikingjelly(name, steps, pool):
    """The same images under both counters: equal for binary inputs, in all and layer by layer.

    An average of spikes is no spike to SpikingJelly: such a layer is all MACs there. Its AC
    counter, unlike its counter of synaptic operations, also takes the additions of poolings,
    shortcuts and the readout's mean, which no model here bills.
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
        if r.dense:
            wanted = [r.macs, 0]
        elif averaged:
            wanted = [r.macs * steps, 0]
        else:
            wanted = [0, sum(r.additions)]
        assert counts == pytest.approx(wanted)
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
    others = 5 if name == "vgg16" else 2  # the image and what follows an average
    assert len(one_hot) == len(energy.layers) - others
    for r in one_hot:
        assert set(r.lane_rates) <= {1, 2, 4} and r.code == 2
        for lanes, merged in ((r.lane_rates, r.step_rates), (r.lane_additions, r.additions)):
            summed = [sum(steps) for steps in zip(*lanes.values(), strict=True)]
            assert summed == pytest.approx(merged)
    assert len({lane for r in one_hot for lane in r.lane_rates}) == 3
