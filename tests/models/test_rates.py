"""The price on spikes: its value is the measured rate, its gradient that of the neuron, and it makes networks sparser."""

import pytest
import torch

import models
import snn_ddp
from analysis.energy import measure
from models.neuron.reference import surrogate
from models.rates import FiringRate


def network(steps=1, scale=False, **more):
    torch.manual_seed(0)
    act = models.Spiking(models.NeuronConfig.vgg(3), steps, theta=0.05, scale=scale)
    return models.build("resnet20", act, bn=False, width_mult=0.0625, **more)


@pytest.mark.parametrize("steps, scale", [(1, False), (3, True)])
def test_the_value_is_the_measured_rate(steps, scale):
    net, images = network(steps, scale), torch.randn(8, 3, 32, 32)
    for site in net.sites() if scale else []:
        site.scale.data.fill_(1.7)
    rate = FiringRate(net)
    net.train()(images)
    layers = measure(net, [images]).lane_rates_per_layer
    net(images)  # the measurement ran the network, too
    assert rate().item() == pytest.approx(
        sum(sum(lanes) for lanes in layers.values()) / len(layers), rel=1e-5
    )
    assert sum(layers["stages.0.act"]) > 0.05


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
        net = network(2)
        net.recompute, rate = recompute, FiringRate(net)
        for _ in range(2):
            (
                net(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
                .square()
                .sum()
                + rate()
            ).backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_penalised_network_fires_less(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = (
        "--dataset DIGITS -a RESNET20 --width_mult 0.0625 --bias --epochs 2 --batch_size 64 -multi_channel 1 "
        "-num_channels 3 --timesteps 1 --default_threshold 0.5 --optimizer Adam --lr_schedule cosine --weight_decay 0 "
        "--learning_rate 0.001 --energy"
    )
    rates = [
        sum(snn_ddp.main(f"{line} --rate_penalty {penalty}".split())["lane_rates"])
        for penalty in (0, 3)
    ]
    assert rates[1] < 0.8 * rates[0]
