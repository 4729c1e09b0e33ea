"""The rows of the published tables, and the stages that make each of them by the public scripts.

rows.csv holds the rows, one a line; published_commands.txt the command lines of the published CNNs;
recipes.yml the chains.
"""

import csv
import difflib
import shlex
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from engine.errors import UseError
from engine.settings import flat
from inputs.table import TABLE
from models import CNNS

from . import declared
from .options import RowSettings
from .stage import Stage, from_words

FOLDER = Path(__file__).parent
# Training images of an epoch; of the recordings the first 900 of each of the ten classes.
IMAGES = {name: entry.images for name, entry in TABLE.items() if entry.images}
IMAGES["DVS-CIFAR10"] = 9_000
METHODS = ("ANN", "M-LIF")


@dataclass(frozen=True)
class Row:
    """A row of the published tables.

    levels: lanes S; 0 of an ANN. steps: T, of recordings the packed frames Q_F. frames: T_F of
    recordings, else 0. accuracy: in %. energy: in uJ per image. macs: of one image and step.
    """

    name: str
    dataset: str
    network: str
    method: str
    levels: int
    steps: int
    frames: int
    accuracy: float
    energy: float
    macs: int

    @property
    def group(self):
        """Rows of a group share stages (the ANN), and so a folder."""
        return f"{self.dataset}-{self.network}".lower()

    @property
    def ann(self):
        """The row of the ANN that this row is compared with, or None."""
        # an ANN is compared with nothing
        if self.method == "ANN":
            return None
        group = [row for row in table().values() if row.group == self.group]
        return next((row for row in group if row.method == "ANN"), None)

    @property
    def recipe(self):
        """The declared chain of the network."""
        return recipes()[self.network]

    @property
    def cnn(self):
        """Whether its network is a CNN, which goes from an ANN to an SNN."""
        return self.network.lower() in CNNS


# ---- the table ----


def read(path):
    """{name: row} of a file such as rows.csv.

    Raises:
        UseError: a line is no row; the message names the line and what was expected.
    """
    kinds = {column.name: column.type for column in fields(Row)}
    known = {"dataset": IMAGES, "network": recipes(), "method": METHODS}
    found = {}
    with open(path, newline="", encoding="utf-8") as file:
        # the first line names the columns
        for number, line in enumerate(csv.DictReader(file), 2):
            where = f"{path}, line {number}"
            # a surplus cell has no name, a missing one no value
            if list(line) != list(kinds) or None in line.values():
                raise UseError(f"{where}: expected the values {','.join(kinds)}")
            for name, values in known.items():
                if line[name] not in values:
                    expected = ", ".join(values)
                    raise UseError(f"{where}: {name} is {line[name]!r}, expected {expected}")
            try:
                # an empty number is one that the row does not have
                cells = [kind(line[name] or 0) for name, kind in kinds.items()]
            except ValueError as error:
                raise UseError(f"{where}: expected a number, {error}") from None
            row = Row(*cells)
            if row.name in found:
                raise UseError(f"{where}: there is a row {row.name} already")
            found[row.name] = row
    return found


@cache
def recipes():
    """{network: its declared chain, with schedules}."""
    return declared.read(FOLDER / "recipes.yml")


@cache
def table():
    """{name: row} of all rows."""
    return read(FOLDER / "rows.csv")


def find(name):
    """The row of that name.

    Raises:
        UseError: there is none; the nearest is named.
    """
    rows = table()
    if name not in rows:
        # without a cutoff there is always one
        near = difflib.get_close_matches(name.lower(), rows, n=1, cutoff=0)
        raise UseError(f"there is no row {name!r}: did you mean {near[0]}? (--list shows all)")
    return rows[name]


# ---- the stages of a row ----


@cache
def printed_commands():
    """[(file of the script, its options)] of the published commands, the scripts' own spelling."""
    lines = (FOLDER / "published_commands.txt").read_text().splitlines()
    commands = [shlex.split(line) for line in lines]
    return [(file, from_words(words)) for _, file, *words in commands]


