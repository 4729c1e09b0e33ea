"""The recipe of a converted spiking network: bounds, folded output scales."""

import pytest
import torch

import models
from engine.errors import RunError
from engine.recipes.cnn import TrainingOptions
from engine.recipes.snn import THETA_MIN, LevelOptions, SpikingRecipe
from models import convert
from models.rates import neuron_counts


def network(scale=False):
    act = models.Spiking(models.NeuronConfig.vgg(3), 2, theta=0.05, scale=scale)
    return models.build("resnet20", act, bn=False, width_mult=0.0625)


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32)


@pytest.mark.parametrize("scale", [False, True])
def test_thresholds_leaks_and_scales_stay_in_their_bounds(scale):
    net = network(scale)
    recipe, site = SpikingRecipe(TrainingOptions(), net), net.sites()[3]
    site.theta.data.fill_(-0.2)
    site.leak.data.fill_(1.3)
    if scale:
        site.scale.data.fill_(-1.0)
    recipe.after_step(net)
    assert site.theta.item() == pytest.approx(THETA_MIN)
    assert site.leak.item() == 1.0
    if scale:
        assert site.scale.item() == pytest.approx(THETA_MIN)


def test_what_is_inside_the_bounds_is_left_alone():
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    SpikingRecipe(TrainingOptions(), net).after_step(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_without_scales_the_network_is_stored_as_it_is():
    net = network()
    assert SpikingRecipe(TrainingOptions(), net).export(net) is net


def test_scales_are_folded_into_weights(images):
    net = network(scale=True).eval()
    for index, site in enumerate(net.sites()):
        site.scale.data.fill_(1 + index / 10)
    stored = SpikingRecipe(TrainingOptions(), net, images=lambda: images).export(net)
    assert not stored.act.scale
    assert not any(name.endswith("scale") for name in stored.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(stored.eval()(images), net(images), rtol=1e-4, atol=1e-5)


def test_scales_that_do_not_fold_end_the_run(images, monkeypatch):
    def refuse(net, images):
        raise convert.ConversionError("folded differs")

    monkeypatch.setattr(convert, "fold_scales", refuse)
    net = network(scale=True)
    recipe = SpikingRecipe(TrainingOptions(), net, images=lambda: images)
    with pytest.raises(RunError, match="folded differs: lower --thr_lr or --learning_rate"):
        recipe.export(net)


def test_lanes_go_in_the_first_half_of_the_epochs():
    net = network(scale=True)
    convert.set_levels(net, 5)
    theta = net.sites()[2].theta.item()
    recipe = SpikingRecipe(
        TrainingOptions(epochs=8), net, levels=LevelOptions(first_lanes=(5, 4)), lanes=3
    )
    seen = []
    for epoch in range(1, 9):
        recipe.before_epoch(net, epoch)
        seen.append(net.act.neuron.levels)
    assert seen == [5, 5, 4, 4, 3, 3, 3, 3]
    site = net.sites()[2]
    assert (site.config, site.theta.item(), site.scale.item()) == (net.act.neuron, 4 * theta, 1.0)


def test_a_network_with_its_lanes_is_left_alone():
    net = network()
    act = net.act
    SpikingRecipe(TrainingOptions(), net).before_epoch(net, 1)
    assert net.act is act


@pytest.mark.parametrize("lsq", [False, True])
def test_lsq_divides_gradients_by_the_root_of_neurons_and_top_level(lsq):
    net = network(scale=True)
    recipe = SpikingRecipe(TrainingOptions(), net, levels=LevelOptions(lsq_gradient=lsq))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    recipe.before_step(net, None, None)
    # 32x32 neurons in each of 4 channels; S = 3: a top level of 4
    first, *_ = net.sites()
    assert neuron_counts(net)[first] == 4 * 32 * 32
    expected = (4 * 32 * 32 * 4) ** -0.5 if lsq else 1.0
    assert first.theta.grad.item() == pytest.approx(expected)
    assert first.scale.grad.item() == pytest.approx(expected)
    assert first.leak.grad.item() == net.head.weight.grad.mean().item() == 1.0
