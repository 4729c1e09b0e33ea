"""What the scripts of VGGSNN share: settings, recordings, network, and where results lie."""

from dataclasses import dataclass, replace
from pathlib import Path

from engine import checkpoint, settings
from engine.dist import World
from engine.errors import MALFORMED, UseError, reason
from engine.generators import seed_all
from engine.settings import group
from inputs.events import recordings
from inputs.events.options import CodingOptions
from inputs.loader import BatchOptions, loaders
from models.vggsnn import activation

from . import provenance, run
from .options import NetworkOptions, NeuronOptions, TrainingSettings

# without these a file of weights means nothing
MEANING = ("multi_channel", "num_channels", "T_prime", "resize", "width_mult")
# a second name of --prepared, which elsewhere is that of a folder of images
PREPARED = {"spellings": ("--data_root",)}


@dataclass(frozen=True)
class EventSettings(TrainingSettings):
    """What every script of VGGSNN has; the defaults are those of the training."""

    coding: CodingOptions = group(prepared=PREPARED)
    # there is one network
    network: NetworkOptions = group(
        only=("width_mult", "pretrained_snn"),
        pretrained_snn={"help": "weights to start from: ours or the published code's"},
    )
    neuron: NeuronOptions = group(
        only=("multi_channel", "num_channels", "surrogate_edge", "neuron_backend")
    )
    batches: BatchOptions = group(
        hidden=("val_batch_size",),
        batch_size={"default": 128, "help": "recordings per step, all processes together"},
        workers={
            "default": 16,
            "help": "accepted as published; batches are made on the device and need no processes",
        },
    )


def lanes_rule(asked: EventSettings):
    """--num_channels does nothing with plain LIF."""
    return (
        ["num_channels"],
        asked.neuron.multi_channel,
        "plain LIF has one lane, give --multi_channel 1",
    )


def coding(asked: EventSettings):
    """The `Coding` of the settings."""
    # plain LIF sees single frames, as one lane does
    return recordings.coding(asked.neuron.levels, asked.coding)


def settled(asked: EventSettings):
    """(the settings with those of the checkpoint that they name, (digest, number) of the recordings
    that it was tested on).

    Published weights have neither: the recordings are None.

    Raises:
        UseError: the checkpoint is of another network, or an option that was given contradicts it.
    """
    path = asked.network.pretrained_snn
    content = checkpoint.load(path)
    if content["format"] == checkpoint.PUBLISHED:
        return asked, None
    name = content["network"]["name"]
    if name != "vggsnn":
        raise UseError(f"{path} holds a {name}, expected a vggsnn")
    # the settings that were not given follow the checkpoint
    data = content["data"]
    try:
        stored = {name: content["settings"][name] for name in MEANING}
        stored["split"] = data["split"]
        known = [data["test"][name] for name in ("sha256", "images")]
    except MALFORMED as error:
        raise UseError(f"{path} does not say how it was trained ({reason(error)})") from None
    provenance.check_stored(path, settings.options(type(asked)), stored)
    trained = settings.make(type(asked), settings.flat(asked) | stored, asked.given)
    provenance.check_given(asked, trained, stored.keys(), path, "--pretrained_snn")
    return trained, known


def start(asked: EventSettings, trained_on, saved, world: World):
    """(the `run.Task`, the network with its starting weights).

    trained_on: what `settled` returned of the network's recordings. saved: content of the
    last.pth of a resumed run.

    Raises:
        UseError: the test recordings are others, on which the network may have been trained.
    """
    neuron, compute = asked.neuron, asked.compute
    run.say_backend(neuron.neuron_backend, world, compute.compile)
    seed_all(compute.seed)
    how = coding(asked)
    data = recordings.load(asked.coding, how)
    about, path = data.about, asked.network.pretrained_snn
    # other folder names are fine, other recordings are not
    digest, count = trained_on or (None, None)
    if trained_on and digest != about["test"]["sha256"]:
        raise UseError(
            f"{path} has {count} test recordings, {about['where']} holds "
            f"{about['test']['images']} others, on which it may have been trained: name those of "
            "its training with --prepared"
        )
    made = loaders(data, asked.batches, compute.seed, world, recordings.EventLoader)
    # 0 stands for plain LIF, whose reset is another one
    lanes = neuron.levels if neuron.multi_channel else 0
    act = activation(lanes, how.steps, neuron.surrogate_edge, neuron.neuron_backend)
    net = run.build(replace(asked.network, architecture="vggsnn"), about, act)
    task = run.Task(asked, saved, world, data, made)
    # the weights of a run that goes on come from its last.pth
    if path and not saved:
        content = checkpoint.load(path)
        checkpoint.load_named(net, content, path)
        run.say_weights(content, path, task)
        if content["format"] == checkpoint.PUBLISHED and not how.published:
            world.say("note: published weights were trained on what --resize published makes")
    return task, world.place(net)


def result(asked: EventSettings):
    """File of the trained network; its name tells the recordings, too."""
    _, manifest = recordings.read_manifest(asked.coding)
    how = coding(asked)
    # a network of simulated events must not take the place of one of the data set
    data_set = "simulated" if "simulated" in manifest else "dvscifar10"
    neuron = f"C{how.levels}" if asked.neuron.multi_channel else "LIF"
    name = f"vggsnn_{data_set}_{manifest['split']}_T{how.frames}_{neuron}"
    if how.published:
        name += "_published"
    name += run.width_suffix(asked.network.width_mult)
    return Path(asked.run.output_dir) / f"{name}.pth"
