"""What is not installed is named with the line that installs it."""

import re

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


def test_the_extras_are_pinned():
    lines = (ROOT / "requirements-export.txt").read_text().splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert wanted and all(re.match(r"[a-z]+==[\d.]+($|  #)", line) for line in wanted)
