"""reproduce.py: its commands, a row that is killed and goes on, results that never mix."""

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import reproduce
from engine import log
from engine.errors import UseError, guard
from engine.machine import fast_amp
from experiments import results, rows, stage
from tests.helpers import PATIENCE, ROOT, environment

SMOKE = "cifar10-resnet20-mlif --schedule smoke --width_mult 0.03 --device cpu"
CHAIN = "cifar10-resnet20-w0.03-smoke/seed0"
RESULT = "cifar10-resnet20-mlif.w0.03.smoke.json"


def arguments(folder, data):
    """Command line of the smoke run whose files lie in `folder`."""
    words = [*SMOKE.split(), "--data_root", str(data)]
    return [*words, "--output_dir", str(folder / "runs"), "--results", str(folder / "out")]


def told(argv):
    """What reproduce.py prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        reproduce.main(argv)
    return out.getvalue()


@dataclass
class Killed:
    """A row that was killed in its first stage and then run to its end."""

    folder: Path
    busy: str  # the error of a second process meanwhile
    process: int
    told: str  # by the run that went on


@pytest.fixture(scope="module")
def killed(tmp_path_factory, cifar):
    folder = tmp_path_factory.mktemp("killed")
    argv = arguments(folder, cifar)
    process = subprocess.Popen(
        [sys.executable, ROOT / "reproduce.py", *argv],
        env=environment(folder),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=folder,
    )
    seed = folder / "runs" / CHAIN
    deadline = time.monotonic() + PATIENCE
    # the first epoch is done
    while not list(seed.glob("ann/ann/*/best.pth")):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    # nor does it end while it is looked at
    os.killpg(process.pid, signal.SIGSTOP)
    with pytest.raises(UseError) as error:
        reproduce.main(argv)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # until the script that it started is gone, too
    with open(seed / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    return Killed(folder, str(error.value), process.pid, told(argv))


@pytest.fixture
def finished(killed, tmp_path):
    """A copy of the finished row, and the command line that made it."""
    shutil.copytree(killed.folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def argv(finished, cifar):
    return arguments(finished, cifar)


# ---- commands ----


def test_a_dry_run_shows_the_commands_of_all_rows(capsys):
    reproduce.main(["--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:] for line in lines if line.startswith("# ")] == list(rows.table())
    assert all(line.startswith(("# ", "python3 ")) for line in lines)


def test_a_dry_run_says_which_rows_have_no_such_schedule(capsys):
    reproduce.main(["--dry_run", "--schedule", "fast"])
    assert capsys.readouterr().out.count("# none: ") == 15


def test_a_dry_run_of_a_row_shows_its_chain(capsys):
    reproduce.main(["cifar10-resnet20-mlif", "--dry-run", "--schedule", "fast"])
    lines = capsys.readouterr().out.splitlines()
    scripts = [line.split()[1] for line in lines[1:]]
    assert scripts == ["ann_ddp.py", "absorb_bn.py", "snn_ddp.py"]


def test_without_an_amp_the_published_schedule_has_none(capsys):
    reproduce.main(["cifar10-resnet20-ann", "--dry-run"])
    assert "--amp" not in capsys.readouterr().out
    reproduce.main(["cifar10-resnet20-ann", "--dry-run", "--schedule", "smoke", "--device", "cpu"])
    chosen = capsys.readouterr().out
    assert ("--amp bf16" in chosen) == (fast_amp("cpu") == "bf16")
    assert "--width_mult 0.25" in chosen


def test_a_folder_of_data_is_the_one_that_is_meant_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reproduce.main(["cifar10-resnet20-ann", "--dry-run", "--data_root", "images"])
    assert f"--data_root {tmp_path / 'images'}" in capsys.readouterr().out


# ---- a row that is killed goes on ----


def test_only_one_process_works_on_a_row(killed):
    assert "is in use by process" in killed.busy
    assert str(killed.process) in killed.busy
    assert "--output_dir" in killed.busy


def test_a_killed_row_goes_on_to_its_verdict(killed):
    assert "ann: resumed: python3 ann_ddp.py" in killed.told
    assert "verdict: gap" in killed.told
    assert "gap to the ANN" in killed.told


def test_a_killed_row_goes_on_at_its_epoch(killed):
    stored = json.loads((killed.folder / "out" / RESULT).read_text())
    ann = stored["runs"]["0"]["stages"]["ann"]
    assert [line["epoch"] for line in ann["log"]] == [1, 2, 3]
    begun = json.loads((killed.folder / "runs" / CHAIN / "ann/stage.json").read_text())
    assert ann["commit"] == begun["commit"]
    assert (ann["versions"], ann["processes"]) == (log.versions(), [1])
    # resumed, not begun anew
    assert len(list((killed.folder / "runs" / CHAIN).glob("ann/ann/*/last.pth"))) == 1


def test_a_finished_row_is_not_run_again(argv):
    assert told(argv).count("done before") == 3


def test_where_the_data_lie_is_no_part_of_a_result(argv, cifar, tmp_path):
    shutil.copytree(cifar, tmp_path / "moved")
    assert told([*argv, "--data_root", str(tmp_path / "moved")]).count("done before") == 3


def test_a_result_names_the_version_of_its_arithmetic(killed):
    stored = json.loads((killed.folder / "out" / RESULT).read_text())
    noted = json.loads((killed.folder / "runs" / CHAIN / "ann" / "stage.json").read_text())
    assert stored["code"] == noted["code"] == stage.ARITHMETIC
    assert not set(results.LOCAL) & set(stored["runs"]["0"]["stages"]["snn"])


def legacy(path):
    """Give a file of the row the digest of the last version before versions."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "cd7a7b142854f8f0"}))


