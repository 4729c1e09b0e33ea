"""Inputs with random damage, and what became of them."""

import os
import zlib
from collections import Counter

import numpy as np
import pytest

from engine.errors import UseError

# of the long tests, over all readers: seven of data, checkpoints, configurations
INPUTS = int(os.environ.get("MLIF_TEST_INPUTS", "10000"))
EACH = -(-INPUTS // 9)
SAME, OTHER = "read as it was", "read as it now is"
counts = pytest.mark.parametrize("count", [50, pytest.param(EACH, marks=pytest.mark.long)])
REFUSED = "refused in one line"


def mutated(rng, data):
    """Bytes that are changed, removed, put in, repeated or cut off, at one to three places."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        # headers are short
        at = int(rng.integers(1 + min(len(data), 200 if rng.random() < 0.5 else 2**40)))
        size = int(rng.choice((1, 1, 8, 24, 1000)))
        how = rng.integers(5)
        if how == 0:
            data[at : at + 1] = rng.bytes(1)
        elif how == 1:
            del data[at : at + size]
        elif how == 2:
            data[at:at] = rng.bytes(size)
        elif how == 3:
            data[at:at] = data[at : at + size]
        else:
            del data[-size:]
    return bytes(data)


def outcomes(name, count, attempt):
    """{outcome: how often} of `count` inputs.

    attempt: generator -> outcome of an input that it draws; it may raise the `UseError` of a bad
    one. Anything else that it raises names the input, which is drawn again from its number.
    """
    found = Counter()
    for number in range(count):
        rng = np.random.default_rng([zlib.crc32(name.encode()), number])
        try:
            outcome = attempt(rng)
        except UseError as error:
            assert "\n" not in str(error)
            outcome = REFUSED
        except Exception as error:
            raise AssertionError(f"{name}, input {number}: {error!r}") from error
        found[outcome] += 1
    return found


def try_out(name, count, attempt, capsys):
    """`outcomes`, of which there must be more than one; the long test prints them."""
    found = outcomes(name, count, attempt)
    assert len(found) > 1
    if count == EACH:
        said = ", ".join(f"{number} {outcome}" for outcome, number in found.most_common())
        with capsys.disabled():
            print(f"\n{name}: {count} inputs: {said}", end="")
