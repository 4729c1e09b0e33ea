"""Reproduce a row of the published tables: its whole chain by the public scripts, measured beside published.

python reproduce.py --list
python reproduce.py cifar10-resnet20-mlif --schedule fast --width_mult 0.25
python reproduce.py --report
"""

import json
import shlex
import statistics
from argparse import Namespace
from pathlib import Path

from analysis import figures
from cli import parser as cli
from engine.dist import fast_amp
from engine.errors import UseError, guard
from engine.files import write_atomic
from engine.log import read_json, read_lines, versions, write_json
from experiments import rows
from experiments.chain import LOCAL, ROOT, Chain, code, commit, same_data

POINTS, SHARE = (
    0.5,
    0.1,
)  # tolerance: accuracy in points below, energy as a share above the published
START, END = "<!-- rows: written by reproduce.py --report -->", "<!-- end of rows -->"


def get_parser():
    parser = cli.Parser(
        prog="reproduce.py",
        description="Run a row of the published tables, measured beside published.",
    )
    parser.add_argument("row", nargs="?", help="name of the row")
    parser.add_argument(
        "--list",
        action="store_true",
        help="show the rows: published, cost, measured so far and on which data",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="write the table into README.md and the figure into --results",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the row's commands (without a row: of all), run nothing",
    )
    parser.add_argument(
        "--schedule",
        default="published",
        choices=rows.SCHEDULES,
        help="published: as printed; fast: fewer "
        "epochs, cosine, matched conversion (CIFAR CNNs); smoke: minutes, to see the chain work",
    )
    parser.add_argument(
        "--seeds",
        type=lambda text: [cli.seed(part) for part in text.split(",")],
        default=[0],
        help="comma-separated; several give mean and spread; more may be added later",
    )
    parser.add_argument(
        "--width_mult",
        type=cli.width,
        default=None,
        help="factor of every layer's width; default 1, of smoke 0.25",
    )
    parser.add_argument(
        "--data_root",
        default=rows.DATA,
        help="folder of the row's data set; of "
        "DVS-CIFAR10 the prepared recordings (default: where dvscifar_prepare.py puts them)",
    )
    parser.add_argument(
        "--amp",
        default=None,
        choices=("none", "bf16", "fp16"),
        help="autocast type; default: none, of fast and smoke bf16 where that is faster",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    cli.add_compile(parser)
    parser.add_argument(
        "--launcher",
        default="",
        help="what starts the training scripts instead of python, such as "
        "'torchrun --nproc_per_node=4'",
    )
    parser.add_argument("--output_dir", default="runs/reproduce", help="folder of the runs")
    parser.add_argument(
        "--results",
        default=None,
        help="folder of the results; default: results/rows of this project, of "
        "smoke results/ below --output_dir",
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace a result of other code or other arguments"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def make_chain(row, args, seed):
    width = "" if args.width_mult == 1 else f"-w{args.width_mult:g}"
    folder = Path(args.output_dir) / f"{row.group}{width}-{args.schedule}" / f"seed{seed}"
    return Chain(folder, rows.stages(row, args, seed), shlex.split(args.launcher))


def result_file(row, args):
    width = "" if args.width_mult == 1 else f".w{args.width_mult:g}"
    return Path(args.results) / f"{row.name}{width}.{args.schedule}.json"


def kept(stage, summary):
    """What a result holds of a stage: nothing of this machine's folders."""
    out = {k: v for k, v in summary.items() if k not in LOCAL} | {
        "script": stage.script,
        "recipe": stage.recipe,
    }
    if summary.get("run"):
        run = Path(summary["run"])
        about = read_json(run / "config.json")["data"]
        out |= {
            "data_parts": {part: about[part] for part in ("train", "test")},
            "log": read_lines(run / "log.jsonl"),
        }
    return out


def outcome(result):
    """The measured figures of a result: means and, of several seeds, standard deviations.

    {"accuracy", "energy", "rate", "hours", "gap", "ratio"}, each (mean, deviation or None); gap (points) and ratio of the
    energies are to the row's ANN, in the same chain.
    """
    values = {"accuracy": [], "energy": [], "rate": [], "hours": [], "gap": [], "ratio": []}
    for run in result["runs"].values():
        own = run["stages"][run["result"]]
        values["accuracy"].append(100 * own["test_accuracy"])
        values["energy"].append(own["energy_uj"])
        values["rate"].append(sum(own["lane_rates"]))
        values["hours"].append(
            sum(s.get("seconds", 0) for n, s in run["stages"].items() if n != "snn_as_printed")
            / 3600
        )
        ann = run["stages"].get("ann")
        if ann and run["result"] != "ann":
            values["gap"].append(100 * (ann["test_accuracy"] - own["test_accuracy"]))
            values["ratio"].append(own["ann_energy_uj"] / own["energy_uj"])
    return {
        k: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else None)
        for k, v in values.items()
        if v
    }


def number(pair, form="{:.2f}"):
    mean, deviation = pair
    return form.format(mean) + (f" ± {form.format(deviation)}" if deviation is not None else "")


def where(result):
    """On what a result was measured: data, width, schedule, seeds."""
    own = next(iter(result["runs"].values()))
    width = "" if result["width_mult"] == 1 else f", width x{result['width_mult']:g}"
    seeds = len(result["runs"])
    return f"{own['stages'][own['result']]['data']}{width}, {result['schedule']}" + (
        f", {seeds} seeds" if seeds > 1 else ""
    )


def verdict(row, result):
    """Lines that hold what was measured beside what was published."""
    found = outcome(result)
    lines = [
        f"{row.name}: {where(result)}",
        f"{'':<24}{'published':>12}{'measured':>22}",
        f"{'accuracy (%)':<24}{row.accuracy:>12.2f}{number(found['accuracy']):>22}",
        f"{'energy (uJ)':<24}{row.energy:>12.4g}{number(found['energy'], '{:.4g}'):>22}",
    ]
    if row.ann and "gap" in found:
        gap, ratio = row.ann.accuracy - row.accuracy, row.ann.energy / row.energy
        lines += [
            f"{'gap to the ANN (points)':<24}{gap:>12.2f}{number(found['gap']):>22}",
            f"{'ANN energy / energy':<24}{ratio:>12.1f}{number(found['ratio'], '{:.1f}'):>22}",
        ]
    if row.method != "ANN":
        lines.append(f"{'spikes per neuron':<24}{'':>12}{number(found['rate'], '{:.4f}'):>22}")
    lines.append(f"{'training (hours)':<24}{'':>12}{number(found['hours']):>22}")
    if result["width_mult"] == 1:
        checks = {
            f"accuracy (tolerance {POINTS} points)": found["accuracy"][0] >= row.accuracy - POINTS,
            f"energy (tolerance {SHARE:.0%})": found["energy"][0] <= row.energy * (1 + SHARE),
        }
    else:  # at another width only gap and ratio compare
        checks = (
            {"gap": found["gap"][0] <= gap, "energy ratio": found["ratio"][0] >= ratio}
            if "gap" in found
            else {}
        )
    text = ", ".join(
        f"{name} {'reached' if held else 'NOT reached'}" for name, held in checks.items()
    )
    printed = [
        run["stages"]["snn_as_printed"]
        for run in result["runs"].values()
        if "snn_as_printed" in run["stages"]
    ]
    if printed:
        accuracy, energy = (
            statistics.mean(stage[key] for stage in printed)
            for key in ("test_accuracy", "energy_uj")
        )
        lines.append(
            f"the printed recipe has another neuron (S=1, T=3) than the table's row: {accuracy:.2%}, {energy:.4g} uJ"
        )
    return "\n".join([*lines, f"verdict: {text or 'nothing compares at another width'}"])


def check_free(path, about, args):
    """Refuse to replace a result that is not of `about`, or of fewer seeds of it."""
    if args.replace or not path.is_file():
        return
    old, about = read_result(path), json.loads(json.dumps(about))
    for key, value in about.items():
        stored = old[key].items() <= value.items() if key == "recipe" else old[key] == value
        if not stored:
            what = {"code": "other code"}.get(key, f"another {key}")
            raise UseError(
                f"{path} holds a result of {what} (seeds {', '.join(old['runs'])}; commit {old['commit']}): results "
                "never mix, give --replace or another --results"
            )


def read_result(path):
    """A result that `run` wrote.

    Raises:
        UseError: it is damaged, or no such result.
    """
    content, expected = (
        read_json(path),
        {"row", "schedule", "width_mult", "code", "recipe", "runs", "commit"},
    )
    if not isinstance(content, dict) or not expected <= set(content):
        raise UseError(f"{path} is no result of reproduce.py: remove it, or give another --results")
    return content


def run(row, args):
    """Run what is missing of a row for all seeds, write the result and print the verdict."""
    path = result_file(row, args)
    chains = {seed: make_chain(row, args, seed) for seed in args.seeds}
    about = {
        "row": row.name,
        "schedule": args.schedule,
        "width_mult": args.width_mult,
        "code": code(),
        "recipe": {
            seed: {s.name: s.recipe for s in chain.stages.values()}
            for seed, chain in chains.items()
        },
    }
    check_free(path, about, args)
    runs = {}
    for seed, chain in chains.items():
        found = chain.all(
            lambda text, seed=seed: print(f"[{row.name}, seed {seed}] {text}", flush=True)
        )
        runs[str(seed)] = {
            "stages": {name: kept(chain.stages[name], found[name]) for name in found},
            "result": list(found)[-1],
        }
    same_data(
        {
            f"seed {seed}": chain.data(list(chain.stages.values())[-1])
            for seed, chain in chains.items()
        }
    )
    result = {**about, "commit": commit(), "versions": versions(), "runs": runs}
    check_free(path, about, args)  # another process may have written it meanwhile
    write_json(path, result)
    print(f"\n{verdict(row, result)}\nwritten to {path}")
    return result


def results(folder, row):
    """Results of a row, the most telling first: full width before reduced, published before fast, no smoke."""
    found = [read_result(path) for path in sorted(Path(folder).glob(f"{row.name}.*json"))]
    found = [r for r in found if r["schedule"] != "smoke"]
    return sorted(found, key=lambda r: (-r["width_mult"], rows.SCHEDULES.index(r["schedule"])))


def measured(row, folder):
    """[(accuracy, energy, where)] as text of what is measured of a row; the ANN's energy needs no data."""
    found = []
    for result in results(folder, row):
        values = outcome(result)
        gap = f", gap {number(values['gap'])}" if "gap" in values else ""
        ratio = f", 1/{values['ratio'][0]:.1f}" if "ratio" in values else ""
        found.append(
            (
                f"{number(values['accuracy'])} %{gap}",
                f"{number(values['energy'], '{:.4g}')} uJ{ratio}",
                where(result),
            )
        )
    return found


def ann_energy(row):
    return 4.6e-6 * row.macs


def needs(row):
    data = "" if row.dataset == "CIFAR10" else f"{row.dataset.replace('IMAGENET', 'ImageNet')} and "
    return f"not measured: needs {data}a GPU"


def cost(row):
    """Training cost of the published schedule: epochs, and 10^15 operations."""
    images = {"CIFAR10": 5e4, "CIFAR100": 5e4, "IMAGENET": 1.281167e6, "DVS-CIFAR10": 9e3}[
        row.dataset
    ]
    if row.cnn:
        epochs = [
            int(rows.published(script, row.dataset, row.network)["epochs"])
            for script in ("ann_ddp", "snn_ddp")[: 1 if row.method == "ANN" else 2]
        ]
    else:
        epochs = [300] if row.network == "VGGSNN" else [310]
    steps = 1 if row.cnn else row.steps
    return f"{' + '.join(map(str, epochs))} epochs, {6e-15 * row.macs * steps * images * sum(epochs):,.0f} PFLOP"


def neuron(row):
    if row.method == "ANN":
        return "ANN"
    return f"S={row.levels} " + (
        f"T_F={row.frames} Q_F={row.steps}" if row.frames else f"T={row.steps}"
    )


def listing(args):
    lines = [
        f"{'row':<28}{'neuron':<18}{'published':>22}   {'published schedule':<38}measured so far"
    ]
    for row in rows.ROWS:
        found = [" ".join(parts) for parts in measured(row, args.results)]
        known = f"energy {ann_energy(row):.4g} uJ at full width; " if row.method == "ANN" else ""
        lines.append(
            f"{row.name:<28}{neuron(row):<18}{row.accuracy:>9.2f} %{row.energy:>9.4g} uJ   {cost(row):<38}"
            + known
            + ("; ".join(found) or needs(row))
        )
    lines.append(
        "reproduce.py <row> --dry-run shows a row's commands, reproduce.py <row> runs them"
    )
    return "\n".join(lines)


def table(folder):
    """All rows as Markdown."""
    lines = [
        "| row | neuron | published accuracy, energy | measured accuracy | measured energy | on |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.ROWS:
        head = f"| `{row.name}` | {neuron(row)} | {row.accuracy:g} %, {row.energy:g} uJ "
        known = f"{ann_energy(row):.1f} uJ at full width" if row.method == "ANN" else ""
        for accuracy, energy, place in measured(row, folder) or [(needs(row), "", "")]:
            lines.append(
                f"{head}| {accuracy} | {'; '.join(filter(None, (energy, known)))} | {place} |"
            )
    return "\n".join(lines)


def report(args, readme=ROOT / "README.md"):
    """Write the table between its marks in README.md, and the figure."""
    text = readme.read_text()
    before, mark, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise UseError(f"{readme} has no place for the table: it needs the lines {START} and {END}")
    content = f"{before}{START}\n{table(args.results)}\n{END}{after}"
    write_atomic(readme, lambda temporary: temporary.write_text(content))
    points = [(row, outcome(r), where(r)) for row in rows.ROWS for r in results(args.results, row)]
    figures.rows(rows.ROWS, points, Path(args.results) / "rows.png")
    print(f"{table(args.results)}\n\nwritten to {readme} and {args.results}/rows.png")


def width(row, args):
    """The width that is asked for, else that of the schedule."""
    return args.width_mult or (
        0.25 if args.schedule == "smoke" and "transformer" not in row.name else 1.0
    )


def dry_run(row, args):
    """Print the commands of a row."""
    print(f"# {row.name}")
    chain = make_chain(row, args, args.seeds[0])
    for stage in chain.stages.values():
        chain.parsed(stage)
        print(chain.command(stage))


def main(argv=None):
    args = get_parser().parse(argv)
    smoke = args.schedule == "smoke" and not args.list and not args.report
    args.results = args.results or (
        Path(args.output_dir) / "results" if smoke else ROOT / "results" / "rows"
    )
    args.amp = args.amp or ("none" if args.schedule == "published" else fast_amp(args.device))
    if args.list or args.report:
        return print(listing(args)) if args.list else report(args)
    if not args.row and not args.dry_run:
        raise UseError("name a row; --list shows all")
    if len(set(args.seeds)) < len(args.seeds):
        raise UseError("--seeds names a seed twice")
    args.data_root = (
        args.data_root if args.data_root == rows.DATA else str(Path(args.data_root).resolve())
    )
    for row in [rows.find(args.row)] if args.row else rows.ROWS:
        of_row = Namespace(**{**vars(args), "width_mult": width(row, args)})
        if not args.dry_run:
            return run(row, of_row)
        try:
            dry_run(row, of_row)
        except UseError as error:
            if args.row:
                raise
            print(f"# none: {error}")
    return None


if __name__ == "__main__":
    guard(main)
