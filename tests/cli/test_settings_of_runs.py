"""The settings of a training command: new ones, or with --resume those of a run that goes on."""

from dataclasses import dataclass

import pytest

from cli import resume, run
from cli.options import NetworkOptions, TrainingSettings
from cli.parser import Parser
from engine import checkpoint, log, settings
from engine.errors import UseError
from engine.settings import group
from inputs.table import DataOptions
from tests.cli.toys import ABOUT, toy


@dataclass(frozen=True)
class ToySettings(TrainingSettings):
    """A training command of the test's own."""

    network: NetworkOptions = group(only=("width_mult", "dropout"))
    data: DataOptions = group()


def read(argv, rules=lambda asked: []):
    return resume.read_settings(Parser("toy.py", "A toy.", ToySettings), argv.split(), rules)


def store(path, stored):
    """A last.pth with the given settings."""
    content = checkpoint.content(toy(), "ann", ABOUT, stored, training={"epoch": 2})
    checkpoint.save(path, content)


@pytest.fixture
def interrupted(tmp_path):
    """Folder of a run with settings that differ from the defaults."""
    asked, _ = read("--batch_size 7 --width_mult 0.5 --print_freq 3 --device cpu")
    store(tmp_path / "last.pth", settings.flat(asked) | {"local_rank": 3})
    return tmp_path


@pytest.mark.parametrize(
    "job, restarts, goes_on",
    [("7", "0", True), ("8", "0", False), ("none", "1", False), (None, "0", False)],
)
def test_a_restart_by_torchrun_goes_on_with_its_own_run(
    job, restarts, goes_on, tmp_path, monkeypatch
):
    argv = f"--batch_size 7 --device cpu --output_dir {tmp_path}"
    asked, _ = read(argv)
    folder = tmp_path / "toy" / "run"
    store(folder / "last.pth", settings.flat(asked))
    log.write_json(folder / "config.json", {"settings": settings.flat(asked), "job": "7"})
    if job:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    again, saved = read(argv)
    assert (again.run.resume == str(folder)) == (saved is not None) == goes_on
    # the launcher numbers the processes of a node
    second, _ = read(f"{argv} --local-rank=1")
    assert (second.run.resume == str(folder)) == goes_on
    # of other settings, or finished, it is another run
    assert read(argv.replace("7 ", "8 "))[1] is None
    log.write_json(folder / "summary.json", {})
    assert read(argv)[1] is None


def test_without_resume_the_command_line_counts():
    asked, saved = read("--batch_size 7")
    assert asked.batches.batch_size == 7
    assert saved is None


def test_without_resume_the_rules_hold():
    rules = [(["seed"], False, "nothing is random")]
    with pytest.raises(UseError, match="--seed does nothing here: nothing is random"):
        read("--seed 3", lambda asked: rules)


@pytest.mark.parametrize("name", ["", "/last.pth"], ids=["folder", "file"])
def test_resume_takes_the_settings_of_the_run(interrupted, name):
    asked, saved = read(f"--resume {interrupted}{name}")
    assert (asked.batches.batch_size, asked.network.width_mult) == (7, 0.5)
    assert asked.run.print_freq == 3
    assert asked.run.resume == str(interrupted)
    assert saved["training"] == {"epoch": 2}


def test_what_a_run_may_change_is_changed(interrupted):
    """Options of this machine, and what is shown or stored."""
    asked, _ = read(f"--resume {interrupted} --print_freq 5 --data_root other --device cuda:1")
    assert asked.run.print_freq == 5
    assert asked.data.data_root == "other"
    assert asked.device.device == "cuda:1"


def test_what_repeats_the_runs_setting_is_accepted(interrupted):
    asked, _ = read(f"--resume {interrupted} -b 7")
    assert asked.batches.batch_size == 7


def test_what_changes_the_result_is_refused(interrupted):
    with pytest.raises(UseError) as error:
        read(f"--resume {interrupted} --batch_size 8")
    assert "--batch_size 8 differs from the interrupted run's 7" in str(error.value)
    assert "leave it out, or start a new run" in str(error.value)


def test_the_local_rank_is_that_of_this_launch(interrupted):
    assert read(f"--resume {interrupted}")[0].device.local_rank is None
    assert read(f"--resume {interrupted} --local-rank 1")[0].device.local_rank == 1


def test_the_processes_are_those_of_this_launch(tmp_path):
    asked, _ = read("--device cpu")
    there = {"world_size": 2, "rank": 1, "dist_url": "tcp://10.0.0.1:1", "gpu": 3}
    store(tmp_path / "last.pth", settings.flat(asked) | there)
    now = read(f"--resume {tmp_path}")[0].device
    assert (now.world_size, now.rank, now.dist_url, now.gpu) == (-1, -1, "env://", 3)
    assert read(f"--resume {tmp_path} --device cpu")[0].device.gpu is None
    # energy.py and others have the second alone
    both = Parser("toy.py", "A toy.", ToySettings).parse(["--gpu", "0", "--device", "cpu"])
    for start in (
        lambda: read(f"--resume {tmp_path} --gpu 0 --device cpu"),
        lambda: run.in_processes(None, both),
    ):
        with pytest.raises(UseError, match="--gpu and --device both name the device"):
            start()


def test_settings_of_older_names_are_understood(tmp_path):
    """data_dir, img_size and torch/cifar10, as the published transformer has them."""
    store(tmp_path / "last.pth", {"data_dir": "mine", "img_size": 32, "dataset": "torch/cifar10"})
    asked, _ = read(f"--resume {tmp_path}")
    assert (asked.data.data_root, asked.data.image_size) == ("mine", 32)
    assert asked.data.dataset == "CIFAR10"


def test_what_an_older_run_did_not_store_is_at_its_default(tmp_path):
    store(tmp_path / "last.pth", {"batch_size": 7})
    asked, _ = read(f"--resume {tmp_path}")
    assert asked.batches.batch_size == 7
    assert asked.compute.seed == 0


def test_a_run_of_another_script_is_refused(interrupted):
    store(interrupted / "last.pth", {"batch_size": 7, "act_bits": 3, "timesteps": 1})
    with pytest.raises(
        UseError, match=r"a run of another script: it has --act_bits, which toy\.py"
    ):
        read(f"--resume {interrupted}")


def test_a_checkpoint_is_not_a_run(tmp_path):
    content = checkpoint.content(toy(), "ann", ABOUT, {})
    checkpoint.save(tmp_path / "best.pth", content)
    with pytest.raises(UseError, match=r"best\.pth is not the last\.pth of a run: --resume takes"):
        read(f"--resume {tmp_path}/best.pth")
