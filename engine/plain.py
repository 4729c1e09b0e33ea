"""Content that somebody else wrote: whether it is plain values, and not more than can be."""

import os
import zipfile

MOST = 100_000  # values; a file of a few bytes may name one list a thousand times
DEEPEST = 50  # of lists in lists
# numbers pack to a sixteenth at best, zeros to a thousandth
RATIO, SMALL = 32, 1 << 26  # unpacked: times the file's size, and bytes that are always fine
PLAIN = (bool, int, float, str, type(None))


def check_plain(content):
    """Refuse nested dictionaries and lists that hold anything but plain values.

    Raises:
        ValueError: an object of another type, a key that is no text, or too much of it all.
    """
    left, count = [(content, 0)], 0
    while left:
        value, depth = left.pop()
        count += 1
        if count > MOST or depth > DEEPEST:
            raise ValueError(f"it unfolds to more than {MOST} values, or {DEEPEST} levels deep")
        if isinstance(value, dict):
            odd = [key for key in value if not isinstance(key, str)]
            if odd:
                raise ValueError(f"it has a key of type {type(odd[0]).__name__}")
            left += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, (list, tuple)):
            left += [(inner, depth + 1) for inner in value]
        elif not isinstance(value, PLAIN):
            raise ValueError(f"it holds a {type(value).__name__}")


def check_unpacked(path, size):
    """Refuse a file that unpacks to `size` bytes, if that is far more than numbers pack to.

    Raises:
        ValueError: says how much it is.
    """
    packed = os.path.getsize(path)
    if size > max(SMALL, RATIO * packed):
        raise ValueError(f"{packed} bytes that unpack to {size}: no numbers do")


def check_archive(path):
    """Refuse a zip archive by `check_unpacked`; no zip archive is fine."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_unpacked(path, sum(entry.file_size for entry in archive.infolist()))
