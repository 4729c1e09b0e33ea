"""What the checkpoint that a command is given says of its training, and whether it fits."""

import math
from dataclasses import replace

import models
from engine import checkpoint, settings
from engine.dist import World
from engine.errors import UseError
from engine.settings import Settings
from inputs.images import Data
from inputs.pretrained import normalisation
from inputs.table import TABLE, DataOptions, data_rules

from .options import CNNSettings
from .parser import refuse_idle


def note_activation(content, act, path, world: World):
    """Tell where the activation of a loaded checkpoint differs from that of the network."""
    if content["format"] == checkpoint.PUBLISHED:
        steps = content.get("steps")
        if steps not in (None, act.steps):
            world.say(f"note: {path} was trained with steps {steps}, here {act.steps}")
        return
    # read and described anew, since older files name some fields otherwise
    stored = models.from_description(content["activation"])
    here, there = _flat(models.describe(act)), _flat(models.describe(stored))
    # an output scale folds away, so that it makes no difference
    different = [
        f"{name} {there[name]}, here {value}"
        for name, value in here.items()
        if name in there and there[name] != value and name != "scale"
    ]
    if different:
        world.say(f"note: {path} was trained with {'; '.join(different)}")


def _flat(activation):
    """A described activation with the fields of its neuron beside its own."""
    own = {name: value for name, value in activation.items() if name != "neuron"}
    return own | activation.get("neuron", {})


def check_stored(path, options, values):
    """Refuse a file whose settings cannot be those of a command.

    options: {name: `Option`} of the command. values: {name: value}, in the file `path`.
    """
    for name, value in values.items():
        try:
            options[name].check(value)
        except ValueError as error:
            raise UseError(f"{path} holds --{name} {value!r}, which cannot be: {error}") from None


def trained_data(content, data: DataOptions, given, path):
    """The data options of the training of a checkpoint, unless the command line names others.

    content: of the checkpoint `path`. given: names of the options that were given.
    """
    # the command line wins: the data may have moved
    names = ("dataset", "data_root", "dataset_dir", "image_size")
    stored = {
        name: content["settings"][name]
        for name in names
        if name in content["settings"] and name not in given
    }
    # a published network that was fused has no settings, but says which images it takes
    images = content["data"].get("name")
    # a list, since a damaged file's name may be what no dictionary takes
    if "dataset" not in {*given, *stored} and images in list(TABLE):
        stored["dataset"] = images
    check_stored(path, settings.options(CNNSettings), stored)
    data = replace(data, **stored)
    refuse_idle(given, data_rules(data))
    return data


def check_given(asked: Settings, trained: Settings, names, path, option):
    """Refuse given options among `names` that contradict the settings of a checkpoint's training.

    asked: the settings of this command. trained: the same as `path` has them. option: what names
    the checkpoint.
    """
    here, there = settings.flat(asked), settings.flat(trained)
    for name in sorted(asked.given & names):
        if here[name] != there[name]:
            raise UseError(
                f"{path} was trained with --{name} {there[name]}, not {here[name]}: leave it out, "
                f"or give another {option}"
            )


def check_shape(content, about, path):
    """Refuse a data set that does not fit the network."""
    trained = content["data"]
    if any(trained[k] != about[k] for k in ("num_classes", "image_size")):
        sizes = "{num_classes} classes and {image_size} pixels".format(**trained)
        here = "{num_classes} classes and {image_size} pixels".format(**about)
        raise UseError(f"{path} was trained for {sizes}, {about['source']} has {here}")
    # names are known of own folders alone
    names, here = trained.get("classes"), about.get("classes")
    if names and here and names != here:
        raise UseError(
            f"{path} was trained on the classes {names}, {about['where']} has the classes {here}"
        )


def as_trained(data: Data, content, path):
    """The `Data` with the normalisation that the network of a checkpoint was trained with."""
    mean, std = normalisation(content, path)
    if mean is None:
        return data
    return replace(data, mean=mean, std=std)


def other_meaning(content, about, path):
    """What a network's images had otherwise, their classes or their normalisation; "" if nothing.

    Files of earlier versions do not say all of it.
    """
    mean, std = normalisation(content, path)
    there = {"classes": content["data"].get("classes"), "mean": mean, "std": std}
    for name, value in there.items():
        here = about.get(name)
        if not value or not here:
            continue
        same = value == here
        if name != "classes":
            # the same images give other last digits on another machine
            same = all(map(math.isclose, value, here))
        if not same:
            return f"{path} was trained with other {name} of its images: {value}, not {here}"
    return ""


def note_images(content, path, about, world: World):
    """Tell where the images of a loaded checkpoint were others than those of the data set."""
    # a published file does not say which images it saw
    if content["format"] == checkpoint.PUBLISHED:
        return
    other = other_meaning(content, about, path)
    if other:
        world.say(f"note: {other}")


def teacher(distill, about, world: World):
    """The trained network that --distill names, in eval mode; None if it names none."""
    if not distill:
        return None
    content = checkpoint.load(distill)
    checkpoint.check_own(content, f"--distill {distill}", "run absorb_bn.py on it first")
    # the teacher sees the student's images, so they must mean the same to both
    known = content["data"]
    if any(known.get(k) != about[k] for k in ("name", "num_classes", "image_size")):
        source = known["source"]
        raise UseError(f"--distill {distill} was trained on {source}, not on {about['source']}")
    other = other_meaning(content, about, f"--distill {distill}")
    if other:
        raise UseError(other)
    net = checkpoint.rebuild(content, distill).eval().requires_grad_(False)
    return world.place(net)
