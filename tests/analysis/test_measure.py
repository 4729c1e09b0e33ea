"""The curves of a training."""

import torch

from analysis.measure import FEW, Measure
from engine.dist import World
from tests.analysis.networks import spiking


class Loader:
    """One batch of more images than a curve takes; counts how often it is asked."""

    asked = 0

    def epoch(self, epoch):
        self.asked += 1
        yield torch.rand(FEW + 8, 3, 32, 32), torch.zeros(FEW + 8), FEW + 8


def test_curves_are_of_a_few_images_that_stay():
    net, loader = spiking("resnet20", 2, 1), Loader()
    measure = Measure(loader, World(), {})
    first = measure.curves(net)
    assert {name.split("/")[0] for name in first} == {"theta", "leak", "rate"}
    assert len(measure.few) == FEW
    assert measure.curves(net) == first
    assert loader.asked == 1
