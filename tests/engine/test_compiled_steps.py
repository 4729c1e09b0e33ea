"""Training steps of a compiled network are those of the plain one: on a CPU and on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from models.layers import Layer, Network, convolution
from models.neuron.backends import exported
from models.rates import Additions

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
PLACES = [
    pytest.param("cpu", "default", marks=[pytest.mark.long, pytest.mark.compiler]),
    pytest.param("cuda", "default", marks=GPU),
    pytest.param("cuda", "reduce-overhead", marks=GPU),
]
STEPS = 8  # CUDA graphs are replayed from the third on


def spiking():
    """Three layers: in a deep network a spike that falls otherwise changes most of the others."""
    act = models.Spiking(models.NeuronConfig.vgg(3), theta=0.3, scale=True)
    stages = [Layer(convolution(3, 16, norm=False), act.layer(first=True))]
    for _ in range(2):
        stages.append(Layer(convolution(16, 16, stride=2, norm=False), act.layer()))
    net = Network(act, [*stages, nn.Flatten()], nn.Linear(16 * 8 * 8, 10))
    net.built = {"image_size": 32}
    return net


def weights(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def trained(device, mode, weight):
    """(weights before, weights after, losses) of a few steps; weight: of the price on spikes."""
    torch.manual_seed(0)
    net = spiking()
    images = torch.randn(STEPS, 32, 3, 32, 32).to(device)
    labels = torch.randint(0, 10, (STEPS, 32)).to(device)
    net = net.to(device, memory_format=torch.channels_last)
    before = weights(net)
    additions = Additions(net)
    run = net
    if mode != "none":
        torch._dynamo.reset()
        run = torch.compile(net, mode=mode, dynamic=False)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, fused=True)
    losses = []
    for x, y in zip(images, labels, strict=True):
        loss = F.cross_entropy(run(x), y) + weight * additions()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return before, weights(net), torch.tensor(losses)


def test_a_traced_neuron_has_its_gradient(monkeypatch):
    """Dynamo of torch 2.11 takes every graph for one that is drawn for others."""
    monkeypatch.setattr(exported, "is_exporting", lambda: True)
    torch._dynamo.reset()
    neuron = models.MLIF(stateless=True)
    x = torch.linspace(0.1, 2, 64, requires_grad=True)
    torch.compile(neuron, backend="eager")(x[None]).sum().backward()
    assert x.grad.any()


@pytest.mark.parametrize("weight", [0.0, 10.0], ids=["free", "priced"])
@pytest.mark.parametrize("device, mode", PLACES)
def test_compiled_steps_are_those_of_the_plain_network(device, mode, weight):
    before, wanted, losses = trained(device, "none", weight)
    _, got, compiled_losses = trained(device, mode, weight)
    torch.testing.assert_close(compiled_losses, losses, rtol=0.02, atol=0.02)
    # A spike on a boundary may fall otherwise: noise of 1e-3, such as TF32's, in what each layer
    # computes takes a parameter 0.19 of its way aside; a lost gradient is all of it.
    for name, after in wanted.items():
        way = (after - before[name]).norm()
        assert (got[name] - after).norm() <= 0.3 * way, name
