"""Recordings and prepared data that the tests make, and what they do to them."""

import hashlib
import json
from pathlib import Path

import numpy as np

from engine.errors import guard
from inputs.events import store
from inputs.events.formats import Events, write
from neuromorphic_tasks.data import dvscifar_prepare
from tests.conftest import digests


def columns(events):
    """The columns of events as lists, which compare whole."""
    return [column.tolist() for column in (events.t, events.x, events.y, events.p)]


def random_events(count, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 128, (2, count), np.int16)
    t = np.cumsum(rng.integers(0, 50, count))
    return Events("random", t, x, y, rng.integers(0, 2, count, np.uint8))


def recording(path, count=200, seed=0):
    """Write a recording of random events."""
    rng = np.random.default_rng([seed, *path.name.encode()])
    x, y = rng.integers(0, 128, (2, count), np.int16)
    write(path, Events(path, np.arange(count), x, y, rng.integers(0, 2, count, np.uint8)))


# ---- preparation ----


def prepare(source, output, more=""):
    """Prepare as the command does."""
    argv = f"--source {source} --output {output} --workers 2 {more}"
    guard(dvscifar_prepare.main, argv.split())


def content(folder):
    """{name: digest} of a prepared folder."""
    return {Path(path).name: digest for path, digest in digests(folder).items()}


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def is_prepared(folder):
    return (folder / "manifest.json").exists()


class Cut(Exception):
    """The preparation is cut off here."""


def cut_off(monkeypatch, source, output, after):
    """Prepare `after` recordings of `source`, and no more."""
    original, left = store.Store.add, iter(range(after))

    def add(self, entry, row):
        if next(left, None) is None:
            raise Cut
        original(self, entry, row)

    argv = f"--source {source} --output {output} --workers 2"
    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "add", add)
        try:
            dvscifar_prepare.main(argv.split())
        except Cut:
            return
    raise AssertionError(f"{source} has no more than {after} recordings")


def shorten(path, count):
    """Cut `count` bytes off a file."""
    path.write_bytes(path.read_bytes()[:-count])


# ---- prepared data ----


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def write_prepared(folder, counts=(10, 5), split="first900", classes=10, **more):
    """A prepared folder of random recordings, each class denser than the one before.

    counts: of training and test recordings. more: further entries of the manifest.
    """
    rng = np.random.default_rng(0)
    manifest = {"format": "mlif-dvs-1", "split": split, "source": "noise", "frames": 80}
    folder.mkdir(parents=True)
    for part, count in zip(("train", "test"), counts):
        labels = np.arange(count) % classes
        density = 0.02 + 0.02 * labels[:, None, None, None, None]
        bits = rng.random((count, 80, 2, 128, 128), dtype=np.float32) < density
        frames = np.packbits(bits, axis=-1)
        np.save(folder / f"{part}.npy", frames)
        manifest[part] = [
            {"file": f"{part}/{i}.aedat", "label": label, "events": 8000, "sha256": digest(row)}
            for i, (label, row) in enumerate(zip(labels.tolist(), frames))
        ]
    manifest |= {
        "sensor": [128, 128],
        "classes": [f"class{i}" for i in range(classes)],
        "versions": {},
        "skipped": [],
        **more,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
