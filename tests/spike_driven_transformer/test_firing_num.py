"""What is measured of a trained transformer, and which settings hold for it."""

import shlex

import numpy as np
import pytest
import torch

from cli.transformer import TransformerSettings
from engine import settings
from engine.errors import UseError
from spike_driven_transformer import firing_num, train
from tests.helpers import GOLDEN, image_folder

NUMBERS = np.load(GOLDEN / "B3_sdt_dim64_L1.npz")
STATE = {k[2:]: torch.from_numpy(NUMBERS[k]) for k in NUMBERS.files if k.startswith("w/")}
# of the recorded network
SIZES = {
    "dim": 64,
    "layer": 1,
    "pooling_stat": "0011",
    "time_steps": 2,
    "spike_mode": "mlif",
    "mlif_channels": 3,
    "scaled": "true",
}
WORDS = [f"--{name}={value}" for name, value in SIZES.items()]
QUICK = shlex.split("--device cpu --limit_eval_batches 1 --val_batch_size 16")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Summary of a run of one step on the digits."""
    folder = tmp_path_factory.mktemp("trained")
    more = "-d digits -b 16 --epochs 1 --warmup_epochs 0 --limit_train_batches 1 --no_aug"
    return train.main([*WORDS, *QUICK, *shlex.split(more), "--output", str(folder)])


@pytest.fixture
def published(tmp_path):
    """A file of the published code: weights alone."""
    path = tmp_path / "weights.pth.tar"
    torch.save({"state_dict": STATE}, path)
    return path


def configuration(folder, **more):
    """A configuration of the recorded network."""
    path = folder / "c.yml"
    lines = [f'{name}: "{value}"' for name, value in {**SIZES, "dataset": "digits", **more}.items()]
    path.write_text("\n".join(lines))
    return path


def test_a_checkpoint_is_measured_as_it_was_trained(trained, tmp_path):
    words = ["--resume", trained["checkpoint"], *QUICK, "--experiment", f"{tmp_path}/mine"]
    measured = firing_num.main(words)
    assert measured["test_accuracy"] == trained["best_accuracy"]
    assert len(measured["energy"].layers[3].step_rates) == 2
    for suffix in ("json", "csv", "png", "svg"):
        assert (tmp_path / f"mine.{suffix}").is_file()


def test_the_files_go_where_output_says(trained, tmp_path):
    firing_num.main(["--resume", trained["checkpoint"], *QUICK, "--output", f"{tmp_path}/there"])
    assert list((tmp_path / "there").glob("*_firing.json"))


@pytest.mark.parametrize("option, value", [("time_steps", 1), ("mlif_channels", 2)])
def test_an_option_that_contradicts_the_checkpoint_is_refused(option, value, trained):
    words = ["--resume", trained["checkpoint"], *QUICK]
    with pytest.raises(UseError, match=f"was trained with --{option} {SIZES[option]}, not {value}"):
        firing_num.main([*words, f"--{option}={value}"])


def test_a_checkpoint_is_measured_on_the_backend_that_is_asked_for(trained, tmp_path, monkeypatch):
    nets = []
    monkeypatch.setattr(firing_num, "whole_report", lambda net, *_: nets.append(net))
    words = ["--resume", trained["checkpoint"], *QUICK, "--neuron_backend", "reference"]
    firing_num.main([*words, *WORDS])
    assert {site.backend for site in nets[0].sites()} == {"reference"}


def test_an_option_that_does_nothing_for_the_checkpoint_is_told(trained):
    words = ["--resume", trained["checkpoint"], *QUICK]
    with pytest.raises(UseError, match=r"--layer 1, --model sdt_2_512_cifar has 2"):
        firing_num.main([*words, "--model", "sdt_2_512_cifar"])


def test_weights_alone_are_measured_by_a_configuration(published, tmp_path):
    # the recipe of the training, which a configuration holds, does no harm
    path = configuration(tmp_path, mixup=0.5, lr=1)
    measured = firing_num.main(["-c", str(path), "--resume", str(published), *QUICK])
    weights = ["--test_only", "--initial_checkpoint", str(published), "-d", "digits"]
    tested = train.main([*WORDS, *QUICK, *weights])
    assert measured["test_images"] == 16
    assert tested["test_accuracy"] == measured["test_accuracy"]


def test_stored_settings_say_which_images(tmp_path):
    stored = {
        "dataset": "torch/cifar100",
        "data_dir": "there",
        "img_size": 32,
        "mean": [0.1, 0.2, 0.3],
        "crop_pct": 0.9,
        "batch_size": 7,  # of the training
        "gone": 1,
    }
    given = settings.make(TransformerSettings, {"data_root": "here"}, ["data_root"])
    asked = firing_num.filled(given, stored, "x.pth", firing_num.IMAGES - given.given)
    assert (asked.data.dataset, asked.data.data_root) == ("CIFAR100", "here")
    assert (asked.data.image_size, asked.batches.batch_size) == (32, 32)
    assert (asked.augment.mean, asked.augment.crop_pct) == ((0.1, 0.2, 0.3), 0.9)
    with pytest.raises(UseError, match=r"x\.pth holds --dataset True"):
        firing_num.filled(given, {"dataset": True}, "x.pth", firing_num.IMAGES)


# of the training; the other options are those of network, images and device
IDLE = shlex.split(
    "lr epochs smoothing momentum weight_decay opt opt_eps min_lr warmup_epochs clip_grad "
    "model_ema_decay mixup cutmix mixup_off_epoch aa reprob hflip aug_repeats TET_lamb seed "
    "initial_checkpoint limit_train_batches save_freq rate_penalty energy_target"
)


@pytest.mark.parametrize("option", IDLE)
def test_options_of_the_training_do_nothing(option, fails):
    line = fails(firing_num.main, f"--resume x.pth --{option}=1")
    assert "does nothing here: a trained network is measured" in line


FLAGS = ["no_aug", "test_only", "dont_save", "sync_bn", "TET", "compile", "energy"]


@pytest.mark.parametrize("flag", [*FLAGS, "keep=last", "val_fraction=0.1"])
def test_flags_of_the_training_do_nothing(flag, fails):
    name, _, _ = flag.partition("=")
    fails(firing_num.main, f"--resume x.pth --{flag}", f"--{name} does nothing here")


def test_other_options_are_taken():
    network = {"layer", "dim", "spike_mode", "time_steps", "scaled", "neuron_backend"}
    images = {"dataset", "data_root", "image_size", "mean", "std", "interpolation", "crop_pct"}
    others = {"amp", "workers", "val_batch_size", "limit_eval_batches", "resume", "device"}
    assert not firing_num.idle() & (network | images | others)


def test_mistakes(published, trained, tmp_path, fails):
    main = firing_num.main
    fails(main, "", "give --resume")
    fails(main, f"--resume {tmp_path}/absent.pth", "no checkpoint at")
    fails(main, f"--resume {published}", "weights without settings: give their -c configuration")

    content = torch.load(trained["checkpoint"], weights_only=True)
    torch.save(content | {"kind": "snn"}, tmp_path / "snn.pth")
    fails(main, f"--resume {tmp_path}/snn.pth", "holds no transformer: use energy.py")


def test_other_classes_and_sizes_are_refused(tmp_path, fails):
    for name, classes in (("pets", ["cat", "dog"]), ("fruit", ["apple", "pear"])):
        for part in ("train", "val"):
            image_folder(tmp_path / name / part, 2, 8, (16, 16))
            for i, kind in enumerate(classes):
                (tmp_path / name / part / f"n{i:04}").rename(tmp_path / name / part / kind)
    more = f"-d folder --data_dir {tmp_path}/pets --img_size 16 -b 4 --epochs 1 --warmup_epochs 0"
    more += f" --limit_train_batches 1 --output {tmp_path}"
    path = train.main([*WORDS, *QUICK, *shlex.split(more)])["checkpoint"]
    words = f"--resume {path} --device cpu --data_dir {tmp_path}"
    fails(firing_num.main, f"{words}/fruit", "was trained on the classes ['cat', 'dog']")
    fails(firing_num.main, f"{words}/pets --img_size 32", "16 pixels", "32 pixels")


def test_another_class_count_is_named(trained, cifar, fails):
    words = (
        f"--resume {trained['checkpoint']} -d folder --data_dir {cifar}/cifar10-jpeg --img_size 32"
    )
    part = cifar / "cifar10-jpeg" / "train" / "n0010"
    part.mkdir()
    try:
        fails(firing_num.main, words, "has 10 classes", "has 11: check --dataset")
    finally:
        part.rmdir()
