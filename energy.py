"""Accuracy, firing rates and energy of a checkpoint over its whole test set; or the energy of an
ANN from its shape alone.

python energy.py trained_models/snn/snn_resnet20_cifar10_MC_T_1_H_1_C_3_Z_0.pth --data_root data
python energy.py --architecture VGG16 --dataset IMAGENET            (no checkpoint, no data)
"""

from dataclasses import dataclass
from functools import partial

from analysis import neurobench
from analysis.energy import of_ann
from analysis.measure import Measure, draw_rates
from cli import provenance, run
from cli.options import EnergyOptions, FileOptions, NetworkOptions
from cli.parser import Parser, refuse_idle
from engine import checkpoint
from engine.dist import DeviceOptions, World
from engine.errors import UseError, guard
from engine.log import write_json
from engine.loop import ComputeOptions
from engine.settings import Settings, group
from inputs.loader import BatchOptions, make_loader
from inputs.table import PUBLISHED_DATA, TABLE, DataOptions, load

# these kinds of checkpoint need the data of their own scripts
MEASURED_BY = {
    "sdt": "spike_driven_transformer/firing_num.py",
    "vggsnn": "neuromorphic_tasks/main_test.py",
}


@dataclass(frozen=True)
class EnergySettings(Settings):
    """Options of energy.py."""

    measure: EnergyOptions = group()
    files: FileOptions = group(
        only=("output",),
        output={"help": "path without suffix of the .json and .csv, else beside the checkpoint"},
    )
    bench: neurobench.NeuroBenchOptions = group()
    network: NetworkOptions = group(
        only=("architecture", "width_mult"),
        architecture={
            "default": None,
            "help": "in the place of a checkpoint: the energy of this network for --dataset as "
            "an ANN",
        },
        width_mult={"help": "factor of the width of every layer of --architecture"},
    )
    data: DataOptions = group()
    batches: BatchOptions = group(hidden=("val_fraction", "limit_train_batches"))
    compute: ComputeOptions = group(only=("amp",))
    device: DeviceOptions = group()


def get_parser():
    """Its command line."""
    return Parser("energy.py", "Accuracy, firing rates and energy of a checkpoint.", EnergySettings)


def shape_only(asked: EnergySettings):
    """Energy of --architecture as an ANN."""
    name, how = asked.network.architecture, asked.measure
    entry = TABLE[asked.data.dataset]
    if entry.name not in PUBLISHED_DATA:
        raise UseError(
            f"--architecture without a checkpoint needs --dataset {', '.join(PUBLISHED_DATA)}, "
            f"got {entry.name}"
        )
    energy = of_ann(
        name,
        num_classes=entry.classes,
        image_size=entry.side,
        width_mult=asked.network.width_mult,
    )
    print(energy.table(how.energy_model))
    microjoules = energy.uj(how.energy_model)
    print(f"{name} for {entry.name} as an ANN: {microjoules:.3E} uJ per image")
    output = asked.files.output
    if output:
        width = run.width_suffix(asked.network.width_mult)
        stem = checkpoint.placed(f"{name}_{entry.name}{width}_energy".lower(), output)
        energy.write(stem)
        print(f"written: {stem}.json, {stem}.csv")
    return energy


def settled(asked: EnergySettings, content):
    """The data options: those of the training, unless the command line names others."""
    path = asked.measure.checkpoint
    if content["kind"] in MEASURED_BY:
        kind = content["kind"]
        raise UseError(f"{path} holds a {kind}: measure it with {MEASURED_BY[kind]}")
    checkpoint.check_own(content, path)
    return provenance.trained_data(content, asked.data, asked.given, path)


def work(asked: EnergySettings, world: World):
    """Measure the checkpoint, as one of the processes of `world`; returns the summary."""
    how = asked.measure
    content = checkpoint.load(how.checkpoint)
    options = settled(asked, content)
    net = world.place(checkpoint.rebuild(content, how.checkpoint))
    data = load(options, world)
    provenance.check_shape(content, data.about, how.checkpoint)
    data = provenance.as_trained(data, content, how.checkpoint)
    test = make_loader(data.test, data, asked.batches, 0, world, training=False)
    # the state of a training has its SNN before scales are folded
    if content["kind"] == "snn" and "training" in content:
        net = run.stored_form(net, test, how.checkpoint)
    amp, model = asked.compute.amp, how.energy_model
    measure = Measure(test, world, data.about, amp, energy=True, model=model)
    stem = checkpoint.beside(how.checkpoint, "_energy", asked.files.output)
    if asked.bench.neurobench:
        found = neurobench.compare(net.eval(), test, world)
        print(neurobench.table(found))
        write_json(f"{stem}_neurobench.json", found)
    summary = measure(net, stem)
    microjoules = summary["energy"].uj(model)
    found = (
        f"accuracy {summary['test_accuracy']:.2%}, energy {microjoules:.4g} uJ per image ({model})"
    )
    written = f"{stem}.json and {stem}.csv"
    # an ANN has no firing rates
    if world.main and summary["lane_rates"]:
        written = draw_rates(summary, data.about["source"], found, stem)
    world.say(f"{found}; written to {written}")
    return summary


def rules(asked: EnergySettings):
    """Options that do nothing for what is asked."""
    # what is of use without a checkpoint
    shape = {"architecture", "width_mult", "dataset", "energy_model", "output", "debug"}
    measured = asked.given - shape - {"checkpoint"}
    return [
        (
            ["width_mult"],
            asked.network.architecture,
            "the checkpoint says how wide the network is",
        ),
        (
            measured,
            asked.measure.checkpoint,
            "an ANN's energy follows from its shape, nothing is run",
        ),
    ]


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    path, architecture = asked.measure.checkpoint, asked.network.architecture
    if bool(path) == bool(architecture):
        hint = "not both" if path else "one of the two"
        raise UseError(
            "give a checkpoint to measure, or --architecture for the energy of an ANN from its "
            f"shape, {hint}"
        )
    refuse_idle(asked.given, rules(asked))
    # nothing is run, so no device is asked for
    if architecture:
        return shape_only(asked)
    return run.in_processes(partial(work, asked), asked)


if __name__ == "__main__":
    guard(main)
