"""Fine-tuning of a spiking network for its integer network, with rounded weights in each step."""

import copy

from models.rounded import Rounded

from .dist import World
from .generators import seed_all
from .loop import ComputeOptions, Record, RunOptions, Trainer
from .recipes.cnn import TrainingOptions
from .recipes.snn import SpikingRecipe


def fine_tune(net, mean, std, loaders, about, options: TrainingOptions):
    """A copy of `net` that was trained as `Rounded` computes; nothing is written.

    mean, std: as `integer.to_integer` has them. loaders, about: of the data, see `Trainer` and
    `Record`.
    Raises:
        RunError: the loss is not finite.
    """
    compute = ComputeOptions()
    seed_all(compute.seed)
    rounded = Rounded(net, mean, std)
    recipe = SpikingRecipe(options, rounded)
    record = Record("snn", about, {}, None, None)
    Trainer(rounded, recipe, loaders, record, RunOptions(keep="last"), compute, World()).fit()
    tuned = copy.deepcopy(net)
    tuned.load_state_dict(rounded.net.state_dict())
    return tuned.eval()
