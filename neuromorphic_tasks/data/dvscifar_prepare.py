"""Prepare DVS-CIFAR10 for training.

python3 dvscifar_prepare.py     # dvs-cifar10/<class>/<recordings> -> dvs-cifar10/prepared/first900
"""

import sys
from dataclasses import dataclass
from pathlib import Path

# the script may be started in its own folder, as published
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cli.parser import Parser
from engine.errors import guard
from engine.settings import Settings, group
from inputs.events.options import CodingOptions
from inputs.events.pool import PoolOptions
from inputs.events.prepare import PrepareOptions, prepare, split_name


@dataclass(frozen=True)
class PrepareSettings(Settings):
    """Options of dvscifar_prepare.py."""

    recordings: PrepareOptions = group()
    target: CodingOptions = group(
        only=("prepared", "split"),
        prepared={
            "help": "folder to write to; default: <source>/prepared/<split>",
            "spellings": ("--output",),
        },
        split={
            "default": "first900",
            "help": "first900: of each class the numbers below 900 train, as published (in a set "
            "that has no more, the first nine tenths); last100: all but the last 100; "
            "random-<seed>: a random nine tenths",
            "type": split_name,
        },
    )
    pool: PoolOptions = group(processes={"spellings": ("--workers",)})


def get_parser():
    """Its command line."""
    return Parser("dvscifar_prepare.py", "Prepare DVS-CIFAR10 for training.", PrepareSettings)


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    prepare(asked.recordings, asked.target, asked.pool.processes)


if __name__ == "__main__":
    guard(main)
