"""The integer network in ONNX Runtime: every spike of every layer is that of models.integer."""

import numpy as np
import pytest
import torch

from analysis.agreement import outputs
from engine import integer_onnx, onnx_file
from models import NeuronConfig, Spiking, integer
from tests.models import golden
from tests.models.test_integer import MEAN, pixels, random

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

STD = (0.25,) * 3
NAMES = tuple(golden.CNNS)


def equal(whole, images):
    """Compare all spikes and logits; returns {operator of the file: how often it occurs}."""
    models = integer_onnx.build(whole, images.shape[-1])
    onnx.checker.check_model(models[0], full_check=True)
    other = onnx_file.OnnxNetwork(*(model.SerializeToString() for model in models))
    readout, spikes = outputs(whole, images)
    logits, fired = outputs(other, images)
    assert logits.dtype == torch.int32 and torch.equal(logits, readout)
    for ours, theirs in zip(fired, spikes, strict=True):
        assert torch.equal(ours.flatten(), theirs.flatten())
    names = [node.op_type for node in models[0].graph.node]
    return {name: names.count(name) for name in names}


# ---- one step, in bytes


@pytest.mark.parametrize("theta", [0.45, 0.77])
@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_every_spike_is_equal_and_every_convolution_in_int8(name, lanes, theta):
    torch.manual_seed(lanes)
    whole = integer.to_integer(random(name, 1, NeuronConfig.vgg(lanes), theta=theta), MEAN, STD)
    found = equal(whole, pixels(3))
    equal(whole, pixels(1))  # any batch
    _, spikes = outputs(whole, pixels(3))
    assert sum(layer.count_nonzero() for layer in spikes[-2:]) > 0
    assert "ConvInteger" not in found


@pytest.mark.parametrize("name", NAMES)
def test_few_operations_stand_beside_a_convolution(name):
    """Two clips and a product pick one of three lanes."""
    found = equal(integer.to_integer(random(name), MEAN, STD), pixels(2))
    layers = {"vgg16": 13, "resnet20": 19}[name]
    assert found["Clip"] == 2 * layers and found["Mul"] == layers


@pytest.mark.parametrize(
    "config",
    [
        NeuronConfig.vgg(3, hardware_opt=2),
        NeuronConfig(inclusive=True),
        NeuronConfig.vgg(5),
        NeuronConfig.vgg(6),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_other_neurons(name, config):
    equal(integer.to_integer(random(name, 1, config, theta=0.8), MEAN, STD), pixels(2))


def by_hand(config, theta, weight=1):
    """Every pixel from 0 to 255 meets every theta, each with three biases."""
    act = Spiking(config).layer()
    theta = torch.as_tensor(theta).repeat_interleave(3)
    bias = torch.tensor([-7, 0, 9]).repeat(len(theta) // 3)
    edges = theta * torch.tensor(config.boundaries).double()[:, None] - int(config.inclusive) - bias
    layer = integer.IntegerLayer(
        integer.Products(
            torch.full((len(theta), 1, 1, 1), weight, dtype=torch.int8),
            torch.nn.Conv2d(1, 1, 1),
            torch.zeros(1, dtype=torch.uint8),
        ),
        integer.Neurons(act, edges.int()),
    )
    head = torch.ones(2, len(theta) * 256, 1, 1, dtype=torch.int8)
    head = integer.Sum(head, torch.nn.Linear(1, 1), int(sum(config.jumps)))
    return integer.IntegerNetwork([layer, integer.Flatten()], head, 1, 1.0)


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("lanes", range(1, 9))
def test_at_each_edge_and_beside_it(lanes, one_hot, inclusive):
    """Thetas odd and even, whose halves are ties of the rounding."""
    config = NeuronConfig(levels=lanes, one_hot=one_hot, inclusive=inclusive)
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    found = equal(by_hand(config, range(1, 65)), image)
    assert "QLinearConv" in found


def test_counts_are_exact_or_refused():
    """float32 has 24 bits; a count of 255 steps of 2^18 needs more."""
    start = np.array([-100, 0, 12345])
    for unit in (1, 2, 191, 192, 2**12 - 1, 2**12):
        assert integer_onnx.Count(start, np.full(3, unit), 255).fits()
    assert not integer_onnx.Count(start, np.full(3, 2**18), 255).fits()
    assert not integer_onnx.Count(start, np.full(3, 192), 256).fits()


@pytest.mark.parametrize("theta", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("lanes", [1, 3])
def test_shortcuts_in_units_of_all_sizes(theta, lanes):
    net = random("resnet20", 1, NeuronConfig.vgg(lanes), theta=theta)
    found = equal(integer.to_integer(net, MEAN, STD), pixels(2))
    assert found["QuantizeLinear"] >= 4


def test_a_shortcut_that_bytes_do_not_count_is_more_channels():
    """The one behind the pooling; weights that are small make its factor large."""
    net = random("resnet20", theta=0.49)
    with torch.no_grad():
        net.stages[4].synapse.map.weight.mul_(0.25)
    found = equal(integer.to_integer(net, MEAN, STD), pixels(3))
    assert found["QuantizeLinear"] == 4 and found["Concat"] == 4
    assert "ConvInteger" not in found


# ---- what bytes do not hold, in int32


@pytest.mark.parametrize("config", [NeuronConfig.vgg(3), NeuronConfig.vgg(2, reset_to_zero=True)])
@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_steps_with_a_potential(name, steps, config):
    found = equal(integer.to_integer(random(name, steps, config), MEAN, STD), pixels(2))
    assert found["ConvInteger"] == {"vgg16": 13, "resnet20": 22}[name]


@pytest.mark.parametrize("name", NAMES)
def test_lanes_that_are_no_doublings_of_one_theta(name):
    """As in files of another making; and a layer in int32 hands its codes to one in bytes."""
    whole = integer.to_integer(random(name), MEAN, STD)
    for layer in (1, 5, 8, 10):
        for site in whole.stages[layer].modules():
            if isinstance(site, integer.Neurons):
                site.edges[-1] += 1
    found = equal(whole, pixels(2))
    assert found["ConvInteger"] and found["QLinearConv"]


def test_thetas_that_float32_does_not_tell_apart():
    """A theta of 2^26 with a bias that almost makes it."""
    whole = by_hand(NeuronConfig(levels=3), [2**26])
    whole.stages[0].neurons.edges -= 2**26 - 100
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert "ConvInteger" in equal(whole, image)


def test_pooled_spikes_beyond_a_byte_are_refused():
    whole = integer.to_integer(random("vgg16", 1, NeuronConfig.vgg(7)), MEAN, STD)
    with pytest.raises(ValueError, match="its pooled spikes reach 256, more than a byte holds"):
        integer_onnx.build(whole, 32)


def test_the_frame_is_the_mean_pixel():
    """Of each channel: images of that color have equal spikes inside and at the edges."""
    net = random("vgg16")
    whole = integer.to_integer(net, (0.4914, 0.4822, 0.4465), STD)
    image = torch.tensor([125, 123, 114], dtype=torch.uint8)[:, None, None].expand(1, 3, 32, 32)
    equal(whole, image.contiguous())
    _, (first, *_) = outputs(whole, image)
    assert (first == first[..., :1, :1]).all()
