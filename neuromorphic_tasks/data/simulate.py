"""Recordings of a simulated event camera; see `inputs/events/simulate.py`, and --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.errors import guard
from inputs.events.simulate import main

if __name__ == "__main__":
    guard(main)
