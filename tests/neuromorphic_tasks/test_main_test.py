"""Measuring a trained VGGSNN: the same figures as at the end of its training."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from neuromorphic_tasks import main_test
from tests.helpers import ROOT, command
from tests.models.test_vggsnn import state
from tests.neuromorphic_tasks.commands import LANES, SMALL, parsed, train


def measure(words):
    return main_test.main(shlex.split(words))


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """Summary of a training of 3 lanes that held recordings back."""
    folder = tmp_path_factory.mktemp("trained")
    words = f"{SMALL}{LANES} --prepared {prepared} --output_dir {folder}"
    return train(f"{words} --epochs 1 --val_fraction 0.3")


def test_published_defaults():
    asked = parsed("", main_test)
    assert (asked.neuron.multi_channel, asked.neuron.num_channels) == (1, 2)
    assert asked.coding.T_prime == 5


def test_train_and_test_in_their_folder(prepared, scripts):
    """The scripts as a user starts them; the test finds what the training wrote, and measures the
    same accuracy.
    """
    options = f"{SMALL}{LANES} --prepared {prepared} --output_dir {scripts}/out"
    line = f"python3 main_training_parallel.py {options} --epochs 1 --energy"
    line += f" && python3 main_test.py {options}"
    done = command(line, ROOT / "neuromorphic_tasks", path=scripts)
    assert done.returncode == 0, done.stderr
    stem = scripts / "out" / "vggsnn_dvscifar10_first900_T10_C3_w0.0625"
    summary = json.loads(next(stem.parent.glob("*/summary.json")).read_text())
    measured = json.loads(stem.with_name(f"{stem.name}_test.json").read_text())
    assert f"accuracy {summary['best_accuracy']:.2%} on 5 images" in done.stdout
    assert summary["Q_F"] == 3
    assert summary["energy_uj"] == pytest.approx(measured["total_uj"])
    assert len(measured["layers"]) == 9
    assert stem.with_name(f"{stem.name}_test.png").is_file()


def test_published_weights_are_measured(prepared, tmp_path, capsys):
    path = tmp_path / "published.pth"
    torch.save(state("mc1_S3"), path)
    options = f"{SMALL}{LANES} --width_mult 0.125 --prepared {prepared}"
    measured = measure(f"{options} --checkpoint {path}")
    assert "trained on what --resize published makes" in capsys.readouterr().out
    tested = train(f"{options} --test_only --pretrained_snn {path}")
    assert measured["test_loss"] == pytest.approx(tested["test_loss"])
    assert measured["test_images"] == 5
    assert (tmp_path / "published_test.csv").is_file()


def test_published_weights_start_a_training(prepared, tmp_path):
    """As the published trainer stores them: bare, and with the spikes that it counted."""
    path = tmp_path / "VGGSNN_woAP_T10_C1.pth"
    counted = {"features.3.ops": torch.ones(4), "classifier_ops": torch.ones(1)}
    weights = {f"module.{key}": value for key, value in state("mc1_S3").items()}
    torch.save(weights | {f"module.{key}": value for key, value in counted.items()}, path)
    options = f"{SMALL}{LANES} --width_mult 0.125 --prepared {prepared} --output_dir {tmp_path}"
    still = "--epochs 1 --limit_train_batches 1 --learning_rate 0"
    trained = train(f"{options} {still} --pretrained_snn {path}")
    found = torch.load(trained["checkpoint"], weights_only=True)["model"]
    head = state("mc1_S3")["classifier.module.weight"]
    # it learned frames that lie on their side
    upright = head.view(10, 64, 3, 3).transpose(2, 3).reshape(10, 576)
    assert torch.equal(found["head.weight"], upright) and not torch.equal(upright, head)


def test_a_checkpoints_settings_hold_in_every_test(trained, prepared, tmp_path):
    """Its lanes, frames and width need not be given again; the folder of its recordings may have
    another name.
    """
    shutil.copytree(prepared, tmp_path / "moved")
    here = f"--device cpu --batch_size 4 --prepared {tmp_path}/moved "
    tested = train(f"{here} --test_only --pretrained_snn {trained['checkpoint']}")
    measured = measure(f"{here} --seed 3 --checkpoint {trained['run']}")
    assert tested["test_loss"] == pytest.approx(measured["test_loss"])
    assert measured["test_accuracy"] == tested["test_accuracy"]
    assert measured["test_accuracy"] == pytest.approx(trained["test_accuracy"])


def test_a_training_from_our_own_weights_is_told_nothing_of_published_ones(
    trained, prepared, tmp_path, capsys
):
    words = f"{SMALL}{LANES} --prepared {prepared} --output_dir {tmp_path} --epochs 1"
    train(f"{words} --limit_train_batches 1 --pretrained_snn {trained['checkpoint']}")
    said = capsys.readouterr().out
    assert "weights from" in said and "--resize published" not in said


def test_a_run_folder_means_its_best_network(trained, prepared):
    measured = measure(f"--device cpu --prepared {prepared} --checkpoint {trained['run']}")
    named = json.loads((Path(trained["run"]) / "best_test.json").read_text())
    assert named["test"]["images"] == 5
    assert named["test_accuracy"] == measured["test_accuracy"]


# ---- mistakes ----


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--T_prime 20", "was trained with --T_prime 10, not 20"),
        ("--multi_channel 0", "was trained with --multi_channel 1, not 0"),
        ("--split other", "was trained with --split first900, not other"),
        ("--limit_train_batches 2", "--limit_train_batches does nothing here"),
        ("--multi_channel 0 --num_channels 2", "--num_channels does nothing here"),
    ],
)
def test_options_that_contradict_the_checkpoint(trained, prepared, fails, words, expected):
    argv = f"--device cpu --prepared {prepared} --checkpoint {trained['checkpoint']} {words}"
    fails(main_test.main, argv, expected)


def test_recordings_of_another_split(trained, three_classes, fails):
    argv = f"--device cpu --prepared {three_classes} --checkpoint {trained['checkpoint']}"
    fails(main_test.main, argv, "holds the split 'other'")


def test_recordings_that_it_may_have_been_trained_on(trained, swapped, fails):
    path = trained["checkpoint"]
    argv = f"--device cpu --prepared {swapped} --checkpoint {path}"
    fails(main_test.main, argv, f"{path} has 5 test recordings, {swapped} holds 10 others")


def test_a_network_that_was_never_trained(three_classes, tmp_path, fails):
    argv = f"--device cpu --prepared {three_classes} --output_dir {tmp_path}"
    fails(main_test.main, argv, "vggsnn_dvscifar10_other_T5_C2.pth")
