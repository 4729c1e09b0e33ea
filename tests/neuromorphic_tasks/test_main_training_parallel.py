"""VGGSNN's training: the published commands, resuming, and what a user gets wrong."""

from pathlib import Path

import pytest
import torch

import energy
import reproduce
import snn_ddp
from cli import events
from engine import checkpoint
from engine.loop import Trainer
from neuromorphic_tasks import main_training_parallel as training
from tests.helpers import ROOT
from tests.inputs.events.made import write_prepared
from tests.neuromorphic_tasks.commands import LANES, SMALL, parsed, train

# ---- the published commands ----

PAGE = (ROOT / "docs" / "events.md").read_text()
SCRIPT = "python3 main_training_parallel.py "
PRINTED = [line.removeprefix(SCRIPT) for line in PAGE.splitlines() if line.startswith(SCRIPT)]


STEPS = dict(zip(PRINTED, (10, 10, 5, 5, 3, 3, 10), strict=True))
# the first of M-LIF and plain LIF, the last
EVERYDAY = PRINTED[0], PRINTED[-1]


@pytest.mark.parametrize("words", PRINTED)
def test_printed_commands_are_understood(words):
    assert events.coding(parsed(words)).steps == STEPS[words]


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, marks=() if words in EVERYDAY else pytest.mark.long) for words in PRINTED],
)
def test_printed_commands(words, prepared, tmp_path):
    """As written, at the true width: one epoch of two batches of one recording."""
    summary = train(
        f"{words} --prepared {prepared} --epochs 1 -b 1 --limit_train_batches 2 --device cpu "
        f"--limit_eval_batches 1 --output_dir {tmp_path}"
    )
    assert summary["Q_F"] == STEPS[words] and summary["network"]["width_mult"] == 1
    lanes = f"C{summary['S']}" if "--multi_channel 1" in words else "LIF"
    name = f"vggsnn_dvscifar10_first900_T{summary['T_F']}_{lanes}.pth"
    assert Path(summary["checkpoint"]).name == name
    assert checkpoint.load(summary["checkpoint"])["data"]["split"] == "first900"


def test_published_defaults():
    asked = parsed("--TET True -j 4 -b 128 --lr 0.001")
    assert (asked.training.epochs, asked.training.learning_rate) == (300, 1e-3)
    assert asked.training.weight_decay == 0
    assert (asked.batches.batch_size, asked.compute.seed) == (128, 1000)
    assert (asked.loss.TET, asked.loss.lamb, asked.loss.means) == (True, 1e-3, 1.0)
    assert (asked.neuron.multi_channel, asked.neuron.num_channels) == (0, 1)
    assert asked.coding.T_prime == 10


def test_recipe_of_the_command():
    """Adam without AMSGrad; the rate is a cosine from lr to 0, stepped after every epoch."""
    asked = parsed("--epochs 300")
    recipe, net = training.TETRecipe(asked.training, asked.loss), torch.nn.Linear(2, 2)
    optimizer = recipe.optimizer(net)
    rates = [recipe.set_rate(optimizer, epoch) for epoch in (1, 76, 151, 300)]
    assert rates == pytest.approx([1e-3, 8.5355e-4, 5e-4, 2.7415e-8], rel=1e-4)
    assert optimizer.defaults["weight_decay"] == 0 and not optimizer.defaults["amsgrad"]


def test_without_tet_the_mean_readout_is_trained():
    asked = parsed("--TET false")
    out, labels = torch.randn(3, 4, 10), torch.tensor([1, 2, 3, 4])
    loss = training.TETRecipe(asked.training, asked.loss).loss(out, labels)
    wanted = 4 * torch.nn.functional.cross_entropy(out.mean(0), labels)
    assert loss.item() == pytest.approx(wanted.item())


def test_a_row_of_the_table(prepared, tmp_path, capsys):
    argv = "dvscifar10-vggsnn-s3-q3 --schedule smoke --width_mult 0.0625 --device cpu "
    argv += f"--data_root {prepared} --output_dir {tmp_path}"
    for _ in range(2):
        reproduce.main(argv.split())
        said = capsys.readouterr().out
        title = "dvscifar10-vggsnn-s3-q3: DVS-CIFAR10, split first900, width x0.0625, smoke"
        assert title in said
        assert "79.80" in said
    assert "s3_q3: done before" in said
    result = tmp_path / "results" / "dvscifar10-vggsnn-s3-q3.w0.0625.smoke.json"
    assert result.is_file()


