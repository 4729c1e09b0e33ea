"""Trained networks that anyone can load by name: trained_models/zoo (see `engine.zoo`).

python -m experiments.zoo add my_resnet20 --checkpoint trained_models/snn/<name>.pth \
    --made_by 'python3 snn_ddp.py --architecture RESNET20 --width_mult 0.25 ...'
python -m experiments.zoo check

The first stores a checkpoint, measures what it stored, and writes its card and its line of zoo.csv;
the second measures all, or the one that is named, again.
"""

import importlib
import re
import shlex
from dataclasses import dataclass
from functools import partial

import torch

from analysis.measure import Measure
from cli import provenance
from cli.options import EnergyOptions, FileOptions
from cli.parser import Parser, refuse_idle
from engine import checkpoint, zoo
from engine.dist import World
from engine.errors import RunError, UseError, guard
from engine.files import write_proved, write_text
from engine.settings import RESULT, Settings, group, option, options, stored_name
from inputs.loader import BatchOptions, make_loader
from inputs.table import DataOptions, load

from .chain import same_data
from .stage import to_words

SCRIPT = "snn_ddp"  # makes what is stored
FILES = ("output_dir", "pretrained_ann", "pretrained_snn", "distill")  # options
POINTS = 0.001  # of the accuracy (fraction) that rounding on other machines may move
SHARE = 0.01  # the same of the energy

CARD = """\
# {name}

{network} at width {width}, S = {levels}, T = {steps}:
{accuracy:.2%} of the {images} test images of {data},
{energy_uj} uJ per image (model `paper`; as an ANN {ann_uj:.4g} uJ).

| | |
|---|---|
| file | `{file}`, {megabytes:.2f} MB, int8 weights with a scale for each output channel |
| sha256 | `{sha256}` |
| data | {data}: {train} training images, normalised by mean {mean}, deviation {std} |
| last stage, its files left out | `{recipe}` |
| versions | {versions} |

Made by

```sh
{command}
```

Written by `python -m experiments.zoo add`; `python -m experiments.zoo check` measures it anew.
"""


@dataclass(frozen=True)
class ZooOptions:
    """zoo"""

    action: str = option(
        "check", "what to do", choices=("add", "check"), positional=True, nargs="?"
    )
    name: str = option("", "name of the network", positional=True, nargs="?")
    made_by: str = option("", "command that made the checkpoint, which the card shows")


@dataclass(frozen=True)
class ZooSettings(Settings):
    """Options of zoo.py."""

    zoo: ZooOptions = group()
    source: EnergyOptions = group(
        only=("checkpoint",),
        checkpoint={
            "positional": False,
            "nargs": None,
            "help": "checkpoint of snn_ddp.py that is added",
        },
    )
    files: FileOptions = group(only=("replace",))
    data: DataOptions = group(only=("data_root", "dataset_dir"))
    batches: BatchOptions = group(only=("batch_size", "workers"))


def get_parser():
    """Its command line."""
    about = "Store trained networks under a name, and measure them again."
    return Parser("python -m experiments.zoo", about, ZooSettings)


def rules(asked: ZooSettings):
    """Options that do nothing for what is asked."""
    adding = asked.zoo.action == "add"
    return [(["checkpoint", "made_by", "replace"], adding, "check measures what is stored")]


def trained_on(content, asked: ZooSettings, path):
    """The `Data` of a checkpoint."""
    data = load(provenance.trained_data(content, asked.data, asked.given, path), World())
    provenance.check_shape(content, data.about, path)
    return provenance.as_trained(data, content, path)


def measured(net, data, asked: ZooSettings):
    """The summary of `Measure` over all test images."""
    test = make_loader(data.test, data, asked.batches, 0, World(), training=False)
    return Measure(test, World(), data.about, energy=True)(net)


def kept(settings):
    """{`Option`: value} of a run's settings that say how it trained, and name no files."""
    kind = importlib.import_module(SCRIPT).get_parser().kind
    known, names = options(kind), stored_name(kind)
    # a run of an earlier version may know options that are gone
    stored = {names[key]: value for key, value in settings.items() if key in names}
    return {
        known[name]: value
        for name, value in stored.items()
        if known[name].governs == RESULT and name not in FILES
    }


def packed(content, data):
    """What is stored of a checkpoint, measured on `Data`, without what tells of this machine."""
    about = {name: value for name, value in data.about.items() if name != "where"}
    about |= {"mean": data.mean, "std": data.std}
    settings = {known.name: value for known, value in kept(content["settings"]).items()}
    net = checkpoint.rebuild(content)
    return zoo.packed(checkpoint.content(net, content["kind"], about, settings))


def store(path, content):
    """Write a packed checkpoint, once it was read back."""

    def same(temporary):
        again = checkpoint.load(temporary)["model"]
        wanted = zoo.unpacked(content)["model"]
        return all(torch.equal(again[name], value) for name, value in wanted.items())

    write_proved(path, partial(torch.save, content), same)


