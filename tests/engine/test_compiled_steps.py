"""Training steps of a compiled network are those of the plain one: on a CPU and on a GPU."""

import pytest
import torch
import torch.nn.functional as F

import models
from models.neuron.backends import exported
from models.rates import Additions

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
PLACES = [
    pytest.param("cpu", "default", marks=pytest.mark.long),
    pytest.param("cuda", "default", marks=GPU),
    pytest.param("cuda", "reduce-overhead", marks=GPU),
]
STEPS = 8  # CUDA graphs are replayed from the third on


def spiking():
    act = models.Spiking(models.NeuronConfig.vgg(3), theta=0.3, scale=True)
    return models.build("resnet20", act, bn=False, width_mult=0.125)


def trained(device, mode, weight):
    """(weights before, weights after, losses) of a few steps; weight: of the price on spikes."""
    torch.manual_seed(0)
    net = spiking()
    images = torch.randn(STEPS, 32, 3, 32, 32).to(device)
    labels = torch.randint(0, 10, (STEPS, 32)).to(device)
    net = net.to(device, memory_format=torch.channels_last)
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
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
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    return before, after, torch.tensor(losses)


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
    # a spike on a boundary may fall otherwise, and has an effect
    apart = (got - wanted).norm() / (wanted - before).norm()
    assert apart < 0.1
