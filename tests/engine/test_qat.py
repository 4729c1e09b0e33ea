"""Fine-tuning for the integer network: its loss falls, and the network that is given stays."""

import copy

import pytest
import torch

from engine.dist import World
from engine.evaluation import evaluate
from engine.qat import fine_tune
from engine.recipes.cnn import TrainingOptions
from inputs.images import Data, Memory, describe_part
from inputs.loader import BatchOptions, loaders
from models import integer
from models.rounded import Rounded
from tests.zoo import MEAN, STD, network

OPTIONS = TrainingOptions(
    epochs=2, optimizer="Adam", learning_rate=1e-3, lr_schedule="cosine", weight_decay=0.0
)


def data(count=24):
    """Noise whose class is how bright it is."""
    labels = torch.arange(count) % 4
    images = torch.randint(0, 64, (count, 32, 32, 3)) + 60 * labels[:, None, None, None]
    part = Memory(images.to(torch.uint8), labels)
    about = {"source": "noise", "where": "here", "num_classes": 10, "image_size": 32}
    about |= {"train": describe_part(part), "test": describe_part(part)}
    return Data(part, part, about, MEAN, STD, crop=0, flip=False)


@pytest.mark.parametrize(("levels", "steps"), [(3, 1), (3, 2), (4, 1)])
def test_the_loss_of_the_integer_network_falls(levels, steps):
    net, noise = network(steps, levels), data()
    given = copy.deepcopy(net.state_dict())
    batches = loaders(noise, BatchOptions(batch_size=8), 0, World())
    tuned = fine_tune(net, MEAN, STD, batches, noise.about, OPTIONS)

    before, after = (
        evaluate(Rounded(each, MEAN, STD), batches[-1], World())["loss"] for each in (net, tuned)
    )
    assert after < 0.9 * before
    for name, value in net.state_dict().items():
        assert torch.equal(value, given[name])
    assert not tuned.training and tuned.built == net.built
    # the leaks stay, or there would be no integer network
    integer.to_integer(tuned, MEAN, STD)
