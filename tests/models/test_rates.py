"""The price on spikes: its value is the measured rate, its gradient the neuron's."""

import pytest
import torch

import models
import snn_ddp
from analysis.energy import Counter, measure
from models import transformer, vggsnn
from models.neuron.reference import surrogate
from models.rates import FiringRate


def network(steps=1, scale=False, **more):
    act = models.Spiking(models.NeuronConfig.vgg(3), steps, theta=0.05, scale=scale)
    return models.build("resnet20", act, bn=False, width_mult=0.0625, **more)


def mean_rate(energy):
    """Mean over the layers of the rates of their lanes."""
    layers = energy.lane_rates_per_layer.values()
    return sum(sum(lanes) for lanes in layers) / len(layers)


@pytest.mark.parametrize("steps, scale", [(1, False), (3, True)])
def test_the_value_is_the_measured_rate(steps, scale):
    net, images = network(steps, scale), torch.randn(8, 3, 32, 32)
    for site in net.sites() if scale else []:
        site.scale.data.fill_(1.7)
    rate = FiringRate(net)
    net.train()(images)
    energy = measure(net, [images])
    net(images)  # the measurement ran the network, too
    assert rate().item() == pytest.approx(mean_rate(energy), rel=1e-5)
    assert sum(energy.lane_rates_per_layer["stages.0.act"]) > 0.05


@pytest.mark.parametrize("name", ["mlif", "fast_mlif", "lif", "vggsnn"])
def test_every_layer_of_every_network_counts(name):
    """A training step of the transformer in its modes, and of VGGSNN; all parameters learn."""
    if name == "vggsnn":
        net = models.build("vggsnn", vggsnn.neurons(2, 3), width_mult=1 / 16)
        images, layers = torch.randint(0, 4, (2, 3, 2, 48, 48)).float(), 8
    else:
        act = transformer.neurons(name, 1 if name == "lif" else 3, 2)
        net = models.build("sdt", act, dim=16, depth=1)
        images, layers = torch.randn(4, 3, 32, 32), 4 + 7 + 1
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(m.weight, 3.0)

    rate = FiringRate(net)
    with Counter(net.train()) as counter:
        net(images)
    assert len(rate.rates) == layers
    price = rate()
    assert price.item() == pytest.approx(mean_rate(counter.energy()), rel=1e-5)
    assert price > 0.05

    price.backward()
    untouched = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    # the head emits no spikes, and batch norm takes a bias before it out again
    assert {n for n in untouched if not n.startswith("head.") and "map.bias" not in n} == set()


def test_the_gradient_is_the_neurons_over_the_spike():
    act = models.Spiking(models.NeuronConfig.vgg(3), theta=0.7, scale=True)
    site, x = act.layer(), torch.linspace(-2, 6, 81, requires_grad=True)
    net = torch.nn.Sequential(site)
    net.sites = lambda: [site]
    site.scale.data.fill_(1.3)
    rate = FiringRate(net)
    o = (net(x[None])[0] / 1.3).detach()
    rate().backward()
    wanted = surrogate(x.detach() / 0.7, act.neuron) / 0.7 / o.clamp(min=1) / 81
    torch.testing.assert_close(x.grad, wanted)
    assert site.scale.grad.abs() < 1e-6  # the scale does not change who fires
    assert site.theta.grad < 0  # a descent step raises the threshold


def test_recomputed_stages_count_once():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = network(2)
        net.recompute = recompute
        rate = FiringRate(net)
        for _ in range(2):
            out = net(torch.randn(4, 3, 32, 32))
            (out.square().sum() + rate()).backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_penalised_network_fires_less(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = (
        "--dataset DIGITS -a RESNET20 --width_mult 0.0625 --bias --epochs 2 --batch_size 64 "
        "-multi_channel 1 -num_channels 3 --timesteps 1 --default_threshold 0.5 --optimizer Adam "
        "--lr_schedule cosine --weight_decay 0 --learning_rate 0.001 --energy"
    )
    rates = [
        sum(snn_ddp.main(f"{line} --rate_penalty {penalty}".split())["lane_rates"])
        for penalty in (0, 3)
    ]
    assert rates[1] < 0.8 * rates[0]