def test_a_chain_of_before_the_versions_goes_on(argv, finished):
    legacy(finished / "out" / RESULT)
    for path in (finished / "runs" / CHAIN).glob("*/stage.json"):
        legacy(path)
    assert told(argv).count("done before") == 3


# ---- results never mix ----


def test_another_recipe_is_refused(argv, finished, fails):
    other = {"none": "bf16", "bf16": "none"}[fast_amp("cpu")]
    words = ["holds a result of another recipe", "never mix", "--replace"]
    fails(reproduce.main, [*argv, "--amp", other], *words, keep=finished)


def test_a_result_on_other_data_is_not_replaced(argv, finished, fails):
    path = finished / "out" / RESULT
    content = json.loads(path.read_text())
    parts = content["runs"]["0"]["stages"]["snn"]["data_parts"]
    parts["test"]["sha256"] = "of a copy"
    path.write_text(json.dumps(content))
    fails(reproduce.main, argv, "holds a result on other data (seed 0)", keep=finished)


def test_a_result_of_other_trainings_is_not_replaced(argv, finished, fails):
    """As from a fresh clone, whose recipe is that of the result that came with it."""
    words = "holds the result of another training (ann, seed 0): give another --results"
    fails(reproduce.main, [*argv, "--output_dir", str(finished / "new")], words, keep=finished)


def test_fewer_seeds_do_not_replace_more(finished, fails):
    words = f"{SMOKE} --results {finished}/out --seeds 1 --output_dir {finished}"
    fails(reproduce.main, words, "holds the seeds 0 of this row: give --seeds with all of them")


def test_a_result_of_other_code_is_refused(argv, finished, fails, monkeypatch):
    monkeypatch.setattr(results, "ARITHMETIC", results.ARITHMETIC + 1)
    words = ["holds a result of other code", "--replace"]
    fails(reproduce.main, argv, *words, keep=finished)


