"""Runs and checkpoints of the version before go on as they are (tests/golden/before/README.md)."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import absorb_bn
import ann_ddp
import energy
import snn_ddp
from engine import checkpoint, settings
from neuromorphic_tasks import main_test, main_training_parallel
from neuromorphic_tasks.data import dvscifar_prepare, simulate
from spike_driven_transformer import firing_num, train
from tests.helpers import GOLDEN, cifar_copy

BEFORE = GOLDEN / "before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
SCRIPTS = {
    "ann": ann_ddp,
    "lq": ann_ddp,
    "matched": snn_ddp,
    "published": snn_ddp,
    "sdt": train,
    "vggsnn": main_training_parallel,
}
DATA = dict.fromkeys(SCRIPTS, "--data_root data")
DATA |= {"sdt": "--data_dir data", "vggsnn": "--prepared prepared"}

kinds = pytest.mark.parametrize("kind", SCRIPTS)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The folder in which the interrupted runs lie, each in a folder named by its kind."""
    folder = tmp_path_factory.mktemp("before")
    for kind in SCRIPTS:
        shutil.unpack_archive(BEFORE / f"{kind}.zip", folder / kind)
    shutil.copy(folder / "ann/best.pth", folder / "teacher.pth")
    cifar_copy(folder / "data")
    return folder


@pytest.fixture(scope="module")
def recordings(before):
    """The prepared recordings that VGGSNN learnt."""
    simulate.main(f"--output {before}/events --per_class 3 --events 4000 --workers 1".split())
    dvscifar_prepare.main(f"--source {before}/events --output {before}/prepared".split())
    return before / "prepared"


@pytest.fixture
def here(before, monkeypatch):
    """That folder as the current one, since the settings of the runs name folders in it."""
    monkeypatch.chdir(before)
    return before


@pytest.fixture(scope="module")
def resumed(before, recordings):
    """resumed(kind): (summary of the run that went on to its end, lines of its log), made once."""
    runs = {}

    def run(kind):
        if kind not in runs:
            # the folder of best.pth stays that of the interrupted run
            folder = shutil.copytree(before / kind, before / f"{kind}_resumed", dirs_exist_ok=True)
            argv = f"--resume {folder} {DATA[kind]}".split()
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(before)
                summary = SCRIPTS[kind].main(argv)
            lines = (folder / "log.jsonl").read_text().splitlines()
            runs[kind] = summary, [json.loads(line) for line in lines]
        return runs[kind]

    return run


# ---- runs


@kinds
def test_a_run_goes_on_to_its_end(resumed, kind):
    """Its second epoch is that of the run that was not interrupted."""
    _, log = resumed(kind)
    assert [line["epoch"] for line in log] == [1, 2]
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        assert log[1][name] == pytest.approx(EXPECTED[kind][name], abs=1e-3), name
    assert log[1]["learning_rate"] == pytest.approx(EXPECTED[kind]["learning_rate"])


@kinds
def test_the_summary_is_that_of_the_whole_run(resumed, kind):
    """Its energy was counted on the best network, of the first epoch or the second."""
    summary, _ = resumed(kind)
    want = EXPECTED[kind]
    assert summary["best_epoch"] == want["best_epoch"]
    assert summary["best_accuracy"] == pytest.approx(want["best_accuracy"], abs=1e-3)
    assert summary["energy_uj"] == pytest.approx(want["energy_uj"], rel=1e-3)


@pytest.mark.parametrize("kind", ["matched", "published"])
def test_what_a_conversion_did_is_kept(here, resumed, kind):
    summary, _ = resumed(kind)
    stored = checkpoint.load(here / kind / "last.pth")["converted"]
    assert summary["converted"] == stored
    assert len(stored["thresholds"]) == {"matched": 19, "published": 3}[kind]


@kinds
def test_a_run_does_not_take_other_options(here, recordings, kind, fails):
    words = ("--epochs 3 differs from the interrupted run's 2",)
    fails(SCRIPTS[kind].main, f"--resume {kind} --epochs 3", *words, keep=here / kind)


# ---- settings


