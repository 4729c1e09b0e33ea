"""The record log: how the recipe of the fast rows came to be, a measured change at a time.

python -m experiments.records --list
python -m experiments.records base steep --data_root data --results results/mine/records

The second runs what is missing of these records, then writes results/mine/records.md, the newest
record first, with all logs in results/mine/records/. records.yml declares the records.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from cli.options import NetworkOptions
from cli.parser import Parser
from engine.errors import MALFORMED, UseError, guard
from engine.files import write_text
from engine.log import read_json, versions, write_json
from engine.loop import RunOptions
from engine.recipes.cnn import TrainingOptions
from engine.settings import flat, group, option

from . import declared
from .answers import column
from .chain import Chain, same_data
from .options import NARROW, THREE_SEEDS, ExperimentOptions, ExperimentSettings, output, settled
from .results import of_any_machine
from .stage import slug
from .verdict import number, spread

FILE = Path(__file__).with_name("records.yml")
HEAD = """\
# Records

How the recipe of the fast rows came to be: a change at a time, the newest first, so that the first
line is the recipe of today. Accuracy in % after the last epoch on the test set, mean ± standard
deviation over the seeds; `p`: Welch's t-test against the record below; minutes of a seed's chain.
Every log: [records/](records). Written by `python -m experiments.records --report`.

| date | record | what changed | seeds | accuracy | points | p | energy (uJ) | minutes | images/s \
| where |
|---|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class RecordOptions:
    """records"""

    records: tuple = option((), "names of records, or all", positional=True, nargs="*")


@dataclass(frozen=True)
class RecordSettings(ExperimentSettings):
    """Options of records.py."""

    record: RecordOptions = group()
    experiment: ExperimentOptions = group(seeds=THREE_SEEDS, results="results/records")
    network: NetworkOptions = NARROW
    training: TrainingOptions = group(
        only=("epochs",),
        epochs={"default": 20, "help": "epochs of every network that is trained"},
    )
    run: RunOptions = output("runs/records")


def get_parser():
    """Its command line."""
    about = "Measure changes of the recipe of the fast rows, and log them."
    return Parser("python -m experiments.records", about, RecordSettings)


def read(path):
    """What a file such as records.yml declares, checked.

    Raises:
        UseError: it declares something else; the message says where and what.
    """
    content = declared.read(path)
    declared.check_chain(path, content, "records")
    for name, own in content["records"].items():
        where = f"{path}, {name}"
        declared.check(where, own, ("stage", "change"))
        if own["stage"] not in content["stages"]:
            raise UseError(f"{where}: there is no stage {own['stage']!r}")
    return content


def make_chain(asked: RecordSettings, content, name, seed):
    """The chain of a record and seed; records of the same seed share their folder."""
    values = flat(asked)
    values["seed"] = seed
    stages = declared.stages(declared.filled(content, values))
    last = slug(content["records"][name]["stage"])
    stages = declared.needed(stages, [last])
    network = asked.network
    size = f"{network.architecture.lower()}-w{network.width_mult:g}-e{asked.training.epochs}"
    folder = Path(asked.run.output_dir) / size / f"seed{seed}"
    return Chain(folder, stages, f"{name}, seed {seed}")


def measure(asked: RecordSettings, content, name):
    """Run what is missing of a record; returns what is kept of it."""
    own = content["records"][name]
    runs, data, days = [], {}, []
    for seed in asked.experiment.seeds:
        chain = make_chain(asked, content, name, seed)
        done = chain.all()
        *_, last = chain.stages.values()
        data[f"seed {seed}"] = last.data
        days.append(last.ended)
        seconds = [done[stage.name]["seconds"] for stage in chain.stages.values() if stage.trains]
        runs.append(
            {
                **of_any_machine(last.summary),
                "seed": seed,
                "chain_seconds": sum(seconds),
                "recipes": chain.recipes,
                "log": last.log,
                "commit": last.record["commit"],
                "versions": last.versions,
            }
        )
    same_data(data)
    return {
        "record": name,
        "change": own["change"],
        "date": max(days),
        "network": size(asked),
        "epochs": asked.training.epochs,
        "versions": versions(),
        "runs": runs,
    }


def line(result, before):
    """A record's line of the log; before: the record that it is compared with, or None."""
    runs = result["runs"]
    accuracy = column(runs, "test_accuracy")
    points, chance = "", ""
    if before:
        old = column(before["runs"], "test_accuracy")
        points = f"{statistics.mean(accuracy) - statistics.mean(old):+.2f}"
        if min(len(accuracy), len(old)) > 1:
            chance = f"{stats.ttest_ind(accuracy, old, equal_var=False).pvalue:.3f}"
    name = result["record"]
    images = [entry["images_per_s"] for run in runs for entry in run["log"]]
    places = [run[key] for key in ("data", "machine") for run in runs]
    where = dict.fromkeys([result["network"], f"{result['epochs']} epochs", *places])
    cells = (
        result["date"],
        f"[{name}](records/{name}.json)",
        result["change"],
        ", ".join(str(run["seed"]) for run in runs),
        number(spread(accuracy)),
        points,
        chance,
        f"{statistics.mean(column(runs, 'energy_uj')):.2f}",
        f"{statistics.mean(column(runs, 'chain_seconds')) / 60:.0f}",
        f"{statistics.median(images):.0f}",
        ", ".join(where),
    )
    return f"| {' | '.join(cells)} |"


