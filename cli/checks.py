"""Options that do nothing beside the others, and those that cannot go together."""

import models
from engine.dist import World
from engine.errors import UseError
from engine.loop import ComputeOptions
from engine.recipes.price import PriceOptions
from engine.settings import Settings
from inputs.table import TABLE, data_rules

from .options import CNNSettings, NetworkOptions, NeuronOptions, TrainingSettings


def check_device(asked: Settings):
    """Refuse two options that name the device."""
    if {"gpu", "device"} <= asked.given:
        raise UseError("--gpu and --device both name the device: give one of them")


def cnn_rules(asked: CNNSettings):
    """Options that do nothing with this network, data set or optimizer."""
    training = asked.training
    return [
        *data_rules(asked.data, asked.crop),
        kernel_rule(asked.network),
        (
            ["lr_interval", "lr_reduce"],
            training.lr_schedule == "step",
            f"--lr_schedule {training.lr_schedule} has no drops",
        ),
        (["warm_up_epochs", "warm_up_lr"], training.warm_up, "give --warm_up"),
        (
            ["nesterov"],
            training.optimizer == "SGD" and training.momentum > 0,
            "it belongs to --optimizer SGD with a --momentum",
        ),
        (
            ["norm_bias_lr", "fixed_norm_scale"],
            asked.network.bn,
            "there is no batch norm, give --bn",
        ),
        (
            ["distill_weight", "distill_temperature"],
            training.distill,
            "there is no teacher, give --distill",
        ),
    ]


def kernel_rule(network: NetworkOptions):
    """--kernel_size does nothing with a network that has its own."""
    name = network.architecture
    free = "kernel_size" in models.options(name)
    return (["kernel_size"], free, f"{name} has no free kernel size")


def head_rule(asked: TrainingSettings, start):
    """--new_head does nothing without weights to start a training from; start: their file."""
    trains = not asked.run.test_only
    return (["new_head"], start and trains, "it goes with the weights that a training starts from")


def backend_rule(compute: ComputeOptions, neuron: NeuronOptions, reason):
    """--neuron_backend does nothing where torch.compile traces the neuron."""
    traced = compute.compile != "none"
    named = neuron.neuron_backend not in ("auto", "compiled")
    return (["neuron_backend"], not (traced and named), reason)


def price_rule(price: PriceOptions, keep, epochs):
    """--penalty_warm_up does nothing where spikes have no price; keep, epochs: of the run.

    Raises:
        UseError: there are two prices, or the price or its target is due after the network that is
            kept.
    """
    targets = (price.energy_target, price.rate_target)
    given = [value for value in (price.rate_penalty, *targets) if value]
    if len(given) > 1:
        raise UseError("give one of --rate_penalty, --energy_target and --rate_target")
    if any(targets) and keep != "last":
        raise UseError(
            "--energy_target and --rate_target need --keep last: the best epoch may be one before "
            "the target is met"
        )
    if price.rate_penalty and price.penalty_warm_up and keep != "last":
        raise UseError(
            "--penalty_warm_up needs --keep last: the best epoch may be one before the price has "
            "its weight"
        )
    warm_up = price.penalty_warm_up or 0
    if warm_up > epochs:
        raise UseError(
            f"--penalty_warm_up {warm_up:g}: the training ends after {epochs:g} epochs, before the "
            "price is due; give fewer"
        )
    reason = "give --rate_penalty, --energy_target or --rate_target"
    return (["penalty_warm_up"], price.on, reason)


def note_unused(asked: CNNSettings, world: World):
    """Tell of options that published commands give though they do nothing."""
    if asked.training.optimizer == "Adam" and "momentum" in asked.given:
        world.say("note: --momentum is not used by Adam")
    data = asked.data
    if TABLE[data.dataset].looks_in == "data_root" and "dataset_dir" in asked.given:
        world.say(
            f"note: --dataset_dir is not used by {data.dataset}, which is looked for under "
            f"--data_root {data.data_root}"
        )
