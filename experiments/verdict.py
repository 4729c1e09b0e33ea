"""What a result says of its row: measured figures beside published ones, and whether they hold."""

import statistics

from .rows import Row

POINTS = 0.5  # tolerance of the accuracy, in points below the published
SHARE = 0.1  # tolerance of the energy, as a share above the published
AS_PRINTED = "snn_as_printed"  # a stage beside the row's own, see `rows`

# What a verdict shows: (title, figure, how it is written).
SHOWN = (
    ("accuracy (%)", "accuracy", "{:.2f}"),
    ("energy (uJ)", "energy", "{:.4g}"),
    ("gap to the ANN (points)", "gap", "{:.2f}"),
    ("ANN energy / energy", "ratio", "{:.1f}"),
    ("spikes per neuron", "rate", "{:.4f}"),
    ("training (hours)", "hours", "{:.2f}"),
)
PRINTED = "the printed recipe has another neuron (S=1, T=3) than the table's row: {:.2%}, {:.4g} uJ"


def spread(values):
    """(mean, standard deviation) of the seeds' values; a single one has no deviation: None."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return statistics.mean(values), deviation


def number(figure, form="{:.2f}"):
    """Text of a `spread`."""
    known = [form.format(value) for value in figure if value is not None]
    return " ± ".join(known)


def outcome(result):
    """{figure: its `spread` over the seeds} of what is measured.

    "accuracy" (%), "energy" (uJ), "hours", of an SNN "rate" (spikes per neuron), and "gap" (points)
    and "ratio" of the energies to the row's ANN in the same chain.
    """
    runs = result["runs"].values()
    seeds = [_of_seed(run["stages"], run["result"]) for run in runs]
    # all seeds have the same stages, so the same figures
    found = {}
    for name in seeds[0]:
        found[name] = spread([seed[name] for seed in seeds])
    return found


def _of_seed(stages, last):
    """The figures of one seed's chain; last: its row's own stage."""
    own = stages[last]
    # only CNNs have an ANN in their chain
    ann = stages.get("ann")
    # fusing takes no time worth noting
    counted = [stage for name, stage in stages.items() if name != AS_PRINTED]
    seconds = [stage.get("seconds", 0) for stage in counted]
    found = {
        "accuracy": 100 * own["test_accuracy"],
        "energy": own["energy_uj"],
        "hours": sum(seconds) / 3600,
    }
    if own["lane_rates"]:
        found["rate"] = sum(own["lane_rates"])
    if ann and last != "ann":
        found["gap"] = 100 * (ann["test_accuracy"] - own["test_accuracy"])
        found["ratio"] = own["ann_energy_uj"] / own["energy_uj"]
    return found


def where(result):
    """On what a result was measured: data, width, schedule, seeds."""
    first, *more = result["runs"].values()
    text = first["stages"][first["result"]]["data"]
    if result["width_mult"] != 1:
        text += f", width x{result['width_mult']:g}"
    text += f", {result['schedule']}"
    return f"{text}, {1 + len(more)} seeds" if more else text


def effort(result):
    """What a result took: hours of its chain, images a second of its last training, machines."""
    hours, _ = outcome(result)["hours"]
    trained = []
    for run in result["runs"].values():
        trained += [stage for stage in run["stages"].values() if "log" in stage]
    last = [epoch["images_per_s"] for epoch in trained[-1]["log"]]
    machines = {stage["machine"]: None for stage in trained if "machine" in stage}
    parts = [
        f"{float(f'{hours:.2g}'):g} h",
        f"{statistics.median(last):,.0f} images/s",
        *machines,
    ]
    return ", ".join(parts)


def _published(row: Row):
    """The published figures of a row."""
    found = {"accuracy": row.accuracy, "energy": row.energy}
    if row.ann:
        found["gap"] = row.ann.accuracy - row.accuracy
        found["ratio"] = row.ann.energy / row.energy
    return found


def _checks(wanted, found, full_width):
    """{what is compared: whether it is reached}; wanted: the published figures."""
    means = {name: mean for name, (mean, _) in found.items()}
    if full_width:
        least = wanted["accuracy"] - POINTS
        most = wanted["energy"] * (1 + SHARE)
        return {
            f"accuracy (tolerance {POINTS} points)": means["accuracy"] >= least,
            f"energy (tolerance {SHARE:.0%})": means["energy"] <= most,
        }
    # at another width only gap and ratio compare
    if "gap" not in wanted or "gap" not in means:
        return {}
    return {
        "gap": means["gap"] <= wanted["gap"],
        "energy ratio": means["ratio"] >= wanted["ratio"],
    }


def verdict(row: Row, result):
    """Lines that hold what was measured beside what was published."""
    found = outcome(result)
    wanted = _published(row)
    lines = [f"{row.name}: {where(result)}", f"{'':<24}{'published':>12}{'measured':>22}"]
    for title, name, form in SHOWN:
        if name in found:
            printed = form.format(wanted[name]) if name in wanted else ""
            lines.append(f"{title:<24}{printed:>12}{number(found[name], form):>22}")

    runs = result["runs"].values()
    stages = [run["stages"].get(AS_PRINTED) for run in runs]
    if None not in stages:
        accuracy = statistics.mean(stage["test_accuracy"] for stage in stages)
        energy = statistics.mean(stage["energy_uj"] for stage in stages)
        lines.append(PRINTED.format(accuracy, energy))
    checks = _checks(wanted, found, result["width_mult"] == 1)
    told = [f"{name} {'reached' if held else 'NOT reached'}" for name, held in checks.items()]
    lines.append(f"verdict: {', '.join(told) or 'nothing compares at another width'}")
    return "\n".join(lines)
