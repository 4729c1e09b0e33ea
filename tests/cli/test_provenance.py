"""What the checkpoint that a command is given says of its training."""

import pytest
import torch

import models
from cli import provenance
from engine import checkpoint
from engine.dist import World
from engine.errors import UseError
from inputs.table import DataOptions
from tests.cli.toys import ABOUT


@pytest.mark.parametrize(
    "here, words",
    [
        (models.Spiking(models.NeuronConfig.vgg(3), 4), "steps 2, here 4"),
        (models.Spiking(models.NeuronConfig.vgg(2), 2), "levels 3, here 2"),
    ],
)
def test_another_activation_than_the_checkpoints_is_told(here, words, capsys):
    trained = models.describe(models.Spiking(models.NeuronConfig.vgg(3), 2))
    content = {"format": checkpoint.FORMAT, "activation": trained}
    provenance.note_activation(content, here, "snn.pth", World())
    said = capsys.readouterr().out
    assert said.startswith("note: snn.pth was trained with ")
    assert words in said


@pytest.mark.parametrize("scale", [False, True])
def test_the_same_activation_is_not_told(scale, capsys):
    """Nor an output scale, which is folded into weights."""
    trained = models.Spiking(models.NeuronConfig.vgg(3), 2)
    content = {"format": checkpoint.FORMAT, "activation": models.describe(trained)}
    here = models.Spiking(models.NeuronConfig.vgg(3), 2, scale=scale)
    provenance.note_activation(content, here, "snn.pth", World())
    assert capsys.readouterr().out == ""


def test_a_published_file_says_nothing_of_its_activation(capsys):
    provenance.note_activation({"format": "published"}, models.ReLU(), "published.pth", World())
    assert capsys.readouterr().out == ""


def test_another_number_of_steps_than_a_published_file_s_is_told(tmp_path, capsys):
    weights = {"features.0.weight": torch.zeros(1)}
    torch.save({"state_dict": weights, "timesteps": 1, "accuracy": 0.9}, tmp_path / "x.pth")
    content = checkpoint.load(tmp_path / "x.pth")
    for steps in (1, 20):
        act = models.Spiking(models.NeuronConfig.vgg(3), steps=steps, theta=0.3)
        provenance.note_activation(content, act, "x.pth", World())
    assert capsys.readouterr().out == "note: x.pth was trained with steps 1, here 20\n"


@pytest.fixture
def teacher(tmp_path):
    """File of a trained network."""
    net = models.build("resnet20", models.ReLU(), width_mult=0.0625)
    path = tmp_path / "teacher.pth"
    checkpoint.save(path, checkpoint.content(net, "ann", ABOUT, {}))
    return path


def test_without_distill_there_is_no_teacher():
    assert provenance.teacher("", ABOUT, World()) is None


def test_a_teacher_is_not_trained(teacher):
    net = provenance.teacher(str(teacher), ABOUT, World())
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    "other", [{"name": "DIGITS"}, {"num_classes": 7}, {"image_size": 64}], ids=str
)
def test_a_teacher_of_other_images_is_refused(teacher, other):
    with pytest.raises(UseError, match="was trained on noise, not on other"):
        provenance.teacher(str(teacher), ABOUT | {"source": "other"} | other, World())


OTHER = {"mean": [0.1, 0.2, 0.4], "std": [0.1, 0.2, 0.4], "classes": ["a", "c"]}


@pytest.mark.parametrize("name", OTHER)
def test_a_teacher_of_images_that_mean_something_else_is_refused(name, tmp_path):
    """Numbers of another machine may be rounded otherwise, and a file of the zoo has tuples."""
    net = models.build("resnet20", models.ReLU(), width_mult=0.0625)
    path = tmp_path / "teacher.pth"
    known = {"mean": (0.1, 0.2, 0.3), "std": (0.1, 0.2, 0.3), "classes": ["a", "b"]}
    checkpoint.save(path, checkpoint.content(net, "ann", ABOUT | known, {}))
    here = {"mean": [0.1, 0.2, 0.30000000000000004], "std": [0.1, 0.2, 0.3], "classes": ["a", "b"]}
    provenance.teacher(str(path), ABOUT | here, World())
    provenance.teacher(str(path), ABOUT, World())
    with pytest.raises(UseError, match=f"was trained with other {name} of its images"):
        provenance.teacher(str(path), ABOUT | here | {name: OTHER[name]}, World())


def test_a_published_teacher_is_refused(tmp_path):
    torch.save({"layer.weight": torch.zeros(1)}, tmp_path / "published.pth")
    with pytest.raises(UseError, match=r"file of the published code: run absorb_bn\.py on it"):
        provenance.teacher(str(tmp_path / "published.pth"), ABOUT, World())


def test_a_network_of_other_classes_is_refused():
    trained = ABOUT | {"classes": ["cat", "dog"]}
    provenance.check_shape({"data": trained}, trained, "x.pth")
    provenance.check_shape({"data": ABOUT}, trained, "x.pth")
    with pytest.raises(
        UseError, match=r"trained on the classes \['cat', 'dog'\], here has the classes \['apple'"
    ):
        here = trained | {"classes": ["apple", "pear"], "where": "here"}
        provenance.check_shape({"data": trained}, here, "x.pth")


def test_a_setting_that_cannot_be_is_refused_with_its_file():
    content = {"settings": {"dataset": True}, "data": {}}
    with pytest.raises(UseError, match=r"x\.pth holds --dataset True"):
        provenance.trained_data(content, DataOptions(), frozenset(), "x.pth")


def test_a_published_network_that_was_fused_is_measured_on_the_images_that_it_takes():
    content = {"settings": {}, "data": {"name": "CIFAR100"}}
    options = provenance.trained_data(content, DataOptions(), frozenset(), "x.pth")
    assert options.dataset == "CIFAR100"
    options = provenance.trained_data(content, DataOptions(), {"dataset"}, "x.pth")
    assert options.dataset == "CIFAR10"
