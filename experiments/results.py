"""Results of rows: the files of results/rows, and the chains that make them."""

import shlex
from pathlib import Path

from engine.errors import UseError
from engine.log import read_json, versions, write_json
from engine.loop import FILES

from . import rows
from .arithmetic import ARITHMETIC, commit, version
from .chain import PARTS, Chain, same_data
from .options import SCHEDULES, RowSettings
from .stage import portable

# Parts of a summary that tell of files of this machine.
LOCAL = (*FILES, "converted")
FIELDS = {"row", "schedule", "width_mult", "code", "recipe", "runs", "commit"}


def make_chain(row: rows.Row, asked: RowSettings, seed):
    """The chain of a row and seed, in a folder of its own."""
    width = asked.network.width_mult
    name = row.group if width == 1 else f"{row.group}-w{width:g}"
    folder = Path(asked.run.output_dir) / f"{name}-{asked.row.schedule}" / f"seed{seed}"
    launcher = shlex.split(asked.row.launcher)
    stages = rows.stages(row, asked, seed)
    return Chain(folder, stages, f"{row.name}, seed {seed}", launcher)


def result_file(row: rows.Row, asked: RowSettings, folder):
    """Where the result of a row lies in the folder of results."""
    width = asked.network.width_mult
    name = row.name if width == 1 else f"{row.name}.w{width:g}"
    return Path(folder) / f"{name}.{asked.row.schedule}.json"


def of_any_machine(summary):
    """A summary without what tells of files of this machine."""
    return {name: summary[name] for name in summary if name not in LOCAL}


def kept(stage):
    """What a result holds of a finished stage."""
    found = of_any_machine(stage.summary)
    found["script"] = stage.script
    found["recipe"] = stage.recipe
    # as it began; those of a result are of when it was written
    found["commit"] = stage.record["commit"]
    # fusing sees no data
    if stage.trains:
        found["versions"] = stage.versions
        data = stage.data
        found["data_parts"] = {part: data[part] for part in PARTS}
        found["log"] = stage.log
    return found


def read_result(path):
    """A result that `run` wrote, as the code of today would write it.

    Raises:
        UseError: it is damaged, or no such result.
    """
    content = read_json(path)
    # somebody may have put another file there
    if not isinstance(content, dict) or FIELDS - set(content):
        raise UseError(f"{path} is no result of reproduce.py: remove it, or give another --results")
    content["code"] = version(content["code"])
    return content


def stored_recipes(result):
    """{seed: {stage: recipe}} of a result, without options that belong to a machine."""
    found = {}
    for seed, run in result["runs"].items():
        found[seed] = {}
        for name, stage in run["stages"].items():
            # it may be of a time when fewer options belonged to a machine
            found[seed][name] = portable(stage["script"], stage["recipe"])
    return found


def check_free(path, about, data=None):
    """Refuse to replace a result that is not of `about`, or of fewer seeds of it.

    data: {seed: parts of the data}, where they are known.
    """
    if not path.is_file():
        return
    old = read_result(path)
    seeds = ",".join(old["runs"])
    recipes = stored_recipes(old)
    same = {key: value for key, value in about.items() if key != "recipe"}
    lost = set(recipes) - set(about["recipe"])
    if lost and all(old[key] == value for key, value in same.items()):
        raise UseError(
            f"{path} holds the seeds {seeds} of this row: give --seeds with all of them, or "
            "another --results"
        )
    for seed, run in old["runs"].items():
        parts = run["stages"][run["result"]]["data_parts"]
        if data and data.get(seed, parts) != parts:
            raise UseError(
                f"{path} holds a result on other data (seed {seed}): results never mix, give "
                "--replace or another --results"
            )
    # a result may gain seeds
    old["recipe"] = about["recipe"] | recipes
    for key, value in about.items():
        if old[key] != value:
            what = "other code" if key == "code" else f"another {key}"
            raise UseError(
                f"{path} holds a result of {what} (seeds {seeds}; commit {old['commit']}): "
                "results never mix, give --replace or another --results"
            )


def check_trainings(path, chains):
    """Refuse to replace a result of other trainings than those of the chains, {seed: its chain}.

    The same recipe on another machine, or in another folder, is one.
    """
    if not path.is_file():
        return
    for seed, run in read_result(path)["runs"].items():
        for name, held in run["stages"].items():
            stage = chains[seed].stages[name]
            if stage.trains and not (stage.summary and stage.log == held["log"]):
                raise UseError(
                    f"{path} holds the result of another training ({name}, seed {seed}): give "
                    "another --results, or --replace"
                )


def same_processes(runs):
    """Refuse trainings of the same recipe by different numbers of processes, {seed: its run}.

    Batch norm sees the images of a process alone, and the transformer's batches are of each.
    """
    counts = {}
    for seed, run in runs.items():
        for name, stage in run["stages"].items():
            # that of older ones is unknown
            if "processes" in stage:
                # several, of a training that was resumed by another number
                told = " and ".join(map(str, stage["processes"]))
                counts.setdefault(name, {})[told] = seed
    for name, found in counts.items():
        if len(found) > 1:
            told = ", ".join(f"seed {seed} by {count}" for count, seed in found.items())
            raise UseError(
                f"{name} was trained by different numbers of processes, {told}: results never "
                "mix, give the same --launcher and another --output_dir"
            )


def run(row: rows.Row, asked: RowSettings, path):
    """Run what is missing of a row for all seeds and write its result to `path`; returns it."""
    seeds = asked.experiment.seeds
    # as text, since a JSON file has no other keys
    chains = {str(seed): make_chain(row, asked, seed) for seed in seeds}
    about = {
        "row": row.name,
        "schedule": asked.row.schedule,
        "width_mult": asked.network.width_mult,
        "code": ARITHMETIC,
        "recipe": {seed: chain.recipes for seed, chain in chains.items()},
    }
    if not asked.files.replace:
        check_free(path, about)
        check_trainings(path, chains)

    runs = {}
    data = {}
    for seed, chain in chains.items():
        chain.all()
        stages = {name: kept(stage) for name, stage in chain.stages.items()}
        *_, last = stages
        runs[seed] = {"stages": stages, "result": last}
        data[seed] = stages[last]["data_parts"]
        # before the next seed is trained
        same_data({f"seed {seed}": parts for seed, parts in data.items()})
        same_processes(runs)
    # another process may have written it meanwhile
    if not asked.files.replace:
        check_free(path, about, data)
        check_trainings(path, chains)
    result = {
        **about,
        "commit": commit(),
        "versions": versions(),
        "runs": runs,
    }
    write_json(path, result)
    return result


def results_of(row: rows.Row, folder):
    """Results of a row, the most telling first: full width before reduced, published before fast,
    no smoke.
    """
    paths = sorted(Path(folder).glob(f"{row.name}.*json"))
    found = [read_result(path) for path in paths]
    told = [result for result in found if result["schedule"] != "smoke"]
    # sorting keeps the order of equals: by schedule, then by width
    told.sort(key=lambda result: SCHEDULES.index(result["schedule"]))
    return sorted(told, key=lambda result: -result["width_mult"])
