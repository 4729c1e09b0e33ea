"""Prepared DVS-CIFAR10 recordings as training batches: coded on the training device once, and kept
for later epochs.
"""

import hashlib
import json
import operator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.errors import UseError, reason
from inputs.loader import AUGMENTATION, Loader, seeded

from .coding import SENSOR, SIDE, Coding, augment, encode
from .formats import DATA, FORMAT, FRAMES, PARTS
from .options import CodingOptions

SHIFT = 5  # pixels by which training images are rolled at most
CHUNK = 4  # recordings that are coded at once: few, so that a CPU's caches hold them
ANEW = "prepare the recordings anew"


@dataclass(frozen=True)
class Recordings:
    """Prepared recordings on disk, uint8 [N, 80, 2, 128, 16], of which `rows` [n] are meant.

    labels: int64 [n], of these.
    """

    frames: np.ndarray
    rows: torch.Tensor
    labels: torch.Tensor

    def subset(self, index):
        """The recordings at `index` [m]."""
        return Recordings(self.frames, self.rows[index], self.labels[index])

    def packed(self, index):
        """Frames uint8 [m, 80, 2, 128, 16] of the recordings at `index` [m]."""
        return torch.from_numpy(self.frames[self.rows[index].numpy()])


@dataclass(frozen=True)
class EventData:
    """Event data as training sees it.

    train, test: its parts. about: what it is, plain values. classes: names. coding: how recordings
    become input. keep: whether codes are kept in memory. repeats, drop_last: see `images.Data`.
    """

    train: Recordings
    test: Recordings
    about: dict
    classes: list
    coding: Coding
    keep: bool
    repeats: int = 1
    drop_last: bool = False


class EventLoader(Loader):
    """Its `epoch` yields (frames float32 [b, Q_F, 2, 48, 48] on the device, labels, n), see
    `Loader`.

    A recording is coded when it is first asked for; after that its codes come from memory (the
    host's). Augmentation: flip and roll, the same for all frames of a recording.
    """

    def __init__(self, *args):
        super().__init__(*args)
        coding = self.data.coding
        count = len(self.part.labels) if self.data.keep else 0
        shape = (count, coding.steps, 2, SIDE, SIDE)
        # takes no memory before it is written
        self.store = torch.empty(shape, dtype=coding.dtype)
        self.ready = torch.zeros(count, dtype=torch.bool)  # which recordings are coded

    def _encode(self, index):
        device, coding = self.world.device, self.data.coding
        # packed, they are an eighth as large to send
        chunks = map(self.part.packed, index.split(CHUNK))
        return torch.cat([encode(chunk.to(device), coding) for chunk in chunks])

    def codes(self, index):
        """Merged codes [b, Q_F, 2, 48, 48] of the recordings at `index`, on the device."""
        if not self.data.keep:
            return self._encode(index)
        new = index[~self.ready[index]]  # never asked for before
        if len(new):
            self.store[new] = self._encode(new).cpu()
            self.ready[new] = True
        return self.world.send(self.store[index])

    def epoch(self, epoch, start=0):
        """Iterate over the epoch from step `start` on."""
        send = self.world.send
        for step, index, places, whole_batch in self.shares(epoch, start):
            codes = self.codes(index)
            if self.training:
                # drawn for the whole batch, however many processes share it
                draw = seeded(self.seed, epoch, step, AUGMENTATION)
                shift = torch.randint(-SHIFT, SHIFT + 1, (2, whole_batch), generator=draw)
                flip = torch.rand(whole_batch, generator=draw) < 0.5
                codes = augment(codes, send(flip[places]), send(shift[:, places]))
            yield codes.float() / 255, send(self.part.labels[index]), whole_batch


