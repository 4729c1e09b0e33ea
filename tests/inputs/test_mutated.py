"""Damaged inputs for all readers of data: each is refused in one line, or read with nothing lost in
silence. `make test-long` takes ten thousand, and prints what became of them.
"""

import json
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from engine.dist import World
from engine.errors import UseError
from inputs.events import prepare as preparation
from inputs.events import recordings, store
from inputs.events.coding import Coding
from inputs.events.formats import read, simulated
from inputs.events.options import CodingOptions
from inputs.images import SUFFIXES, decode, find_files, read_folder
from inputs.table import TABLE, DataOptions, load
from tests.helpers import GOLDEN
from tests.inputs.events.made import columns, cut_off, recording, write_prepared
from tests.inputs.events.test_formats import JAER, slowly, write_archives
from tests.inputs.test_images import PICTURES, RAMP, UNKNOWN, write_picture
from tests.mutated import OTHER, SAME, counts, mutated, try_out

WRITTEN = {
    "a.jpg": Image.fromarray(RAMP).resize((64, 48)),
    "a.webp": Image.fromarray(RAMP),
    "a.bmp": Image.fromarray(RAMP),
    "RGB.bmp": Image.fromarray(RAMP).convert("RGB"),
}
HUGE = {"huge.pgm": b"P5 20000 20000 255\n"}


def pictures(folder, monkeypatch):
    """Pictures of every mode and format; of one that is only cut off no pixel may change."""
    unknown = {name: content for name, (content, _) in UNKNOWN.items()}
    files = {}
    for name, content in (PICTURES | unknown | WRITTEN | HUGE).items():
        files[name] = write_picture(folder / name, content).read_bytes()
    whole = {name: decode(folder / name) for name in PICTURES | WRITTEN}

    def attempt(rng):
        name = str(rng.choice(sorted(files)))
        cut = rng.random() < 0.2
        content = files[name]
        content = content[: rng.integers(len(content))] if cut else mutated(rng, content)
        (folder / name).write_bytes(content)
        image = decode(folder / name, None if rng.random() < 0.5 else 16)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        if np.array_equal(image, whole.get(name)):
            return SAME
        assert not cut or image.shape != whole[name].shape, name
        return OTHER

    return attempt


def binary_cifar(folder, monkeypatch):
    """Official binary files of CIFAR-100: 20 and 4 images, or none."""
    monkeypatch.setitem(TABLE, "CIFAR100", replace(TABLE["CIFAR100"], images=20))
    options = DataOptions(dataset="CIFAR100", data_root=str(folder))
    (folder / "cifar-100-binary").mkdir()
    content = np.random.default_rng(0).integers(0, 20, (24, 3074), np.uint8)
    files = {"train.bin": content[:20].tobytes(), "test.bin": content[20:].tobytes()}

    def write(contents):
        for name, data in contents.items():
            (folder / "cifar-100-binary" / name).write_bytes(data)

    write(files)
    whole = load(options, World()).about

    def attempt(rng):
        name = str(rng.choice(sorted(files)))
        write(files | {name: mutated(rng, files[name])})
        data = load(options, World())
        assert (len(data.train.images), len(data.test.images)) == (20, 4)
        assert data.train.labels.max() < 100
        return SAME if data.about == whole else OTHER

    return attempt


NAMES = [
    "a.png",
    "b.TIF",
    "c.pgm",
    "._a.png",
    ".DS_Store",
    "notes.txt",
    "d.nef",
    "noname",
    "e.jpeg",
]
CLASSES = ["cat", "fa\u00e7ade", "fac\u0327ade", ".hidden", "empty"]


def image_folders(folder, monkeypatch):
    """Folders of files of all kinds: each file is an image that is read, or counted as left out."""
    contents = []
    for name in ("a.png", "b.tif", "c.pgm"):
        Image.fromarray(RAMP).save(folder / name)
        contents.append((folder / name).read_bytes())
    root = folder / "classes"

    deeper = ("", "", "", "", "deeper", "deeper/still", "deeper.png")

    def draw(rng):
        shutil.rmtree(root, ignore_errors=True)
        for name in rng.choice(CLASSES, 3, replace=False):
            (root / str(name)).mkdir(parents=True)
            for file in rng.choice(NAMES, rng.integers(5), replace=False):
                path = root / str(name) / str(rng.choice(deeper)) / str(file)
                path.parent.mkdir(parents=True, exist_ok=True)
                content = contents[rng.integers(3)]
                path.write_bytes(mutated(rng, content) if rng.random() < 0.05 else content)
        if rng.random() < 0.3:
            (root / "loose.png").write_bytes(contents[0])

    def attempt(rng):
        draw(rng)
        said = []
        paths, labels, classes = find_files(root, SimpleNamespace(say=said.append))
        files = [path for path in root.rglob("*") if path.is_file()]
        visible = [path for path in files if ".hidden" not in path.parts]
        notes = [line for line in said if line.startswith("note:")]
        # the numbers before the kinds
        kinds = [kind for line in notes for kind in line.split(": ")[-1].split(", ")]
        counts = [int(kind.split()[0]) for kind in kinds]
        assert len(paths) + sum(counts) == len(visible), said
        assert all(Path(path).suffix.lower() in SUFFIXES for path in paths)
        for path, label in zip(paths, labels.tolist(), strict=True):
            name = Path(path).relative_to(root).parts[0]
            assert classes[label] == unicodedata.normalize("NFC", name)
        missing = set(range(len(classes))) - set(labels.tolist())
        assert bool(missing) == any(line.startswith("warning:") for line in said)
        images = read_folder(paths, labels, 16).images
        assert len(images) == len(paths)
        return "read, with what is left out counted" if counts else "read whole"

    return attempt