def test_a_stage_of_other_code_is_refused(argv, fails, monkeypatch):
    monkeypatch.setattr(stage, "ARITHMETIC", stage.ARITHMETIC + 1)
    words = ["was made by other code", "results never mix", "remove that folder"]
    fails(reproduce.main, [*argv, "--replace"], *words)


def test_a_stage_from_other_weights_is_refused(argv, finished, fails):
    (fused,) = (finished / "runs" / CHAIN).glob("ann/ann/*_fused.pth")
    content = torch.load(fused, weights_only=True)
    content["model"]["head.weight"] *= 2
    torch.save(content, fused)
    words = ["snn was made from another network, {ann_fused}", "remove that folder"]
    fails(reproduce.main, [*argv, "--replace"], *words)


def test_what_is_made_anew_bit_for_bit_still_counts(argv, finished):
    shutil.rmtree(finished / "runs" / CHAIN / "ann_fused")
    assert told(argv).count("done before") == 2


def test_a_file_that_is_no_result_is_not_replaced(argv, finished, fails):
    (finished / "out" / RESULT).write_text("{}")
    fails(reproduce.main, argv, "is no result of reproduce.py")


def test_a_damaged_summary_is_told(argv, finished, fails):
    next((finished / "runs" / CHAIN).glob("ann/ann/*/summary.json")).write_text("{")
    fails(reproduce.main, [*argv, "--replace"], "summary.json is missing or damaged")


def test_seeds_of_different_numbers_of_processes_never_mix():
    def one(*processes):
        return {"stages": {"ann": {"processes": processes}, "ann_fused": {}}}

    results.same_processes({"0": one(2), "1": one(2), "2": {"stages": {"ann": {}}}})
    words = r"ann was trained .*, seed 0 by 1 and 4, seed 1 by 1: .*launcher"
    with pytest.raises(UseError, match=words):
        results.same_processes({"0": one(1, 4), "1": one(1)})


# ---- bad input ----


@pytest.mark.parametrize(
    "argv, words",
    [
        ("cifar10-vgg17", ["there is no row 'cifar10-vgg17'", "did you mean cifar10-vgg16"]),
        ("", ["name a row", "--list"]),
        ("imagenet-vgg16-ann --schedule fast", ["has no fast schedule", "published or smoke"]),
        ("cifar10-transformer-t1 --width_mult 0.5", ["has one width"]),
        ("cifar10-resnet20-ann --schedule fats", ["fats", "published"]),
        ("cifar10-resnet20-ann --seeds 0,x", ["--seeds"]),
        ("cifar10-resnet20-ann --seeds 0,0", ["names a seed twice"]),
        ("cifar10-resnet20-ann --launcher nosuch", ["--launcher", "no program 'nosuch'"]),
        ("cifar10-resnet20-ann --launcher 'x", ["--launcher", "No closing quotation"]),
    ],
)
def test_bad_input(argv, words, fails, tmp_path):
    fails(reproduce.main, [*argv.split(), "--output_dir", str(tmp_path)], *words)


def test_a_file_in_the_way_is_told(tmp_path, fails):
    (tmp_path / "file").touch()
    argv = f"cifar10-resnet20-ann --output_dir {tmp_path}/file"
    fails(reproduce.main, argv, "there is a file in its way", "--output_dir")


def test_missing_data_are_named(tmp_path, capfd):
    def error(data, *more):
        argv = ["imagenet-vgg16-ann", "--data_root", str(tmp_path / data), "--device", "cpu"]
        argv += ["--output_dir", str(tmp_path), "--results", str(tmp_path), *more]
        with pytest.raises(SystemExit) as end:
            guard(reproduce.main, argv)
        assert end.value.code == 1
        return capfd.readouterr().err

    text = error("none")
    assert "Traceback" not in text
    assert f"{tmp_path}/none/train" in text
    assert "ann ended with status 2" in text
    # a first attempt that made nothing does not stand in the way of the next
    assert f"{tmp_path}/other/train" in error("other", "--width_mult", "0.5")
