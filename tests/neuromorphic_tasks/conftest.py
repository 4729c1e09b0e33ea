"""Prepared recordings of the scripts' tests."""

import pytest

from tests.inputs.events.made import write_prepared


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Ten training and five test recordings."""
    return write_prepared(tmp_path_factory.mktemp("dvs") / "prepared")


@pytest.fixture(scope="session")
def swapped(tmp_path_factory):
    """Other recordings in either part."""
    return write_prepared(tmp_path_factory.mktemp("dvs") / "swapped", (5, 10))


@pytest.fixture(scope="session")
def three_classes(tmp_path_factory):
    """Recordings of three classes, of another split."""
    return write_prepared(tmp_path_factory.mktemp("dvs") / "three", (3, 3), "other", classes=3)
