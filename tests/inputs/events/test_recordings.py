"""Prepared recordings as batches: what is read, what the loader yields, and damaged folders."""

import json

import numpy as np
import pytest
import torch

from engine.dist import World
from engine.errors import UseError
from inputs.events import recordings as dvs
from inputs.events.coding import Coding, encode
from inputs.events.options import CodingOptions
from inputs.events.recordings import EventLoader
from inputs.loader import BatchOptions
from inputs.loader import loaders as make_loaders
from neuromorphic_tasks import dvs as drawing
from neuromorphic_tasks import main_training_parallel as training
from tests.inputs.events.made import write_prepared

CODING = Coding(3, 10)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("dvs") / "prepared")


def loaders(prepared, world=None, cache_gb=4.0, **batches):
    """(training, choosing, test) loaders of batches of 4 recordings."""
    options = CodingOptions(prepared=str(prepared), cache_gb=cache_gb)
    data = dvs.load(options, CODING)
    return make_loaders(
        data, BatchOptions(batch_size=4, **batches), 7, world or World(), EventLoader
    )


def packed(prepared, part):
    return torch.from_numpy(np.load(prepared / f"{part}.npy"))


# ---- options ----


def test_zero_frames_are_all():
    assert CodingOptions(T_prime=0) == CodingOptions(T_prime=80)
    assert dvs.coding(1, CodingOptions(T_prime=0)) == Coding(1, 80)


def test_lanes_that_could_never_fire():
    with pytest.raises(UseError, match="16 frames, more than --T_prime 10: give at most 4 lanes"):
        dvs.coding(5, CodingOptions(T_prime=10))


# ---- what is loaded ----


def test_what_the_data_are(prepared):
    about = dvs.load(CodingOptions(prepared=str(prepared)), CODING).about
    assert about["source"] == "DVS-CIFAR10, split first900"
    assert about["split"] == "first900" and not about["simulated"]
    assert about["num_classes"] == 10 and about["image_size"] == 48
    assert (about["train"]["images"], about["test"]["images"]) == (10, 5)


def test_simulated_data_say_so(tmp_path):
    made = {"images": "scikit-learn digits"}
    folder = write_prepared(tmp_path / "made", (2, 2), classes=2, simulated=made)
    about = dvs.load(CodingOptions(prepared=str(folder)), CODING).about
    assert about["simulated"]
    assert about["source"] == "simulated events of scikit-learn digits, split first900"


def test_another_recording_changes_the_digest(tmp_path):
    folder = write_prepared(tmp_path / "made", (2, 2), classes=2)
    options = CodingOptions(prepared=str(folder))
    before = dvs.load(options, CODING).about
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["test"][1]["sha256"] = "of another file"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    after = dvs.load(options, CODING).about
    assert before["train"] == after["train"]
    assert before["test"]["images"] == after["test"]["images"]
    assert before["test"]["sha256"] != after["test"]["sha256"]


# ---- batches ----


def test_evaluation_shows_every_recording_once(prepared):
    train, choose, test = loaders(prepared)
    assert choose is test
    assert (train.images, len(train), len(test)) == (10, 3, 2)
    seen = torch.cat([labels for _, labels, _ in test.epoch(0)])
    assert sorted(seen.tolist()) == [0, 1, 2, 3, 4]


def test_a_batch_holds_the_codes_of_its_recordings(prepared):
    frames, labels, n = next(loaders(prepared)[2].epoch(1))
    codes = encode(packed(prepared, "test")[labels], CODING)
    assert frames.dtype == torch.float32 and n == 4
    assert torch.equal(frames, codes.float() / 255)


def test_later_epochs_and_no_memory_for_codes_give_the_same(prepared):
    kept, anew = loaders(prepared)[0], loaders(prepared, cache_gb=0)[0]
    for _ in range(2):
        for (x, a, _), (y, b, _) in zip(kept.epoch(3), anew.epoch(3), strict=True):
            assert torch.equal(x, y) and torch.equal(a, b)
    assert kept.ready.all()
    assert not len(anew.store)


def test_augmentation_depends_on_epoch_and_step_alone(prepared):
    train = loaders(prepared)[0]
    one, again = list(train.epoch(1)), list(train.epoch(1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, again, strict=True))
    assert torch.equal(next(train.epoch(1, start=1))[0], one[1][0])


