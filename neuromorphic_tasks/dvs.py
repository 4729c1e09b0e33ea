"""Draw a prepared recording; see `inputs/events/recordings.py`, and --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import guard
from inputs.events.recordings import main

if __name__ == "__main__":
    guard(main)
