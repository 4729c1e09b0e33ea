"""The SNN with the integer network's weights: it computes the same, and can be trained."""

import copy

import pytest
import torch
from torch import nn

import models
from analysis.agreement import compare, outputs
from models import NeuronConfig, Spiking, integer
from models.layers import Layer, Network, Synapse
from models.rounded import Rounded
from tests.models.test_integer import CONFIGS, STD, exact, pixels, random
from tests.zoo import network

MEAN = (0.4914, 0.4822, 0.4465)  # between two pixel values


def biased(name, steps, config, bias=True):
    """A small SNN of which no weight is on a grid."""
    net = exact(name, config, steps, bias)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim():
                parameter.mul_(0.8 + 0.4 * torch.rand_like(parameter))
    return net


def normalised(images, dtype=torch.float64):
    mean, std = (torch.tensor(values, dtype=dtype)[:, None, None] for values in (MEAN, STD))
    return (images.to(dtype) / 255 - mean) / std


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    "name, neuron", [*(("resnet20", neuron) for neuron in CONFIGS), ("vgg16", "one-hot")]
)
def test_it_fires_as_the_integer_network_does(name, neuron, steps, bias):
    """Every spike of every layer and step, in double precision."""
    config = CONFIGS[neuron]
    net = biased(name, steps, config, bias)
    images = pixels()
    whole, integers = outputs(integer.to_integer(net, MEAN, STD), images)
    with torch.no_grad():
        readout, spikes = outputs(Rounded(net, MEAN, STD).double().eval(), normalised(images))
    for ours, theirs in zip(spikes, integers, strict=True):
        assert torch.equal(ours.flatten().int(), theirs.flatten())
    levels = torch.cat([theirs.flatten() for theirs in integers]).unique()
    assert len(levels) == config.levels + 1
    scale = integer.to_integer(net, MEAN, STD).scale
    assert torch.allclose(readout, whole.double() * scale, rtol=1e-9, atol=1e-9)


class PooledLast(Network):
    """A convolution, an average pooling and the readout of images [B, 3, 32, 32]."""

    def __init__(self, act, num_classes=10):
        first = Layer(Synapse(nn.Conv2d(3, 8, 3, padding=1)), act.layer(first=True))
        stages = [first, nn.AvgPool2d(4), nn.Flatten()]
        super().__init__(act, stages, nn.Linear(8 * 64, num_classes, bias=False))


def test_a_readout_behind_a_pooling_is_rounded_as_the_integers_are(monkeypatch):
    monkeypatch.setattr(models, "NETWORKS", dict(models.NETWORKS))
    models.register("pooled_last", PooledLast)
    net = models.build("pooled_last", Spiking(NeuronConfig.vgg(3), theta=0.2)).eval()
    images = pixels()
    whole = integer.to_integer(net, MEAN, STD)
    with torch.no_grad():
        readout = Rounded(net, MEAN, STD).double().eval()(normalised(images))
    assert torch.allclose(readout, whole(images).double() * whole.scale, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_float_network_itself_fires_otherwise(steps):
    """So the test above proves something."""
    net = biased("resnet20", steps, CONFIGS["one-hot"])
    images = pixels()
    _, integers = outputs(integer.to_integer(net, MEAN, STD), images)
    with torch.no_grad():
        _, spikes = outputs(net.double(), normalised(images))
    assert not all(torch.equal(a.flatten().int(), b.flatten()) for a, b in zip(spikes, integers))


@pytest.mark.parametrize("steps", [1, 2])
def test_gradients_pass_the_rounding(steps):
    """A weight has the gradient of its rounded value; the real weights are where they were."""
    rounded = Rounded(network(steps), MEAN, (0.2,) * 3).double().eval()
    images = torch.randn(8, 3, 32, 32).double()
    rounded(images).square().sum().backward()

    ready = copy.deepcopy(rounded)
    with torch.no_grad():
        for parameter, value in ready.values().items():
            parameter.copy_(value)
    # what is on the grid already is computed without rounding
    ready.values = dict
    ready.zero_grad()
    with torch.no_grad():
        assert torch.equal(ready(images), rounded(images))
    ready(images).square().sum().backward()
    weights = dict(ready.net.named_parameters())
    for name, parameter in rounded.net.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad, weights[name].grad), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("steps", [1, 2])
def test_single_precision_moves_few_spikes(steps):
    net = biased("resnet20", steps, CONFIGS["one-hot"])
    images = pixels(16)
    whole = integer.to_integer(net, MEAN, STD)
    batch = normalised(images, torch.float32), images, None
    found = compare(Rounded(net, MEAN, STD).eval(), whole, [batch])
    assert min(found.spikes.values()) > 0.999


def test_its_weights_are_those_of_the_network():
    net = random("resnet20")
    rounded = Rounded(net, MEAN, STD)
    assert rounded.net.state_dict().keys() == net.state_dict().keys()
    # a copy: what is given stays as it is
    with torch.no_grad():
        rounded.net.head.weight.add_(1)
    assert not torch.equal(rounded.net.head.weight, net.head.weight)
    assert net.stages[0].synapse.map.padding == (1, 1)


def test_leaks_are_not_trained():
    """At T > 1 there is no integer network with a leak."""
    rounded = Rounded(random("resnet20", 2), MEAN, STD)
    assert not any(site.leak.requires_grad for site in rounded.sites())
    assert all(site.theta.requires_grad for site in rounded.sites())


def test_a_network_without_an_integer_form_is_refused_before_it_is_trained():
    with pytest.raises(ValueError, match="scales are not folded"):
        Rounded(random("vgg16", scale=True), MEAN, STD)