def moves(batch, train):
    """(flip, roll in y, roll in x) of each recording of a batch, the same at all its steps."""
    frames, labels, _ = batch
    found = []
    for got, codes in zip(frames, encode(train[labels], CODING), strict=True):
        for flip in (0, 1):
            flipped = (codes.flip(-2) if flip else codes).float() / 255
            found += [
                (flip, y, x)
                for y in range(-5, 6)
                for x in range(-5, 6)
                if torch.equal(got, flipped.roll((y, x), (-2, -1)))
            ]
    assert len(found) == len(frames)
    return tuple(found)


def test_augmentation_differs_between_steps_and_epochs(prepared):
    train, recordings = loaders(prepared)[0], packed(prepared, "train")
    first, second, _ = train.epoch(1)
    batches = [first, second, next(train.epoch(2))]
    assert len({moves(batch, recordings) for batch in batches}) == 3


def test_shares_of_two_processes_are_the_batch_of_one(prepared):
    alone = list(loaders(prepared)[0].epoch(1))
    pair = [list(loaders(prepared, World(rank, 2))[0].epoch(1)) for rank in (0, 1)]
    for (x, labels, n), (a, b) in zip(alone, zip(*pair, strict=True), strict=True):
        assert torch.equal(x, torch.cat([a[0], b[0]]))
        assert torch.equal(labels, torch.cat([a[1], b[1]]))
        assert a[2] == n


def test_held_back_recordings_are_not_trained_on(prepared):
    train, choose, test = loaders(prepared, val_fraction=0.3)
    trained, held = (set(part.part.rows.tolist()) for part in (train, choose))
    assert len(trained) == 7 and len(held) == 3
    assert not trained & held
    assert len(test.part.labels) == 5
    assert train.part.labels.tolist() == [i % 10 for i in train.part.rows.tolist()]


# ---- damaged folders ----


def spoil(folder, key, value):
    """Set an entry of the manifest; None removes it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[key] = value
    kept = {name: value for name, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(kept))


def cut_short(folder):
    whole = (folder / "train.npy").read_bytes()
    (folder / "train.npy").write_bytes(whole[: 10**5])


def spoil_header(folder, before, after):
    path = folder / "train.npy"
    path.write_bytes(path.read_bytes().replace(before, after, 1))


DAMAGE = [  # (what is done to a folder of 2 + 2 recordings, words of the line)
    (
        lambda d: (d / "manifest.json").unlink(),
        ("no prepared recordings in {d}", "no manifest.json", "dvscifar_prepare.py"),
    ),
    (lambda d: (d / "manifest.json").write_text("{"), ("manifest.json is not a whole manifest",)),
    (
        lambda d: (d / "manifest.json").write_text("[" * 10**5),
        ("manifest.json is not a whole manifest", "RecursionError"),
    ),
    (lambda d: spoil(d, "simulated", "yes"), ("not a whole manifest", "TypeError")),
    (lambda d: spoil(d, "simulated", {"seed": 1}), ("not a whole manifest", "images")),
    (
        lambda d: spoil(d, "format", "mlif-dvs-9"),
        ("format 'mlif-dvs-9', expected 'mlif-dvs-1'",),
    ),
    (lambda d: spoil(d, "test", None), ("not a whole manifest", "test")),
    (lambda d: spoil(d, "test", []), ("must list training and test recordings",)),
    (
        lambda d: spoil(d, "train", [{"label": "1", "sha256": ""}]),
        ("not a whole manifest", "str"),
    ),
    (lambda d: spoil(d, "classes", ["a"]), ("labels from 0 to 0",)),
    (
        lambda d: spoil(d, "train", [{"label": 0, "sha256": ""}]),
        ("train.npy holds uint8 (2, 80", "(1, 80"),
    ),
    (lambda d: (d / "train.npy").unlink(), ("train.npy is missing or truncated",)),
    (cut_short, ("train.npy is missing or truncated",)),
    (
        lambda d: spoil_header(d, b"'|u1', ", b"'|u1', ("),
        ("train.npy is missing or truncated",),
    ),
    (
        lambda d: spoil_header(d, b"(2, 80,", b"(9**99,"),
        ("train.npy is missing or truncated",),
    ),
    (
        lambda d: np.save(d / "test.npy", np.zeros((2, 80, 2, 128, 128), bool)),
        ("test.npy holds bool",),
    ),
    (lambda d: np.save(d / "test.npy", np.array([{}])), ("test.npy is missing or truncated",)),
]


@pytest.mark.parametrize("main", [training.main, drawing.main])
@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_damaged_recordings(main, damage, words, tmp_path, fails):
    folder = write_prepared(tmp_path / "prepared", (2, 2), classes=2)
    damage(folder)
    fails(main, f"--prepared {folder}", *(word.format(d=folder) for word in words))
