"""Draw a prepared recording: its frames, its lanes and the network's input.

python3 dvs.py --index 0 --num_channels 3 --T_prime 40 --output recording.png
"""

import sys
from dataclasses import dataclass
from pathlib import Path

# the script may be started in its own folder, as published
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from analysis import figures
from cli.events import PREPARED
from cli.options import NeuronOptions
from cli.parser import Parser
from engine.errors import UseError, guard
from engine.settings import Settings, group, natural, option
from inputs.events import recordings
from inputs.events.coding import Coding, count, merge_lanes, split_lanes
from inputs.events.formats import PARTS
from inputs.events.options import CodingOptions


@dataclass(frozen=True)
class DrawOptions:
    """picture"""

    part: str = option("train", "part of the split", choices=PARTS)
    index: int = option(0, "recording in --part", natural)
    picture: str = option("recording.png", "the picture, written as PNG and SVG")


@dataclass(frozen=True)
class DrawSettings(Settings):
    """Options of dvs.py."""

    # nothing is kept for later epochs
    coding: CodingOptions = group(hidden=("cache_gb",), T_prime=40, prepared=PREPARED)
    neuron: NeuronOptions = group(only=("num_channels",), num_channels=3)
    draw: DrawOptions = group(picture={"spellings": ("--output",)})


def get_parser():
    """Its command line."""
    about = "Draw a prepared recording: its frames, lanes and the network's input."
    return Parser("dvs.py", about, DrawSettings)


def views(packed, coding: Coding):
    """[(label, images [Q_F, 2, H, W])] of what becomes of a recording uint8 [1, 80, 2, 128, 16]."""
    counts = count(packed, coding)
    lanes = split_lanes(counts, coding.levels)  # [1, Q_F, S, 2, 128, 128]
    # each of one recording, the first
    found = [(f"sum of {2 ** (coding.levels - 1)} frames", counts)]
    for k, lane in enumerate(lanes.unbind(2)):
        found.append((f"lane {k}, worth {2**k}", lane))
    found.append(("input, 48 x 48", merge_lanes(lanes, coding) / 255))
    return [(label, images[0]) for label, images in found]


def upright(images):
    """Images [..., H, W] as they are seen: the sensor lay on its side."""
    return images.float().transpose(-1, -2).flip(-1)


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    draw = asked.draw
    if Path(draw.picture).suffix not in (".png", ".svg"):
        raise UseError(
            f"--output {draw.picture}: the picture is written as .png and as .svg, name one of them"
        )
    coding = recordings.coding(asked.neuron.num_channels, asked.coding)
    data = recordings.load(asked.coding, coding)
    part = getattr(data, draw.part)
    last = len(part.labels) - 1
    if draw.index > last:
        raise UseError(f"--index {draw.index}: the {draw.part} part has recordings 0 to {last}")

    name = data.classes[part.labels[draw.index]]
    title = (
        f"{data.about['source']}: {draw.part} recording {draw.index}, {name}\n"
        f"S = {coding.levels}, T_F = {coding.frames}, Q_F = {coding.steps}; "
        "OFF events blue, ON events red"
    )
    found = views(part.packed(torch.tensor([draw.index])), coding)
    rows = [(label, upright(images)) for label, images in found]
    figures.recording(title, rows, draw.picture)
    print(f"written to {draw.picture}")


if __name__ == "__main__":
    guard(main)
