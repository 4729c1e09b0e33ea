"""Rows, chains and questions: commands that parse, resumption, results that never mix, figures by hand."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace

import pytest
import torch

import ann_ddp
import energy
import reproduce
from engine.dist import fast_amp
from engine.errors import RunError, UseError, guard
from experiments import chain, questions, report, rows
from tests.helpers import ROOT, environment

SMOKE = "cifar10-resnet20-mlif --schedule smoke --width_mult 0.03 --device cpu"


def arguments(**given):
    return Namespace(
        **{
            "schedule": "published",
            "width_mult": 1.0,
            "data_root": "data",
            "amp": "none",
            "compile": "none",
            "device": "cpu",
            "launcher": "",
            "output_dir": "runs",
            "results": "results",
        }
        | given
    )


def test_every_row_has_commands_that_its_scripts_accept(capsys):
    assert len(rows.ROWS) == 23 and sum(r.dataset != "DVS-CIFAR10" for r in rows.ROWS) == 17
    reproduce.main(["--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:] for line in lines if line.startswith("# ")] == [row.name for row in rows.ROWS]
    assert all(line.startswith(("# ", "python3 ")) for line in lines)
    reproduce.main(["--dry-run", "--schedule", "fast"])  # says which rows have none
    assert capsys.readouterr().out.count("# none: ") == 15
    reproduce.main(["--list"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 25
    assert all(
        part in text for part in ("energy 1557 uJ at full width", "energy 992.2 uJ", "7.116e+04")
    )


@pytest.mark.parametrize("schedule", rows.SCHEDULES)
@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.name)
def test_schedules(row, schedule):
    if schedule == "fast" and row not in [r for r in rows.ROWS if r.cnn and r.dataset in rows.FAST]:
        with pytest.raises(rows.UseError, match="has no fast schedule"):
            rows.stages(row, arguments(schedule=schedule), 0)
        return
    made = reproduce.make_chain(row, arguments(schedule=schedule), 0)
    parsed = {name: made.parsed(stage) for name, stage in made.stages.items()}
    if row.method == "M-LIF" and row.cnn:
        assert (parsed["snn"].num_channels, parsed["snn"].timesteps) == (row.levels, row.steps)
        assert parsed["snn"].pretrained_ann == str(made.checkpoint(made.stages["ann_fused"]))
        assert ("snn_as_printed" in parsed) == (
            row.name == "cifar10-vgg16-mlif" and schedule == "published"
        )


def test_the_recipe_that_contradicts_its_row_runs_both_ways():
    made = reproduce.make_chain(rows.find("cifar10-vgg16-mlif"), arguments(), 0)
    printed, wanted = (made.parsed(made.stages[name]) for name in ("snn_as_printed", "snn"))
    assert (printed.num_channels, printed.timesteps) == (1, 3) and (
        wanted.num_channels,
        wanted.timesteps,
    ) == (3, 1)
    different = {k for k in vars(printed) if getattr(printed, k) != getattr(wanted, k)}
    assert different == {"num_channels", "timesteps", "output_dir"}


def result(accuracy=0.93, energy=50.0, **more):
    snn = {
        "test_accuracy": accuracy,
        "energy_uj": energy,
        "ann_energy_uj": 1000.0,
        "lane_rates": [0.1, 0.2],
        "seconds": 1800,
        "data": "somewhere",
    }
    return {
        "schedule": "published",
        "width_mult": 1.0,
        "runs": {
            "0": {
                "result": "snn",
                "stages": {"ann": {"test_accuracy": 0.94, "seconds": 1800}, "snn": snn},
            }
        },
    } | more


def test_outcome_and_verdict_by_hand():
    row = rows.find("cifar10-resnet20-mlif")
    found = reproduce.outcome(result())
    assert {k: v[0] for k, v in found.items()} == pytest.approx(
        {"accuracy": 93, "energy": 50, "rate": 0.3, "hours": 1, "gap": 1, "ratio": 20}
    )
    text = reproduce.verdict(row, result())
    assert (
        "verdict: accuracy (tolerance 0.5 points) reached, energy (tolerance 10%) reached" in text
    )
    assert "1.12" in text and "18.0" in text
    text = reproduce.verdict(row, result(accuracy=0.92, energy=100.0))
    assert "points) NOT reached" in text and "10%) NOT reached" in text
    assert "verdict: gap reached, energy ratio reached" in reproduce.verdict(
        row, result(width_mult=0.5)
    )
    text = reproduce.verdict(row, result(accuracy=0.92, energy=100.0, width_mult=0.5))
    assert "verdict: gap NOT reached, energy ratio NOT reached" in text
    several = result()
    several["runs"]["1"] = result(accuracy=0.95)["runs"]["0"]
    assert reproduce.outcome(several)["accuracy"] == pytest.approx((94, 2**0.5))
    assert "94.00 ± 1.41" in reproduce.verdict(row, several) and "2 seeds" in reproduce.where(
        several
    )


def test_the_readme_shows_the_table_of_the_results():
    text = (ROOT / "README.md").read_text()
    shown = text.partition(reproduce.START)[2].partition(reproduce.END)[0].strip()
    assert shown == reproduce.table(ROOT / "results" / "rows"), "run: python reproduce.py --report"


def test_report_needs_its_place(tmp_path, fails):
    (tmp_path / "README.md").write_text("nothing\n")
    args = arguments(results=str(tmp_path))
    fails(
        lambda _: reproduce.report(args, tmp_path / "README.md"),
        "",
        "has no place for the table",
        keep=tmp_path,
    )


def test_a_killed_row_goes_on_and_results_never_mix(tmp_path, cifar, fails, monkeypatch, capsys):
    argv = [
        *SMOKE.split(),
        "--data_root",
        str(cifar),
        "--output_dir",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(
        [sys.executable, ROOT / "reproduce.py", *argv],
        env=environment(tmp_path),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=tmp_path,
    )
    folder = tmp_path / "runs" / "cifar10-resnet20-w0.03-smoke" / "seed0"
    deadline = time.monotonic() + 300
    while not list(folder.glob("ann/ann/*/best.pth")):  # the first epoch is done
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    fails(reproduce.main, argv, "is in use by process", str(process.pid), "--output_dir")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with open(folder / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the script that it started is gone, too
    reproduce.main(argv)
    told = capsys.readouterr().out
    assert "verdict: gap" in told and "gap to the ANN" in told
    stored = json.loads((tmp_path / "out" / "cifar10-resnet20-mlif.w0.03.smoke.json").read_text())
    assert [line["epoch"] for line in stored["runs"]["0"]["stages"]["ann"]["log"]] == [1, 2, 3]
    assert len(list(folder.glob("ann/ann/*/last.pth"))) == 1  # resumed, not begun anew
    reproduce.main(argv)
    assert capsys.readouterr().out.count("done before") == 3
    shutil.move(cifar, tmp_path / "moved")  # where the data lie is not part of a result
    reproduce.main([*argv, "--data_root", str(tmp_path / "moved")])
    shutil.move(tmp_path / "moved", cifar)
    other = {"none": "bf16", "bf16": "none"}[fast_amp()]
    fails(
        reproduce.main,
        [*argv, "--amp", other],
        "holds a result of another recipe",
        "never mix",
        "--replace",
        keep=tmp_path,
    )
    monkeypatch.setattr(reproduce, "code", lambda: "other")
    fails(reproduce.main, argv, "holds a result of other code", "--replace", keep=tmp_path)
    monkeypatch.setattr(chain, "code", lambda: "other")
    fails(
        reproduce.main,
        [*argv, "--replace"],
        "was made by other code",
        "results never mix",
        "remove that folder",
    )
    monkeypatch.undo()
    (fused,) = folder.glob("ann/ann/*_fused.pth")
    content = torch.load(fused, weights_only=True)
    content["model"]["head.weight"] *= 2
    torch.save(content, fused)
    fails(
        reproduce.main,
        [*argv, "--replace"],
        "snn was made from another network, {ann_fused}",
        "remove that folder",
    )
    shutil.rmtree(
        folder / "ann_fused"
    )  # it is made anew, bit for bit, so that what was made of it still counts
    reproduce.main(argv)
    assert capsys.readouterr().out.count("done before") == 2
    fails(
        reproduce.main,
        f"{SMOKE} --results {tmp_path}/out --seeds 1 --output_dir {tmp_path}",
        "another recipe (seeds 0;",
    )
    (tmp_path / "out" / "cifar10-resnet20-mlif.w0.03.smoke.json").write_text("{}")
    fails(reproduce.main, argv, "is no result of reproduce.py")
    next(folder.glob("ann/ann/*/summary.json")).write_text("{")
    fails(reproduce.main, [*argv, "--replace"], "summary.json is missing or damaged")


@pytest.mark.parametrize(
    "argv, words",
    [
        ("cifar10-vgg17", ["there is no row 'cifar10-vgg17'", "did you mean cifar10-vgg16"]),
        ("", ["name a row", "--list"]),
        ("imagenet-vgg16-ann --schedule fast", ["has no fast schedule", "published or smoke"]),
        ("cifar10-transformer-t1 --width_mult 0.5", ["has one width"]),
        ("cifar10-resnet20-ann --schedule fats", ["fats", "published"]),
        ("cifar10-resnet20-ann --seeds 0,x", ["--seeds"]),
        ("cifar10-resnet20-ann --launcher nosuch", ["--launcher", "no program 'nosuch'"]),
    ],
)
def test_bad_input(argv, words, fails, tmp_path):
    fails(reproduce.main, [*argv.split(), "--output_dir", str(tmp_path)], *words)
    (tmp_path / "file").touch()
    fails(
        reproduce.main,
        f"cifar10-resnet20-ann --output_dir {tmp_path}/file",
        "there is a file in its way",
        "--output_dir",
    )


def test_missing_data_is_named(tmp_path, capfd):
    with pytest.raises(SystemExit) as end:
        guard(
            reproduce.main,
            [
                "imagenet-vgg16-ann",
                "--data_root",
                str(tmp_path / "none"),
                "--output_dir",
                str(tmp_path),
                "--results",
                str(tmp_path),
                "--device",
                "cpu",
            ],
        )
    err = capfd.readouterr().err
    assert end.value.code == 1 and "Traceback" not in err
    assert f"{tmp_path}/none/train" in err and "ann ended with status 2" in err
    with pytest.raises(
        SystemExit
    ):  # a first attempt that made nothing does not stand in the way of the next
        guard(
            reproduce.main,
            [
                "imagenet-vgg16-ann",
                "--data_root",
                str(tmp_path / "other"),
                "--output_dir",
                str(tmp_path),
                "--results",
                str(tmp_path),
                "--device",
                "cpu",
                "--width_mult",
                "0.5",
            ],
        )
    assert f"{tmp_path}/other/train" in capfd.readouterr().err


def test_results_of_other_data_never_mix():
    data = {part: {"images": 3, "sha256": part} for part in ("train", "test")}
    chain.same_data({"ann": data, "snn": dict(data)})
    with pytest.raises(UseError, match="snn has 4 test images, ann had 3 others"):
        chain.same_data({"ann": data, "snn": data | {"test": {"images": 4, "sha256": "test"}}})


def test_code_that_changes_on_the_way_stops_a_chain(tmp_path, monkeypatch):
    made = reproduce.make_chain(
        rows.find("cifar10-resnet20-mlif"), arguments(output_dir=str(tmp_path)), 0
    )
    codes = iter("aab")
    monkeypatch.setattr(chain, "code", lambda: next(codes))
    monkeypatch.setattr(made, "run", lambda stage, lock, say: {})
    monkeypatch.setattr(made, "data", lambda stage: {})
    with pytest.raises(
        RunError, match="the code has changed since this chain began, before ann_fused"
    ):
        made.all()


def test_finished_runs_are_reported_under_their_labels(tmp_path, fails):
    options = "--dataset DIGITS -a RESNET20 --width_mult 0.03 --bias --bn --device cpu --epochs 1 --limit_train_batches 1 "
    run = ann_ddp.main([*options.split(), "--energy", "--output_dir", str(tmp_path)])["run"]
    report.main([f"{tmp_path}/out", f"A={run}", f"B={run}"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a.json",
        "b.json",
        "chain.png",
        "chain.svg",
        "table.md",
    ]
    fails(
        report.main,
        [f"{tmp_path}/two", f"A b={run}", f"a-b={run}"],
        "the labels give 2 runs the file a_b.json",
    )
    fails(report.main, [f"{tmp_path}/two", run], "expected LABEL=RUN")
    energy.main([run, "--device", "cpu", "--output", f"{tmp_path}/"])
    measured = json.loads((tmp_path / "best_energy.json").read_text())
    assert (
        "digits" in measured["data"]
        and measured["test"]["images"] == measured["test_images"] == measured["images"]
    )
    fails(
        energy.main,
        f"{run} --device cpu --data_root {tmp_path}",
        "--data_root does nothing here",
        "DIGITS",
    )


def test_recipes_hold_every_option():
    for row in rows.ROWS:
        for stage in rows.stages(row, arguments(), 0):
            names = {word.lstrip("-") for word in stage.words if word.startswith("--")}
            assert names - set(chain.MACHINE) == set(stage.recipe), row.name


def test_a_seed_counts_once(fails):
    fails(reproduce.main, f"{SMOKE} --seeds 0,0", "names a seed twice")
    fails(questions.main, "levels --seeds 1 1", "names a seed twice")
    fails(questions.main, "conversion -a VGG16", "ResNet20's stem, VGG16 has none")


def test_questions_are_commands_and_differ_in_one_thing():
    args = Namespace(
        architecture="RESNET20",
        width_mult=0.25,
        ann_epochs=1,
        epochs=1,
        learning_rate=1e-3,
        amp="none",
        compile="none",
        data_root="data",
        device="cpu",
        limit_train_batches=1,
        limit_eval_batches=1,
        output_dir="runs",
    )
    for question, (_, reference, others) in questions.QUESTIONS.items():
        made = questions.chain(args, 0, question)
        parsed = {
            name: vars(made.parsed(made.stages[questions.folder(name)]))
            for name in [reference, *others]
        }
        for name in others:
            changed = {k for k, v in parsed[name].items() if v != parsed[reference].get(k)} - {
                "output_dir",
                "given",
            }
            expected = {
                {"twice": "epochs"}.get(key, key) for key in questions.VARIANTS.get(name, {})
            }
            assert name == "LQ-ANN" or changed <= expected | {"surrogate_edge", "pretrained_ann"}, (
                name,
                changed,
            )
            assert changed


def test_paired_differences_and_their_verdicts():
    assert questions.paired([1.0, 2.0, 4.0], [0.0, 2.0, 2.0]) == pytest.approx(
        (1.0, (1 / 3) ** 0.5)
    )
    assert (
        questions.judge(1.0, 0.23, 3) == "better" and questions.judge(-1.0, 0.23, 3) == "worse"
    )  # t = 4.30
    assert (
        questions.judge(1.0, 0.24, 3) == "not told apart"
        and questions.judge(9.0, float("inf"), 1) == "one seed"
    )