def card(entry, content, summary):
    """The text of a network's card; content: of its file. summary: of `Measure`."""
    about = content["data"]
    changed = {
        known.name: value
        for known, value in kept(content["settings"]).items()
        if known.value(value) != known.default
    }
    return CARD.format(
        **vars(entry) | {"accuracy": float(entry.accuracy)},
        images=summary["test_images"],
        ann_uj=summary["ann_energy_uj"],
        megabytes=(zoo.FOLDER / entry.file).stat().st_size / 1e6,
        train=about["train"]["images"],
        mean=shown(about["mean"]),
        std=shown(about["std"]),
        recipe=shlex.join([f"{SCRIPT}.py", *to_words(changed)]),
    )


def shown(numbers):
    """Numbers as text."""
    return ", ".join(f"{number:.4g}" for number in numbers)


def check_added(asked: ZooSettings):
    """Refuse what cannot be added; returns (the content of the checkpoint, the file's path)."""
    how = asked.zoo
    if not re.fullmatch(r"[\w.-]+", how.name):
        raise UseError(f"{how.name or 'nothing'} is no name: give the name of the network")
    source = asked.source.checkpoint
    for needed, given in (("checkpoint", source), ("made_by", how.made_by)):
        if not given:
            raise UseError(f"give --{needed}: {options(ZooSettings)[needed].help}")
    path = zoo.FOLDER / f"{how.name}.pth"
    if path.exists() and not asked.files.replace:
        raise UseError(f"{path} is there already: give --replace, or another name")
    content = checkpoint.load(source)
    if content["kind"] != "snn" or content["format"] == checkpoint.PUBLISHED:
        raise UseError(
            f"{source} holds a network of kind {content['kind']}: give a checkpoint of snn_ddp.py"
        )
    if "training" in content:
        raise UseError(f"{source} is the state of a training: give best.pth of its run folder")
    return content, path


def add(asked: ZooSettings):
    """Store a checkpoint; returns its `Entry`."""
    how = asked.zoo
    content, path = check_added(asked)
    data = trained_on(content, asked, asked.source.checkpoint)
    content = packed(content, data)
    net = checkpoint.rebuild(zoo.unpacked(content))
    summary = measured(net, data, asked)
    store(path, content | {"accuracy": summary["test_accuracy"]})
    entry = zoo.Entry(
        how.name,
        path.name,
        zoo.digest(path),
        net.built["name"],
        f"{net.built['width_mult']:g}",
        str(net.act.neuron.levels),
        str(net.act.steps),
        data.about["source"],
        f"{summary['test_accuracy']:.4f}",
        f"{summary['energy_uj']:.4g}",
        how.made_by,
        ", ".join(f"{name} {content['versions'][name]}" for name in ("python", "torch", "numpy")),
    )
    write_text(path.with_suffix(".md"), card(entry, content, summary))
    entries = zoo.table() | {how.name: entry}
    zoo.write([entries[name] for name in sorted(entries)], zoo.FOLDER)
    print(f"{how.name}: accuracy {summary['test_accuracy']:.2%}; written to {path} and its card")
    return entry


def differences(entry, asked: ZooSettings):
    """What of a network is not as on its card, as texts."""
    path = zoo.find(entry.name)
    content = checkpoint.load(path)
    data = trained_on(content, asked, path)
    same_data({f"the card of {entry.name}": content["data"], "the data here": data.about})
    summary = measured(checkpoint.rebuild(content), data, asked)
    accuracy, energy = float(entry.accuracy), float(entry.energy_uj)
    if abs(summary["test_accuracy"] - accuracy) > POINTS:
        yield f"{entry.name}: accuracy {summary['test_accuracy']:.2%}, its card says {accuracy:.2%}"
    if abs(summary["energy_uj"] - energy) > SHARE * energy:
        yield f"{entry.name}: {summary['energy_uj']:.4g} uJ, its card says {energy:.4g}"
    about = path.with_suffix(".md")
    text = about.read_text(encoding="utf-8") if about.is_file() else ""
    said = entry.sha256, entry.energy_uj, f"{accuracy:.2%}"
    if not all(word in text for word in said):
        yield f"{about} is not the card of this file"


def check(asked: ZooSettings):
    """Measure the network that is named, or all that have a file, again."""
    table = zoo.table()
    name = asked.zoo.name
    if name and name not in table:
        raise UseError(f"there is no {name}: names are {', '.join(table)}")
    entries = [entry for entry in table.values() if entry.file]
    if name:
        entries = [table[name]]
    found = []
    for entry in entries:
        wrong = list(differences(entry, asked))
        found += wrong
        if not wrong:
            print(f"{entry.name}: as on its card")
    if found:
        raise RunError("; ".join(found))


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    refuse_idle(asked.given, rules(asked))
    return {"add": add, "check": check}[asked.zoo.action](asked)


if __name__ == "__main__":
    guard(main)
