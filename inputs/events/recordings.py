"""Prepared DVS-CIFAR10 recordings as training batches: coded on the training device once, and kept for later epochs.

python3 dvs.py --index 0 --num_channels 3 --T_prime 40 --output recording.png        draws a recording, frames and lanes
"""

import hashlib
import json
import operator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from analysis import figures
from cli import parser as cli
from engine.errors import UseError, guard
from inputs.events.coding import (
    SENSOR,
    SIDE,
    Coding,
    augment,
    count,
    encode,
    merge_frames,
    split_lanes,
    unpack,
)
from inputs.events.formats import FORMAT, FRAMES
from inputs.loader import Loader, seeded

HERE = Path(__file__).resolve().parents[2] / "neuromorphic_tasks"
SHIFT = 5  # pixels by which training images are rolled at most
CHUNK = 4  # recordings that are coded at once: few, so that a CPU's caches hold them


@dataclass(frozen=True)
class Recordings:
    """Prepared recordings uint8 [N, 80, 2, 128, 16] on disk, of which `rows` [n] with their labels int64 [n] are meant."""

    frames: np.ndarray
    rows: torch.Tensor
    labels: torch.Tensor

    def subset(self, index):
        return Recordings(self.frames, self.rows[index], self.labels[index])

    def packed(self, index):
        return torch.from_numpy(self.frames[self.rows[index].numpy()])


@dataclass(frozen=True)
class Events:
    """Training and test recordings, what they are (`about`), their coding, and whether codes are kept in memory."""

    train: Recordings
    test: Recordings
    about: dict
    coding: Coding
    keep: bool
    repeats: int = 1
    drop_last: bool = False


class EventLoader(Loader):
    """Iterates (frames float32 [b, Q_F, 2, 48, 48] on the device, labels, n); see `Loader`.

    A recording is coded when it is first asked for; after that its codes come from memory (the host's). Augmentation: flip
    and roll, the same for all frames of a recording.
    """

    def __init__(self, *args):
        super().__init__(*args)
        coding, count = self.data.coding, len(self.part.labels) if self.data.keep else 0
        self.store = torch.empty(
            count, coding.steps, 2, SIDE, SIDE, dtype=coding.dtype
        )  # no memory before it is written
        self.ready = torch.zeros(count, dtype=torch.bool)

    def _encode(self, index):
        device, how = self.world.device, self.data.coding
        return torch.cat(
            [encode(self.part.packed(part).to(device), how) for part in index.split(CHUNK)]
        )

    def codes(self, index):
        """Merged codes [b, Q_F, 2, 48, 48] of the recordings at `index`, on the device."""
        if not self.data.keep:
            return self._encode(index)
        new = index[~self.ready[index]]
        if len(new):
            self.store[new] = self._encode(new).cpu()
            self.ready[new] = True
        return self.world.send(self.store[index])

    def epoch(self, epoch, start=0):
        send = self.world.send
        for step, index, at, n in self.shares(epoch, start):
            codes = self.codes(index)
            if self.training:
                draw = seeded(self.seed, epoch, step, 1)
                shift = torch.randint(-SHIFT, SHIFT + 1, (2, n), generator=draw)[:, at]
                flip = (torch.rand(n, generator=draw) < 0.5)[at]
                codes = augment(codes, send(flip), send(shift))
            yield codes.float() / 255, send(self.part.labels[index]), n


def frames(text):
    """Argument type: frames T_F; 0 stands for all."""
    return cli.number(int, low=0, high=FRAMES)(text) or FRAMES