@kinds
def test_every_stored_setting_is_known(here, kind):
    stored = checkpoint.load(here / kind / "last.pth")["settings"]
    known = settings.stored_name(SCRIPTS[kind].get_parser().kind)
    assert set(stored) - set(known) == set()


def test_settings_of_older_names_are_understood(here):
    """data_dir, img_size, lr, smoothing, TET_means, TET_lamb, and torch/cifar10."""
    stored = checkpoint.load(here / "sdt" / "last.pth")["settings"]
    kind = train.get_parser().kind
    names = settings.stored_name(kind)
    values = settings.flat(settings.make(kind, {names[k]: v for k, v in stored.items()}))
    assert (values["dataset"], values["data_root"]) == ("CIFAR10", "data")
    assert values["image_size"] is None
    assert values["learning_rate"] == 0.01
    assert values["label_smoothing"] == 0.1
    assert (values["TET"], values["means"], values["lamb"]) == (True, 0.5, 0.01)
    assert values["batch_size"] == 2


# ---- checkpoints


def first_epoch(kind):
    """Accuracy and loss of the stored best network, that of the first epoch."""
    (line,) = (Path(kind) / "log.jsonl").read_text().splitlines()
    line = json.loads(line)
    return {name: line[name] for name in ("test_accuracy", "test_loss")}


def figures(summary):
    return {name: summary[name] for name in ("test_accuracy", "test_loss")}


MEASURES = {
    **{
        kind: (energy, f"{kind}/best.pth --data_root data --device cpu")
        for kind in ("ann", "lq", "matched", "published")
    },
    "sdt": (firing_num, "--resume sdt/best.pth --data_dir data --device cpu"),
    "vggsnn": (main_test, "--pretrained_snn vggsnn/best.pth --prepared prepared --device cpu"),
}
CNN = "-a RESNET20 --width_mult 0.03 --bias --data_root data --device cpu --test_only"
TESTS = {
    "ann": f"{CNN} --bn --pretrained_ann ann/best.pth",
    "lq": f"{CNN} --bn --quant_act --act_bits 3 --quant_id lvl --pretrained_ann lq/best.pth",
    "matched": f"{CNN} -multi_channel 1 -num_channels 3 --timesteps 2 "
    "--pretrained_snn matched/best.pth",
    "published": f"{CNN} -multi_channel 1 -num_channels 3 --timesteps 2 "
    "--pretrained_snn published/best.pth",
    "sdt": "--data_dir data --layer 1 --dim 16 --pooling_stat 0011 --time_steps 2 "
    "--spike_mode mlif --mlif_channels 3 --scaled true --TET true --test_only --device cpu "
    "--initial_checkpoint sdt/best.pth",
    "vggsnn": "--prepared prepared --T_prime 8 --multi_channel 1 --num_channels 3 "
    "--width_mult 0.03 --pretrained_snn vggsnn/best.pth --test_only --device cpu",
}


@kinds
def test_a_checkpoint_is_measured(here, recordings, kind):
    script, argv = MEASURES[kind]
    summary = script.main(argv.split())
    assert figures(summary) == pytest.approx(first_epoch(kind), abs=1e-3)
    assert summary["energy_uj"] > 0


@kinds
def test_a_checkpoint_is_tested(here, recordings, kind):
    """By the training script, as weights to start from."""
    summary = SCRIPTS[kind].main(TESTS[kind].split())
    assert figures(summary) == pytest.approx(first_epoch(kind), abs=1e-3)


def test_batch_norm_of_a_checkpoint_is_fused(here):
    shutil.copy("ann/best.pth", "old.pth")
    absorb_bn.main(["--pretrained_ann", "old.pth"])
    summary = energy.main(["old_bn_fused.pth", "--data_root", "data", "--device", "cpu"])
    assert figures(summary) == pytest.approx(first_epoch("ann"), abs=1e-3)
    assert not any("running_mean" in k for k in checkpoint.load("old_bn_fused.pth")["model"])


def test_weights_of_a_checkpoint_are_read_as_they_are(here):
    content = checkpoint.load("published/best.pth")
    state = checkpoint.rebuild(content).state_dict()
    assert state.keys() == content["model"].keys()
    assert all(torch.equal(state[key], value) for key, value in content["model"].items())
