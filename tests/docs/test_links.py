"""Links of the documents: every file, line and heading that they point to is there."""

import re
from pathlib import Path

import pytest

from tests.helpers import ROOT, listed

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CITED = re.compile(r"docs/method\.md,?\s+sections?\s+(\d)")


def documents():
    """Every Markdown file of the repository, and none that a user or a run put there."""
    return sorted(path for path in listed("*.md") if not path.is_symlink())


def prose(path):
    """A document without its fenced blocks."""
    return FENCED.sub("", path.read_text())


def slug(heading):
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(path):
    """The anchors of a document's headings, or of any other file its lines, #L1 and on."""
    if path.suffix != ".md":
        count = len(path.read_text().splitlines())
        return {f"L{number + 1}" for number in range(count)}
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)}


def broken(path):
    """The links of a document that lead nowhere."""
    for target in LINK.findall(CODE.sub("", prose(path))):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield target


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    assert list(broken(path)) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    other = tmp_path / "other.md"
    other.write_text("# A `word`, and more\n")
    page.write_text(
        "[a](other.md) [b](other.md#a-word-and-more) [c](#here) ![d](absent.png)\n"
        "[e](other.md#absent) `[f](absent.md)`\n\n```\n[g](absent.md)\n# not a heading\n```\n"
        "# Here\n[h](#not-a-heading)\n"
    )
    assert list(broken(page)) == ["absent.png", "other.md#absent", "#not-a-heading"]


def test_cited_sections_of_the_method_are_there():
    """Docstrings cite docs/method.md by section number."""
    sections = re.findall(r"^## (\d)\. ", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE)
    assert sections == [str(number) for number in range(10)]
    sources = [
        path
        for folder in ("models", "engine", "inputs", "analysis", "cli", "experiments")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cu")
    ]
    cited = {number for path in sources for number in CITED.findall(path.read_text())}
    assert cited and cited <= set(sections)


def test_files_named_in_the_text_are_there():
    """A path in `code` that ends like a source or a document is one, from the root or the page."""
    named = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|cu|md|txt|yml|sh))`")
    for path in documents():
        for name in named.findall(prose(path)):
            assert (ROOT / name).exists() or (Path(path).parent / name).exists(), f"{path}: {name}"
