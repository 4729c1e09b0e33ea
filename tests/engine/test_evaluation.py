"""Loss and accuracy over a loader."""

import pytest
import torch
from torch.nn import functional as F

from engine.dist import World
from engine.errors import RunError
from engine.evaluation import autocast, evaluate, finite
from tests.engine.toys import Batches, linear, noise

CPU = torch.device("cpu")


def test_evaluation_counts_every_image_once():
    net, loader = linear(), noise(3, 3, 1)
    images = torch.cat([images for images, _ in loader.given])
    labels = torch.cat([labels for _, labels in loader.given])
    result = evaluate(net, loader, World())
    out = net(images)
    assert result["images"] == 7
    assert result["loss"] == pytest.approx(F.cross_entropy(out, labels).item(), rel=1e-6)
    assert result["accuracy"] == pytest.approx((out.argmax(1) == labels).float().mean().item())


def test_outputs_that_are_not_finite_have_no_accuracy():
    loader = noise(3, 3)
    loader.given[1][0][0, 0] = float("nan")
    with pytest.raises(RunError, match=r"the test loss is nan: .* there is no accuracy"):
        evaluate(linear(), loader, World())


def test_weights_that_are_not_finite_have_no_accuracy():
    """A later layer, as a quantiser or SpikingJelly's LIF, may hide them from the outputs."""
    net = torch.nn.Sequential(linear(), torch.nn.Hardtanh(), linear())
    net[0].weight.data[0, 0] = float("nan")
    net[1].forward = torch.zeros_like
    with pytest.raises(RunError, match="the network has weights that are not finite numbers"):
        evaluate(net, noise(3), World())


def test_evaluation_averages_the_readouts_of_the_steps():
    steps = torch.randn(4, 3, 5)  # [T, B, classes]
    net = torch.nn.Module()
    net.forward = lambda images: steps
    labels = torch.tensor([0, 1, 2])
    result = evaluate(net, Batches((torch.zeros(3), labels)), World())
    want = F.cross_entropy(steps.mean(0), labels).item()
    assert result["loss"] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_mode_as_it_was(training):
    net = torch.nn.Sequential(torch.nn.Dropout(0.9), linear()).train(training)
    first, second = (evaluate(net, noise(4), World()) for _ in range(2))
    assert net.training == training
    assert first["images"] == second["images"] == 4


def test_weights_that_are_not_finite_are_noticed():
    net = linear()
    assert finite(net)
    net.bias.data[1] = float("nan")
    assert not finite(net)


@pytest.mark.parametrize("amp, dtype", [("none", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast(amp, dtype):
    with autocast(CPU, amp):
        assert linear()(torch.zeros(1, 5)).dtype == dtype
