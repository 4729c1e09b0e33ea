"""The record log: what is declared, the line of a record, the log itself."""

import itertools
import json
import shlex
from types import SimpleNamespace

import pytest

from engine.errors import UseError
from engine.log import read_json, write_json
from experiments import records
from experiments.options import settled
from experiments.stage import portable
from tests.helpers import ROOT

CONTENT = records.read(records.FILE)
MEASURED = sorted((ROOT / "results" / "records").glob("*.json"))
BROKEN = {
    "stages: {}\nevery: {}\ntraining: {}": "records is missing",
    "stages: {}\nevery: {}\ntraining: {}\nrecords: {a: {stage: b}}": "change is missing",
    "stages: {}\nevery: {}\ntraining: {}\nrecords: {a: {stage: b, change: c}}": "a: .* stage 'b'",
}


def asked(words=""):
    return settled(records.get_parser().parse(shlex.split(words)))


def result(name, accuracies, date="2026-01-02"):
    """What is kept of a record whose chain took two minutes a seed."""
    runs = [
        {
            "seed": seed,
            "test_accuracy": accuracy,
            "energy_uj": 5.0,
            "chain_seconds": 120.0,
            "data": "CIFAR-10",
            "machine": "a GPU",
            "log": [{"images_per_s": speed} for speed in (90, 100, 120)],
        }
        for seed, accuracy in enumerate(accuracies)
    ]
    about = {"change": f"change of {name}", "network": "RESNET20 x0.25", "epochs": 20}
    return {"record": name, "date": date, "runs": runs, **about}


def record(name, amp="bf16", data="CIFAR-10"):
    """A record of one seed that was trained by `amp`."""
    made = result(name, (0.8,))
    made["runs"][0] |= {"data": data, "recipes": {"ann": {"amp": amp}}}
    return made


@pytest.mark.parametrize("text", BROKEN)
def test_a_wrong_declaration_is_refused(text, tmp_path):
    path = tmp_path / "records.yml"
    path.write_text(text)
    with pytest.raises(UseError, match=BROKEN[text]):
        records.read(path)


def test_each_record_is_a_chain_that_its_scripts_accept():
    recipes = []
    for name in CONTENT["records"]:
        chain = records.make_chain(asked("--amp none"), CONTENT, name, 0)
        for stage in chain.stages.values():
            stage.parsed()
        recipes.append(chain.recipes)
    assert all(new != old for new, old in itertools.pairwise(recipes))


def test_a_record_is_compared_with_the_one_below():
    """By hand: means 81 and 80, both variances 0.01, so t = 1 / sqrt(2 * 0.01 / 3) = 12.25 with
    4 degrees of freedom: p = 0.0003.
    """
    old = result("old", (0.799, 0.8, 0.801))
    new = result("new", (0.809, 0.81, 0.811))
    cells = [cell.strip() for cell in records.line(new, old).strip("|").split("|")]
    assert cells == [
        "2026-01-02",
        "[new](records/new.json)",
        "change of new",
        "0, 1, 2",
        "81.00 ± 0.10",
        "+1.00",
        "0.000",
        "5.00",
        "2",
        "100",
        "RESNET20 x0.25, 20 epochs, CIFAR-10, a GPU",
    ]


def test_the_newest_record_stands_first_and_what_is_not_measured_is_left_out(tmp_path):
    content = {"records": {"third": {}, "second": {}, "first": {}}}
    for name, accuracy in (("first", 0.8), ("third", 0.9)):
        write_json(tmp_path / f"{name}.json", result(name, (accuracy,)))
    page = records.page(content, tmp_path)
    *_, newest, oldest, _, total = page.splitlines()
    assert total == "From first to third: +10.00 points, +0.00 uJ, +0.00 minutes a seed."
    assert "[third](records/third.json)" in newest
    assert "| +10.00 |  |" in newest  # one seed has no p
    assert "[first]" in oldest
    assert "second" not in page


