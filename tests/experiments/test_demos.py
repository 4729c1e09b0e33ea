"""What the demos share: the commands that they show and run, and their table."""

import json

import pytest

import ann_ddp
import demo as digits
from engine.files import locked
from experiments import declared, demo
from neuromorphic_tasks import dvs


@pytest.fixture
def noted(monkeypatch, capsys, tmp_path):
    """(what the steps return, the lines that are printed) of scripts that note their words."""

    def main(words):
        return {"words": words, "checkpoint": "a b.pth"}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ann_ddp, "main", main)
    monkeypatch.setattr(dvs, "main", lambda words: print("drawn", words))
    steps = {
        "ann": {
            "title": "1. ANN",
            "script": "ann_ddp",
            "command": "--bn --lr_interval '0.6 0.8' --epochs {epochs[1]}",
            "hidden": "--output_dir {output_dir}",
        },
        "drawn": {"title": "2. draw", "script": "neuromorphic_tasks.dvs", "command": "{ann}"},
    }
    monkeypatch.setattr(declared, "read", lambda path: {"one": steps})
    asked = digits.get_parser().parse(["--output_dir", "a folder", "--epochs", "3", "2", "1"])
    return demo.run("one", asked), capsys.readouterr().out.splitlines()


def test_the_options_of_a_step_are_filled_in(noted):
    done, _ = noted
    words = ["--bn", "--lr_interval", "0.6 0.8", "--epochs", "2", "--output_dir", "a folder"]
    assert done["ann"]["words"] == words


def test_a_step_is_shown_as_it_is_typed(noted):
    _, lines = noted
    assert lines[1] == "== 1. ANN: python3 ann_ddp.py --bn --lr_interval '0.6 0.8' --epochs 2"


def test_a_step_takes_the_checkpoint_of_an_earlier_one(noted):
    done, lines = noted
    assert lines[3:] == ["== 2. draw: python3 dvs.py 'a b.pth'", "drawn ['a b.pth']"]
    assert done["drawn"] is None


def test_a_demo_has_its_folder_to_itself(tmp_path, fails):
    """Its steps read what those before wrote."""
    with locked(tmp_path, "wait"):
        fails(digits.main, f"--output_dir {tmp_path}", "is in use by process", "--output_dir")


@pytest.mark.parametrize("name", ["digits", "events"])
def test_the_steps_of_a_demo_are_scripts(name):
    for about in declared.read(demo.FILE)[name].values():
        assert {"title", "script", "command"} <= set(about)
        assert (demo.FILE.parents[1] / (about["script"].replace(".", "/") + ".py")).is_file()


def test_the_table_of_a_demo(capsys):
    demo.table("stage", "   more", {"ANN": ({"accuracy": 0.5, "energy_uj": 63.557}, "   -")})
    assert capsys.readouterr().out.splitlines()[1:] == [
        "stage             accuracy   energy (uJ)   more",
        "ANN                 50.00%        63.557   -",
    ]
    demo.table("", "", {"S=3": ({"accuracy": 1, "energy_uj": 10}, "")})
    assert capsys.readouterr().out.splitlines()[2] == "S=3        100.00%        10.000"


def test_the_demo_of_the_digits(tmp_path, capsys, monkeypatch):
    """Its first command of the README, an epoch each, at a quarter of its width."""
    steps = demo.FILE.read_text()
    assert "--architecture RESNET20 --width_mult 0.25" in steps
    narrow = tmp_path / "demos.yml"
    narrow.write_text(steps.replace("--width_mult 0.25", "--width_mult 0.0625"))
    monkeypatch.setattr(demo, "FILE", narrow)
    digits.main(["--epochs", "1", "1", "1", "--output_dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert [line.split("  ")[0] for line in said.splitlines()[-9:]].count("SNN") == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [stage["stage"] for stage in summary["stages"]] == ["ANN", "LQ-ANN", "ANN, fused", "SNN"]
    assert (tmp_path / "demo.png").stat().st_size > 10_000
