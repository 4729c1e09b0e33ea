"""The published rows with what is measured of them: a list, a table of the README, a figure."""

import statistics
from pathlib import Path

from analysis import figures
from analysis.pricing import E_MAC, MICRO
from engine.errors import UseError
from engine.files import write_text
from engine.log import read_json

from . import rows
from .answers import accuracies, column
from .results import results_of
from .verdict import effort, number, outcome, where

# The README's table lies between these lines.
START = "<!-- rows: written by reproduce.py --report -->"
END = "<!-- end of rows -->"
HEAD = """\
| row | neuron | published accuracy, energy | measured accuracy | measured energy \
| data, schedule, time, machine |
|---|---|---|---|---|---|"""
LISTED = "{:<28}{:<18}{:>22}   {:<38}{}"
LISTED_HEAD = ("row", "neuron", "published", "published schedule", "measured so far")
HINT = "reproduce.py <row> --dry-run shows a row's commands, reproduce.py <row> runs them"


def measured(row: rows.Row, folder):
    """[(accuracy, energy, where and in what time)] as text of what is measured of a row."""
    found = []
    for result in results_of(row, folder):
        values = outcome(result)
        # with their spread, if there are several seeds
        accuracy = f"{number(values['accuracy'])} %"
        energy = f"{number(values['energy'], '{:.4g}')} uJ"
        if "gap" in values:
            accuracy += f", gap {number(values['gap'])}"
            energy += f", 1/{values['ratio'][0]:.1f}"
        found.append((accuracy, energy, f"{where(result)}: {effort(result)}"))
    return found


def ann_energy(row: rows.Row, form):
    """Text of the energy of an ANN, which follows from its shape; '' of other rows."""
    # that of an SNN follows from its spikes
    if row.method != "ANN":
        return ""
    return f"{form.format(MICRO * E_MAC * row.macs)} uJ at full width"


def needs(row: rows.Row):
    """What it takes to measure a row that is not measured."""
    # there is a copy of CIFAR10 here
    if row.dataset == "CIFAR10":
        return "not measured: needs a GPU"
    title = row.dataset.replace("IMAGENET", "ImageNet")
    return f"not measured: needs {title} and a GPU"


def cost(row: rows.Row):
    """Training cost of the published schedule: epochs, and 10^15 operations."""
    found = rows.epochs(row)
    if not found:
        return "no published schedule"
    counts = " + ".join(map(str, found))
    return f"{counts} epochs, {1e-15 * rows.operations(row):,.0f} PFLOP"


def neuron(row: rows.Row):
    """The row's neuron: lanes and steps."""
    if row.method == "ANN":
        return "ANN"
    steps = f"T_F={row.frames} Q_F={row.steps}" if row.frames else f"T={row.steps}"
    return f"S={row.levels} {steps}"


def listing(folder):
    """All rows as lines of text."""
    lines = [LISTED.format(*LISTED_HEAD)]
    for row in rows.table().values():
        found = [" ".join(parts) for parts in measured(row, folder)]
        known = "; ".join(found) or needs(row)
        # known without any training
        energy = ann_energy(row, "{:.4g}")
        if energy:
            known = f"energy {energy}; {known}"
        published = f"{row.accuracy:>9.2f} %{row.energy:>9.4g} uJ"
        cells = (
            row.name,
            neuron(row),
            published,
            cost(row),
            known,
        )
        lines.append(LISTED.format(*cells))
    return "\n".join([*lines, HINT])


def table(folder):
    """All rows as Markdown."""
    lines = [HEAD]
    for row in rows.table().values():
        head = f"| `{row.name}` | {neuron(row)} | {row.accuracy:g} %, {row.energy:g} uJ"
        unknown = (needs(row), ann_energy(row, "{:.1f}"), "")
        # a line for each result
        for cells in measured(row, folder) or [unknown]:
            lines.append(" | ".join([head, *cells]) + " |")
    return "\n".join(lines)


def prices(path):
    """What the price on energy buys, as `figures.rows` draws it; {} while that is not measured.

    path: the numbers of the question.
    """
    if not path.is_file():
        return {}
    runs = read_json(path)["runs"].values()
    recipe = next(iter(runs))[0]["recipe"]
    networks = {row.network.upper(): row.network for row in rows.table().values()}
    network = networks[recipe["architecture"]]
    # networks of another width have a panel of their own, or nobody could tell the rows apart
    width = float(recipe["width_mult"])
    panel = recipe["dataset"] if width == 1 else f"{recipe['dataset']}, width x{width:g}"
    points = []
    for found in runs:
        point = (
            statistics.mean(column(found, "energy_uj")),
            statistics.mean(accuracies(found)),
        )
        points.append(point)
    return {(panel, network, "price on energy"): points}


def report(folder, page):
    """Write the table and the figure of the results in a folder; returns the table.

    page: the table's file; in one that has its two lines, as the README, it comes between them.
    Raises:
        UseError: there is no result, or no place for the table.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else f"{START}{END}\n"
    if START not in text or END not in text:
        raise UseError(f"{page} has no place for the table: it needs the lines {START} and {END}")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    if not any(results_of(row, folder) for row in rows.table().values()):
        raise UseError(f"{folder} holds no result of a row: give the folder of --results")
    shown = table(folder)
    write_text(page, f"{before}{START}\n{shown}\n{END}{after}")

    published = list(rows.table().values())
    points = []
    for row in published:
        for result in results_of(row, folder):
            points.append((row, outcome(result), where(result)))
    # a results folder of one's own holds the answers, too
    answers = Path(folder)
    if answers.name == "rows":
        answers = answers.with_name("questions")
    lines = prices(answers / "rate_target.json")
    figures.rows(published, points, lines, Path(folder) / "rows.png")
    return shown
