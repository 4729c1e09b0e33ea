"""Recordings of a simulated event camera, for trials without DVS-CIFAR10.

python3 simulate.py --dataset DIGITS --per_class 100 --output dvs-digits
python3 dvscifar_prepare.py --source dvs-digits
"""

import sys
from dataclasses import dataclass
from pathlib import Path

# the script may be started in its own folder
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cli.options import FileOptions
from cli.parser import Parser, refuse_idle
from engine.dist import World
from engine.errors import UseError, guard
from engine.loop import ComputeOptions
from engine.settings import Settings, group
from inputs.events.pool import PoolOptions
from inputs.events.simulate import CameraOptions, simulate
from inputs.table import DataOptions, data_rules, load


@dataclass(frozen=True)
class CameraSettings(Settings):
    """Options of simulate.py."""

    # CIFAR10 lies where the other scripts look for it
    data: DataOptions = group(
        only=("dataset", "data_root"),
        dataset={"default": "DIGITS", "choices": ("DIGITS", "CIFAR10"), "help": "images to record"},
        data_root={"default": str(ROOT / "data"), "help": "folder of CIFAR10, as for ann_ddp.py"},
    )
    camera: CameraOptions = group()
    files: FileOptions = group(
        only=("output",),
        output={"help": "folder to write <class>/cifar10_<class>_<n>.aedat to (required)"},
    )
    pool: PoolOptions = group(processes={"spellings": ("--workers",)})
    compute: ComputeOptions = group(only=("seed",))


def get_parser():
    """Its command line."""
    return Parser("simulate.py", "Recordings of a simulated event camera.", CameraSettings)


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    output = asked.files.output
    if not output:
        raise UseError("the following arguments are required: --output")
    refuse_idle(asked.given, data_rules(asked.data))
    world = World()
    data = load(asked.data, world)
    folder, seed = Path(output).resolve(), asked.compute.seed
    simulate(data, asked.camera, seed, folder, asked.pool.processes, world)


if __name__ == "__main__":
    guard(main)