# ---- names ----


def test_a_checkpoint_is_named_by_lanes_and_frames(prepared):
    asked = parsed(f"--T_prime 0 --multi_channel 1 --num_channels 4 --prepared {prepared}")
    assert asked.coding.T_prime == 80
    assert training.result(asked).name == "vggsnn_dvscifar10_first900_T80_C4.pth"


def test_simulated_recordings_have_checkpoints_of_their_own(tmp_path):
    made = {"images": "scikit-learn digits"}
    folder = write_prepared(tmp_path / "made", (2, 2), "random-1", 2, simulated=made)
    asked = parsed(f"--T_prime 0 --multi_channel 1 --num_channels 4 --prepared {folder}")
    assert training.result(asked).name == "vggsnn_simulated_random-1_T80_C4.pth"


def test_resize_and_width_are_in_the_name(prepared):
    asked = parsed(f"--resize published --width_mult 0.5 --prepared {prepared}")
    assert training.result(asked).name == "vggsnn_dvscifar10_first900_T10_LIF_published_w0.5.pth"


# ---- resuming ----


class Stop(Exception):
    """The training is cut off here."""


def cut_inside_the_second_epoch(monkeypatch, words):
    kept = Trainer.save_last

    def stop(self):
        kept(self)
        if (self.epoch, self.step) == (2, 2):
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_last", stop)
        with pytest.raises(Stop):
            train(words)


@pytest.mark.parametrize("neuron", [LANES, "--multi_channel 0 --TET false "])
def test_resume(neuron, prepared, tmp_path, monkeypatch):
    """Cut off inside the second epoch and resumed, a run ends bit for bit as the uninterrupted
    one.
    """
    words = f"{SMALL}{neuron} --prepared {prepared} --epochs 3 --limit_eval_batches 1 "
    words += "--save_freq 1 --debug"
    whole = train(f"{words} --output_dir {tmp_path}/a")
    cut_inside_the_second_epoch(monkeypatch, f"{words} --output_dir {tmp_path}/b")
    (run,) = (p for p in (tmp_path / "b").iterdir() if p.is_dir())
    train(f"--resume {run}")
    first, second = (checkpoint.load(Path(p) / "last.pth") for p in (whole["run"], run))
    assert all(torch.equal(v, second["model"][k]) for k, v in first["model"].items())
    moments = [
        content["training"]["optimizer"]["state"][0]["exp_avg"] for content in (first, second)
    ]
    assert torch.equal(*moments)


def test_frames_stored_as_zero_are_all(prepared, tmp_path, monkeypatch):
    """An earlier version stored --T_prime as it was given."""
    words = f"{SMALL}{LANES} --prepared {prepared} --epochs 2 --limit_train_batches 1 "
    words = words.replace("--T_prime 10", "--T_prime 0") + f"--output_dir {tmp_path}"
    run = Path(train(words)["run"])
    content = checkpoint.load(run / "last.pth")
    content["settings"]["T_prime"] = 0
    checkpoint.save(run / "last.pth", content)
    assert train(f"--resume {run} --T_prime 80")["T_F"] == 80


def test_another_folder_of_recordings(prepared, three_classes, tmp_path, fails):
    words = f"{SMALL}{LANES} --epochs 1 --limit_train_batches 1 --output_dir {tmp_path}"
    run = train(f"{words} --prepared {prepared}")["run"]
    said = "the train images are not those of the interrupted run"
    fails(training.main, f"--resume {run} --prepared {three_classes}", said)


@pytest.mark.compiler
@pytest.mark.long
def test_compiled_steps_learn_the_same(prepared, tmp_path, monkeypatch):
    """With --compile whole batches go through the traced step (here by its eager backend), the
    last, smaller one does not.
    """
    original, calls = torch.compile, []

    def traced(net, **_):
        fast = original(net, backend="eager")
        inner = fast.forward

        def forward(x):
            calls.append(len(x))
            return inner(x)

        monkeypatch.setattr(fast, "forward", forward)
        return fast

    words = f"{SMALL}{LANES} --prepared {prepared} --epochs 1 --limit_eval_batches 1 --amp none"
    plain = train(f"{words} --output_dir {tmp_path}/a")
    monkeypatch.setattr(torch, "compile", traced)
    compiled = train(f"{words} --output_dir {tmp_path}/b --compile")
    first, second = (
        checkpoint.load(Path(summary["run"]) / "last.pth")["model"] for summary in (plain, compiled)
    )
    assert calls == [4, 4]
    assert all(torch.allclose(v, second[k], atol=1e-5) for k, v in first.items())


