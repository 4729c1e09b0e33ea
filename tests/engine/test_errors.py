"""What a user meets of an error: one line, unless it is a fault of the program."""

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


@pytest.mark.parametrize("argv", [["--debug"], ["-debug"]])
def test_a_traceback_is_for_those_who_ask(argv):
    for error in (UseError("a"), MemoryError()):
        with pytest.raises(type(error)):
            guard(raising(error), argv)


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shape"):
        guard(raising(RuntimeError("shape mismatch")), [])
