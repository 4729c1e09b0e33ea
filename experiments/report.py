"""The results folder of finished runs: one JSON per run, a Markdown table, a figure."""

from pathlib import Path

from analysis import figures
from engine.errors import UseError
from engine.files import write_text
from engine.log import read_json, read_lines, write_json

from .chain import same_data
from .stage import slug

# The script of every kind of trained network.
SCRIPTS = {
    "ann": "ann_ddp.py",
    "lq": "ann_ddp.py",
    "snn": "snn_ddp.py",
    "sdt": "spike_driven_transformer/train.py",
    "vggsnn": "neuromorphic_tasks/main_training_parallel.py",
}
# What a run folder must hold, and what to do where it does not.
FILES = {
    "summary.json": "the run is not finished, go on with --resume",
    "energy.json": "the run was not measured, train with --energy",
}
HEAD = """\
| stage | accuracy | gap (points) | right after conversion | energy (uJ) | of the first \
| lane rates | minutes |
|---|---|---|---|---|---|---|---|"""


def read(label, run):
    """What is kept of a run folder.

    Raises:
        UseError: the run is unfinished, or was not measured (--energy).
    """
    run = Path(run)
    for name, hint in FILES.items():
        if not (run / name).is_file():
            raise UseError(f"{run} holds no {name}: {hint}")
    summary = read_json(run / "summary.json")
    config = read_json(run / "config.json")
    return {
        "stage": label,
        "script": SCRIPTS[summary["kind"]],
        "data": config["data"],
        "settings": config["settings"],
        "versions": config["versions"],
        "summary": summary,
        "energy": read_json(run / "energy.json"),
        "log": read_lines(run / "log.jsonl"),
    }


def _line(result, first):
    """A run's line of the table; the gap is to the accuracy of the summary `first`."""
    summary = result["summary"]
    # what is not converted has no such accuracy
    after = f"{summary['converted_accuracy']:.2%}" if "converted_accuracy" in summary else "-"
    gap = 100 * (first["test_accuracy"] - summary["test_accuracy"])
    cells = (
        result["stage"],
        f"{summary['test_accuracy']:.2%}",
        f"{gap:.2f}",
        after,
        f"{summary['energy_uj']:.2f}",
        f"1/{first['energy_uj'] / summary['energy_uj']:.1f}",
        " / ".join(f"{rate:.3f}" for rate in summary["lane_rates"]) or "-",
        f"{summary['seconds'] / 60:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def title_of(summary):
    """Network, size and data of a run."""
    network = summary["network"]
    # a transformer is named by its blocks and channels
    if "dim" in network:
        size = f"{network['depth']}-{network['dim']}"
    else:
        size = f"width x{network['width_mult']:g}"
    return f"{network['name']}, {size}, {summary['data']}"


def check_free(folder, runs):
    """Refuse a results folder that holds other runs; runs: [(label, run folder or None)].

    Raises:
        UseError: it does.
    """
    # two that began in the same second have one name
    logs = []
    for run in [Path(run) for _, run in runs if run]:
        # one that was killed in its first epoch has no log
        if (run / "log.jsonl").is_file():
            logs.append((run.name, read_lines(run / "log.jsonl")))
    for path in sorted(folder.glob("*.json")):
        held = read_json(path)
        # other commands may have their results there
        if not isinstance(held, dict) or not {"stage", "summary", "log"} <= set(held):
            continue
        name = Path(held["summary"]["run"]).name
        if (name, held["log"]) not in logs:
            raise UseError(
                f"{path} is of another run, {name}: give another --results, or remove that file"
            )


def write(folder, runs):
    """Write the results folder of [(label, run folder)], the ANN first; returns its table.

    Raises:
        UseError: a run is not finished or not measured, or they are of different data; or the
            folder holds other runs.
    """
    check_free(folder, runs)
    results = {}
    stages = []  # as the figure takes them
    for label, run in runs:
        name = slug(label)
        if name in results:
            raise UseError(
                f"the labels give 2 runs the file {name}.json: give each a LABEL=RUN of its own"
            )
        results[name] = read(label, run)
        summary = results[name]["summary"]
        stages.append(
            {
                "stage": label,
                "accuracy": summary["test_accuracy"],
                "energy_uj": summary["energy_uj"],
                "run": run,
            }
        )
    same_data({result["stage"]: result["data"] for result in results.values()})

    shown = {"-": [0.0]}
    spiking = "none"
    # the figure has room for one network: the first one that spikes
    steps = 1
    for result in reversed(results.values()):
        rates = result["energy"]["lane_rates_per_layer"]
        if rates:
            shown = rates
            spiking = result["stage"]
            steps = len(next(iter(result["energy"]["lane_rates_per_step"].values())))
    first = next(iter(results.values()))["summary"]
    title = title_of(first)
    figures.chain(title, stages, shown, folder / "chain.png", steps, spiking)
    lines = [_line(result, first) for result in results.values()]
    text = "\n".join([title, "", HEAD, *lines, ""])
    for name, result in results.items():
        write_json(folder / f"{name}.json", result)
    write_text(folder / "table.md", text)
    return text
