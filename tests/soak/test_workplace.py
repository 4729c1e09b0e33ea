"""The tools of the campaign see what they are there to see."""

import errno
import json
import os

import pytest
import torch

import models
from engine import checkpoint
from tests.soak import injected
from tests.soak.workplace import again, damaged, differences, left, state

RUN = "ann_20260102-030405"


@pytest.fixture
def folder(tmp_path):
    """What a chain has made."""
    net = models.build("resnet20", models.ReLU(), width_mult=1 / 32)
    content = checkpoint.content(net, "ann", {"name": "CIFAR10"}, {"resume": ""}, epoch=1)
    for name in ("last.pth", "best.pth"):
        checkpoint.save(tmp_path / "out" / RUN / name, content)
    lines = [{"epoch": epoch, "loss": 0.5, "seconds": epoch} for epoch in (1, 2)]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "out" / RUN / "log.jsonl").write_text(text)
    (tmp_path / "out" / "summary.json").write_text(json.dumps({"run": f"out/{RUN}", "best": 0.5}))
    return tmp_path


def test_what_depends_on_the_moment_is_no_difference(folder):
    want = state(folder)
    later = (folder / "out" / RUN).rename(folder / "out" / "ann_20260203-040506-1")
    text = (later / "log.jsonl").read_text().replace('"seconds": 2', '"seconds": 9')
    (later / "log.jsonl").write_text(text)
    (folder / "out" / "summary.json").write_text(
        json.dumps({"run": f"out/{later.name}", "best": 0.5})
    )
    assert len(want) == 4
    assert differences(state(folder), want) == []


def test_a_bit_of_a_weight_is_a_difference(folder):
    want = state(folder)
    path = folder / "out" / RUN / "last.pth"
    content = checkpoint.load(path)
    name = next(iter(content["model"]))
    content["model"][name].flatten()[0] += 1e-6
    checkpoint.save(path, content)
    assert differences(state(folder), want) == [f"out/ann/last.pth: .model.{name}"]


def test_a_line_of_the_log_and_a_missing_file_are_differences(folder):
    want = state(folder)
    path = folder / "out" / RUN / "log.jsonl"
    path.write_text(path.read_text().replace("0.5", "0.6", 1))
    (folder / "out" / "summary.json").unlink()
    found = differences(state(folder), want)
    assert found == ["out/summary.json: only one has it", "out/ann/log.jsonl: .0.loss"]


def test_half_a_file_is_damage_and_a_temporary_one_is_left(folder):
    assert damaged(folder) == []
    for path in (folder / "out" / "summary.json", folder / "out" / RUN / "best.pth"):
        content = path.read_bytes()
        path.with_name(f".{path.name}.7.tmp").write_bytes(content)
        path.write_bytes(content[: len(content) // 2])
    assert [line.split(":")[0] for line in damaged(folder)] == [
        f"out/{RUN}/best.pth",
        "out/summary.json",
    ]
    assert len(left(folder)) == 2


def test_a_run_goes_on_where_it_has_a_checkpoint(folder):
    line = "ann_ddp.py --epochs 2 --output_dir out"
    assert again(line, folder) == ["ann_ddp.py", "--resume", f"out/{RUN}"]
    (folder / "out" / RUN / "last.pth").unlink()
    assert again(line, folder) == line
    assert again("export.py net.pth", folder) == "export.py net.pth"


def test_the_call_that_is_named_goes_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(injected, "COUNTS", {})
    monkeypatch.setattr(os, "replace", os.replace)
    injected.inject("replace:2:EIO")
    for _ in range(3):
        (tmp_path / "a").touch()
        try:
            os.replace(tmp_path / "a", tmp_path / "b")
        except OSError as error:
            assert error.errno == errno.EIO
            assert injected.COUNTS == {"replace": 2}
            continue
        assert injected.COUNTS["replace"] != 2


def test_half_of_a_checkpoint_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(injected, "die", lambda: None)
    injected.half(torch.save, {"a": torch.zeros(1000)}, tmp_path / "half.pth")
    assert len(damaged(tmp_path)) == 1
