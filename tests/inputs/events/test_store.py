"""Prepared data on disk: cut off at any place and given again, a preparation ends bit for bit as if
it had not been.
"""

import errno
import fcntl
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engine.errors import guard
from inputs.events import store
from inputs.events.formats import CLASSES
from neuromorphic_tasks.data import dvscifar_prepare
from tests.helpers import PATIENCE, ROOT, end, start
from tests.inputs.events.made import (
    Cut,
    content,
    cut_off,
    is_prepared,
    manifest_of,
    prepare,
    recording,
    shorten,
)

RESULT = {"train.npy", "test.npy", "manifest.json"}


# ---- killed ----


def children(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def wait_until(true):
    """Wait for a condition, but not for ever."""
    last = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < last
        time.sleep(0.005)


@pytest.fixture
def killed(recordings, tmp_path):
    """(source of 300 recordings, output) of a real run that SIGKILL ended on its way."""
    source = tmp_path / "many"
    for name in CLASSES:
        (source / name).mkdir(parents=True)
        for n in range(30):
            original = recordings / name / f"cifar10_{name}_{n % 4 + 8}.aedat"
            os.link(original, source / name / f"{n}.aedat")
    script = ROOT / "neuromorphic_tasks/data/dvscifar_dataloader.py"  # the README's name of it
    process = start([script, "--source", source, "--workers", 2], tmp_path)
    output = source / "prepared/first900"
    journal = output / "journal.jsonl"

    def begun():
        assert process.poll() is None
        return journal.exists() and journal.read_bytes().count(b"\n") > 40

    wait_until(begun)
    # it does not end while it is looked at
    process.send_signal(signal.SIGSTOP)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    end(process)
    assert len(workers) == 2
    # no worker stays
    wait_until(lambda: not any(Path(f"/proc/{pid}/cwd").exists() for pid in workers))
    return source, output


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_kill_and_go_on(killed, tmp_path, capsys):
    source, output = killed
    assert not is_prepared(output)
    done = (output / "journal.jsonl").read_bytes().count(b"\n") - 1
    assert 40 <= done < 300
    guard(dvscifar_prepare.main, f"--source {source} --workers 2".split())
    assert f"going on after {done} of 300 recordings" in capsys.readouterr().out
    prepare(source, tmp_path / "again")
    assert content(output) == content(tmp_path / "again")
    assert set(content(output)) == RESULT


# ---- half-written files ----


def append(path, data):
    path.write_bytes(path.read_bytes() + data)


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END)
        file.write(data)


def rename_last(output, key):
    path = output / "journal.jsonl"
    before, _, after = path.read_bytes().rpartition(key)
    path.write_bytes(before + b"other" + after)


