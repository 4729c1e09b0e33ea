"""What a user meets of an error: one line, unless it is a fault of the program."""

import errno
import os
import sys
import threading
import time
import traceback

import pytest
import torch

from engine.errors import RunError, UseError, guard


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize("error, status", [(UseError("a\n  b"), 2), (RunError("a b"), 1)])
def test_an_error_is_one_line(error, status, capsys):
    with pytest.raises(SystemExit) as ended:
        guard(raising(error), [])
    assert ended.value.code == status
    assert capsys.readouterr().err.endswith("error: a b\n")


def too_much(argv):
    torch.empty(1 << 58)


def test_a_reader_of_the_output_that_ended_is_no_full_disk(capsys):
    with pytest.raises(SystemExit):
        guard(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")), [])
    assert "what read the output has ended" in capsys.readouterr().err


@pytest.mark.parametrize(
    "main",
    [
        too_much,
        raising(MemoryError()),
        raising(torch.OutOfMemoryError("CUDA out of memory. Tried")),
    ],
    ids=["CPU", "Python", "GPU"],
)
def test_a_lack_of_memory_is_one_line(main, capsys):
    with pytest.raises(SystemExit) as ended:
        guard(main, [])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: out of memory (" in line
    assert "lower --batch_size" in line


def test_a_full_gpu_says_what_this_process_has_of_it(capsys):
    """Others may have the rest."""
    said = (
        "CUDA out of memory. Tried to allocate 128.00 MiB. GPU 0 has a total capacity of 139.80 "
        "GiB of which 26.25 MiB is free. Process 7 has 99.90 GiB memory in use. Including non-"
        "PyTorch memory, this process has 39.80 GiB memory in use. Of the allocated memory 2.00 GiB"
    )
    with pytest.raises(SystemExit):
        guard(raising(torch.OutOfMemoryError(said)), [])
    (line,) = capsys.readouterr().err.splitlines()
    assert "Tried to allocate 128.00 MiB." in line
    assert " ...; this process has 39.80 GiB memory in use): lower --batch_size" in line


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_fault_of_the_machine_is_one_line(code, capsys):
    with pytest.raises(SystemExit) as ended:
        guard(raising(OSError(code, os.strerror(code), "a/file")), [])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: [Errno {code}] {os.strerror(code)}: 'a/file': check " in line


def test_a_fault_of_the_machine_is_told_by_the_main_thread_alone(capsys, monkeypatch):
    """That of a thread, such as TensorBoard's, comes up again where its work is waited for."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def main(argv):
        thread = threading.Thread(target=raising(OSError("no space")), args=[argv])
        thread.start()
        thread.join()
        raise OSError("no space")

    with pytest.raises(SystemExit):
        guard(main, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert "no space" in line


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 7) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 7) exited unexpectedly",
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        "last):\n  ...\nRuntimeError: unable to allocate shared memory(shm) for file </torch_7>",
        "Too many open files. Communication with the workers is no longer possible.",
    ],
)
def test_a_worker_that_is_lost_is_one_line(text, capsys):
    """torch says so by a signal's handler, wherever the main thread is."""
    with pytest.raises(SystemExit) as ended:
        guard(raising(RuntimeError(text)), [])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"({text.splitlines()[-1].strip()}): give fewer --workers" in line
    assert "/dev/shm" in line and "--resume" in line


@pytest.mark.parametrize(
    "text, words",
    [
        ("[pair.cc:534] Connection closed by peer [127.0.0.1]:3. Check logs", "closed by peer"),
        ("[pair.cc:545] Read error [127.0.0.1]:15: Connection reset by peer. This is", "reset by"),
        ("NCCL communicator was aborted on rank 1.", "NCCL communicator was aborted on rank 1"),
    ],
)
def test_a_process_that_is_lost_is_one_line(text, words, capsys):
    with pytest.raises(SystemExit) as ended:
        guard(raising(RuntimeError(text)), [])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "another process of this run was lost (" in line
    assert words in line and line.endswith("the run goes on with --resume <its run folder>")


def test_a_worker_that_is_lost_inside_other_code_is_one_line(capsys):
    """The signal's handler may raise in Python's own code, which then fails in its turn."""

    def main(argv):
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        finally:
            del {}["thread"]

    with pytest.raises(SystemExit):
        guard(main, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert "(DataLoader worker (pid 7) is killed by signal: Killed.): give fewer" in line


def test_a_fault_of_the_program_in_a_worker_keeps_its_traceback():
    text = "Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: shape mismatch"
    with pytest.raises(RuntimeError, match="shape"):
        guard(raising(RuntimeError(text)), [])


def test_an_object_that_was_not_made_says_nothing(capsys, monkeypatch):
    """As torch's iterator over workers, for which there were too few file descriptors."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)

    class Half:
        def __init__(self):
            raise OSError(errno.EMFILE, "Too many open files")

        def __del__(self):
            self.workers.close()

    def main(argv):
        try:
            Half()
        except OSError as error:
            traceback.clear_frames(error.__traceback__)
            raise

    with pytest.raises(SystemExit):
        guard(main, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert "Too many open files" in line


def test_an_interrupt_where_python_cannot_raise_is_not_lost(interruptible, capsys, monkeypatch):
    """As in the hooks of a fork."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)

    class Deaf:
        def __del__(self):
            raise KeyboardInterrupt

    def main(argv):
        Deaf()
        for _ in range(100):
            time.sleep(0.05)

    with pytest.raises(SystemExit) as ended:
        guard(main, [])
    assert ended.value.code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert "interrupted" in line


@pytest.mark.parametrize("argv", [["--debug"], ["-debug"]])
def test_a_traceback_is_for_those_who_ask(argv):
    for error in (UseError("a"), MemoryError(), OSError("a")):
        with pytest.raises(type(error)):
            guard(raising(error), argv)


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shape"):
        guard(raising(RuntimeError("shape mismatch")), [])
