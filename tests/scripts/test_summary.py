"""The figures that a training ends with are those of the file that it stored."""

import json
import shlex
from pathlib import Path

import pytest

import absorb_bn
import ann_ddp
import cli.run
import energy
import snn_ddp
from analysis.measure import Measure
from engine import checkpoint
from inputs.loader import make_loader
from tests.helpers import image_folder

NETWORK = "--dataset DIGITS --architecture RESNET20 --width_mult 0.125 --bias"
TRAINING = f"{NETWORK} --epochs 1 --limit_train_batches 4 --amp bf16 --energy --device cpu"
SPIKING = "--multi_channel 1 --num_channels 3 --timesteps 1 --conversion matched"
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
        words = f"{SPIKING} --keep last --pretrained_ann {ANN}_bn_fused.pth"
        yield run(snn_ddp, f"{TRAINING} {words}")


@pytest.fixture
def measured(monkeypatch):
    """The networks that were measured."""
    nets = []

    class Noting(Measure):
        def __call__(self, net, stem=None):
            nets.append(net)
            return super().__call__(net, stem)

    monkeypatch.setattr(cli.run, "Measure", Noting)
    return nets


def test_a_training_tells_what_its_file_does_in_float32(spiking):
    """The loss to the last bit, which bf16 or other weights would change."""
    measured = run(energy, f"{spiking['checkpoint']} --device cpu")
    for name in ("test_loss", "test_accuracy", "energy_uj"):
        assert spiking[name] == measured[name], name
    for suffix in ("json", "csv", "png", "svg"):
        assert Path(spiking["checkpoint"].replace(".pth", f"_energy.{suffix}")).is_file()


def test_an_epoch_is_told_as_it_trains(spiking):
    *_, last = Path(spiking["run"], "log.jsonl").read_text().splitlines()
    assert json.loads(last)["test_loss"] != spiking["test_loss"]


def test_a_file_is_measured_on_the_backend_that_is_asked_for(spiking, measured):
    words = f"{SPIKING} --pretrained_ann {ANN}_bn_fused.pth --neuron_backend reference"
    run(snn_ddp, f"{TRAINING} {words} --limit_train_batches 1 --output_dir other")
    (net,) = measured
    assert {site.backend for site in net.sites()} == {"reference"}


def test_a_conversion_is_measured_without_output_scales(spiking, measured):
    """With them its spikes are no powers of two, which some energy models bill by their digits."""
    words = f"{SPIKING} --pretrained_ann {ANN}_bn_fused.pth --test_only --energy --device cpu"
    run(snn_ddp, f"{NETWORK} {words}")
    (net,) = measured
    assert not net.act.scale


def test_the_state_of_a_training_is_billed_as_what_is_stored(spiking):
    model = "--energy_model shift-add"
    stored = run(energy, f"{spiking['checkpoint']} {model} --device cpu")
    state = run(energy, f"{spiking['run']}/last.pth {model} --device cpu")
    bills = [found["energy"].uj("shift-add") for found in (state, stored)]
    assert bills[0] == pytest.approx(bills[1], rel=1e-3)


def test_a_later_run_of_the_same_name_is_not_named_as_the_result(spiking):
    """Of two runs into one folder the stable file is the later one's."""
    words = f"{SPIKING} --keep last --pretrained_ann {ANN}_bn_fused.pth --output_dir same"
    words += " --limit_train_batches 1"
    first, second = (run(snn_ddp, f"{TRAINING} {words} --seed {seed}") for seed in (1, 2))
    assert first["checkpoint"] == second["checkpoint"]
    again = run(snn_ddp, f"--resume {first['run']}")
    assert again["checkpoint"] == f"{first['run']}/best.pth"
    assert again["test_loss"] == first["test_loss"]


def test_images_are_normalised_as_in_the_training(tmp_path, monkeypatch):
    """An own folder's statistics are measured on its training images: the file keeps them."""
    monkeypatch.chdir(tmp_path)
    # the numbers of images seed their pixels
    for name, count in (("one", 4), ("two", 6)):
        for part in ("train", "val"):
            image_folder(tmp_path / name / part, 2, count)
    words = "--dataset FOLDER --image_size 32 --architecture RESNET20 --width_mult 0.125 --bias"
    words += " --epochs 1 --batch_size 4 --device cpu"
    trained = run(ann_ddp, f"{words} --dataset_dir one")
    data = checkpoint.load(trained["checkpoint"])["data"]
    seen = []

    def noted(part, data, *more, **words):
        seen.append(data)
        return make_loader(part, data, *more, **words)

    monkeypatch.setattr(energy, "make_loader", noted)
    run(energy, f"{trained['checkpoint']} --dataset_dir two --device cpu")
    assert list(seen[0].mean) == data["mean"] != seen[0].about["mean"]


def test_the_energy_of_a_network_without_a_checkpoint_has_a_name(tmp_path, capsys):
    words = ["--architecture", "RESNET20", "--width_mult", "0.5", "--output", f"{tmp_path}/"]
    energy.main(words)
    names = ["resnet20_cifar10_w0.5_energy.csv", "resnet20_cifar10_w0.5_energy.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert f"written: {tmp_path}/{names[1]}" in capsys.readouterr().out
