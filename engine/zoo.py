"""Trained networks of this repository, by name: trained_models/zoo/zoo.csv and its files.

A file is a checkpoint (see `checkpoint.py`) of a quarter of the size: weights of layers are int8
with a scale for each output channel.
"""

import csv
import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from .errors import UseError
from .files import write_atomic

FOLDER = Path(__file__).resolve().parents[1] / "trained_models" / "zoo"
FORMAT = "mlif-1"
PACKED = "mlif-int8-1"
TOP = 127  # the largest int8 weight


@dataclass(frozen=True)
class Entry:
    """A line of zoo.csv, all text.

    file, sha256: of the weights, empty of a network that is described alone. network, width,
    levels, steps: what it is. data, accuracy (fraction), energy_uj (per image, by the model
    `paper`): measured, of what is in the file. command: makes the network. versions: of what it was
    measured with.
    """

    name: str
    file: str = ""
    sha256: str = ""
    network: str = ""
    width: str = ""
    levels: str = ""
    steps: str = ""
    data: str = ""
    accuracy: str = ""
    energy_uj: str = ""
    command: str = ""
    versions: str = ""


def table():
    """{name: `Entry`} of zoo.csv."""
    with open(FOLDER / "zoo.csv", newline="") as file:
        return {row["name"]: Entry(**row) for row in csv.DictReader(file)}


def write(entries, folder):
    """Write the zoo.csv of `folder`."""

    def lines(path):
        with open(path, "w", newline="") as file:
            names = [field.name for field in fields(Entry)]
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, entries))

    write_atomic(folder / "zoo.csv", lines)


def digest(path):
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(name):
    """File of the network `name` of the table.

    Raises:
        UseError: it is not here, or another one is.
    """
    entry = table()[name]
    path = FOLDER / entry.file
    if not path.is_file():
        raise UseError(
            f"the weights of {name} are not here ({FOLDER}): train them, {entry.command}, and "
            "give their checkpoint"
        )
    if digest(path) != entry.sha256:
        raise UseError(f"{path} is not the file that zoo.csv names (its sha256): take it anew")
    return path


def packed(content):
    """The content of a checkpoint with its weights in int8."""
    whole, scales = {}, {}
    for name, value in content["model"].items():
        whole[name] = value
        # biases and thresholds are few
        if value.dim() < 2:
            continue
        channels = value.flatten(1)
        largest = channels.abs().amax(1)
        largest.clamp_(min=torch.finfo(torch.float32).tiny)
        ones = [1] * (value.dim() - 1)
        scale = (largest / TOP).view(-1, *ones)  # [O, 1, ...]
        whole[name] = (value / scale).round().to(torch.int8)
        scales[name] = scale
    return {**content, "format": PACKED, "model": whole, "scales": scales}


def unpacked(content):
    """The content of a checkpoint with its weights in float32; the inverse of `packed`."""
    content = {**content, "format": FORMAT}
    scales = content.pop("scales", {})
    weights = {name: content["model"][name] * scale for name, scale in scales.items()}
    content["model"] = content["model"] | weights
    return content