ROW = b"\1" * store.BYTES
DAMAGE = {  # what happened to files of a run cut off after 5 recordings: (how, how many still hold)
    "nothing": (lambda output: None, 5),
    "half a row": (lambda output: append(output / "train.npy.part", ROW[:1000]), 5),
    "a row without its line": (lambda output: append(output / "train.npy.part", ROW), 5),
    "more rows than there will be": (lambda output: append(output / "test.npy.part", ROW * 11), 5),
    "half a line": (lambda output: append(output / "journal.jsonl", b'{"file": "airpl'), 5),
    "a line without its end": (lambda output: shorten(output / "journal.jsonl", 1), 4),
    "a line of another kind": (lambda output: append(output / "journal.jsonl", b"[]\n"), 5),
    "a line without its checksum": (lambda output: rename_last(output, b"crc32"), 4),
    "a line without its events": (lambda output: rename_last(output, b"events"), 4),
    "a line without its row": (lambda output: shorten(output / "train.npy.part", 1), 4),
    "a row of zeros": (
        lambda output: overwrite(output / "train.npy.part", -2 * store.BYTES, bytes(store.BYTES)),
        3,
    ),
    "no journal": (lambda output: (output / "journal.jsonl").unlink(), 0),
    "no rows": (lambda output: (output / "train.npy.part").unlink(), 0),
    "an empty journal": (lambda output: (output / "journal.jsonl").write_bytes(b""), 0),
    "a journal of zeros": (lambda output: (output / "journal.jsonl").write_bytes(bytes(999)), 0),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_half_written_files_are_noticed(recordings, whole, monkeypatch, tmp_path, capsys, damage):
    cut_off(monkeypatch, recordings, tmp_path, 5)
    do, kept = DAMAGE[damage]
    do(tmp_path)
    assert not is_prepared(tmp_path)
    prepare(recordings, tmp_path)
    said = f"going on after {kept} of 40" if kept else "prepared 30 training"
    assert said in capsys.readouterr().out.splitlines()[0]
    assert content(tmp_path) == content(whole)


@pytest.mark.parametrize(
    "name, after", [("replace", 0), ("replace", 1), ("write_json", 0), ("fsync", 1)]
)
def test_cut_off_while_it_is_finished(
    recordings, whole, monkeypatch, tmp_path, capsys, name, after
):
    """New rows in the place of others: old and new files never look like one finished folder, and
    nothing is done twice.
    """
    prepare(recordings, tmp_path, "--split random-0")
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
            dvscifar_prepare.main(f"--source {recordings} --output {tmp_path} --workers 2".split())
    # until the new rows are safe, the old ones stay
    assert is_prepared(tmp_path) == (name == "fsync")
    capsys.readouterr()
    prepare(recordings, tmp_path)
    assert "going on after 40 of 40" in capsys.readouterr().out
    assert content(tmp_path) == content(whole)


# ---- changes ----


@pytest.fixture
def finished(recordings, tmp_path):
    """(source, output) of a finished preparation, both of which may be changed."""
    source, output = tmp_path / "source", tmp_path / "output"
    shutil.copytree(recordings, source)
    prepare(source, output)
    return source, output


def test_finished_data_is_left_alone(finished, capsys):
    source, output = finished
    times = {p: p.stat().st_mtime_ns for p in output.iterdir()}
    prepare(source, output)
    assert "prepared already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in output.iterdir()} == times


def test_a_changed_recording_changes_its_row(finished):
    source, output = finished
    before = np.load(output / "train.npy")
    recording(source / "bird/cifar10_bird_9.aedat", seed=1)  # of the same size
    prepare(source, output)
    after = np.load(output / "train.npy")
    changed = [i for i in range(30) if not np.array_equal(before[i], after[i])]
    files = [entry["file"] for entry in manifest_of(output)["train"]]
    assert [files[i] for i in changed] == ["bird/cifar10_bird_9.aedat"]


def test_who_has_the_old_file_open_keeps_it(finished):
    source, output = finished
    rows = np.load(output / "train.npy", mmap_mode="r")
    before = rows.copy()
    recording(source / "bird/cifar10_bird_9.aedat", seed=1)
    prepare(source, output)
    assert not np.array_equal(np.load(output / "train.npy"), before)
    assert np.array_equal(rows, before)


def test_a_new_recording_has_a_row(finished):
    source, output = finished
    recording(source / "dog/cifar10_dog_12.aedat")
    prepare(source, output)
    assert len(np.load(output / "train.npy")) == 31


def test_rows_of_another_part_are_noticed(finished):
    source, output = finished
    shutil.copy(output / "test.npy", output / "train.npy")
    prepare(source, output)
    assert len(np.load(output / "train.npy")) == 30


def test_a_change_during_an_interruption(recordings, monkeypatch, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(recordings, source)
    cut_off(monkeypatch, source, tmp_path / "output", 8)
    recording(source / "cat/cifar10_cat_8.aedat", seed=1)  # the fourth
    prepare(source, tmp_path / "output")
    assert "going on after 3 of 40" in capsys.readouterr().out
    prepare(source, tmp_path / "again")
    assert content(tmp_path / "output") == content(tmp_path / "again")


def test_another_split_starts_anew(recordings, monkeypatch, tmp_path, capsys):
    cut_off(monkeypatch, recordings, tmp_path, 8)
    prepare(recordings, tmp_path, "--split random-0")
    assert "going on" not in capsys.readouterr().out


# ---- the disk ----


def test_too_little_space(recordings, fails, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    argv = f"--source {recordings} --output {tmp_path}/out"
    words = ("40 recordings need 0.01 GB", "make room")
    fails(dvscifar_prepare.main, argv, *words, status=1)


def test_full_disk(recordings, whole, fails, tmp_path):
    """A write beyond the limit fails as on a full disk; what is done stays, and the same command
    goes on with it.
    """
    output = tmp_path / "out"
    argv = f"--source {recordings} --output {output} --workers 2"
    words = (f"cannot write to {output}", "the same command goes on")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.BYTES * 7 // 2, limits[1]))
    try:
        fails(dvscifar_prepare.main, argv, *words, status=1, keep=recordings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (output / "journal.jsonl").read_bytes().count(b"\n") == 1 + 3
    assert not is_prepared(output)
    prepare(recordings, output)
    assert content(output) == content(whole)


def test_a_file_in_the_place_of_the_folder(recordings, fails, tmp_path):
    (tmp_path / "file").write_text("")
    argv = f"--source {recordings} --output {tmp_path}/file"
    fails(dvscifar_prepare.main, argv, f"cannot write to {tmp_path}/file", status=1)


def test_a_file_system_without_locks(recordings, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    dvscifar_prepare.main(f"--source {recordings} --output {tmp_path}/free".split())
    assert "free cannot be locked (No locks available): see to it" in capsys.readouterr().out
    assert list((tmp_path / "free").glob("**/manifest.json"))


def test_two_at_a_time(recordings, fails, tmp_path):
    argv = f"--source {recordings} --output {tmp_path}/busy"
    task = store.Task(recordings, [], False, {})
    with store.Store(tmp_path / "busy", task):
        fails(dvscifar_prepare.main, argv, "another preparation is at work")
