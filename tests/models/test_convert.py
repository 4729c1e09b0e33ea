"""Matched conversion and its fold, spike trains."""

import pytest
import torch
from torch import nn

import models
from analysis import energy
from models import NeuronConfig, Spiking, convert


def spiking(name, steps=1, scale=True, **arguments):
    torch.manual_seed(0)
    net = models.build(
        name,
        Spiking(NeuronConfig.vgg(3), steps, scale=scale),
        width_mult=1 / 16,
        bn=False,
        **arguments,
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (parameter.std() if parameter.numel() > 1 else 0)
                + parameter.mean()
            )
        for m in net.modules():
            if isinstance(m, nn.Conv2d):
                m.bias.normal_(0, 0.1)
    return net


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
def test_matched_conversion_follows_the_activations_and_folds_away(name, steps):
    net, images = spiking(name, steps), torch.randn(16, 3, 32, 32)
    fits = convert.match_activations(net, images)
    assert len(fits) == len(net.sites()) and all(theta > 0 and q > 0 for theta, q, _ in fits)
    assert max(error for *_, error in fits) < 0.25
    for site in net.sites():  # as after training: scales and thetas of any size
        site.scale.data.mul_(1.3)
    double = images.double()
    folded = convert.fold_scales(net.double(), images)
    assert not any(k.endswith("scale") for k in folded.state_dict())
    assert torch.allclose(net(double), folded(double), rtol=1e-9)
    outputs = []
    for site in folded.sites():
        site.register_forward_hook(lambda m, i, o: outputs.append(o))
    folded(double)
    assert {v for o in outputs for v in o.unique().tolist()} <= {0.0, 1.0, 2.0, 4.0}


def test_matched_theta_and_scale_are_the_best_of_the_grid():
    x = torch.randn(4, 3, 32, 32)
    net = spiking("resnet20")
    theta, q, error = convert.match_activations(net, x)[0]
    current = net.stages[0].synapse(x).detach()
    target = torch.relu(current)

    def squared(theta, q):
        o = models.neuron.backends.dispatch.mlif(
            current[None], torch.tensor(theta), torch.tensor(1.0), net.act.neuron
        )[0][0]
        return ((target - q * o) ** 2).sum().item() / (target**2).sum().item()

    assert squared(theta, q) == pytest.approx(error, rel=1e-3)
    top = models.statistics.percentile(current, 99.7).item() / 4
    for fraction in convert.FRACTIONS:
        assert squared(top * fraction, q) >= error * (1 - 1e-4)
    assert squared(theta, q * 1.02) > error and squared(theta, q * 0.98) > error


def test_matched_conversion_fits_the_leak_that_fires():
    """The stored error is that of the network as it then runs, whatever its leak."""
    act = models.Spiking(models.NeuronConfig.vgg(3), 4, leak=0.5, scale=True)
    net = models.build("resnet20", act, width_mult=0.0625, bn=False).eval()
    images = torch.randn(4, 3, 32, 32)
    fits, found = convert.match_activations(net, images), []

    def hook(site, args, out):
        target, o = (
            torch.relu(args[0]),
            out.unflatten(0, (4, -1)).mean(0),
        )  # the current of the image, the same at every step
        found.append(((target - o).square().sum() / target.square().sum()).item())

    net.sites()[0].register_forward_hook(hook)
    net(images)
    assert found[0] == pytest.approx(fits[0][2], rel=1e-3)


def test_rate_encoded_networks_fold_too():
    act = models.Spiking(models.NeuronConfig.vgg(3), 2, encoding="rate", scale=True)
    net = models.build("resnet20", act, width_mult=0.0625, bn=False).eval()
    images = torch.rand(4, 3, 32, 32)
    convert.match_activations(net, images)
    convert.fold_scales(net, images)


def test_a_wrong_fold_is_not_let_through():
    net = spiking("resnet20")
    convert.match_activations(net, torch.randn(4, 3, 32, 32))
    good = models.layers.Residual.fold_scale
    try:
        models.layers.Residual.fold_scale = lambda self, q: good(self, q * 1.01)
        with pytest.raises(convert.ConversionError, match="folded network differs"):
            convert.fold_scales(net, torch.randn(4, 3, 32, 32))
    finally:
        models.layers.Residual.fold_scale = good
    with pytest.raises(ValueError, match="scale=True"):
        convert.match_activations(spiking("resnet20", scale=False), torch.randn(2, 3, 32, 32))


def test_the_readme_example():
    images = torch.randn(8, 3, 32, 32)
    net = models.build("resnet20", models.ReLU(), width_mult=1 / 16)
    with pytest.raises(ValueError, match="fuse it first"):
        convert.to_spiking(net, Spiking())
    fused, _ = convert.fuse_bn(net.eval(), images)
    snn = convert.to_spiking(fused, Spiking(NeuronConfig.vgg(levels=3)))
    assert torch.equal(snn.head.weight, fused.head.weight)
    thetas = convert.balance_thresholds(snn.eval(), images, steps=5)
    assert len(thetas) == 19 and min(thetas) > 0
    assert "total" in energy.measure(snn, [images]).table()


@pytest.mark.parametrize(
    "config", [NeuronConfig(levels=s, one_hot=h) for s in (1, 3, 8) for h in (True, False)]
)
def test_spike_trains_are_packed_losslessly(config):
    values = torch.tensor(
        [0.0] + [2.0**k if config.one_hot else 2.0 ** (k + 1) - 1 for k in range(config.levels)]
    )
    for count in (10, 11):
        o = values[torch.randint(len(values), (1, count))]
        train = convert._Train(config)
        train.append(o)
        assert torch.equal(train[0], o)
        assert train.steps[0][0].numel() == -(-count // 2)


def test_balancing_stays_within_its_memory():
    net = models.build("resnet20", Spiking(NeuronConfig.vgg(3)), bn=False)
    largest = 64 * 32 * 32
    assert convert.affordable(net, torch.zeros(512, 3, 32, 32), 100) == min(
        512, int(convert.MEMORY / (largest * 100))
    )
    with pytest.raises(ValueError, match="no stem"):
        convert.balance_thresholds(
            spiking("vgg16", scale=False), torch.randn(2, 3, 32, 32), which="stem"
        )


def test_percentile_is_the_published_rank():
    x = torch.randn(1001)
    for percent in (99.7, 90, 50, 100):
        wanted = x.sort().values[round(percent / 100 * 1000)]
        assert models.statistics.percentile(x, percent) == wanted
        for floor in (wanted - 0.1, wanted, wanted + 0.1):
            assert models.statistics.percentile(x, percent, floor) == max(floor, wanted)
