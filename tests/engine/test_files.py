"""Files are written whole or not at all."""

import errno
import fcntl
import os
import signal
from pathlib import Path

import pytest
import torch

from engine import checkpoint, log
from engine.errors import RunError, UseError
from engine.files import locked, write_atomic, write_proved, write_text


@pytest.fixture
def old(tmp_path):
    """A file that is there already."""
    path = tmp_path / "last.pth"
    path.write_bytes(b"what was there")
    return path


def half(error):
    """A writer that fails in the middle."""

    def write(temporary):
        Path(temporary).write_bytes(b"half of it")
        raise error

    return write


def test_a_file_is_replaced(old):
    write_text(old, "new")
    assert old.read_text() == "new"
    assert list(old.parent.iterdir()) == [old]


def test_who_reads_the_old_file_reads_on(old):
    """The new one takes its name; it is not written over."""
    with open(old) as reader:
        write_text(old, "new")
        assert reader.read() == "what was there"


def test_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "file.txt", "text")
    assert (tmp_path / "a/b/file.txt").read_text() == "text"


@pytest.mark.parametrize(
    "error, raised",
    [
        (RuntimeError("disk full"), RunError),  # what torch.save raises
        (OSError("disk full"), RunError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_failed_write_leaves_the_old_file(old, error, raised):
    with pytest.raises(raised):
        write_atomic(old, half(error))
    assert old.read_bytes() == b"what was there"
    assert list(old.parent.iterdir()) == [old]


def test_what_is_read_back_otherwise_is_not_kept(old):
    before = old.read_bytes()

    def write(temporary):
        temporary.write_bytes(b"new")

    with pytest.raises(RunError, match="read back otherwise"):
        write_proved(old, write, lambda temporary: temporary.read_bytes() == b"other")
    assert old.read_bytes() == before
    write_proved(old, write, lambda temporary: temporary.read_bytes() == b"new")
    assert old.read_bytes() == b"new"


def test_a_failed_write_says_what_to_do(old):
    with pytest.raises(RunError) as error:
        write_atomic(old, half(OSError("no space left")))
    message = str(error.value)
    assert message.startswith(f"cannot write {old} (no space left): check the disk's space")
    assert "a file that was there is as it was" in message


def test_a_checkpoint_is_written_so(old, monkeypatch):
    def save(content, temporary):
        half(RuntimeError("PytorchStreamWriter failed writing file"))(temporary)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RunError, match=r"cannot write .*last.pth"):
        checkpoint.save(old, {})
    assert old.read_bytes() == b"what was there"


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("{}")
    circular = {}
    circular["itself"] = circular
    with pytest.raises(ValueError):
        log.write_json(path, circular)
    assert path.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_had_begun_to_write_goes(old):
    left = old.with_name(".last.pth.1.tmp")
    left.write_bytes(b"half of it")
    write_text(old, "new")
    assert list(old.parent.iterdir()) == [old]


def test_what_another_process_is_writing_stays(old):
    """Two runs may write the same file."""

    def write(temporary):
        other = os.fork()
        if not other:
            status = 1
            try:
                temporary.write_text("mine")
                write_text(old, "its")
                status = 0
            finally:
                # a failure must not go on as a second test run
                os._exit(status)
        assert os.waitpid(other, 0)[1] == 0
        assert temporary.is_file()
        temporary.write_text("mine")

    write_atomic(old, write)
    assert old.read_text() == "mine"
    assert list(old.parent.iterdir()) == [old]


def test_files_of_other_names_stay(old):
    other = old.with_name(".best.pth.1.tmp")
    other.write_bytes(b"half of it")
    write_text(old, "new")
    assert other.is_file()


# ---- a folder for one process


def test_a_folder_in_use_names_its_user(tmp_path):
    with locked(tmp_path / "run", "end it"):
        with pytest.raises(UseError) as error, locked(tmp_path / "run", "end it"):
            pass
        assert f"run is in use by process {os.getpid()} or " in str(error.value)
        assert str(error.value).endswith("wait for it, or end it")
    with locked(tmp_path / "run", "end it"):
        pass


def test_a_worker_that_outlives_its_process_does_not_hold_the_folder(tmp_path):
    """As those that decode images do, for some seconds after a kill."""
    reading, writing = os.pipe()
    with locked(tmp_path, "end it"):
        worker = os.fork()
        if not worker:
            os.write(writing, b"begun")
            signal.pause()
        os.read(reading, 5)
    try:
        with locked(tmp_path, "end it"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def refuse(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path, "end it"):
        pass
    assert f"{tmp_path} cannot be locked (Function not implemented)" in capsys.readouterr().out
