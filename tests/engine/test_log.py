"""The run folder: name, configuration, one line per epoch, curves; what a resumed run drops."""

import errno
import json
import os
import sys

import pytest

from engine import log
from engine.dist import World
from engine.errors import RunError, UseError
from engine.log import RunLog


def epochs(folder):
    return [line["epoch"] for line in log.read_lines(folder / "log.jsonl")]


@pytest.fixture
def logged(tmp_path):
    """The folder of a run of three epochs."""
    run = RunLog(tmp_path / "run", {"settings": {"seed": 3}})
    for epoch in (1, 2, 3):
        run.epoch(epoch, {"train_loss": 1 / epoch})
    run.close()
    return tmp_path / "run"


def test_a_run_says_how_it_was_made(logged):
    config = log.read_json(logged / "config.json")
    assert config["settings"] == {"seed": 3}
    assert set(config["versions"]) == {"python", *log.PACKAGES}


def test_an_epoch_is_a_line(logged):
    lines = log.read_lines(logged / "log.jsonl")
    assert lines[1] == {"epoch": 2, "train_loss": 0.5}
    assert len(lines) == 3


def test_an_epoch_is_on_disk_before_the_run_ends(tmp_path):
    RunLog(tmp_path).epoch(1, {})
    assert epochs(tmp_path) == [1]


def test_curves_are_for_tensorboard_alone(tmp_path):
    run = RunLog(tmp_path)
    run.epoch(1, {"train_loss": 2.0}, {"theta/first": 0.5})
    run.close()
    assert log.read_lines(tmp_path / "log.jsonl") == [{"epoch": 1, "train_loss": 2.0}]
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"train_loss" in content
    assert b"theta/first" in content


def test_what_comes_after_the_last_whole_epoch_is_dropped(logged):
    RunLog(logged, resume_epoch=2).close()
    assert epochs(logged) == [1, 2]


def test_a_line_that_was_cut_off_is_dropped(logged):
    with open(logged / "log.jsonl", "a") as file:
        file.write('{"epoch": 4, "train_lo')
    RunLog(logged, resume_epoch=3).close()
    assert epochs(logged) == [1, 2, 3]


def test_a_resumed_run_keeps_its_configuration(logged):
    before = (logged / "config.json").read_bytes()
    RunLog(logged, resume_epoch=2).close()
    assert (logged / "config.json").read_bytes() == before


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunLog(None, {"settings": {}})
    run.epoch(1, {"train_loss": 1.0})
    run.close()
    assert list(tmp_path.iterdir()) == []


def test_without_tensorboard_there_are_no_curves(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = RunLog(tmp_path, {})
    run.epoch(1, {"train_loss": 1.0}, {"theta": 1.0})
    run.close()
    assert "pip install tensorboard" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "log.jsonl"]


def test_a_full_disk_is_told_with_the_way_on(tmp_path):
    run = RunLog(tmp_path)
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(RunError, match=f"cannot write the log .*--resume {tmp_path}"):
        run.epoch(1, {})
    run.close()


@pytest.mark.parametrize("call", ["flush", "close"])
def test_a_full_disk_is_told_by_the_curves_too(call, tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    run = RunLog(tmp_path)
    monkeypatch.setattr(run.board, call, full)
    with pytest.raises(RunError, match=f"cannot write .*No space left .*--resume {tmp_path}"):
        run.epoch(1, {})
        run.close()


def test_a_line_is_on_the_disk_before_the_checkpoint_that_counts_on_it(tmp_path, monkeypatch):
    """Else a power cut could take the line of an epoch that is not trained again."""
    synced, sync = [], os.fsync

    def noted(file):
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        sync(file)

    monkeypatch.setattr(os, "fsync", noted)
    RunLog(tmp_path).epoch(1, {})
    assert synced == [str(tmp_path / "log.jsonl")]


@pytest.mark.parametrize("content", [None, '{"a": 1', ""], ids=["missing", "cut", "empty"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UseError, match=r"summary.json is missing or damaged .*: remove it"):
        log.read_json(path)


def test_damaged_lines_are_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"epoch": 1}) + "\n{")
    with pytest.raises(UseError, match=r"log.jsonl is missing or damaged .*train it anew"):
        log.read_lines(path)


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(log.time, "strftime", lambda form: "20260102-030405")
    names = [log.new_folder(tmp_path / "ann").name for _ in range(3)]
    assert names == ["ann_20260102-030405" + again for again in ("", "-1", "-2")]


def test_run_folders_are_found_whatever_their_name(tmp_path):
    """A folder of images gives its name to the run, brackets and all."""
    base = tmp_path / "ann_x_pics[1]"
    made = [tmp_path / f"{base.name}_{day}-000000" for day in (20260101, 20260102)]
    for folder in (*made, tmp_path / "ann_x_pics1_20260103-000000"):
        folder.mkdir()
        (folder / "best.pth").touch()
    assert log.run_folders(base, "best.pth") == made
    assert log.run_folders(base, "last.pth") == []


def test_a_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UseError, match=r"cannot create the run folder .*: check --output_dir"):
        log.new_folder(tmp_path / "out" / "ann")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_main_process_shows_progress(rank, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    bar = log.progress(range(3), World(rank, 2))
    assert bar.disable == (rank != 0)
    assert list(bar) == [0, 1, 2]


def test_a_damaged_line_is_done_again(tmp_path):
    """Lines that are no objects, nest without end, or whose epoch is no number."""
    odd = ["[]", "3", "[" * 100_000, '{"epoch": "x"}', '{"epoch": [1]}']
    (tmp_path / "log.jsonl").write_text("\n".join(['{"epoch": 1}', *odd, ""]))
    RunLog(tmp_path, resume_epoch=1).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 1}\n'
