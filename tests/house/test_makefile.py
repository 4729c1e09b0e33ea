"""What the targets of the Makefile install."""

import os
import subprocess

import pytest

from tests.helpers import ROOT

EXTRAS = "-r requirements-export.txt"


def printed(target, *words):
    """The commands of a target in a new checkout."""
    command = ["make", "-n", target, *words]
    # the tests may be run by make themselves, with variables of their own
    own = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "PYTHON", "VENV")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=own)
    return done.stdout


@pytest.mark.parametrize("target", ["setup", "test", "test-long", "bench"])
def test_what_exports_has_the_extras(target, tmp_path):
    commands = printed(target, f"VENV={tmp_path}/new")
    assert commands.index("-r requirements.txt") < commands.index(EXTRAS)


def test_the_demo_needs_none_of_them(tmp_path):
    commands = printed("demo", f"VENV={tmp_path}/new")
    assert "-r requirements.txt" in commands and EXTRAS not in commands


def test_another_python_is_left_as_it_is():
    assert "pip install" not in printed("test", "PYTHON=python3")