# ---- mistakes ----


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--prepared {d}/absent", ("no prepared recordings in {d}/absent", "dvscifar_prepare.py")),
        ("--split other", ("prepared/other", "manifest.json")),
        ("--prepared {p} --split other", ("holds the split 'first900'", "'other'")),
        ("--prepared {p} --T_prime 81", ("--T_prime", "<= 80")),
        ("--prepared {p} --width_mult inf", ("--width_mult", "<= 16")),
        ("--prepared {p} --means nan", ("--means", "finite")),
        ("--prepared {p} --seed 99999999999", ("--seed", "<= 2147483647")),
        (
            "--prepared {p} --multi_channel 1 --num_channels 5 --T_prime 10",
            ("16 frames", "at most 4 lanes"),
        ),
        ("--prepared {p} --num_channels 3", ("--num_channels does nothing here",)),
        ("--prepared {p} --TET false --lamb 0.1", ("--lamb does nothing here",)),
        ("--prepared {p} --surrogate_edge paper", ("--surrogate_edge does nothing here",)),
        ("--prepared {p} --start_epoch 3", ("--start_epoch does nothing here", "--resume")),
        ("--prepared {p} --test_only", ("--pretrained_snn",)),
        ("--prepared {p} --pretrained_snn {d}/absent.pth", ("no checkpoint at",)),
        ("--prepared {p} --neuron_backend cupy", ("--neuron_backend cupy",)),
        (
            "--prepared {p} --val_fraction 0.01",
            ("--val_fraction 0.01 of 10 training images holds back 0",),
        ),
    ],
)
def test_command_line_mistakes(words, expected, prepared, tmp_path, fails):
    # should it be taken after all, it is soon over
    argv = f"{SMALL} --epochs 1 --output_dir {tmp_path} " + words.format(p=prepared, d=tmp_path)
    fails(training.main, argv, *(e.format(d=tmp_path) for e in expected), keep=prepared)


# ---- checkpoints that do not fit ----


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """File of a network of 3 lanes, trained for one step."""
    folder = tmp_path_factory.mktemp("trained")
    words = f"{SMALL}{LANES} --prepared {prepared} --output_dir {folder}"
    return train(f"{words} --epochs 1 --limit_train_batches 1")["checkpoint"]


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--T_prime 20", "was trained with --T_prime 10, not 20"),
        ("--multi_channel 1 --num_channels 2", "was trained with --num_channels 3, not 2"),
        ("--T_prime 20", "another --pretrained_snn"),
    ],
)
def test_options_that_contradict_the_checkpoint(trained, prepared, fails, words, expected):
    argv = f"--device cpu --prepared {prepared} --test_only --pretrained_snn {trained} {words}"
    fails(training.main, argv, expected)


def test_recordings_that_it_may_have_been_trained_on(trained, swapped, fails):
    argv = f"--device cpu --prepared {swapped} --test_only --pretrained_snn {trained}"
    words = f"{trained} has 5 test recordings, {swapped} holds 10 others"
    fails(training.main, argv, words)


def test_weights_of_another_size(trained, prepared, tmp_path, fails):
    argv = f"{SMALL}{LANES} --prepared {prepared} --output_dir {tmp_path} --width_mult 0.125 "
    fails(
        training.main,
        f"{argv} --pretrained_snn {trained}",
        "built with width_mult 0.0625, here 0.125",
    )


def test_weights_of_another_class_count(trained, three_classes, fails):
    argv = f"{SMALL}{LANES} --prepared {three_classes} --pretrained_snn {trained}"
    fails(training.main, argv, "built with num_classes 10, here 3", "check the data set")


def test_the_other_scripts_name_the_one_that_measures_it(trained, fails):
    words = "holds a vggsnn: measure it with neuromorphic_tasks/main_test.py"
    fails(energy.main, trained, words)


def test_the_cnn_refuses_it(trained, fails):
    argv = f"--dataset DIGITS --device cpu --pretrained_snn {trained}"
    fails(snn_ddp.main, argv, "holds a vggsnn, expected a vgg16")


def test_plain_lif_has_one_lane():
    asked = parsed("--multi_channel 0 --T_prime 8")
    assert asked.neuron.levels == 1
    assert events.coding(asked).levels == 1
