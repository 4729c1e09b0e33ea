"""Inputs with random damage, what became of them, and what they took."""

import copy
import os
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

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


KEYS = (None, True, -1, 2.5, "", "x", "\ud800", b"x")
# what may stand anywhere in a structure that somebody else wrote
ODD = (
    None,
    True,
    -1,
    0,
    3,
    10**9,
    2.5,
    float("nan"),
    "",
    "x",
    "\ud800",
    b"x",
    [],
    {},
    {"x": 1},
    [[1, 2], "x"],
)
with warnings.catch_warnings(action="ignore"):  # torch's, of quantised tensors
    QUANTISED = torch.quantize_per_tensor(torch.ones(8), 1.0, 0, torch.quint8)
TENSORS = (
    torch.zeros(0),
    torch.ones(2, 3),
    torch.ones(8, dtype=torch.complex64),
    torch.zeros(1).expand(1000, 1000, 1000),
    torch.zeros(8, device="meta"),
    torch.ones(8).to_sparse(),
    QUANTISED,
    torch.full((8,), float("nan")),
)


def damaged(rng, content, odd=(*ODD, *TENSORS)):
    """A copy of nested dictionaries and lists in which one to three values are something `odd`, are
    another's, or are gone, or keys are others.
    """
    content = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
        places = list(_places(content))
        if not places:
            break
        # what lies deep is more: choose the depth first
        depth = rng.choice(sorted({depth for depth, *_ in places}))
        places = [place for place in places if place[0] == depth]
        _, holder, key = places[rng.integers(len(places))]
        how = rng.integers(6)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[KEYS[rng.integers(len(KEYS))]] = holder.pop(key)
        elif how == 2:
            _, other, where = places[rng.integers(len(places))]
            holder[key] = copy.deepcopy(other[where])
        else:
            holder[key] = copy.deepcopy(odd[rng.integers(len(odd))])
    return content


def _places(content, depth=0):
    """Yield (depth, dictionary or list, key) of every value."""
    if isinstance(content, (dict, list)):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield depth, content, key
            yield from _places(content[key], depth + 1)


def outcome(name, number, attempt, seed=0):
    """What became of one input.

    attempt: generator -> outcome of an input that it draws; it may raise the `UseError` of a bad
    one. Anything else that it raises names the input, which is drawn again from its number.
    """
    # the inputs of seed 0 are those of earlier versions
    rng = np.random.default_rng([zlib.crc32(name.encode()), number, *[seed] * bool(seed)])
    try:
        return attempt(rng)
    except UseError as error:
        assert "\n" not in str(error)
        return REFUSED
    except Exception as error:
        raise AssertionError(f"{name}, input {number}: {error!r}") from error


def outcomes(name, count, attempt):
    """{outcome: how often} of `count` inputs."""
    return Counter(outcome(name, number, attempt) for number in range(count))


def resident(name):
    """VmRSS or VmHWM (its peak) of this process, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) << 10


def measured(do):
    """(what do() returns, seconds of this process, largest growth of its resident memory in bytes);
    seconds of the clock would grow on a busy machine.
    """
    # the kernel's peak starts anew
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), time.process_time()
    result = do()
    return result, time.process_time() - start, max(0, resident("VmHWM") - before)


def try_out(name, count, attempt, capsys):
    """`outcomes`, of which there must be more than one; the long test prints them."""
    found = outcomes(name, count, attempt)
    assert len(found) > 1
    if count == EACH:
        said = ", ".join(f"{number} {outcome}" for outcome, number in found.most_common())
        with capsys.disabled():
            print(f"\n{name}: {count} inputs: {said}", end="")
