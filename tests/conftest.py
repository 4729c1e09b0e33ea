"""Shared fixtures."""

import hashlib
import os
import re
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = (
        "1"  # read when a kernel is defined: Triton's interpreter stands in for the GPU
    )

from engine.errors import guard
from tests.helpers import ROOT, image_folder

torch.set_num_threads(
    1
)  # tiny tensors: a second thread would spin, and wait for whatever else the machine does


@pytest.fixture(autouse=True)
def seeded():
    """Random numbers of a test do not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def scripts(tmp_path):
    """A folder in which the scripts lie as links, and `python3` (bin/) is this interpreter."""
    import sys

    for script in ROOT.glob("*.py"):
        (tmp_path / script.name).symlink_to(script)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    return tmp_path


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    """A folder with a stand-in for the CIFAR-10 image copy: 24 training and 12 test images of noise."""
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 24), ("test", 12)):
        image_folder(root / "cifar10-jpeg" / part, 10, count)
    return root


@pytest.fixture
def fails(capsys):
    """fails(main, argv, *words, status=2): run a script's main in this process and return its one line of error.

    It must end with `status`, name `words`, show no traceback, and leave the files in `keep` as they were.
    """

    def run(main, argv, *words, status=2, keep=None):
        before = digests(keep)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            guard(main, argv.split() if isinstance(argv, str) else argv)
        err = capsys.readouterr().err
        lines = [line.strip() for line in re.split(r"[\r\n]+", err) if line.strip()]
        errors = [line for line in lines if "error:" in line]
        assert end.value.code == status and len(errors) == 1 and errors[0] == lines[-1], err
        assert "Traceback" not in err and ": error: " in errors[0]
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
