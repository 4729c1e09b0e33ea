"""The recipe of the LQ-ANN: ranges are measured on training images before every epoch."""

import pytest
import torch

import models
from engine.dist import World
from engine.recipes.cnn import TrainingOptions
from engine.recipes.lq import CALIBRATION, LQRecipe


@pytest.fixture
def net():
    """Two quantisers that have no range yet; the first sees the images."""
    return torch.nn.Sequential(
        models.QuantReLU(3, percent=100.0), models.QuantReLU(3, percent=50.0)
    )


@pytest.fixture
def asked():
    """Epochs of the loader for which images were asked."""
    return []


@pytest.fixture
def batches(asked):
    """Images whose largest pixel is the epoch."""

    def images(epoch):
        asked.append(epoch)
        yield torch.linspace(-1, 1, 11)[None] * (epoch - CALIBRATION)

    return images


def test_every_quantiser_has_a_range_before_the_epoch(net, batches, asked):
    first, second = net
    LQRecipe(TrainingOptions(), batches, World()).before_epoch(net, 2)
    assert asked == [CALIBRATION + 2]
    assert first.ready and second.ready
    assert first.hi == 2
    assert second.hi == pytest.approx(0)  # the median of what the first lets through
    assert first.lo == second.lo == 0


def test_ranges_are_measured_anew(net, batches):
    """A smaller range is taken as well as a larger one."""
    recipe = LQRecipe(TrainingOptions(), batches, World())
    for epoch in (3, 1):
        recipe.before_epoch(net, epoch)
        assert net[0].hi == epoch


def test_the_mode_of_the_network_stays(net, batches):
    LQRecipe(TrainingOptions(), batches, World()).before_epoch(net.train(), 1)
    assert net.training


def test_other_processes_take_the_ranges_of_rank_0(net, batches, asked, monkeypatch):
    """They measure nothing themselves."""

    def share(self, tensors):
        for value, tensor in enumerate(tensors):
            tensor.fill_(value)

    monkeypatch.setattr(World, "share", share)
    LQRecipe(TrainingOptions(), batches, World(rank=1, size=2)).before_epoch(net, 1)
    assert asked == []
    assert [float(bound) for q in net for bound in (q.lo, q.hi)] == [0, 1, 2, 3]
    assert all(q.ready for q in net)


def test_otherwise_it_is_the_recipe_of_the_cnns(batches):
    recipe = LQRecipe(TrainingOptions(learning_rate=0.3), batches, World())
    out, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    _, targets = recipe.targets(None, labels, 1)
    want = torch.nn.functional.cross_entropy(out, labels, reduction="sum")
    torch.testing.assert_close(recipe.loss(out, targets), want)