def gained(first, last):
    """What came of all changes between two records: points, energy, minutes."""

    def means(result):
        runs = result["runs"]
        return {
            "points": statistics.mean(column(runs, "test_accuracy")),
            "uJ": statistics.mean(column(runs, "energy_uj")),
            "minutes a seed": statistics.mean(column(runs, "chain_seconds")) / 60,
        }

    old = means(first)
    new = means(last)
    changes = []
    for unit in old:
        changes.append(f"{new[unit] - old[unit]:+.2f} {unit}")
    ends = f"From {first['record']} to {last['record']}"
    return f"\n{ends}: {', '.join(changes)}.\n"


def page(content, folder):
    """The log of all records that are measured, the newest first."""
    results = []
    for name in reversed(content["records"]):
        path = Path(folder) / f"{name}.json"
        if path.is_file():
            results.append(read_json(path))
    lines = []
    for before, result in zip([None, *results], results):
        lines.append(line(result, before))
    text = HEAD + "\n".join(reversed(lines)) + "\n"
    if len(results) > 1:
        text += gained(results[0], results[-1])
    return text


def size(asked: RecordSettings):
    """The network of a record, as its file names it."""
    return f"{asked.network.architecture} x{asked.network.width_mult:g}"


def check_free(asked: RecordSettings, path, replaced):
    """Refuse a log whose records are of another network, other epochs or other autocast than those
    asked for.

    path: of a record. replaced: whether it is run again.
    Raises:
        UseError: it is of others, or of seeds that would be lost.
    """
    if not path.is_file():
        return
    old = read_json(path)
    try:
        seeds = [run["seed"] for run in old["runs"]]
        before = f"{old['network']}, {old['epochs']} epochs, --amp {autocast(old)}"
    except MALFORMED:
        raise UseError(f"{path} is no record: remove it, or give another --results") from None
    if replaced and not set(seeds) <= set(asked.experiment.seeds):
        raise UseError(
            f"{path} is a record of the seeds {' '.join(map(str, seeds))}: give --seeds with all "
            "of them, or another --results"
        )
    now = f"{size(asked)}, {asked.training.epochs} epochs, --amp {asked.compute.amp}"
    if before != now:
        raise UseError(f"{path} is a record of {before}, not of {now}: give another --results")


def check_trainings(asked: RecordSettings, content, name, path):
    """Refuse to replace a record of other trainings than those that its chains hold.

    Raises:
        UseError: the file `path` is one.
    """
    if not path.is_file():
        return
    for run in read_json(path)["runs"]:
        *_, last = make_chain(asked, content, name, run["seed"]).stages.values()
        if not (last.summary and last.log == run.get("log")):
            raise UseError(
                f"{path} is a record of another training (seed {run['seed']}): give another "
                "--results, or remove it"
            )


def autocast(record):
    """The autocast type by which a record was trained."""
    *_, recipe = record["runs"][0]["recipes"].values()
    return recipe["amp"]


def check_data(result, path):
    """Refuse a record on other data than those of another one of its log.

    path: of that one, if it was measured.
    Raises:
        UseError: they would be compared.
    """
    if not path.is_file():
        return
    here, there = (record["runs"][0]["data"] for record in (result, read_json(path)))
    if here != there:
        raise UseError(
            f"{result['record']} was measured on {here}, {path} on {there}: results never mix, "
            "give another --results"
        )


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    content = read(FILE)
    what, names = asked.experiment, asked.record.records
    if what.list or not (names or what.report):
        for name, own in content["records"].items():
            print(f"{name:<12} {own['change']}")
        return
    asked = settled(asked)
    for name in names:
        if name not in content["records"] and names != ("all",):
            raise UseError(f"there is no record {name!r}: all, {', '.join(content['records'])}")
    folder = Path(what.results)
    log = folder.with_name(f"{folder.name}.md")
    wanted = list(content["records"]) if names == ("all",) else names
    # what is not measured anew, and then what is
    compared = set(content["records"]) - set(wanted)
    if not what.report:
        # all of a log are compared, the ones that are not asked for, too
        for name in content["records"]:
            path = folder / f"{name}.json"
            check_free(asked, path, name in wanted)
            if name in wanted:
                check_trainings(asked, content, name, path)
        # the oldest first, since the others are compared with it
        for name in reversed(content["records"]):
            if name not in wanted:
                continue
            result = measure(asked, content, name)
            for other in sorted(compared):
                check_data(result, folder / f"{other}.json")
            write_json(folder / f"{name}.json", result)
            compared.add(name)
            write_text(log, page(content, folder))
    elif not any((folder / f"{name}.json").is_file() for name in content["records"]):
        raise UseError(f"{folder} holds no record: give the folder of --results")
    text = page(content, folder)
    write_text(log, text)
    print(f"{text}written to {log}", flush=True)


if __name__ == "__main__":
    guard(main)
