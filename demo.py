"""The whole chain on embedded data, scikit-learn's scanned digits: ANN -> LQ-ANN, ANN -> fused ->
SNN, S = 3, T = 1.

python demo.py            (or `make demo`; a minute or two on two CPU cores)
"""

import time
from dataclasses import dataclass
from pathlib import Path

from analysis import figures
from cli.parser import Parser
from engine.errors import guard
from engine.log import read_json, write_json
from engine.loop import ComputeOptions, RunOptions
from engine.recipes.cnn import TrainingOptions
from engine.settings import Settings, group
from experiments import demo
from experiments.options import output

NETWORK = "ResNet20 at a quarter width"


@dataclass(frozen=True)
class ChainSettings(Settings):
    """Options of demo.py."""

    run: RunOptions = output("runs/demo")
    compute: ComputeOptions = group(only=("seed",))
    training: TrainingOptions = group(
        only=("epochs",),
        epochs={
            "default": (12, 5, 14),
            "nargs": 3,
            "metavar": ("ANN", "LQ", "SNN"),
        },
    )


def get_parser():
    """Its command line."""
    return Parser("demo.py", "The whole chain on scikit-learn's scanned digits.", ChainSettings)


def shown(name, summary):
    """What table, figure and file have of a stage."""
    return {
        "stage": name,
        "accuracy": summary["test_accuracy"],
        "energy_uj": summary["energy_uj"],
        "lane_rates": summary["lane_rates"],
        "run": summary.get("run"),
    }


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    begin = time.perf_counter()
    folder = Path(asked.run.output_dir)
    done = demo.run("digits", asked)
    snn = done["snn"]
    found = {
        "ANN": done["ann"],
        "LQ-ANN": done["lq"],
        # fusing measures nothing
        "ANN, fused": done["fused"] | done["measured"],
        "SNN": snn,
    }
    stages = [shown(*stage) for stage in found.items()]
    first, *_, last = stages
    gap = 100 * (first["accuracy"] - last["accuracy"])
    ratio = first["energy_uj"] / last["energy_uj"]
    summary = {
        "data": snn["data"],
        "network": NETWORK,
        "levels": 3,
        "timesteps": 1,
        "stages": stages,
        "accuracy_right_after_conversion": snn["converted_accuracy"],
        "accuracy_gap_points": gap,
        "energy_ratio": ratio,
        "seconds": time.perf_counter() - begin,
    }
    write_json(folder / "summary.json", summary)
    energy = read_json(Path(snn["run"]) / "energy.json")
    lanes = energy["lane_rates_per_layer"]
    title = f"{NETWORK}, {snn['data']}, S = 3, T = 1"
    figures.chain(title, stages, lanes, folder / "demo.png")

    rows = {}
    for stage in stages:
        # an ANN has no spikes
        rates = "  ".join(f"{rate:.4f}" for rate in stage["lane_rates"])
        rows[stage["stage"]] = stage, f"   {rates or '-'}"
    # energy is that of one image
    demo.table("stage", "   firing rate per lane (1, 2, 4)", rows)
    print(
        f"\nthe SNN is {abs(gap):.2f} points {'below' if gap >= 0 else 'above'} its ANN at "
        f"1/{ratio:.1f} of its energy ({snn['converted_accuracy']:.2%} right after conversion); "
        f"{summary['seconds']:.0f} s\n{folder / 'summary.json'}, {folder / 'demo.png'}"
    )
    return summary


if __name__ == "__main__":
    guard(main)
