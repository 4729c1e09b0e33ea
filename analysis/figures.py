"""Figures, drawn with matplotlib, each as PNG and as SVG.

Each figure has a function that takes plain data and a `path`: that of the PNG or of the SVG, the
other one lies beside it.
"""

import re
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np

from engine.files import write_atomic
from engine.log import read_lines

# Of lane 0 to 7: within four of a colour the darker is worth more.
LANES = (
    "#9ecae1",
    "#4292c6",
    "#08519c",
    "#08306b",
    "#74c476",
    "#31a354",
    "#006d2c",
    "#00441b",
)
# Of whatever else stands side by side: stages, networks, numbers of levels.
COLORS = (
    "#4c72b0",
    "#55a868",
    "#8172b3",
    "#c44e52",
    "#dd8452",
    "#937860",
    "#da8bc3",
    "#64b5cd",
    "#8c8c8c",
    "#ccb974",
)
MOST_STEPS = 10  # of a recording, in one picture
ACCURACY = "test accuracy (%)"
ENERGY = "compute energy per image (uJ)"
SHARED = r"stages\.|\.synapse|\.map$|\.act$"  # what the names of layers have in common


def canvas(rows, columns, width, height):
    """(figure, its axes [rows, columns]) of a size in inches."""
    from matplotlib.figure import Figure  # takes a second, so that it waits until it is needed

    figure = Figure(
        figsize=(width, height),
        layout="constrained",
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes


def ticks(axis, names, rotation):
    """A tick for each name, which is slanted so that long ones fit."""
    axis.set_xticks(
        range(len(names)),
        names,
        rotation=rotation,
        ha="right",
    )


def labelled_bars(axis, names, values, text, label):
    """A bar for each name, with its value above it in the format `text`."""
    bars = axis.bar(
        range(len(names)),
        values,
        color=COLORS,
    )
    axis.bar_label(
        bars,
        fmt=text,
        padding=2,
    )
    ticks(axis, names, 20)
    axis.set_ylabel(label)
    axis.margins(y=0.12)


def stacked_lanes(axis, lanes, steps=1):
    """A bar for each layer of {layer: [rate of lane 0, 1, ...]}, the lanes one on the other.

    The rates are sums over the `steps`; shown is the mean of a step. A lane's label is its worth
    as a multiple of the lowest lane's: scaled neurons, whose top lane is worth 1, have it, too.
    """
    rates = np.array(list(lanes.values())) / steps  # [layers, S]
    floor = 0.0
    for lane, height in enumerate(rates.T):
        axis.bar(
            range(len(lanes)),
            height,
            bottom=floor,
            color=LANES[lane],
            label=f"{2**lane}",
        )
        floor = floor + height
    axis.legend(
        title="spikes worth (the lowest lane's: 1)",
        loc="upper center",
        ncols=8,
    )


def accuracy_against_energy(axis):
    """Label such axes; the energy's is logarithmic, with plain numbers."""
    from matplotlib.ticker import LogLocator

    axis.set_xscale("log")
    # The default labels powers of ten, and few of these axes span more than one.
    locator = LogLocator(subs=(1, 2, 5))
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.margins(0.12)
    axis.set_xlabel(ENERGY)
    axis.set_ylabel(ACCURACY)
    axis.grid(alpha=0.3)


def curves(run):
    """(epochs, accuracy in %, its name in the log) of a run folder."""
    lines = read_lines(Path(run) / "log.jsonl")
    name = "val_accuracy" if lines and "val_accuracy" in lines[0] else "test_accuracy"
    epochs = [line["epoch"] for line in lines]
    return epochs, [100 * line[name] for line in lines], name


def chain(title, stages, lanes, path, steps=1, spiking="SNN"):
    """One picture of a chain: accuracy and energy per stage, training curves, firing rates.

    Args:
        stages: list of dictionaries with `stage`, `accuracy` (fraction), `energy_uj` and, if it was
            trained, `run` (folder).
        lanes: {layer: [rate of lane 0, 1, ..., a sum over the steps]} of the spiking network.
        steps: its T. spiking: the stage that it is of.
    """
    figure, axes = canvas(2, 2, 12, 8.5)
    figure.suptitle(title)
    (left, right), (below, bottom) = axes
    names = [stage["stage"] for stage in stages]
    accuracies = [100 * stage["accuracy"] for stage in stages]
    labelled_bars(left, names, accuracies, "{:.1f}", ACCURACY)
    left.set_ylim(0, 108)
    energies = [stage["energy_uj"] for stage in stages]
    labelled_bars(right, names, energies, "{:.3g}", ENERGY)

    for stage, color in zip(stages, cycle(COLORS)):
        if stage.get("run"):
            epochs, values, name = curves(stage["run"])
            chosen = " (held-back images)" if name == "val_accuracy" else ""
            below.plot(
                epochs,
                values,
                color=color,
                marker="o",
                markersize=3,
                label=stage["stage"] + chosen,
            )
    below.set_xlabel("epoch")
    below.set_ylabel(ACCURACY)
    below.legend()
    below.grid(alpha=0.3)

    stacked_lanes(bottom, lanes, steps)
    bottom.set_xlabel(f"spiking layer ({spiking})")
    bottom.set_ylabel("firing rate (share of neurons)")
    bottom.set_xticks(
        range(len(lanes)),
        range(1, len(lanes) + 1),
    )
    bottom.margins(y=0.25)
    save(figure, path)


def firing(title, energy, path):
    """Nonzero share of each weighted layer's inputs at each step; spikes per lane of each layer.

    Args:
        energy: `analysis.energy.Energy`.
    """
    layers = energy.layers
    steps = energy.steps
    width = max(8, 0.45 * len(layers))
    figure, axes = canvas(2, 1, width, 8)
    figure.suptitle(title)
    above, below = axes[:, 0]

    width = 0.8 / steps  # of a bar
    for t in range(steps):
        # The bars of a layer's steps stand side by side, centred on the layer's tick.
        shift = (t - (steps - 1) / 2) * width
        above.bar(
            np.arange(len(layers)) + shift,
            [row.step_rates[t] for row in layers],
            width,
            label=f"t = {t}",
        )
    layer_ticks(above, [row.name for row in layers])
    above.set_ylabel("nonzero inputs (share)")
    if steps > 1:
        above.legend(ncols=8, loc="upper center")

    lanes = energy.lane_rates_per_layer
    stacked_lanes(below, lanes, steps)
    layer_ticks(below, lanes)
    below.set_ylabel("firing rate per step (share of neurons)")
    above.margins(y=0.2)
    below.margins(y=0.2)
    save(figure, path)


def layer_ticks(axis, names):
    """A tick for each layer, with the part of its name that tells it from the others."""
    ticks(axis, [re.sub(SHARED, "", name) for name in names], 45)


def recording(title, rows, path):
    """An event recording step by step, OFF events blue and ON events red, the darker the more.

    Args:
        rows: [(label, images [Q_F, 2, H, W])]; of many steps some are drawn, evenly chosen.
    """
    count = len(rows[0][1])
    steps = np.linspace(0, count - 1, min(count, MOST_STEPS))
    steps = steps.round().astype(int)
    width = max(8, 1 + 1.4 * len(steps))
    height = 1.4 * len(rows) + 0.8
    figure, axes = canvas(len(rows), len(steps), width, height)
    figure.suptitle(title)

    for axis, step in zip(axes[0], steps):
        axis.set_title(f"step {step + 1}", fontsize=9)
    for line, (label, images) in zip(axes, rows):
        line[0].set_ylabel(label, fontsize=9)
        strength = np.asarray(images, np.float32)
        # The root lets places with few events be seen beside those with many.
        strength = np.sqrt(strength / max(strength.max(), 1))
        for axis, step in zip(line, steps):
            off, on = strength[step]
            both = np.maximum(off, on)
            absorbed = np.stack([off, both, on], -1)  # of white: red, green, blue
            axis.imshow(1 - absorbed)
            axis.set(xticks=[], yticks=[])
    save(figure, path)


def rows(table, measured, lines, path):
    """The published rows and what was measured of them: a panel of accuracy against energy for each
    data set, and for what else the lines show.

    Args:
        table: rows with `dataset`, `network`, `method`, `accuracy` (%) and `energy` (uJ).
        measured: [(one of these rows, {"accuracy": (mean, deviation or None), "energy": ...}, what
            it was measured on)].
        lines: {(panel, network, what it shows): [(energy in uJ, accuracy in %) per point]}.
    """
    shown = [row.dataset for row in table] + [panel for panel, *_ in lines]
    names = dict.fromkeys(shown)
    networks = dict.fromkeys(row.network for row in table)
    colors = dict(zip(networks, COLORS))
    figure, axes = canvas(1, len(names), 5 * len(names), 6)
    panels = dict(zip(names, axes[0]))

    def look(row, source):
        return {
            "color": colors[row.network],
            "marker": "s" if row.method == "ANN" else "o",
            "label": f"{row.network}, {row.method}, {source}",
        }

    for row in table:
        panels[row.dataset].scatter(
            row.energy,
            row.accuracy,
            facecolors="none",
            **look(row, "published"),
        )
    for row, values, where in measured:
        accuracy, deviation = values["accuracy"]
        panels[row.dataset].errorbar(
            values["energy"][0],
            accuracy,
            deviation,
            capsize=3,
            linestyle="none",
            **look(row, f"measured: {where}"),
        )
    for (panel, network, meaning), places in lines.items():
        panels[panel].plot(
            *np.transpose(sorted(places)),
            color=colors[network],
            marker=".",
            label=f"{network}, {meaning}",
        )
    for name, axis in panels.items():
        axis.set_title(name)
        accuracy_against_energy(axis)
        legend_below(axis)
    save(figure, path)


def legend_below(axis):
    """A legend under the axis, with one entry for each label."""
    handles, labels = axis.get_legend_handles_labels()
    entries = dict(zip(labels, handles))
    axis.legend(
        entries.values(),
        entries,
        fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
    )


def tradeoff(title, points, ann, path):
    """Accuracy against energy, a curve over T for every S.

    Args:
        points: {(S, T): [(accuracy in %, energy in uJ) per seed]}. ann: the same of the ANN.
    """
    figure, axes = canvas(1, 1, 8, 5.5)
    axis = axes[0, 0]
    every_level = sorted({levels for levels, _ in points})
    for levels, color in zip(every_level, COLORS):
        steps = sorted(t for s, t in points if s == levels)
        seeds = [np.array(points[levels, t]) for t in steps]  # of each T [seeds, 2]
        accuracy, energy = np.transpose([values.mean(0) for values in seeds])
        # The sample's standard deviation of the accuracies; of a single seed it is 0.
        spread = [values[:, 0].std(ddof=len(values) > 1) for values in seeds]
        axis.errorbar(
            energy,
            accuracy,
            spread,
            color=color,
            marker="o",
            capsize=3,
            label="S = 1 (LIF)" if levels == 1 else f"S = {levels}",
        )
        # The uppermost curve has its labels above it, the others below: so they stay apart.
        offset = (-8, 7) if levels == every_level[-1] else (4, -11)
        for t, *place in zip(steps, energy, accuracy):
            axis.annotate(
                f"T={t}",
                place,
                xytext=offset,
                textcoords="offset points",
                color=color,
            )
    axis.scatter(
        *reversed(ann),
        color="black",
        marker="s",
        label="ANN",
    )
    axis.set_title(title)
    accuracy_against_energy(axis)
    axis.legend(loc="lower right")
    save(figure, path)


def save(figure, path):
    """Write the figure as PNG and as SVG, whichever `path` names."""
    from matplotlib import rc_context

    for kind in "png", "svg":
        # The same figure gives the same file: no date, and ids that do not come by chance.
        write = partial(
            figure.savefig,
            dpi=110,
            format=kind,
            metadata={"Date": None},
        )
        with rc_context({"svg.hashsalt": "mlif"}):
            write_atomic(Path(path).with_suffix(f".{kind}"), write)
