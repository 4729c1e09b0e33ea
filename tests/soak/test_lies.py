"""Small files that claim or unfold to too much, or would run something: each is refused in one
line, in bounded time and memory, and leaves no mark.
"""

import pytest

from engine.errors import UseError
from tests.mutated import measured
from tests.soak.lies import GIB, LIES

MOST_SECONDS = 30


def refusal(read):
    """What is said of an input that must be refused, or how it was read instead."""
    try:
        return f"read: {read()!r:.80}"
    except UseError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lie", LIES, ids=[lie.__name__ for lie in LIES])
def test_a_lie_is_refused(lie, tmp_path):
    read = lie(tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert max(sizes) < 1.2 * 2**20
    said, seconds, memory = measured(lambda: refusal(read))
    assert not said.startswith("read: ") and "\n" not in said
    assert str(tmp_path) in said or "argument --" in said
    assert not (tmp_path / "mark").exists()
    assert seconds < MOST_SECONDS
    assert memory < GIB
