"""Preparation of event recordings: cut off at any place and given again, it ends bit for bit as if it had not been."""

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engine.errors import UseError, guard
from inputs.events import pool, prepare, simulate, store
from inputs.events.formats import CLASSES, Events, frames, read, unpack, write
from tests.conftest import digests
from tests.helpers import ROOT, start
from tests.helpers import read as script

COUNT, RESULT = 4, {"train.npy", "test.npy", "manifest.json"}


def recording(path, count=200, seed=0):
    rng = np.random.default_rng([seed, *path.name.encode()])
    x, y = rng.integers(0, 128, (2, count), np.int16)
    write(path, Events(path, np.arange(count), x, y, rng.integers(0, 2, count, np.uint8)))


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Four recordings of each of the ten classes."""
    root = tmp_path_factory.mktemp("recordings") / "dvs-cifar10"
    for name in CLASSES:
        for n in range(COUNT):
            recording(
                root / name / f"cifar10_{name}_{n + 8}.aedat"
            )  # 8 .. 11: not in the order of the alphabet
    return root


@pytest.fixture(scope="session")
def whole(recordings, tmp_path_factory):
    """The folder of an uninterrupted preparation."""
    output = tmp_path_factory.mktemp("whole")
    run(recordings, output)
    return output


def run(source, output, more=""):
    guard(prepare.main, f"--source {source} --output {output} --workers 2 {more}".split())


def content(folder):
    """{name: digest} of a prepared folder."""
    return {Path(path).name: digest for path, digest in digests(folder).items()}


def test_rows_are_the_recordings_frames(recordings, whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    assert set(content(whole)) == RESULT
    assert (
        manifest["format"] == "mlif-dvs-1"
        and manifest["split"] == "first900"
        and manifest["source"] == str(recordings)
    )
    assert (
        manifest["frames"] == 80
        and manifest["sensor"] == [128, 128]
        and manifest["classes"] == list(CLASSES)
    )
    assert (
        manifest["skipped"] == []
        and manifest["versions"]["numpy"] == np.__version__
        and "simulated" not in manifest
    )
    numbers = {"train": (8, 9, 10), "test": (11,)}
    for part, expected in numbers.items():
        rows = np.load(whole / f"{part}.npy", mmap_mode="r", allow_pickle=False)
        assert (
            rows.shape == (10 * len(expected), 80, 2, 128, 16)
            and rows.dtype == np.uint8
            and rows.flags.c_contiguous
        )
        names = [f"{name}/cifar10_{name}_{n}.aedat" for n in expected for name in CLASSES]
        assert [entry["file"] for entry in manifest[part]] == names
        for row, entry in zip(rows, manifest[part], strict=True):
            path = recordings / entry["file"]
            assert np.array_equal(unpack(row), frames(read(path))) and row.any()
            assert CLASSES[entry["label"]] == path.parent.name and entry["events"] == 200
            assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            assert entry["dropped"] == {"special": 0, "outside": 0} and entry["steps_back"] == 0


def test_splits():
    def numbers(count, split, label=0):
        return np.flatnonzero(prepare.tested(range(count), split, label, count <= 900)).tolist()

    assert numbers(1000, "first900") == numbers(1000, "last100") == list(range(900, 1000))
    assert numbers(999, "first900") == list(range(900, 999)) and numbers(10, "first900") == [9]
    few = prepare.tested(
        [3, 850, 899, 900, 999], "first900", 0, False
    )  # of a set with recordings missing
    assert few.tolist() == [False, False, False, True, True]
    assert numbers(150, "last100") == list(range(50, 150))
    drawn = [numbers(1000, split, label) for split in ("random-0", "random-1") for label in (0, 1)]
    assert (
        all(len(set(test)) == 100 for test in drawn) and len({tuple(test) for test in drawn}) == 4
    )
    assert drawn[0] == numbers(1000, "random-0") and max(drawn[0]) > 900 and min(drawn[0]) < 100
    with pytest.raises(
        UseError, match="last100: bird has 100 recordings, more than 100 are needed"
    ):
        numbers(100, "last100", 2)


def test_every_recording_is_in_one_part(recordings, tmp_path):
    run(recordings, tmp_path, "--split random-3")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    files = [entry["file"] for part in ("train", "test") for entry in manifest[part]]
    assert len(files) == len(set(files)) == 10 * COUNT and manifest["split"] == "random-3"
    assert sorted(entry["label"] for entry in manifest["test"]) == list(range(10))


def test_any_number_of_processes(recordings, whole, tmp_path):
    run(recordings, tmp_path, "--workers 1")
    assert content(tmp_path) == content(whole)


def children(pid):
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_kill_and_go_on(recordings, tmp_path, capsys):
    """SIGKILL in the middle of a real run: no worker stays, nothing looks finished, the same command ends bit-identically."""
    source = tmp_path / "many"
    for name in CLASSES:
        (source / name).mkdir(parents=True)
        for n in range(30):
            os.link(
                recordings / name / f"cifar10_{name}_{n % COUNT + 8}.aedat",
                source / name / f"{n}.aedat",
            )
    script = ROOT / "neuromorphic_tasks/data/dvscifar_dataloader.py"  # the README's name of it
    process = start([script, "--source", source, "--workers", 2], tmp_path)
    output = source / "prepared/first900"
    journal, until = output / "journal.jsonl", time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 40):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}/cwd").exists() for pid in workers):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert len(workers) == 2 and not (output / "manifest.json").exists()
    done = journal.read_bytes().count(b"\n") - 1
    assert 40 <= done < 300
    capsys.readouterr()
    guard(prepare.main, f"--source {source} --workers 2".split())
    assert f"going on after {done} of 300 recordings" in capsys.readouterr().out
    run(source, tmp_path / "again")
    assert content(output) == content(tmp_path / "again") and set(content(output)) == RESULT


class Cut(Exception):
    """The preparation is cut off here."""


def cut_off(monkeypatch, source, output, after):
    """Prepare `after` recordings of `source`."""
    original, left = store.Store.add, iter(range(after))

    def add(self, entry, row):
        if next(left, None) is None:
            raise Cut
        original(self, entry, row)

    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "add", add)
        with pytest.raises(Cut):
            prepare.main(f"--source {source} --output {output} --workers 2".split())


DAMAGE = {  # name: (what happened to the files of a run cut off after 5 recordings, how many of them still hold)
    "nothing": (lambda output: None, 5),
    "half a row": (lambda output: append(output / "train.npy.part", b"\1" * 1000), 5),
    "a row without its line": (
        lambda output: append(output / "train.npy.part", b"\1" * store.BYTES),
        5,
    ),
    "more rows than there will be": (
        lambda output: append(output / "test.npy.part", b"\1" * 11 * store.BYTES),
        5,
    ),
    "half a line": (lambda output: append(output / "journal.jsonl", b'{"file": "airpl'), 5),
    "a line without its end": (lambda output: cut(output / "journal.jsonl", 1), 4),
    "a line without its row": (lambda output: cut(output / "train.npy.part", 1), 4),
    "a row of zeros": (
        lambda output: overwrite(output / "train.npy.part", -2 * store.BYTES, bytes(store.BYTES)),
        3,
    ),
    "no journal": (lambda output: (output / "journal.jsonl").unlink(), 0),
    "no rows": (lambda output: (output / "train.npy.part").unlink(), 0),
    "an empty journal": (lambda output: (output / "journal.jsonl").write_bytes(b""), 0),
    "a journal of zeros": (lambda output: (output / "journal.jsonl").write_bytes(bytes(999)), 0),
}


def append(path, data):
    path.write_bytes(path.read_bytes() + data)


def cut(path, count):
    path.write_bytes(path.read_bytes()[:-count])


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END)
        file.write(data)


@pytest.mark.parametrize("damage", DAMAGE)
def test_half_written_files_are_noticed(recordings, whole, monkeypatch, tmp_path, capsys, damage):
    cut_off(monkeypatch, recordings, tmp_path, 5)
    do, kept = DAMAGE[damage]
    do(tmp_path)
    assert not is_prepared(tmp_path)
    run(recordings, tmp_path)
    assert (
        f"going on after {kept} of 40" if kept else "prepared 30 training"
    ) in capsys.readouterr().out.splitlines()[0]
    assert content(tmp_path) == content(whole)


def is_prepared(folder):
    return (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    "name, after", [("replace", 0), ("replace", 1), ("write_json", 0), ("fsync", 1)]
)
def test_cut_off_while_it_is_finished(
    recordings, whole, monkeypatch, tmp_path, capsys, name, after
):
    """New rows in the place of others: old and new files never look like one finished folder; nothing is done twice."""
    run(recordings, tmp_path, "--split random-0")
    calls, target = [], store if name == "write_json" else store.os
    original = getattr(target, name)

    def fail(*args):
        calls.append(args)
        if len(calls) > after:
            raise Cut
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, fail)
        with pytest.raises(Cut):
            prepare.main(f"--source {recordings} --output {tmp_path} --workers 2".split())
    assert is_prepared(tmp_path) == (
        name == "fsync"
    )  # until the new rows are safe, the old ones stay
    capsys.readouterr()
    run(recordings, tmp_path)
    assert "going on after 40 of 40" in capsys.readouterr().out
    assert content(tmp_path) == content(whole)


def test_finished_data_is_left_alone_until_something_changes(recordings, tmp_path, capsys):
    source, output = tmp_path / "source", tmp_path / "output"
    shutil.copytree(recordings, source)
    run(source, output)
    first, times = content(output), {p: p.stat().st_mtime_ns for p in output.iterdir()}
    run(source, output)
    assert "prepared already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in output.iterdir()} == times
    rows = np.load(output / "train.npy", mmap_mode="r")
    before = rows.copy()
    recording(source / "bird/cifar10_bird_9.aedat", seed=1)  # of the same size
    run(source, output)
    after = np.load(output / "train.npy")
    changed = [i for i in range(30) if not np.array_equal(before[i], after[i])]
    files = [entry["file"] for entry in json.loads((output / "manifest.json").read_text())["train"]]
    assert [files[i] for i in changed] == ["bird/cifar10_bird_9.aedat"]
    assert np.array_equal(rows, before)  # who has the old file open keeps it
    recording(source / "dog/cifar10_dog_12.aedat")
    run(source, output)
    assert len(np.load(output / "train.npy")) == 31
    shutil.copy(output / "test.npy", output / "train.npy")
    run(source, output)
    assert len(np.load(output / "train.npy")) == 31 and content(output) != first


def test_a_change_during_an_interruption(recordings, monkeypatch, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(recordings, source)
    cut_off(monkeypatch, source, tmp_path / "output", 8)
    recording(source / "cat/cifar10_cat_8.aedat", seed=1)  # the fourth
    run(source, tmp_path / "output")
    assert "going on after 3 of 40" in capsys.readouterr().out
    run(source, tmp_path / "again")
    assert content(tmp_path / "output") == content(tmp_path / "again")
    cut_off(monkeypatch, source, tmp_path / "third", 8)
    run(source, tmp_path / "third", "--split random-0")
    assert "going on" not in capsys.readouterr().out


def test_full_disk(recordings, whole, fails, tmp_path, monkeypatch):
    """A write beyond the limit fails as on a full disk; what is done stays, and the same command goes on with it."""
    argv = f"--source {recordings} --output {tmp_path}/out --workers 2"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    fails(prepare.main, argv, "40 recordings need 0.01 GB", "make room", status=1)
    monkeypatch.undo()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.BYTES * 7 // 2, limits[1]))
    try:
        fails(
            prepare.main,
            argv,
            f"cannot write to {tmp_path}/out",
            "the same command goes on",
            status=1,
            keep=recordings,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "out/journal.jsonl").read_bytes().count(b"\n") == 1 + 3 and not is_prepared(
        tmp_path / "out"
    )
    run(recordings, tmp_path / "out")
    assert content(tmp_path / "out") == content(whole)


def test_bad_recordings_end_the_run_or_are_listed(recordings, fails, tmp_path, capsys):
    source, output = tmp_path / "source", tmp_path / "output"
    shutil.copytree(recordings, source)
    cut_file, short = source / "deer/cifar10_deer_9.aedat", source / "ship/cifar10_ship_11.aedat"
    cut(cut_file, 3)
    recording(short, 79)
    argv = f"--source {source} --output {output} --workers 2"
    fails(prepare.main, argv, f"{cut_file} is truncated at byte", "--skip_bad", keep=source)
    assert not is_prepared(output)
    run(source, output, "--skip_bad")
    out = capsys.readouterr().out
    assert (
        "going on after 14 of 40" in out
        and "prepared 29 training and 9 test recordings, 2 skipped" in out
    )
    manifest = json.loads((output / "manifest.json").read_text())
    assert [(e["file"], e["reason"].split(":")[0]) for e in manifest["skipped"]] == [
        (
            "deer/cifar10_deer_9.aedat",
            f"{cut_file} is truncated at byte {cut_file.stat().st_size - 5}",
        ),
        (
            "ship/cifar10_ship_11.aedat",
            f"{short} holds 79 events, expected at least 80, one per frame; download or convert it "
            "anew, or leave it out",
        ),
    ]
    for part, count in (("train", 29), ("test", 9)):
        rows = np.load(output / f"{part}.npy")
        assert len(rows) == len(manifest[part]) == count
        for row, entry in zip(rows, manifest[part], strict=True):
            assert np.array_equal(unpack(row), frames(read(source / entry["file"])))
    run(source, output, "--skip_bad")
    assert "prepared already" in capsys.readouterr().out
    before = content(output)
    fails(prepare.main, argv, f"{cut_file} is truncated at byte")
    assert before.items() <= content(output).items()  # the finished data stays


def link(path):
    path.symlink_to("/absent")


def test_links_whose_target_is_gone(recordings, fails, tmp_path, capsys):
    """Named by the first run and by those after it, whether the recording was there before or not."""
    source, output = tmp_path / "source", tmp_path / "output"
    shutil.copytree(recordings, source)
    argv = f"--source {source} --output {output} --workers 2"
    run(source, output)
    gone = source / "frog/cifar10_frog_9.aedat"
    gone.unlink()
    link(gone)
    for _ in range(2):
        fails(
            prepare.main,
            argv,
            f"{gone} cannot be read (No such file or directory): it is a link to /absent",
            keep=source,
        )
    for said in ("1 skipped", "prepared already"):
        run(source, output, "--skip_bad")
        assert said in capsys.readouterr().out
    assert [e["file"] for e in json.loads((output / "manifest.json").read_text())["skipped"]] == [
        "frog/cifar10_frog_9.aedat"
    ]


def test_numbers_from_900_are_for_testing(tmp_path, capsys):
    for name, numbers in (("cat", (3, 898, 899, 900)), ("dog", (5, 910, 998, 999))):
        for n in numbers:
            recording(tmp_path / name / f"cifar10_{name}_{n}.aedat")
    run(tmp_path, tmp_path / "prepared/a")
    manifest = json.loads((tmp_path / "prepared/a/manifest.json").read_text())
    tested = {int(entry["file"].split("_")[-1].split(".")[0]) for entry in manifest["test"]}
    assert tested == {900, 910, 998, 999} and len(manifest["train"]) == 4
    assert "not 900 / 100: 3 / 1 of cat; 1 / 3 of dog" in capsys.readouterr().out


def test_no_more_processes_than_recordings(monkeypatch):
    started, original = [], pool.ProcessPoolExecutor
    monkeypatch.setattr(
        pool, "ProcessPoolExecutor", lambda n, **more: started.append(n) or original(n, **more)
    )
    assert list(pool.ordered(str, [(1,), (2,)], 1000)) == ["(1,)", "(2,)"] and started == [2]
    assert pool.cores() == len(os.sched_getaffinity(0))


def test_a_worker_that_dies(recordings, fails, monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "read", lambda path: os._exit(3))
    fails(
        prepare.main,
        f"--source {recordings} --output {tmp_path} --workers 1",
        "a worker process died",
        "airplane/cifar10",
        status=1,
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda root: [p.unlink() for p in root.glob("cat/*") if not p.match("*_8.*")],
            ("no recording of cat for the train part", "least two", "or remove {s}/cat"),
        ),
        (
            lambda root: link(root / "cat/12.aedat"),
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
        (lambda root: shutil.rmtree(root), ("no recordings at {s}", "--source")),
        (
            lambda root: [shutil.rmtree(root / name) for name in CLASSES],
            ("{s} holds no recordings",),
        ),
        (
            lambda root: [p.unlink() for p in root.glob("*/*") if not p.match("*_8.*")],
            ("leaves no recording of airplane",),
        ),
    ],
)
def test_sources_that_cannot_be_prepared(recordings, fails, tmp_path, change, words):
    source = tmp_path / "source"
    shutil.copytree(recordings, source)
    for name in (".DS_Store", "cat/._9.aedat", "cat/notes.txt", "readme.md"):
        (source / name).write_text("passed over")
    change(source)
    fails(
        prepare.main,
        f"--source {source} --output {tmp_path}/out --workers 1",
        *(w.format(s=source) for w in words),
    )
    assert not is_prepared(tmp_path / "out")


def test_options_that_cannot_hold(recordings, fails, tmp_path):
    argv = f"--source {recordings} --output "
    fails(
        prepare.main,
        argv + f"{tmp_path} --split first90",
        "expected first900, last100 or random-<seed>, got 'first90'",
    )
    fails(
        prepare.main,
        argv + f"{tmp_path} --split last100",
        "airplane has 4 recordings, more than 100 are needed",
    )
    fails(prepare.main, argv + f"{recordings}/airplane", "lies among the recordings")
    (tmp_path / "file").write_text("")
    fails(prepare.main, argv + f"{tmp_path}/file", f"cannot write to {tmp_path}/file", status=1)
    with store.Store(tmp_path / "busy", {}):
        fails(prepare.main, argv + f"{tmp_path}/busy", "another preparation is at work")


def test_simulated_recordings_are_prepared(fails, tmp_path, capsys):
    argv = f"--output {tmp_path}/made --per_class 2 --events 500 --workers 2"
    guard(simulate.main, argv.split())
    made = digests(tmp_path / "made")
    (tmp_path / "made/dog/cifar10_dog_1.aedat").unlink()
    guard(simulate.main, argv.replace("--workers 2", "--workers 1").split())
    assert digests(tmp_path / "made") == made and len(made) == 21
    fails(
        simulate.main,
        f"{argv} --seed 1",
        "were not made with these settings",
        keep=tmp_path / "made",
    )
    fails(
        simulate.main,
        f"--output {tmp_path}/x --per_class 999",
        "--per_class 999: scikit-learn digits has 178 images",
    )
    fails(simulate.main, f"{argv} --data_root x", "--data_root does nothing here")
    run(tmp_path / "made", tmp_path / "out")
    assert "note:" not in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (
        manifest["simulated"]["images"] == "scikit-learn digits"
        and manifest["simulated"]["events"] == 500
    )
    assert [entry["label"] for entry in manifest["train"]] == list(range(10)) and manifest["train"][
        0
    ]["events"] == 500
    guard(simulate.main, f"--output {tmp_path}/other --per_class 1 --events 500 --seed 1".split())
    name = "cat/cifar10_cat_0.aedat"
    assert not np.array_equal(read(tmp_path / "other" / name).t, read(tmp_path / "made" / name).t)


def test_a_part_of_the_classes(recordings, tmp_path, capsys):
    shutil.copytree(recordings / "cat", tmp_path / "cat")
    run(tmp_path, tmp_path / "prepared/a")
    assert "holds no recordings of airplane, automobile, bird, deer" in capsys.readouterr().out
    assert json.loads((tmp_path / "prepared/a/manifest.json").read_text())["test"][0]["label"] == 3


def test_cifar10_is_recorded(cifar, tmp_path, capsys):
    guard(
        simulate.main,
        f"--dataset CIFAR10 --data_root {cifar} --output {tmp_path} --per_class 1 --events 300".split(),
    )
    assert (
        len(list(tmp_path.glob("*/*.aedat"))) == 10
        and "CIFAR-10 (JPEG copy)" in capsys.readouterr().out
    )


@pytest.mark.long
def test_throughput(tmp_path):
    """A core: at least 20 recordings of 200,000 events per second; under 400 kB each, under 500 MB of memory a process."""
    for name in CLASSES:
        for n in range(20):
            recording(tmp_path / name / f"{n}.aedat", 200_000)
    measure = (
        "import resource, subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
    )
    said = script(
        [
            "-c",
            measure,
            ROOT / "neuromorphic_tasks/data/dvscifar_prepare.py",
            "--source",
            tmp_path,
            "--workers",
            1,
        ],
        tmp_path,
    )
    seconds, peak = map(float, said.split()[-2:])  # of both processes together; the largest
    size = sum(path.stat().st_size for path in (tmp_path / "prepared/first900").iterdir()) / 200_000
    print(
        f"{said}{200 / seconds:.1f} recordings per second of a core, {size:.0f} kB per recording, {peak:.0f} MB"
    )
    assert 200 / seconds >= 20 and size < 400 and peak < 500
