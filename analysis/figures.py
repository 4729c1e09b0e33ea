"""Figures, drawn with matplotlib, each as PNG and as SVG."""

from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np

from engine.files import write_atomic
from engine.log import read_lines

LANES = ("#9ecae1", "#4292c6", "#08519c", "#08306b", "#74c476", "#31a354", "#006d2c", "#00441b")
COLORS = ("#4c72b0", "#55a868", "#8172b3", "#c44e52", "#dd8452", "#937860")


def pyplot():
    """matplotlib's, for drawing into files; imported when it is needed, since that takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def curves(run):
    """(epochs, test or val accuracy in %) of a run folder."""
    lines = read_lines(Path(run) / "log.jsonl")
    name = "val_accuracy" if lines and "val_accuracy" in lines[0] else "test_accuracy"
    return [line["epoch"] for line in lines], [100 * line[name] for line in lines]


def chain(title, stages, lanes, path):
    """One picture of a chain: accuracy and energy per stage, training curves, firing rates per layer and lane.

    Args:
        stages: list of dictionaries with `stage`, `accuracy` (fraction), `energy_uj` and, if trained, `run` (folder).
        lanes: {layer: [rate of lane 0, 1, ...]} of the spiking network. path: the PNG; an SVG lies beside it.
    """
    plt = pyplot()
    figure, ((left, right), (below, bottom)) = plt.subplots(
        2, 2, figsize=(12, 8.5), layout="constrained"
    )
    figure.suptitle(title)
    names = [s["stage"] for s in stages]
    for axis, key, scale, label, text in (
        (left, "accuracy", 100, "test accuracy (%)", "{:.1f}"),
        (right, "energy_uj", 1, "compute energy per image (uJ)", "{:.3g}"),
    ):
        values = [s[key] * scale for s in stages]
        bars = axis.bar(range(len(names)), values, color=COLORS[: len(names)])
        axis.bar_label(bars, [text.format(v) for v in values], padding=2)
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
        axis.set_ylabel(label)
        axis.margins(y=0.12)
    left.set_ylim(0, 108)
    for stage, color in zip(stages, cycle(COLORS), strict=False):
        if stage.get("run"):
            below.plot(
                *curves(stage["run"]), color=color, marker="o", markersize=3, label=stage["stage"]
            )
    below.set_xlabel("epoch")
    below.set_ylabel("test accuracy (%)")
    below.legend()
    below.grid(alpha=0.3)
    floor = [0.0] * len(lanes)
    for lane in range(max(map(len, lanes.values()))):
        rates = [values[lane] for values in lanes.values()]
        bottom.bar(range(len(lanes)), rates, bottom=floor, color=LANES[lane], label=f"{2**lane}")
        floor = [a + b for a, b in zip(floor, rates, strict=True)]
    bottom.set_xlabel("spiking layer")
    bottom.set_ylabel("firing rate (share of neurons)")
    bottom.set_xticks(range(len(lanes)), [str(i + 1) for i in range(len(lanes))])
    bottom.margins(y=0.25)
    bottom.legend(title="spikes worth", loc="upper center", ncols=8)
    save(figure, path)


def firing(title, energy, path):
    """Nonzero rate of every weighted layer's input at each step, and spikes per lane of every neuron layer.

    Args:
        energy: `analysis.energy.Energy`. path: the PNG; an SVG lies beside it.
    """
    plt = pyplot()
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(max(8, 0.45 * len(energy.layers)), 8), layout="constrained"
    )
    figure.suptitle(title)
    width = 0.8 / energy.steps
    for t in range(energy.steps):
        above.bar(
            [i + (t - (energy.steps - 1) / 2) * width for i in range(len(energy.layers))],
            [r.step_rates[t] for r in energy.layers],
            width,
            label=f"t = {t}",
        )
    names = [
        r.name.removesuffix(".map").replace("stages.", "").replace(".synapse", "")
        for r in energy.layers
    ]
    above.set_xticks(range(len(names)), names, rotation=45, ha="right")
    above.set_ylabel("nonzero inputs (share)")
    if energy.steps > 1:
        above.legend(ncols=8, loc="upper center")
    lanes = energy.lane_rates_per_layer
    floor = [0.0] * len(lanes)
    for lane in range(max(map(len, lanes.values()))):
        rates = [values[lane] / energy.steps for values in lanes.values()]
        below.bar(range(len(lanes)), rates, bottom=floor, color=LANES[lane], label=f"{2**lane}")
        floor = [a + b for a, b in zip(floor, rates, strict=True)]
    names = [n.removesuffix(".act").replace("stages.", "") for n in lanes]
    below.set_xticks(range(len(names)), names, rotation=45, ha="right")
    below.set_ylabel("firing rate per step (share of neurons)")
    for axis in (above, below):
        axis.margins(y=0.2)
    below.legend(title="spikes worth", ncols=8, loc="upper center")
    save(figure, path)


def recording(title, rows, path, columns=10):
    """An event recording step by step, OFF events blue and ON events red, the darker the more.

    Args:
        rows: [(label, images [Q_F, 2, H, W])]; at most `columns` steps are drawn, evenly chosen.
        path: the PNG; an SVG lies beside it.
    """
    plt = pyplot()
    count = len(rows[0][1])
    steps = np.linspace(0, count - 1, min(count, columns)).round().astype(int)
    size = max(8, 1 + 1.4 * len(steps)), 1.4 * len(rows) + 0.8
    figure, axes = plt.subplots(
        len(rows), len(steps), figsize=size, squeeze=False, layout="constrained"
    )
    figure.suptitle(title)
    for axis, step in zip(axes[0], steps, strict=True):
        axis.set_title(f"step {step + 1}", fontsize=9)
    for line, (label, images) in zip(axes, rows, strict=True):
        strength = np.sqrt(np.asarray(images, np.float32) / max(float(images.max()), 1.0))
        for axis, step in zip(line, steps, strict=True):
            off, on = strength[step]
            axis.imshow(1 - np.stack([off, np.maximum(off, on), on], -1))
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label, fontsize=9)
    save(figure, path)


def rows(table, measured, path):
    """The published rows and what was measured of them: accuracy against energy, a panel per data set.

    Args:
        table: `experiments.rows.ROWS`. measured: [(row, its outcome {"accuracy": (mean, deviation), "energy": ...}, where)].
    """
    plt = pyplot()
    names = list(dict.fromkeys(row.dataset for row in table))
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 6), layout="constrained")
    networks = dict(zip(dict.fromkeys(row.network for row in table), COLORS, strict=False))
    for axis, name in zip(axes, names, strict=True):
        for row in (r for r in table if r.dataset == name):
            axis.scatter(
                row.energy,
                row.accuracy,
                color=networks[row.network],
                marker="s" if row.method == "ANN" else "o",
                facecolors="none",
                label=f"{row.network}, {row.method}, published",
            )
        for row, values, where in (m for m in measured if m[0].dataset == name):
            (accuracy, spread), (energy, _) = values["accuracy"], values["energy"]
            axis.errorbar(
                energy,
                accuracy,
                spread,
                color=networks[row.network],
                marker="s" if row.method == "ANN" else "o",
                capsize=3,
                linestyle="none",
                label=f"{row.network}, {row.method}, measured: {where}",
            )
        axis.set_title(name)
        accuracy_against_energy(axis)
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        axis.legend(
            handles.values(),
            handles,
            fontsize="small",
            loc="upper center",
            bbox_to_anchor=(0.5, -0.15),
        )
    save(figure, path)


def accuracy_against_energy(axis):
    """Label such axes; the energy's is logarithmic, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(0.12)
    axis.set_xlabel("compute energy per image (uJ)")
    axis.set_ylabel("test accuracy (%)")
    axis.grid(alpha=0.3)


