"""The report joins the records of campaigns, and says what they found."""

import json

import pytest

from engine.log import write_json
from tests.mutated import REFUSED
from tests.soak import report


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two campaigns: a kill each, a fault, and in the second one a difference."""
    kill = {"chain": "a", "command": "a.py", "broken": [], "signal": "SIGKILL"}
    end = {"chain": "a", "left": 0, "differences": []}
    found = []
    for seed, differences in ((1, []), (2, ["out/a.pth: .model.x"])):
        about = {"seed": seed, "commit": f"c{seed}", "turn": 0}
        found.append(tmp_path / str(seed))
        found[-1].mkdir()
        for name, record in (
            ("kills", kill | {"moment": "save:1:half"}),
            ("ends", end | {"differences": differences}),
        ):
            (found[-1] / f"{name}.jsonl").write_text(f"{json.dumps(about | record)}\n")
    # of a run that was cut off
    with open(found[0] / "kills.jsonl", "a") as file:
        file.write(json.dumps(kill | {"moment": "1 s", "seed": 1, "commit": "c1", "turn": 1}))
    fault = {"kind": "disk full", "name": "0 KiB", "subject": "resume", "real": True, "broken": []}
    fault |= {"seed": 1, "commit": "c1", "bytes_lost": 0, "epochs_lost": 0, "told": "a: error: b"}
    (found[0] / "faults.jsonl").write_text(f"{json.dumps(fault)}\n")
    own = {"inputs": 3, "outcomes": {REFUSED: 2, "read whole": 1}, "failed": {}}
    own |= {"most_seconds": 0.1, "most_mebibytes": 2}
    own |= {"seed": 4, "commit": "c3"}
    hostile = {"inputs": 3, "failed": 0, "skipped": {}}
    hostile |= {"limits": {"seconds": 30, "mebibytes": 1024}, "readers": {"image_folders": own}}
    write_json(tmp_path / "hostile.json", hostile)
    write_json(tmp_path / "machines.json", {"firewall": {"seconds waited": 8}})
    monkeypatch.setattr(report, "FIGURES", tmp_path)
    return found


def test_campaigns_are_joined(folders):
    said = report.page(folders)
    assert "3 kills (seeds 1, 2; commits c1, c2): 0 files" in said
    assert "2 of them lie in 2 runs of 1 chains" in said
    assert "1 faults of 1 kinds (seeds 1; commits c1): 0 bytes and 0 checkpointed" in said
    assert "3 inputs (seeds 4; commits c3), 0 failed" in said
    assert "| image folders | 3 | 2 | 0 | 1 read whole | 0 | 0.1 | 2 |" in said
    assert "| firewall | seconds waited: 8 |" in said


def test_a_difference_is_told(folders):
    said = report.page(folders)
    assert "1 differences from the uninterrupted runs" in said
    assert "- a: out/a.pth: .model.x" in said