def test_the_log_is_that_of_the_recorded_results():
    page = records.page(CONTENT, ROOT / "results/records")
    assert page == (ROOT / "results/records.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_what_was_measured_is_what_is_declared(path):
    stored = json.loads(path.read_text())
    for run in stored["runs"]:
        recipe = list(run["recipes"].values())[-1]
        words = f"--amp {recipe['amp']} --epochs {stored['epochs']}"
        chain = records.make_chain(asked(words), CONTENT, stored["record"], run["seed"])
        *_, last = chain.stages.values()
        assert portable(last.script, recipe) == last.recipe


def test_an_unknown_record_is_named():
    with pytest.raises(UseError, match="there is no record 'nosuch': all, squares,"):
        records.main(["nosuch"])


def test_the_records_are_listed(capsys):
    records.main([])
    assert "steep        learning rate 0.1" in capsys.readouterr().out


def test_a_record_does_not_lose_seeds(tmp_path, fails):
    content = record("base")
    content["runs"].append(content["runs"][0] | {"seed": 1})
    write_json(tmp_path / "base.json", content)
    words = f"base --seeds 0 --epochs 20 --results {tmp_path}"
    fails(records.main, words, "is a record of the seeds 0 1: give --seeds", keep=tmp_path)


def test_a_log_is_of_one_autocast(tmp_path, fails):
    """Which is told before anything is trained."""
    write_json(tmp_path / "base.json", record("base", "none"))
    words = f"steep --seeds 0 --epochs 20 --amp bf16 --results {tmp_path}"
    fails(records.main, words, "20 epochs, --amp none, not of", "--amp bf16", keep=tmp_path)


def test_a_log_is_of_one_data_set(tmp_path, monkeypatch, fails):
    write_json(tmp_path / "base.json", record("base", data="CIFAR-10 (JPEG copy)"))
    (tmp_path / "notes.json").write_text("{}")
    monkeypatch.setattr(records, "measure", lambda asked, content, name: record(name))
    words = f"steep --seeds 0 --epochs 20 --amp bf16 --results {tmp_path}"
    told = r"base.json on CIFAR-10 (JPEG copy): results never mix"
    fails(records.main, words, "steep was measured on CIFAR-10, ", told, keep=tmp_path)
    # two that are measured at once, of which one was trained before
    (tmp_path / "base.json").unlink()
    data = {"base": "CIFAR-10 (JPEG copy)", "steep": "CIFAR-10"}
    with monkeypatch.context() as patch:
        patch.setattr(
            records, "measure", lambda asked, content, name: record(name, data=data[name])
        )
        fails(records.main, words.replace("steep", "steep base"), "steep was measured on", told)
    # all of it anew
    for path in tmp_path.glob("*.json"):
        path.unlink()
    records.main(shlex.split(words.replace("steep", "steep base")))
    assert read_json(tmp_path / "base.json")["runs"][0]["data"] == "CIFAR-10"


def test_a_log_of_nothing_is_refused(tmp_path, fails):
    (tmp_path / "none").mkdir()
    words = f"--report --results {tmp_path}/none"
    fails(records.main, words, "none holds no record: give the folder of", keep=tmp_path)


def test_a_record_of_other_trainings_is_not_replaced(tmp_path, fails):
    """As from a fresh clone, whose log came with it; told before anything is trained."""
    write_json(tmp_path / "base.json", record("base"))
    words = f"base --seeds 0 --epochs 20 --amp bf16 --results {tmp_path} --output_dir {tmp_path}/r"
    told = "base.json is a record of another training (seed 0): give another --results"
    fails(records.main, words, told, keep=tmp_path)


def test_a_log_is_of_one_network_and_its_epochs(tmp_path, fails):
    write_json(tmp_path / "base.json", record("base"))
    words = f"steep --epochs 2 --results {tmp_path}"
    fails(records.main, words, "is a record of RESNET20 x0.25, 20 epochs", keep=tmp_path)


@pytest.mark.parametrize("seeds", ["0", "0 1"])
def test_a_record_is_written_again_by_its_own_trainings(seeds, tmp_path, monkeypatch):
    """And gains seeds."""
    write_json(tmp_path / "base.json", record("base"))

    def chain(asked, content, name, seed):
        last = SimpleNamespace(summary={"run": "r"}, log=record("base")["runs"][0]["log"])
        return SimpleNamespace(stages={"ann": None, "base": last})

    monkeypatch.setattr(records, "make_chain", chain)
    monkeypatch.setattr(records, "measure", lambda asked, content, name: record(name) | {"new": 1})
    words = f"base --seeds {seeds} --epochs 20 --amp bf16 --results {tmp_path}"
    records.main(shlex.split(words))
    assert read_json(tmp_path / "base.json")["new"] == 1


def test_what_is_no_record_is_refused(tmp_path, fails):
    (tmp_path / "base.json").write_text("{}")
    fails(records.main, f"steep --results {tmp_path}", "base.json is no record", keep=tmp_path)
