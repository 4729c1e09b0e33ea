"""Shared fixtures."""

import hashlib
import os
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

# Triton's interpreter stands in for a GPU; the variable is read when a kernel is defined
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from engine import zoo
from engine.errors import guard
from engine.generators import seed_all
from models.neuron.backends import compiled, cpp
from tests.helpers import ROOT, cifar_copy
from tests.zoo import fill

# the tensors are tiny: a second thread would spin, and wait for whatever else the machine does
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Skip what needs a C++ compiler where there is none, by its mark or a backend's name."""
    # Inductor looks for g++ alone
    if cpp.compiler() and not compiled.why_not(torch.device("cpu"), torch.float32):
        return
    skip = pytest.mark.skip(reason="no C++ compiler here: install g++ (Debian: apt install g++)")
    for item in items:
        # on a GPU Triton compiles
        if item.get_closest_marker("gpu"):
            continue
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        named = {"cpp", "compiled"} & {str(value) for value in given}
        if named or item.get_closest_marker("compiler"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded():
    """Random numbers of a test do not depend on which tests ran before it."""
    seed_all(0)


@pytest.fixture(autouse=True)
def hooks(monkeypatch):
    """What `guard` does with errors of threads and of cleaning ends with a test."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


@pytest.fixture
def interruptible():
    """A process in the background may ignore interrupts, and so its children do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def scripts(tmp_path):
    """A folder in which the scripts lie as links, and `python3` (bin/) is this interpreter."""
    for script in ROOT.glob("*.py"):
        (tmp_path / script.name).symlink_to(script)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    """A folder with a stand-in for the CIFAR-10 image copy: 24 training, 12 test images."""
    root = tmp_path_factory.mktemp("data")
    cifar_copy(root)
    return root


@pytest.fixture
def small_zoo(tmp_path, monkeypatch):
    """The folder of a zoo of small networks, in the place of the repository's."""
    folder = tmp_path / "zoo"
    monkeypatch.setattr(zoo, "FOLDER", folder)
    fill(folder)
    return folder


@pytest.fixture
def fails(capsys):
    """fails(main, argv, *words, status=2, keep=None): run a script's main in this process, and
    return its one line of error.

    It must end with `status`, name `words`, show no traceback, and leave the files in the folder
    `keep` as they were.
    """

    def run(main, argv, *words, status=2, keep=None):
        before = digests(keep)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            guard(main, argv.split() if isinstance(argv, str) else argv)
        err = capsys.readouterr().err
        lines = [line.strip() for line in re.split(r"[\r\n]+", err) if line.strip()]
        errors = [line for line in lines if "error:" in line]
        assert end.value.code == status, err
        assert errors == lines[-1:], err
        assert "Traceback" not in err
        assert ": error: " in errors[0]
        for word in words:
            assert word in errors[0]
        after = digests(keep)
        assert {path: after.get(path) for path in before} == before
        return errors[0]

    return run


def digests(folder):
    """{path: digest} of every file under a folder."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()] if folder else []
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
