"""The loss at every timestep by hand, and the recipe of VGGSNN."""

import pytest
import torch
from torch.nn import functional as F

from engine.recipes.cnn import TrainingOptions
from engine.recipes.tet import TETOptions, TETRecipe, tet_loss


@pytest.fixture
def out():
    """Readouts of 3 timesteps, 4 images, 5 classes."""
    return torch.randn(3, 4, 5, dtype=torch.float64)


LABELS = torch.tensor([0, 4, 2, 1])


def by_hand(out, targets, lamb, means, smoothing=0.0):
    """Sum over images of (1 - lamb) * mean_t CE(y_t) + lamb * MSE(y_t, means)."""
    total = 0.0
    for image, target in enumerate(targets):
        entropies = [F.cross_entropy(y[image], target, label_smoothing=smoothing) for y in out]
        total += (1 - lamb) * sum(entropies) / len(out)
        total += lamb * (out[:, image] - means).square().mean()
    return total


@pytest.mark.parametrize("lamb, means", [(0.001, 1.0), (0.0, 1.0), (0.05, 0.5), (1.0, -2.0)])
def test_the_loss_is_a_sum_over_images(out, lamb, means):
    loss = tet_loss(out, LABELS, TETOptions(lamb=lamb, means=means))
    torch.testing.assert_close(loss, by_hand(out, LABELS, lamb, means))


def test_targets_may_be_class_probabilities(out):
    shares = torch.rand(4, 5, dtype=torch.float64).softmax(1)
    loss = tet_loss(out, shares, TETOptions(lamb=0.05))
    torch.testing.assert_close(loss, by_hand(out, shares, 0.05, 1.0))


def test_labels_may_be_smoothed(out):
    loss = tet_loss(out, LABELS, TETOptions(lamb=0.05), smoothing=0.1)
    torch.testing.assert_close(loss, by_hand(out, LABELS, 0.05, 1.0, smoothing=0.1))


def test_the_recipe_takes_the_loss_of_every_step(out):
    recipe = TETRecipe(TrainingOptions(), TETOptions(lamb=0.05))
    torch.testing.assert_close(recipe.loss(out, LABELS), by_hand(out, LABELS, 0.05, 1.0))


def test_without_tet_it_is_the_cross_entropy_of_the_mean_readout(out):
    recipe = TETRecipe(TrainingOptions(), TETOptions(TET=False, lamb=0.05))
    want = F.cross_entropy(out.mean(0), LABELS, reduction="sum")
    torch.testing.assert_close(recipe.loss(out, LABELS), want)


def test_adam_falls_along_a_cosine_in_whole_epochs():
    recipe = TETRecipe(TrainingOptions(epochs=4, learning_rate=0.8, weight_decay=0.1), TETOptions())
    optimizer = recipe.optimizer(torch.nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["weight_decay"] == 0.1
    rates = [recipe.set_rate(optimizer, epoch) for epoch in (1, 1.9, 3, 3.5)]
    assert rates == pytest.approx([0.8, 0.8, 0.4, 0.4])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4)
