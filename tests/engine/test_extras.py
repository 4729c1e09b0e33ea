"""What is not installed is named with the line that installs it."""

import re
import sys

import pytest

from engine.errors import UseError
from engine.extras import need
from tests.helpers import ROOT


def test_a_module_that_is_there():
    import json.decoder

    assert need("json.decoder") is json.decoder


def test_a_missing_one_is_one_line():
    line = r"^onnxx is missing \(No module named 'onnxx'\): pip install -r requirements-export.txt$"
    with pytest.raises(UseError, match=line):
        need("onnxx")


def test_one_that_is_installed_otherwise_says_how(monkeypatch):
    monkeypatch.setitem(sys.modules, "neurobench.models", None)
    with pytest.raises(UseError, match=r"pip install --no-deps -r requirements-neurobench\.txt$"):
        need("neurobench.models")


@pytest.mark.parametrize("part", ["export", "neurobench"])
def test_the_extras_are_pinned(part):
    lines = (ROOT / f"requirements-{part}.txt").read_text().splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert wanted and all(re.match(r"[a-z]+==[\d.]+($|  #)", line) for line in wanted)
