"""The figures that a training ends with are those of the file that it stored."""

import json
import shlex
from pathlib import Path

import pytest

import absorb_bn
import ann_ddp
import energy
import snn_ddp

NETWORK = "--dataset DIGITS --architecture RESNET20 --width_mult 0.125 --bias"
TRAINING = f"{NETWORK} --epochs 1 --limit_train_batches 4 --amp bf16 --energy --device cpu"
ANN = "trained_models/ann/ann_resnet20_digits_w0.125"


def run(script, words):
    return script.main(shlex.split(words))


@pytest.fixture(scope="module")
def spiking(tmp_path_factory):
    """Summary of an SNN whose scales fold away when it is stored, trained under bf16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("summary"))
        run(ann_ddp, f"{TRAINING} --bn --learning_rate 0.05")
        run(absorb_bn, f"{NETWORK} --bn --pretrained_ann {ANN}.pth")
        words = "--multi_channel 1 --num_channels 3 --timesteps 1 --conversion matched"
        words += f" --keep last --pretrained_ann {ANN}_bn_fused.pth"
        yield run(snn_ddp, f"{TRAINING} {words}")


def test_a_training_tells_what_its_file_does_in_float32(spiking):
    """The loss to the last bit, which bf16 or other weights would change."""
    measured = run(energy, f"{spiking['checkpoint']} --device cpu")
    for name in ("test_loss", "test_accuracy", "energy_uj"):
        assert spiking[name] == measured[name], name


def test_an_epoch_is_told_as_it_trains(spiking):
    *_, last = Path(spiking["run"], "log.jsonl").read_text().splitlines()
    assert json.loads(last)["test_loss"] != spiking["test_loss"]