def coding(levels, options: CodingOptions):
    """The `Coding` of S = `levels` lanes that the options ask for.

    Raises:
        UseError: lanes that could never fire.
    """
    frames, group = options.T_prime, 2 ** (levels - 1)
    if group > frames:
        raise UseError(
            f"--num_channels {levels} counts events over {group} frames, more than --T_prime "
            f"{frames}: give at most {frames.bit_length()} lanes, or more frames"
        )
    return Coding(levels, frames, options.resize == "published")


def _rows(manifest, part):
    """[(label, digest)] of the rows of a part."""
    return list(map(operator.itemgetter("label", "sha256"), manifest[part]))


def _source(manifest):
    """What the recordings are, as results name it."""
    made_with = manifest.get("simulated")
    source = f"simulated events of {made_with['images']}" if made_with else "DVS-CIFAR10"
    return f"{source}, split {manifest['split']}"


def read_manifest(options: CodingOptions):
    """(folder, manifest) of the prepared recordings that the options name.

    Raises:
        UseError: there are none, they are of another format or split, or the manifest is
            incomplete.
    """
    folder = Path(options.prepared or DATA / "prepared" / (options.split or "first900"))
    path = folder / "manifest.json"
    if not path.is_file():
        raise UseError(
            f"no prepared recordings in {folder} (it has no manifest.json): prepare them with "
            "neuromorphic_tasks/data/dvscifar_prepare.py, or name their folder with --prepared"
        )
    try:
        # all that `load` relies on is checked here, with the file's name
        manifest = json.loads(path.read_text())
        found = manifest["format"]
        if found != FORMAT:
            raise UseError(f"{path} is of format {found!r}, expected {FORMAT!r}: {ANEW}")
        split, classes = manifest["split"], len(manifest["classes"])
        for part in PARTS:
            labels = {operator.index(label) for label, _ in _rows(manifest, part)}
            if not labels or labels - set(range(classes)):
                raise UseError(
                    f"{path} must list training and test recordings with labels from 0 to "
                    f"{classes - 1}"
                )
        _source(manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        words = f"{type(error).__name__}: {reason(error)}"
        raise UseError(f"{path} is not a whole manifest ({words}): {ANEW}") from None
    if options.split not in (None, split):
        raise UseError(f"{folder} holds the split {split!r}, --split asks for {options.split!r}")
    return folder, manifest


def _read_part(path, rows):
    """The `Recordings` of an array whose rows the manifest lists."""
    # mapped: rows come from the disk when they are asked for
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy reads the header as Python, which raises anything
        raise UseError(f"{path} is missing or truncated ({reason(error)}): {ANEW}") from None
    expected = (len(rows), FRAMES, 2, SENSOR, SENSOR // 8)
    if frames.shape != expected or frames.dtype != np.uint8:
        raise UseError(
            f"{path} holds {frames.dtype} {frames.shape}, the manifest says uint8 {expected}: "
            f"{ANEW}"
        )
    labels = torch.tensor([label for label, _ in rows])
    return Recordings(frames, torch.arange(len(rows)), labels)


def load(options: CodingOptions, coding: Coding):
    """The `EventData` that the options name, to be coded as `coding` says.

    Raises:
        UseError: see `read_manifest`; an array is missing, truncated or not what the manifest says.
    """
    folder, manifest = read_manifest(options)
    classes = manifest["classes"]
    about = {
        "name": "DVS-CIFAR10",
        "source": _source(manifest),
        "where": str(folder),
        "split": manifest["split"],
        "simulated": bool(manifest.get("simulated")),
        "num_classes": len(classes),
        "image_size": SIDE,
    }
    parts = []
    for name in PARTS:
        rows = _rows(manifest, name)
        parts.append(_read_part(folder / f"{name}.npy", rows))
        # by which a resumed run, or a test, knows its recordings again
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        about[name] = {"images": len(rows), "sha256": digest[:16]}

    count = sum(about[name]["images"] for name in PARTS)
    size = count * coding.steps * 2 * SIDE**2 * coding.dtype.itemsize  # bytes of all codes
    return EventData(*parts, about, classes, coding, keep=size <= options.cache_gb * 1e9)
