"""Train VGGSNN on prepared DVS-CIFAR10 recordings.

python3 main_training_parallel.py --multi_channel 1 --num_channels 4 --T_prime 80
"""

import sys
from dataclasses import dataclass
from pathlib import Path

# the script may be started in its own folder, as published
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cli import checks, events, run
from cli.events import result
from cli.parser import Parser
from engine.errors import guard
from engine.loop import ComputeOptions
from engine.recipes.cnn import TrainingOptions
from engine.recipes.price import PriceOptions
from engine.recipes.tet import TETOptions, TETRecipe
from engine.settings import group, option


@dataclass(frozen=True)
class PublishedOptions:
    """published"""

    # without a help text it is known, but not shown
    start_epoch: str | None = option(None, None)


@dataclass(frozen=True)
class VGGSNNSettings(events.EventSettings):
    """Options of main_training_parallel.py."""

    training: TrainingOptions = group(
        only=("epochs", "learning_rate", "weight_decay"),
        learning_rate={"help": "initial learning rate of Adam; cosine to 0"},
        weight_decay=0.0,
    )
    loss: TETOptions = group()
    price: PriceOptions = group()
    compute: ComputeOptions = group(seed=1000)
    published: PublishedOptions = group()


def get_parser():
    """Its command line."""
    about = "Train VGGSNN on prepared DVS-CIFAR10 recordings."
    return Parser("main_training_parallel.py", about, VGGSNNSettings)


def rules(asked: VGGSNNSettings):
    """Options that do nothing for what is asked."""
    # a single boundary is an outer one
    inner = asked.neuron.levels > 1
    return [
        events.lanes_rule(asked),
        checks.price_rule(asked.price, asked.run.keep, asked.training.epochs),
        checks.backend_rule(asked.compute, asked.neuron, "--compile traces the neuron"),
        (["surrogate_edge"], inner, "only neurons of several lanes have inner boundaries"),
        (["means", "lamb"], asked.loss.TET, "it belongs to the TET loss"),
        (["start_epoch"], False, "an interrupted run goes on with --resume <its run folder>"),
    ]


def work(asked: VGGSNNSettings, saved, world):
    """Train or test, as one of the processes of `world`; returns the summary."""
    run.prepare_compile(asked.compute, world)
    weights, trained_on = asked.network.pretrained_snn, None
    # a network is tested on the coding that it was trained on
    if asked.run.test_only and weights:
        asked, trained_on = events.settled(asked)
    task, net = events.start(asked, trained_on, saved, world)
    data, coding = task.data, task.data.coding
    words = f"S = {coding.levels}, T_F = {coding.frames} of the first {coding.used} frames"
    words += f", Q_F = {coding.steps}"
    if not data.keep:
        words += "; --cache_gb does not hold the coded recordings: they are coded in every epoch"
    world.say(words)
    net.recompute = asked.compute.recompute
    if asked.run.test_only:
        return run.test_only(net, task, weights, "--pretrained_snn")
    recipe = TETRecipe(asked.training, asked.loss)
    extra = {"S": coding.levels, "T_F": coding.frames, "Q_F": coding.steps}
    return run.train(net, recipe, "vggsnn", result(asked), task, extra, asked.price)


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    return run.training_command(get_parser(), argv, rules, work)


if __name__ == "__main__":
    guard(main)