def tradeoff(title, points, ann, path):
    """Accuracy against energy, a curve over T for every S.

    Args:
        points: {(S, T): [(accuracy in %, energy in uJ) per seed]}. ann: (accuracy, energy) of the ANN.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(8, 5.5), layout="constrained")
    top = max(s for s, _ in points)
    for levels, color in zip(sorted({s for s, _ in points}), COLORS, strict=False):
        curve = {t: np.array(values) for (s, t), values in sorted(points.items()) if s == levels}
        middle = [np.mean(values, 0) for values in curve.values()]
        spread = [
            np.std(values, 0, ddof=1) if len(values) > 1 else np.zeros(2)
            for values in curve.values()
        ]
        axis.errorbar(
            [m[1] for m in middle],
            [m[0] for m in middle],
            [d[0] for d in spread],
            color=color,
            marker="o",
            capsize=3,
            label=f"S = {levels}" + (" (LIF)" if levels == 1 else ""),
        )
        for t, (accuracy, energy) in zip(curve, middle, strict=True):
            offset = (-8, 7) if levels == top else (4, -11)
            axis.annotate(
                f"T={t}", (energy, accuracy), xytext=offset, textcoords="offset points", color=color
            )
    axis.scatter(*reversed(ann), color="black", marker="s", label="ANN")
    axis.set_title(title)
    accuracy_against_energy(axis)
    axis.legend(loc="lower right")
    save(figure, path)


def save(figure, path):
    """Write the figure as PNG and as SVG, whichever `path` names, and close it."""
    plt = pyplot()
    for kind, metadata in (("png", None), ("svg", {"Date": None})):
        with plt.rc_context({"svg.hashsalt": "mlif"}):  # the same figure gives the same file
            write_atomic(
                Path(path).with_suffix(f".{kind}"),
                partial(figure.savefig, dpi=110, format=kind, metadata=metadata),
            )
    plt.close(figure)