def add_coding(parser, lanes, default_frames):
    """Options of the data and of its coding, with the defaults of a script."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--prepared",
        "--data_root",
        default="",
        help="folder of the prepared recordings; default: "
        "data/dvs-cifar10/prepared/<split> beside this script",
    )
    group.add_argument(
        "--split",
        default=None,
        help="name of the split; default: first900, or what --prepared holds",
    )
    group.add_argument(
        "--num_channels", type=cli.number(int, low=1, high=8), default=lanes, help="spike lanes S"
    )
    group.add_argument(
        "--T_prime",
        type=frames,
        default=default_frames,
        help=f"frames T_F that a recording is reduced to, 0: all {FRAMES}; Q_F = T_F / 2^(S-1) time steps",
    )
    group.add_argument(
        "--resize",
        default="plain",
        choices=("plain", "published"),
        help="published: as grey and alpha channel, which loses OFF events where there is no ON event",
    )
    return group


def coding(args):
    """The `Coding` that `args` asks for.

    Raises:
        UseError: lanes that could never fire.
    """
    lanes, frames = args.num_channels if args.multi_channel else 1, args.T_prime
    if 2 ** (lanes - 1) > frames:
        raise UseError(
            f"--num_channels {lanes} counts events over {2 ** (lanes - 1)} frames, more than --T_prime {frames}: "
            f"give at most {frames.bit_length()} lanes, or more frames"
        )
    return Coding(lanes, frames, args.resize == "published")


def read_manifest(args):
    """(folder, manifest) of the prepared recordings that `args` names.

    Raises:
        UseError: there are none, they are of another format or split, or the manifest is incomplete.
    """
    folder = Path(
        args.prepared or HERE / "data" / "dvs-cifar10" / "prepared" / (args.split or "first900")
    )
    path = folder / "manifest.json"
    if not path.is_file():
        raise UseError(
            f"no prepared recordings in {folder} (it has no manifest.json): prepare them with "
            "neuromorphic_tasks/data/dvscifar_prepare.py, or name their folder with --prepared"
        )
    try:
        content = json.loads(path.read_text())
        kind = content["format"]
        if kind == FORMAT:
            split, classes = content["split"], len(content["classes"])
            labels = [
                [operator.index(entry["label"]) for entry in content[part]]
                for part in ("train", "test")
            ]
            [entry["sha256"] for part in ("train", "test") for entry in content[part]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UseError(
            f"{path} is not a whole manifest ({type(error).__name__}: {error}): "
            "prepare the recordings anew"
        ) from None
    if kind != FORMAT:
        raise UseError(
            f"{path} is of format {kind!r}, expected {FORMAT!r}: prepare the recordings anew"
        )
    if args.split not in (None, split):
        raise UseError(f"{folder} holds the split {split!r}, --split asks for {args.split!r}")
    if not all(part and 0 <= min(part) <= max(part) < classes for part in labels):
        raise UseError(
            f"{path} must list training and test recordings with labels from 0 to {classes - 1}"
        )
    return folder, content


def load(args):
    """The prepared recordings and their coding, `Events`.

    Raises:
        UseError: see `read_manifest`; an array is missing, truncated or not what the manifest says.
    """
    folder, content = read_manifest(args)
    how, parts = coding(args), []
    made = content.get("simulated")
    name = f"simulated events of {made['images']}" if made else "DVS-CIFAR10"
    about = {
        "name": "DVS-CIFAR10",
        "source": f"{name}, split {content['split']}",
        "where": str(folder),
        "split": content["split"],
        "simulated": bool(made),
        "num_classes": len(content["classes"]),
        "image_size": SIDE,
    }
    for name in ("train", "test"):
        path, entries = folder / f"{name}.npy", content[name]
        try:
            frames = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UseError(
                f"{path} is missing or truncated ({error}): prepare the recordings anew"
            ) from None
        expected = (len(entries), FRAMES, 2, SENSOR, SENSOR // 8)
        if frames.shape != expected or frames.dtype != np.uint8:
            raise UseError(
                f"{path} holds {frames.dtype} {frames.shape}, the manifest says uint8 {expected}: "
                "prepare the recordings anew"
            )
        labels = torch.tensor([entry["label"] for entry in entries])
        parts.append(Recordings(frames, torch.arange(len(labels)), labels))
        digest = hashlib.sha256(
            json.dumps([[entry["label"], entry["sha256"]] for entry in entries]).encode()
        )
        about[name] = {"images": len(entries), "sha256": digest.hexdigest()[:16]}
    size = sum(len(p.labels) for p in parts) * how.steps * 2 * SIDE**2 * how.dtype.itemsize
    return Events(*parts, about, how, size <= args.cache_gb * 1e9)


def get_parser():
    parser = cli.Parser(
        prog="dvs.py",
        description="Draw a prepared recording: its frames, lanes and the network's input.",
    )
    add_coding(parser, 3, 40)
    parser.add_argument(
        "--part", default="train", choices=("train", "test"), help="part of the split"
    )
    parser.add_argument("--index", type=cli.natural, default=0, help="recording in that part")
    parser.add_argument(
        "--output", default="recording.png", help="the picture, written as PNG and SVG"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(multi_channel=1, cache_gb=0)
    return parser


def main(argv=None):
    args = get_parser().parse(argv)
    if Path(args.output).suffix not in (".png", ".svg"):
        raise UseError(
            f"--output {args.output}: the picture is written as .png and as .svg, name one of them"
        )
    (_, content), found = read_manifest(args), load(args)
    part, how = getattr(found, args.part), found.coding
    if args.index >= len(part.labels):
        raise UseError(
            f"--index {args.index}: the {args.part} part has recordings 0 to {len(part.labels) - 1}"
        )
    packed = part.packed(torch.tensor([args.index]))
    counts = count(unpack(merge_frames(packed, how.frames)), how.lanes)
    lanes = split_lanes(counts, how.lanes)[0]
    rows = [
        (f"sum of {2 ** (how.lanes - 1)} frames", counts[0].float()),
        *((f"lane {k}, worth {2**k}", lanes[:, k].float()) for k in range(how.lanes)),
        ("input, 48 x 48", encode(packed, how)[0] / 255),
    ]
    entry = content[args.part][args.index]
    title = (
        f"{found.about['source']}: {args.part} recording {args.index}, {content['classes'][entry['label']]}\n"
        f"S = {how.lanes}, T_F = {how.frames}, Q_F = {how.steps}; OFF events blue, ON events red"
    )
    upright = [
        (label, images.transpose(-1, -2).flip(-1)) for label, images in rows
    ]  # the sensor lay on its side
    figures.recording(title, upright, args.output)
    print(f"written to {args.output}")


if __name__ == "__main__":
    guard(main)
