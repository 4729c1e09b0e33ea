"""Accuracy, nonzero and firing rates per layer, lane and step, and energy of a trained transformer
on its whole test set.

python firing_num.py --resume output/sdt_2_512_cifar10_t4_mlif_c3.pth

Weights without settings need a configuration:

python firing_num.py -c conf/cifar10/2_512_300E_t4_c3.yml --resume published_weights.pth.tar
"""

import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

# a script that is started in its own folder does not find the project's
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.measure import Measure, whole_report
from cli import provenance, run
from cli.parser import refuse_idle
from cli.transformer import (
    SIZES,
    TransformerOptions,
    TransformerParser,
    TransformerSettings,
    build,
    load_data,
)
from engine import checkpoint, settings
from engine.errors import UseError, guard
from models import set_backend

# options of the test images; a checkpoint's own settings answer what the command line does not
IMAGES = {"dataset", "data_root", "image_size", "mean", "std", "interpolation", "crop_pct"}

# options that say what the network is
NETWORK = {known.name for known in fields(TransformerOptions)} | {"surrogate_edge"}

# groups that only train.py obeys, but for IMAGES and --amp; and single options like them
TRAINING = ("head", "augment", "mixing", "training", "timm", "schedule", "loss", "price", "compute")
IDLE = {
    # --val_batch_size is that of a measurement
    "batch_size",
    "energy",
    "initial_checkpoint",
    "keep",
    "sync_bn",
    "val_fraction",
    "limit_train_batches",
    "save_freq",
    "test_only",
    "dont_save",
}


def idle():
    """Names of the options that do nothing here."""
    groups = settings.groups(TransformerSettings)
    training = {option.name for name in TRAINING for option in groups[name][1]}
    return (training | IDLE) - IMAGES - {"amp"}


def filled(asked: TransformerSettings, stored, path, wanted):
    """The settings, with what the stored ones of the checkpoint `path` say of the options `wanted`
    ({name}).
    """
    # stored keys may be further spellings of a name: data_dir, img_size
    names = settings.stored_name(TransformerSettings)
    values = settings.flat(asked)
    taken = {names[key]: value for key, value in stored.items() if key in names}
    taken = {name: value for name, value in taken.items() if name in wanted}
    provenance.check_stored(path, settings.options(TransformerSettings), taken)
    return settings.make(TransformerSettings, values | taken)


def check_name(model, trained: TransformerSettings, path):
    """Refuse a --model whose sizes are not those of the checkpoint `path`."""
    for name, value in SIZES[model].items():
        held = getattr(trained.network, name)
        if held != value:
            raise UseError(
                f"{path} was trained with --{name} {held}, --model {model} has {value}: "
                "leave it out"
            )


def load(asked: TransformerSettings, path, world):
    """(network, `Data`, test loader) of a checkpoint of train.py, or of weights alone.

    Raises:
        UseError: it is neither, an option contradicts it, or the network has not the classes of the
            data set.
    """
    content = checkpoint.load(path)
    published = content["format"] == checkpoint.PUBLISHED
    if published and not asked.experiment.config:
        raise UseError(f"{path} holds weights without settings: give their -c configuration")
    if not published and content["kind"] != "sdt":
        raise UseError(f"{path} holds no transformer: use energy.py")
    stored = dict(content.get("settings", {}))
    # how its images were normalised, which settings say of a configuration alone
    for name in ("mean", "std"):
        if name in content.get("data", {}):
            stored[name] = content["data"][name]
    data, loaders = load_data(filled(asked, stored, path, IMAGES - asked.given), world)
    if published:
        net = build(asked, data.about)
        checkpoint.load_named(net, content, path)
        world.say(checkpoint.told(content, path))
    else:
        # its network is as it was trained, whatever the options say
        trained = filled(asked, stored, path, NETWORK)
        provenance.check_given(asked, trained, NETWORK, path, "--resume")
        check_name(asked.experiment.model, trained, path)
        net = checkpoint.rebuild(content, path)
    if set_backend(net, asked.neuron.neuron_backend):
        run.say_backend(asked.neuron.neuron_backend, world)
    elif "neuron_backend" in asked.given:
        world.say("note: --neuron_backend does nothing here: the neurons are SpikingJelly's")

    classes, about = net.head.out_features, data.about
    if classes != about["num_classes"]:
        raise UseError(
            f"{path} has {classes} classes, {about['source']} has {about['num_classes']}: "
            "check --dataset"
        )
    # published weights do not say more
    if not published:
        provenance.check_shape(content, about, path)
    return net, data, loaders[2]


def work(asked: TransformerSettings, world):
    """Measure the network, as one of the processes of `world`; returns the summary."""
    path = asked.run.resume
    net, data, test = load(asked, path, world)
    measure = Measure(test, world, data.about, asked.compute.amp, energy=True)
    output = asked.experiment.experiment
    if "output_dir" in asked.given:
        output = f"{asked.run.output_dir}/{output}"
    stem = checkpoint.beside(path, "_firing", output)
    return whole_report(world.place(net), measure, stem)


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    about = "Accuracy, firing rates and energy of a trained transformer."
    parser = TransformerParser("firing_num.py", about, TransformerSettings)
    asked = parser.parse(argv)
    # a configuration may well hold the recipe of the training, so these are the words of argv alone
    refuse_idle(parser.named(argv), [(idle(), False, "a trained network is measured")])
    if not asked.run.resume:
        raise UseError("give --resume, the checkpoint to measure")
    return run.in_processes(partial(work, asked), asked)


if __name__ == "__main__":
    guard(main)
