"""The campaign of kills and faults: `make soak`, no part of `make test`."""

import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from tests.soak.campaign import SEED, Campaign
from tests.soak.faults import FAULTS, inject
from tests.soak.ranks import LOST, lose, taken

pytestmark = pytest.mark.soak
# in a short campaign the seed chooses which are left out
DRAWN = random.Random(SEED).sample(FAULTS, len(FAULTS))


@pytest.fixture(scope="module")
def campaign():
    """The campaign; `make soak` begins its records anew, a test that is named adds to them."""
    base = Path(tempfile.mkdtemp(prefix="soak-"))
    yield Campaign(base)
    shutil.rmtree(base)


def test_kills(campaign):
    assert campaign.kill_chains() == []


@pytest.mark.parametrize("fault", DRAWN, ids=lambda fault: f"{fault.kind}, {fault.subject}")
def test_fault(fault, campaign):
    if time.monotonic() > campaign.end:
        pytest.skip("the time of this campaign is over")
    record = inject(campaign, fault)
    if record is None:
        pytest.skip("this machine lets no file system be mounted")
    campaign.note("faults", **record)
    assert record["broken"] == []


@pytest.mark.parametrize("lost", LOST)
def test_a_lost_process(lost, campaign):
    record = lose(campaign, *lost)
    campaign.note("faults", **record)
    assert record["broken"] == []


def test_a_port_that_is_taken(campaign):
    record = taken(campaign)
    campaign.note("faults", **record)
    assert record["broken"] == []