def jaer_recordings(folder, monkeypatch):
    """AEDAT 1.0 and 2.0 beside a slow, separate reader: no event is lost."""
    path = folder / "a.aedat"

    def attempt(rng):
        whole = JAER[rng.integers(len(JAER))]
        content = mutated(rng, whole)
        path.write_bytes(content)
        expected = slowly(content)
        try:
            events = read(path)
        except UseError:
            assert expected is None
            raise
        assert (columns(events), events.dropped["special"], events.steps_back) == expected
        return SAME if expected == slowly(whole) else OTHER

    return attempt


def aedat4_recordings(folder, monkeypatch):
    """AEDAT 4.0: its packets have no checksums, but what is read lies on the sensor."""
    pytest.importorskip("aedat")
    path, content = folder / "a.aedat4", (GOLDEN / "three_events.aedat4").read_bytes()
    path.write_bytes(content)
    whole = columns(read(path))

    def attempt(rng):
        path.write_bytes(mutated(rng, content))
        found = read(path)
        if columns(found) == whole:
            return SAME
        assert max(found.x.max(), found.y.max()) < 128 and found.p.max() <= 1
        return OTHER

    return attempt


def archives(folder, monkeypatch):
    """.npz and .mat: those with checksums are whole or refused."""
    events = write_archives(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def attempt(rng):
        name = str(rng.choice(sorted(files)))
        (folder / name).write_bytes(mutated(rng, files[name]))
        found = read(folder / name)
        if columns(found) == columns(events):
            return SAME
        assert name == "b.mat"  # it has none
        assert max(found.x.max(), found.y.max()) < 128 and found.p.max() <= 1
        return OTHER

    return attempt


def prepared_folders(folder, monkeypatch):
    """Manifests, headers of arrays and settings of a simulation, of prepared recordings."""
    target = write_prepared(folder / "prepared", (2, 2), classes=2, simulated={"images": "digits"})
    (target / "simulated.json").write_text(json.dumps({"seed": 1, "events": 500}))
    names = ("manifest.json", "train.npy", "simulated.json")
    files = {name: (target / name).read_bytes() for name in names}
    options, coding = CodingOptions(prepared=str(target)), Coding(1, 10)
    whole = recordings.load(options, coding).about, simulated(target)

    def attempt(rng):
        name = str(rng.choice(names))
        head = 128 if name.endswith(".npy") else None
        damaged = mutated(rng, files[name][:head]) + (files[name][128:] if head else b"")
        (target / name).write_bytes(damaged)
        try:
            data = recordings.load(options, coding)
            made_with = simulated(target)
        finally:
            (target / name).write_bytes(files[name])
        assert len(data.train.labels) == len(data.train.frames) == 2
        assert data.train.labels.max() < 2
        return SAME if (data.about, made_with) == whole else OTHER

    return attempt


def journals(folder, monkeypatch):
    """Journals of a preparation that was cut off: what they hold is trusted up to the damage."""
    source, output = folder / "source", folder / "output"
    for n in range(4):
        recording(source / "cat" / f"{n}.aedat", 100)
    cut_off(monkeypatch, source, output, 3)
    task = preparation._task(source.resolve(), "first900", False)
    files = {path.name: path.read_bytes() for path in output.iterdir()}
    entries = list(map(json.loads, files["journal.jsonl"].splitlines()[1:]))

    def attempt(rng):
        for name, content in files.items():
            (output / name).write_bytes(content)
        (output / "journal.jsonl").write_bytes(mutated(rng, files["journal.jsonl"]))
        with store.Store(output, task) as opened:
            done = opened.resume()
        known = [{key: entry[key] for key in ("file", "part", "crc32")} for entry in done]
        for entry, original in zip(known, entries):
            assert entry.items() <= original.items()
        # what is said at the end relies on all of an entry
        manifest = {"train": done, "test": [], "skipped": [], "split": "other"}
        preparation._say_result(manifest)
        return SAME if done == entries else f"gone on after {len(done)} of 3 recordings"

    return attempt


READERS = (
    pictures,
    binary_cifar,
    image_folders,
    jaer_recordings,
    aedat4_recordings,
    archives,
    prepared_folders,
    journals,
)


@pytest.mark.filterwarnings("ignore")  # Pillow's and NumPy's
@counts
@pytest.mark.parametrize("reader", READERS, ids=[reader.__name__ for reader in READERS])
def test_damaged_inputs_are_refused_or_read_without_loss(
    reader, count, tmp_path, monkeypatch, capsys
):
    try_out(reader.__name__, count, reader(tmp_path, monkeypatch), capsys)
