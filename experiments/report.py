"""Collect finished runs into a results folder: one JSON per run, a Markdown table, a figure.

python -m experiments.report results/cifar10_resnet20_w0.25 "ANN=trained_models/ann/ann_..._20261123-142300" "SNN=..."
"""

import re
import shlex
from pathlib import Path

from analysis import figures
from cli import parser as cli
from engine.errors import UseError, guard
from engine.files import write_atomic
from engine.log import read_json, read_lines, write_json

from .chain import same_data

SCRIPTS = {
    "ann": "ann_ddp.py",
    "lq": "ann_ddp.py",
    "snn": "snn_ddp.py",
    "sdt": "spike_driven_transformer/train.py",
    "vggsnn": "neuromorphic_tasks/main_training_parallel.py",
}


def read(label, run):
    """What is kept of a run folder.

    Raises:
        UseError: the run is unfinished, or was not measured (--energy).
    """
    run = Path(run)
    if not (run / "summary.json").is_file():
        raise UseError(
            f"{run} holds no summary.json: the run is not finished, go on with --resume {run}"
        )
    summary, config = (read_json(run / f"{name}.json") for name in ("summary", "config"))
    if "energy_uj" not in summary:
        raise UseError(f"{run} was not measured: train with --energy")
    energy = read_json(run / "energy.json")
    log = read_lines(run / "log.jsonl")
    return {
        "stage": label,
        "script": SCRIPTS[summary["kind"]],
        "data": config["data"],
        "settings": config["settings"],
        "versions": config["versions"],
        "summary": summary,
        "energy": energy,
        "log": log,
        "run": str(run),
    }


def table(results):
    """The runs as Markdown; the gap is to the first run's accuracy."""
    lines = [
        "| stage | accuracy | gap (points) | right after conversion | energy (uJ) | of the first | lane rates | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = results[0]["summary"]
    for result in results:
        s = result["summary"]
        after = f"{s['converted_accuracy']:.2%}" if "converted_accuracy" in s else "-"
        lanes = " / ".join(f"{rate:.3f}" for rate in s["lane_rates"]) or "-"
        gap = 100 * (first["test_accuracy"] - s["test_accuracy"])
        lines.append(
            f"| {result['stage']} | {s['test_accuracy']:.2%} | {gap:.2f} | {after} "
            f"| {s['energy_uj']:.2f} | 1/{first['energy_uj'] / s['energy_uj']:.1f} | {lanes} "
            f"| {s['seconds'] / 60:.0f} |"
        )
    return "\n".join(lines)


def main(argv=None):
    parser = cli.Parser(prog="python -m experiments.report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="results folder to write")
    parser.add_argument(
        "runs", nargs="+", metavar="LABEL=RUN", help="label and run folder, the ANN first"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse(argv)
    for pair in args.runs:
        if not re.match("[^=]*[A-Za-z0-9][^=]*=.", pair):
            raise UseError(f"expected LABEL=RUN, a label and a run folder, got {pair!r}")
    results = [read(*pair.partition("=")[::2]) for pair in args.runs]
    folder, names = (
        Path(args.folder),
        ["".join(c if c.isalnum() else "_" for c in r["stage"].lower()) for r in results],
    )
    for name in names:
        if names.count(name) > 1:
            raise UseError(
                f"the labels give {names.count(name)} runs the file {name}.json: give each a LABEL=RUN of its own"
            )
    same_data({r["stage"]: {part: r["data"][part] for part in ("train", "test")} for r in results})
    for name, result in zip(names, results, strict=True):
        write_json(folder / f"{name}.json", {k: v for k, v in result.items() if k != "run"})
    stages = [
        {
            "stage": r["stage"],
            "accuracy": r["summary"]["test_accuracy"],
            "energy_uj": r["summary"]["energy_uj"],
            "run": r["run"],
        }
        for r in results
    ]
    lanes = next(
        (r["energy"]["lane_rates_per_layer"] for r in results if r["energy"]["lane_rates"]),
        {"-": [0.0]},
    )
    network = results[0]["summary"]["network"]
    size = (
        f"{network['depth']}-{network['dim']}"
        if "dim" in network
        else f"width x{network['width_mult']:g}"
    )
    title = f"{network['name']}, {size}, {results[0]['summary']['data']}"
    figures.chain(title, stages, lanes, folder / "chain.png")
    text = f"{title}\n\n{table(results)}\n"
    write_atomic(folder / "table.md", lambda temporary: temporary.write_text(text))
    print(
        text
        + f"\nwritten to {folder}; made by: python -m experiments.report {shlex.join([args.folder, *args.runs])}"
    )


if __name__ == "__main__":
    guard(main)
