"""The pages themselves: their Python examples run, and they are short and narrow enough to read."""

import numpy as np
import pytest
import torch

from analysis import pricing
from tests.docs.commands import blocks
from tests.docs.test_links import documents, prose
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 150
COLUMNS = 160

WITH_EXAMPLES = [path for path in documents() if blocks(path, "python")]


def title(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=title)
def test_python_examples_run(path, tmp_path, monkeypatch):
    """The examples of a page, one after the other, as a reader types them."""
    monkeypatch.chdir(tmp_path)
    # a page may add prices of its own
    monkeypatch.setattr(pricing, "MODELS", dict(pricing.MODELS))
    run = tmp_path / "runs/sweep/0/ann/run"
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{"test_accuracy": 0.9}')
    (run / "config.json").write_text('{"settings": {"seed": 0}}')
    names = {
        "images": torch.randn(4, 3, 32, 32),
        "picture": np.zeros((48, 64, 3), np.uint8),
        "repository": str(ROOT),
    }
    for text in blocks(path, "python"):
        exec(compile(text, title(path), "exec"), names)
    assert names.get("table", [1]) in ([1], [{"seed": 0, "test_accuracy": 0.9}])


def test_there_are_python_examples():
    assert ROOT / "docs" / "python.md" in WITH_EXAMPLES


def test_the_readme_is_short_and_shows_the_first_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= README_LINES
    assert all(command in text for command in ("make demo", "make test", "make demo-dvs"))


@pytest.mark.parametrize("path", PAGES, ids=title)
def test_lines_are_narrow(path):
    """But for rows of tables; commands stand in fenced blocks."""
    lines = [line for line in prose(path).splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > COLUMNS] == []


@pytest.mark.parametrize("path", PAGES[1:], ids=title)
def test_the_readme_leads_to_every_page(path):
    assert f"(docs/{path.name})" in (ROOT / "README.md").read_text()
