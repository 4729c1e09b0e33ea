"""Event data from end to end, without a data set: simulated recordings of scanned digits, prepared;
VGGSNN with S = 3 lanes against S = 1 at the same T_F.

python3 demo.py     (make demo-dvs; under five minutes on two CPU cores)
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

# the script may be started in its own folder
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cli.parser import Parser
from engine.errors import guard
from engine.log import write_json
from engine.loop import RunOptions
from engine.recipes.cnn import TrainingOptions
from engine.settings import Settings, group
from experiments import demo
from experiments.options import output
from inputs.events.options import CodingOptions
from inputs.events.simulate import CameraOptions

HEAD = f"{'steps Q_F':>12}{'training (s)':>14}"


@dataclass(frozen=True)
class EventDemoSettings(Settings):
    """Options of demo.py."""

    run: RunOptions = output("runs/demo_dvs")
    camera: CameraOptions = group(only=("per_class",), per_class=150)
    coding: CodingOptions = group(only=("T_prime",), T_prime=8)
    training: TrainingOptions = group(only=("epochs",), epochs=5)


def get_parser():
    """Its command line."""
    about = "Simulated recordings of scanned digits, prepared; VGGSNN with 3 lanes against 1."
    return Parser("demo.py", about, EventDemoSettings)


def setting(lanes, trained, tested):
    """What table and file have of a number of lanes."""
    return {
        "lanes": lanes,
        "accuracy": tested["test_accuracy"],
        "energy_uj": tested["energy_uj"],
        "steps": trained["Q_F"],
        "seconds": trained["seconds"],
    }


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    begin = time.perf_counter()
    folder = Path(asked.run.output_dir)
    done = demo.run("events", asked)
    few = setting(3, done["train3"], done["test3"])
    one = setting(1, done["train1"], done["test1"])
    settings = {"S=3": few, "S=1": one}
    gap = 100 * (one["accuracy"] - few["accuracy"])
    share = few["energy_uj"] / one["energy_uj"]
    summary = {
        "data": done["train1"]["data"],
        "network": "VGGSNN at a quarter width",
        "T_F": asked.coding.T_prime,
        "settings": settings,
        "gap_points": gap,
        "energy_share": share,
        "seconds": time.perf_counter() - begin,
    }
    write_json(folder / "summary.json", summary)

    # steps and time are what several lanes save
    rows = {}
    for name, found in settings.items():
        rows[name] = found, f"{found['steps']:>12}{found['seconds']:>14.0f}"
    demo.table("", HEAD, rows)
    print(
        f"\nwith 3 lanes it is {abs(gap):.2f} points {'below' if gap > 0 else 'above'} 1 lane, at "
        f"1/{one['steps'] / few['steps']:g} of its steps and {share:.2f} of its energy; "
        f"{summary['seconds']:.0f} s\n{folder}/summary.json, {folder}/recording.png"
    )
    return summary


if __name__ == "__main__":
    guard(main)
