"""Recordings that several files prepare."""

import pytest

from inputs.events.formats import CLASSES
from tests.inputs.events.made import prepare, recording


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Four recordings of each of the ten classes."""
    root = tmp_path_factory.mktemp("recordings") / "dvs-cifar10"
    for name in CLASSES:
        # not in the order of the alphabet
        for n in (8, 9, 10, 11):
            recording(root / name / f"cifar10_{name}_{n}.aedat")
    return root


@pytest.fixture(scope="session")
def whole(recordings, tmp_path_factory):
    """The folder of an uninterrupted preparation."""
    output = tmp_path_factory.mktemp("whole")
    prepare(recordings, output)
    return output