def published(script, row: Row):
    """The options of the published command of a CNN, but for the names of files and folders.

    Returns {} where no such command was published.
    """
    wanted = (f"{script}.py", row.dataset, row.network.upper())
    for file, found in printed_commands():
        # the first one is no LQ-ANN
        if (file, found["dataset"], found["architecture"]) == wanted:
            break
    else:
        return {}
    idle = ["pretrained_ann", "dataset_dir"]
    # Adam would only note that it does not use one
    if found.get("optimizer") == "Adam":
        idle.append("momentum")
    return {name: found[name] for name in found if name not in idle}


def values(row: Row, asked: RowSettings, seed):
    """What stands for `{name}` in a recipe."""
    found = {**flat(asked), **vars(row)}
    # what is a default of the scripts stays out of recipes
    for name in ("amp", "compile"):
        if found[name] == "none":
            found[name] = None
    # without a folder the scripts look where their data are put
    folder = found["data_root"] if "data_root" in asked.given else None
    large = row.dataset == "IMAGENET"
    return {
        **found,
        "seed": seed,
        "architecture": row.network.upper(),
        "data_set": row.dataset.lower(),
        "folder": folder,
        "data_root": None if large else folder,
        "dataset_dir": folder if large else None,
        # an epoch of ImageNet takes hours
        "few": 2 if large else None,
    }


def stages(row: Row, asked: RowSettings, seed):
    """The stages of a row; the last one is the row's network.

    Raises:
        UseError: the row has no such schedule, or no such width.
    """
    schedule = asked.row.schedule
    if schedule == "fast" and not (schedule in row.recipe and row.dataset.startswith("CIFAR")):
        raise UseError(
            f"{row.name} has no fast schedule, only VGG16 and ResNet20 on CIFAR10 and CIFAR100 "
            "have one: --schedule published or smoke"
        )
    recipe = declared.filled(row.recipe, values(row, asked, seed))
    found = declared.stages(recipe)
    if row.method == "ANN":
        found = found[:1]
    last = found[-1]
    if asked.network.width_mult != 1 and "width_mult" not in last.given:
        raise UseError(f"--width_mult: {row.name} has one width")

    of_schedule = recipe.get(schedule, {})
    printed = {}
    for stage in found:
        command = of_schedule.get(stage.script, {})
        if row.cnn and not command:
            command = published(stage.script, row)
            # fusing needs no options
            if not command and (stage.trains or schedule == "published"):
                raise UseError(
                    f"no command of {stage.script}.py for {row.network} on {row.dataset} is "
                    f"published, and recipes.yml has no {schedule} schedule of it: give another "
                    "--schedule"
                )
        # the neuron of the table wins over that of the command
        printed[stage.name] = stage.given | command
        stage.given = command | stage.given
    # where the neuron of the printed recipe is not that of the table, both run
    if schedule == "published" and printed[last.name] != last.given:
        found.insert(-1, Stage("snn_as_printed", last.script, printed[last.name]))
    return found


# ---- what a row takes ----


def trainings(row: Row):
    """[(epochs, T)] of the published schedule, of each network that is trained; [] if none is."""
    if not row.cnn:
        return [(row.recipe["epochs"], row.steps)]
    ann = published("ann_ddp", row)
    printed = published("snn_ddp", row)
    if not ann or (row.method != "ANN" and not printed):
        return []
    found = [(int(ann["epochs"]), 1)]
    if row.method != "ANN":
        count = int(printed["epochs"])
        lanes, steps = int(printed["num_channels"]), int(printed["timesteps"])
        # where the printed neuron is not the table's, both are trained
        if (lanes, steps) != (row.levels, row.steps):
            found.append((count, steps))
        found.append((count, row.steps))
    return found


def epochs(row: Row):
    """Epochs of the published schedule, of each network that is trained."""
    return [count for count, _ in trainings(row)]


def operations(row: Row):
    """Operations of the published schedule: 2 a MAC, and the backward costs twice the forward."""
    steps = sum(count * steps for count, steps in trainings(row))
    return 6 * row.macs * IMAGES[row.dataset] * steps
