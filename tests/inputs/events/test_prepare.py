"""Preparation of event recordings: which go into which part, and what their rows hold."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.errors import UseError
from inputs.events import prepare as preparation
from inputs.events.formats import CLASSES, Events, frames, read, write
from neuromorphic_tasks.data import dvscifar_prepare
from tests.helpers import ROOT
from tests.helpers import read as script
from tests.inputs.events.made import (
    content,
    is_prepared,
    manifest_of,
    prepare,
    random_events,
    recording,
    shorten,
)

# ---- rows ----


def test_the_manifest_says_what_the_data_are(recordings, whole):
    manifest = manifest_of(whole)
    assert set(content(whole)) == {"train.npy", "test.npy", "manifest.json"}
    assert manifest["format"] == "mlif-dvs-1"
    assert manifest["split"] == "first900"
    assert manifest["source"] == str(recordings)
    assert manifest["frames"] == 80 and manifest["sensor"] == [128, 128]
    assert manifest["classes"] == list(CLASSES)
    assert manifest["skipped"] == []
    assert manifest["versions"]["numpy"] == np.__version__
    assert "simulated" not in manifest


NUMBERS = {"train": (8, 9, 10), "test": (11,)}


@pytest.mark.parametrize("part", NUMBERS)
def test_rows_are_in_the_order_of_the_numbers(whole, part):
    rows = np.load(whole / f"{part}.npy", mmap_mode="r", allow_pickle=False)
    assert rows.shape == (10 * len(NUMBERS[part]), 80, 2, 128, 16)
    assert rows.dtype == np.uint8 and rows.flags.c_contiguous
    files = [f"{name}/cifar10_{name}_{n}.aedat" for n in NUMBERS[part] for name in CLASSES]
    assert [entry["file"] for entry in manifest_of(whole)[part]] == files


@pytest.mark.parametrize("part", NUMBERS)
def test_rows_are_the_recordings_frames(recordings, whole, part):
    rows = np.load(whole / f"{part}.npy", mmap_mode="r", allow_pickle=False)
    for row, entry in zip(rows, manifest_of(whole)[part], strict=True):
        wanted = frames(read(recordings / entry["file"]))
        assert np.array_equal(np.unpackbits(row, axis=-1), wanted)
        assert row.any()


@pytest.mark.parametrize("part", NUMBERS)
def test_entries_describe_the_recordings(recordings, whole, part):
    for entry in manifest_of(whole)[part]:
        path = recordings / entry["file"]
        assert CLASSES[entry["label"]] == path.parent.name
        assert entry["events"] == 200
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["dropped"] == {"special": 0, "outside": 0} and entry["steps_back"] == 0


def test_any_number_of_processes(recordings, whole, tmp_path):
    prepare(recordings, tmp_path, "--workers 1")
    assert content(tmp_path) == content(whole)


# ---- splits ----


def held(count, split, label=0):
    """Places of the test recordings of a class that has the numbers 0 .. count - 1."""
    return np.flatnonzero(
        preparation.tested(range(count), split, label, small=count <= 900)
    ).tolist()


def test_the_published_split():
    assert held(1000, "first900") == held(1000, "last100") == list(range(900, 1000))
    assert held(999, "first900") == list(range(900, 999))


def test_the_published_split_of_a_small_set():
    assert held(10, "first900") == [9]


def test_the_published_split_of_a_set_with_recordings_missing():
    few = preparation.tested([3, 850, 899, 900, 999], "first900", 0, False)
    assert few.tolist() == [False, False, False, True, True]


def test_the_last_hundred():
    assert held(150, "last100") == list(range(50, 150))
    words = "last100: bird has 100 recordings, more than 100 are needed"
    with pytest.raises(UseError, match=words):
        held(100, "last100", 2)


def test_random_splits_differ_by_seed_and_class():
    drawn = [held(1000, split, label) for split in ("random-0", "random-1") for label in (0, 1)]
    assert all(len(set(test)) == 100 for test in drawn)
    assert len({tuple(test) for test in drawn}) == 4
    assert drawn[0] == held(1000, "random-0")
    assert max(drawn[0]) > 900 and min(drawn[0]) < 100


def test_every_recording_is_in_one_part(recordings, tmp_path):
    prepare(recordings, tmp_path, "--split random-3")
    manifest = manifest_of(tmp_path)
    files = [entry["file"] for part in ("train", "test") for entry in manifest[part]]
    assert len(files) == len(set(files)) == 40
    assert manifest["split"] == "random-3"
    assert sorted(entry["label"] for entry in manifest["test"]) == list(range(10))


def test_numbers_from_900_are_for_testing(tmp_path, capsys):
    for name, given in (("cat", (3, 898, 899, 900)), ("dog", (5, 910, 998, 999))):
        for n in given:
            recording(tmp_path / name / f"cifar10_{name}_{n}.aedat")
    prepare(tmp_path, tmp_path / "prepared/a")
    manifest = manifest_of(tmp_path / "prepared/a")
    numbers = {int(entry["file"].split("_")[-1].split(".")[0]) for entry in manifest["test"]}
    assert numbers == {900, 910, 998, 999}
    assert len(manifest["train"]) == 4
    assert "not 900 / 100: 3 / 1 of cat; 1 / 3 of dog" in capsys.readouterr().out


def test_a_part_of_the_classes(recordings, tmp_path, capsys):
    shutil.copytree(recordings / "cat", tmp_path / "cat")
    prepare(tmp_path, tmp_path / "prepared/a")
    assert "holds no recordings of airplane, automobile, bird, deer" in capsys.readouterr().out
    assert manifest_of(tmp_path / "prepared/a")["test"][0]["label"] == 3


def test_what_is_left_out_is_counted(recordings, tmp_path, capsys):
    shutil.copytree(recordings / "cat", tmp_path / "cat")
    recording(tmp_path / "cat/more/cifar10_cat_12.aedat")
    recording(tmp_path / "loose_13.aedat")
    for name in ("cat/._8.aedat", "cat/notes.txt", "cat/8.dat", "cat/9.DAT"):
        (tmp_path / name).write_text("left out")
    prepare(tmp_path, tmp_path / "prepared/a")
    assert (
        f"note: {tmp_path}: 4 recordings read; files that are left out: 2 .dat, 1 .txt, "
        "1 beside the class folders, 1 folders in a class, 1 hidden\n"
    ) in capsys.readouterr().out


def test_recordings_of_another_sensor_are_named(recordings, tmp_path, capsys):
    shutil.copytree(recordings / "cat", tmp_path / "cat")
    for n in (9, 10):
        events = random_events(200)
        off = Events("off", events.t, events.x, events.y % 4, events.p * 0)
        write(tmp_path / f"cat/cifar10_cat_{n}.aedat", off)
    prepare(tmp_path, tmp_path / "prepared/a")
    assert (
        "warning: 2 recordings are odd for a DVS128, the first: cat/cifar10_cat_9.aedat (all "
        "events are OFF; 4 of 128 values of y)"
    ) in capsys.readouterr().out
    manifest = manifest_of(tmp_path / "prepared/a")
    odd = {entry["file"]: entry["odd"] for entry in manifest["train"] if "odd" in entry}
    assert list(odd) == ["cat/cifar10_cat_9.aedat", "cat/cifar10_cat_10.aedat"]


# ---- unusable recordings ----


@pytest.fixture
def spoiled(recordings, tmp_path):
    """(source, a truncated recording in it, one of 79 events in it)"""
    source = tmp_path / "source"
    shutil.copytree(recordings, source)
    truncated, short = source / "deer/cifar10_deer_9.aedat", source / "ship/cifar10_ship_11.aedat"
    shorten(truncated, 3)
    recording(short, 79)
    return source, truncated, short


def test_an_unusable_recording_ends_the_run(spoiled, fails, tmp_path):
    source, truncated, _ = spoiled
    argv = f"--source {source} --output {tmp_path}/out --workers 2"
    words = (f"{truncated} is truncated at byte", "--skip_bad")
    fails(dvscifar_prepare.main, argv, *words, keep=source)
    assert not is_prepared(tmp_path / "out")


def test_the_same_run_goes_on_without_them(spoiled, fails, tmp_path, capsys):
    source, truncated, _ = spoiled
    argv = f"--source {source} --output {tmp_path}/out --workers 2"
    fails(dvscifar_prepare.main, argv, f"{truncated} is truncated at byte")
    prepare(source, tmp_path / "out", "--skip_bad")
    out = capsys.readouterr().out
    assert "going on after 14 of 40" in out
    assert "prepared 29 training and 9 test recordings, 2 skipped" in out


def test_the_manifest_lists_them(spoiled, tmp_path):
    source, truncated, short = spoiled
    prepare(source, tmp_path / "out", "--skip_bad")
    skipped = {e["file"]: e["reason"] for e in manifest_of(tmp_path / "out")["skipped"]}
    assert list(skipped) == ["deer/cifar10_deer_9.aedat", "ship/cifar10_ship_11.aedat"]
    first, second = skipped.values()
    assert first.split(":")[0] == f"{truncated} is truncated at byte {truncated.stat().st_size - 5}"
    assert second == (
        f"{short} holds 79 events, expected at least 80, one per frame; download or convert it "
        "anew, or leave it out"
    )


def test_the_rows_of_the_others(spoiled, tmp_path):
    source, *_ = spoiled
    prepare(source, tmp_path / "out", "--skip_bad")
    for part, count in (("train", 29), ("test", 9)):
        rows = np.load(tmp_path / "out" / f"{part}.npy")
        entries = manifest_of(tmp_path / "out")[part]
        assert len(rows) == len(entries) == count
        for row, entry in zip(rows, entries):
            wanted = frames(read(source / entry["file"]))
            assert np.array_equal(np.unpackbits(row, axis=-1), wanted)


def test_finished_data_stays_where_the_next_run_fails(spoiled, fails, tmp_path, capsys):
    source, truncated, _ = spoiled
    output = tmp_path / "out"
    for said in ("2 skipped", "prepared already, from these recordings; 2 were skipped: remove it"):
        prepare(source, output, "--skip_bad")
        assert said in capsys.readouterr().out
    before = content(output)
    argv = f"--source {source} --output {output} --workers 2"
    fails(dvscifar_prepare.main, argv, f"{truncated} is truncated at byte")
    assert before.items() <= content(output).items()


def test_links_whose_target_is_gone(recordings, fails, tmp_path, capsys):
    """They are named by the first run and by those after it."""
    source, output = tmp_path / "source", tmp_path / "output"
    shutil.copytree(recordings, source)
    prepare(source, output)
    gone = source / "frog/cifar10_frog_9.aedat"
    gone.unlink()
    gone.symlink_to("/absent")
    argv = f"--source {source} --output {output} --workers 2"
    words = f"{gone} cannot be read (No such file or directory): it is a link to /absent"
    for _ in range(2):
        fails(dvscifar_prepare.main, argv, words, keep=source)
    for said in ("1 skipped", "prepared already"):
        prepare(source, output, "--skip_bad")
        assert said in capsys.readouterr().out
    (skipped,) = manifest_of(output)["skipped"]
    assert skipped["file"] == "frog/cifar10_frog_9.aedat"


# ---- sources that cannot be prepared ----


def keep_only_8(root, pattern):
    for path in root.glob(pattern):
        if not path.match("*_8.*"):
            path.unlink()


def remove_classes(root):
    for name in CLASSES:
        shutil.rmtree(root / name)


WRONG = [  # (what is done to the source, words of the line)
    (
        lambda root: keep_only_8(root, "cat/*"),
        ("no recording of cat for the train part", "least two", "or remove {s}/cat"),
    ),
    (lambda root: keep_only_8(root, "*/*"), ("leaves no recording of airplane",)),
    (
        lambda root: (root / "cat/12.aedat").symlink_to("/absent"),
        ("{s}/cat/12.aedat cannot be read", "a link to /absent", "--skip_bad"),
    ),
    (
        lambda root: (root / "plane").mkdir(),
        ("{s}/plane is no class of DVS-CIFAR10", "airplane, automobile"),
    ),
    (lambda root: recording(root / "cat/cat.aedat"), ("{s}/cat/cat.aedat has no number",)),
    (
        lambda root: recording(root / "cat/9.npz"),
        ("{s}/cat holds recording 9 twice", "9.npz and cifar10_cat_9.aedat"),
    ),
    (
        lambda root: (root / "simulated.json").write_text("{"),
        ("{s}/simulated.json cannot be read", "simulate it anew"),
    ),
    (
        lambda root: (root / "cat/7.mat").mkdir(),
        ("{s}/cat/7.mat is a folder, expected a recording",),
    ),
    (shutil.rmtree, ("no recordings at {s}", "--source")),
    (remove_classes, ("{s} holds no recordings",)),
]


@pytest.mark.parametrize("change, words", WRONG)
def test_sources_that_cannot_be_prepared(recordings, fails, tmp_path, change, words):
    source = tmp_path / "source"
    shutil.copytree(recordings, source)
    for name in (".DS_Store", "cat/._9.aedat", "cat/notes.txt", "readme.md"):
        (source / name).write_text("passed over")
    change(source)
    argv = f"--source {source} --output {tmp_path}/out --workers 1"
    fails(dvscifar_prepare.main, argv, *(word.format(s=source) for word in words))
    assert not is_prepared(tmp_path / "out")


def test_an_unknown_split(recordings, fails, tmp_path):
    argv = f"--source {recordings} --output {tmp_path} --split first90"
    words = "expected first900, last100 or random-<seed>, got 'first90'"
    fails(dvscifar_prepare.main, argv, words)


def test_a_split_that_needs_more_recordings(recordings, fails, tmp_path):
    argv = f"--source {recordings} --output {tmp_path} --split last100"
    fails(dvscifar_prepare.main, argv, "airplane has 4 recordings, more than 100 are needed")


def test_an_output_among_the_recordings(recordings, fails):
    argv = f"--source {recordings} --output {recordings}/airplane"
    fails(dvscifar_prepare.main, argv, "lies among the recordings", keep=recordings)


# ---- cost ----


@pytest.mark.long
def test_throughput(tmp_path):
    """A core prepares at least 20 recordings of 200,000 events per second.

    Under 400 kB each, under 500 MB of memory a process.
    """
    for name in CLASSES:
        for n in range(20):
            recording(tmp_path / name / f"{n}.aedat", 200_000)
    measure = (
        "import resource, subprocess, sys; "
        "subprocess.run([sys.executable, *sys.argv[1:]], check=True); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
    )
    command = ROOT / "neuromorphic_tasks/data/dvscifar_prepare.py"
    said = script(["-c", measure, command, "--source", tmp_path, "--workers", 1], tmp_path)
    seconds, peak = map(float, said.split()[-2:])  # of both processes together; the largest
    files = Path(tmp_path, "prepared/first900").iterdir()
    size = sum(path.stat().st_size for path in files) / 200_000
    print(
        f"{said}{200 / seconds:.1f} recordings per second of a core, {size:.0f} kB, {peak:.0f} MB"
    )
    assert 200 / seconds >= 20
    assert size < 400
    assert peak < 500


def test_nothing_of_it_imports_torch():
    """Every worker process would pay for its memory."""
    script_path = ROOT / "neuromorphic_tasks/data/dvscifar_prepare.py"
    code = f"import runpy, sys; runpy.run_path({str(script_path)!r}); print('torch' in sys.modules)"
    assert script(["-c", code], ROOT).strip() == "False"
