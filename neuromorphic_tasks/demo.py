"""Event data from end to end, without a data set: simulated recordings of scanned digits, prepared; VGGSNN with S = 3 lanes
against S = 1 at the same T_F.

python3 demo.py     (make demo-dvs; under five minutes on two CPU cores)
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli import parser as cli
from engine.dist import fast_amp
from engine.errors import guard
from engine.log import write_json
from inputs.events import prepare as dvscifar_prepare
from inputs.events import recordings as dvs
from inputs.events import simulate
from neuromorphic_tasks import main_test, main_training_parallel


def run(title, script, *words):
    words = list(map(str, words))
    print(
        f"\n== {title}: python3 {script.__name__.rpartition('.')[2]}.py {' '.join(words)}",
        flush=True,
    )
    return script.main(words)


def main(argv=None):
    parser = cli.Parser(prog="demo.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output_dir", default="runs/demo_dvs", help="folder of everything that the demo writes"
    )
    parser.add_argument(
        "--per_class", type=cli.positive, default=150, help="recordings of each of the ten classes"
    )
    parser.add_argument("--T_prime", type=cli.positive, default=8, help="frames T_F of a recording")
    parser.add_argument("--epochs", type=cli.positive, default=5)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse(argv)
    out, begin = Path(args.output_dir), time.perf_counter()
    events, prepared = out / "recordings", out / "prepared"
    run(
        "1. simulate an event camera",
        simulate,
        "--output",
        events,
        "--per_class",
        args.per_class,
        "--events",
        40_000,
    )
    run("2. prepare", dvscifar_prepare, "--source", events, "--output", prepared)
    common = ["--prepared", prepared, "--T_prime", args.T_prime, "--output_dir", out / "trained"]
    run(
        "3. draw one",
        dvs,
        "--prepared",
        prepared,
        "--T_prime",
        args.T_prime,
        "--num_channels",
        3,
        "--output",
        out / "recording.png",
    )
    found = {}
    for lanes in (3, 1):
        setting = [*common, "--multi_channel", 1, "--num_channels", lanes, "--width_mult", 0.25]
        trained = run(
            f"train, S = {lanes}",
            main_training_parallel,
            *setting,
            "--epochs",
            args.epochs,
            "--batch_size",
            16,
            "--amp",
            fast_amp(),
        )
        tested = run(f"test, S = {lanes}", main_test, *setting)
        found[f"S={lanes}"] = {
            "lanes": lanes,
            "accuracy": tested["test_accuracy"],
            "energy_uj": tested["energy_uj"],
            "steps": trained["Q_F"],
            "seconds": trained["seconds"],
        }
    few, one = found["S=3"], found["S=1"]
    summary = {
        "data": trained["data"],
        "network": "VGGSNN at a quarter width",
        "T_F": args.T_prime,
        "settings": found,
        "gap_points": 100 * (one["accuracy"] - few["accuracy"]),
        "energy_share": few["energy_uj"] / one["energy_uj"],
        "seconds": time.perf_counter() - begin,
    }
    write_json(out / "summary.json", summary)
    print(f"\n{'':<8}{'accuracy':>10}{'energy (uJ)':>14}{'steps Q_F':>12}{'training (s)':>14}")
    for name, s in found.items():
        print(
            f"{name:<8}{s['accuracy']:>10.2%}{s['energy_uj']:>14.3f}{s['steps']:>12}{s['seconds']:>14.0f}"
        )
    gap, fewer = summary["gap_points"], one["steps"] / few["steps"]
    print(
        f"\nwith 3 lanes it is {abs(gap):.2f} points {'below' if gap > 0 else 'above'} 1 lane, at 1/{fewer:g} of its steps "
        f"and {summary['energy_share']:.2f} of its energy; {summary['seconds']:.0f} s\n"
        f"{out}/summary.json, {out}/recording.png"
    )
    return summary


if __name__ == "__main__":
    guard(main)
