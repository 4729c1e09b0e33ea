"""Files of a data folder that are left out: counted by kind, and said."""

from pathlib import Path


def kind(name):
    """The suffix of a file's name in small letters; hidden files are a kind of their own."""
    if name.startswith("."):
        return "hidden"
    return Path(name).suffix.lower() or "without a suffix"


def note(folder, read, left_out):
    """The line that says what was read of a folder and what was not.

    read: as in "3 images". left_out: `Counter` of kinds.
    """
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted((+left_out).items()))
    return f"note: {folder}: {read} read; files that are left out: {kinds}"
