"""Trained networks by name: the table, files of int8 weights, and what is refused."""

import pytest
import torch

import models
from engine import checkpoint, zoo
from engine.errors import UseError
from models import NeuronConfig, Spiking
from tests.zoo import MADE, NAME, network


def test_weights_are_within_half_a_step_of_their_channel():
    net = network()
    content = checkpoint.content(net, "snn", {}, {})
    small = zoo.packed(content)
    again = zoo.unpacked(small)
    assert again["format"] == checkpoint.FORMAT and small["format"] != checkpoint.FORMAT
    for name, value in net.state_dict().items():
        if value.dim() < 2:
            assert torch.equal(again["model"][name], value)
            continue
        assert small["model"][name].dtype == torch.int8
        step = value.flatten(1).abs().amax(1) / 127
        error = (again["model"][name] - value).flatten(1).abs().amax(1)
        assert (error <= step * 0.5001).all()


def test_what_is_packed_again_stays():
    """A network of a zoo can be stored again: nothing moves."""
    content = checkpoint.content(network(), "snn", {}, {})
    once = zoo.unpacked(zoo.packed(content))
    twice = zoo.unpacked(zoo.packed(once))
    for name, value in once["model"].items():
        assert torch.allclose(twice["model"][name], value, rtol=1e-6, atol=0)


def test_a_channel_without_weights_stays_empty():
    net = network()
    with torch.no_grad():
        net.head.weight[3] = 0
    content = zoo.unpacked(zoo.packed(checkpoint.content(net, "snn", {}, {})))
    assert content["model"]["head.weight"][3].tolist() == [0] * net.head.in_features


def test_a_name_is_a_checkpoint(small_zoo):
    """Wherever a path is: of a checkpoint to measure, to start from, to write beside."""
    path = small_zoo / f"{NAME}.pth"
    assert checkpoint.named(NAME) == path
    assert checkpoint.beside(NAME, "_energy") == f"{small_zoo}/{NAME}_energy"
    content = checkpoint.load(NAME)
    net = checkpoint.rebuild(content)
    assert content["kind"] == "snn" and net.built["width_mult"] == 1 / 16
    act = Spiking(NeuronConfig.vgg(3))
    other = models.build("resnet20", act, width_mult=1 / 16, bn=False)
    checkpoint.load_into(other, content, NAME)
    assert torch.equal(other.head.weight, net.head.weight)


def test_a_path_goes_before_a_name(small_zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).touch()
    assert str(checkpoint.named(NAME)) == NAME
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    assert str(checkpoint.named(NAME)) == f"{NAME}/best.pth"


def refused(name, *words):
    with pytest.raises(UseError) as error:
        checkpoint.load(name)
    for word in words:
        assert word in str(error.value)


def test_a_wrong_name_lists_those_that_exist(small_zoo):
    refused("resnet21", "no checkpoint at resnet21", f"names are {NAME}, resnet20_cifar10")


def test_a_path_is_no_name(small_zoo, tmp_path):
    with pytest.raises(UseError) as error:
        checkpoint.load(tmp_path / "resnet21.pth")
    assert NAME not in str(error.value)


def test_without_a_file_the_command_is_said(small_zoo):
    refused("resnet20_cifar10", "the weights of resnet20_cifar10 are not here", MADE)


def test_another_file_is_refused(small_zoo):
    path = small_zoo / f"{NAME}.pth"
    path.write_bytes(path.read_bytes() + b"?")
    refused(NAME, f"{path} is not the file", "sha256")


@pytest.mark.parametrize(
    "scales, words",
    [
        (None, "its scales are not those of its weights"),
        ({"tail.weight": torch.ones(10, 1)}, "its scales are not those of its weights"),
        ({"head.weight": torch.ones(10)}, "the scales of head.weight are [10], expected [10, 1]"),
        ({"head.weight": [1.0]}, "'head.weight' is no dense tensor"),
    ],
    ids=["none", "of others", "of another shape", "no tensor"],
)
def test_damaged_scales_are_refused(scales, words, tmp_path):
    content = zoo.packed(checkpoint.content(network(), "snn", {}, {}))
    torch.save({**content, "scales": scales}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", words)


def test_the_table_of_the_repository():
    """Every network has a card or the command that makes it; all files together fit in git."""
    table = zoo.table()
    assert {"resnet20_cifar10", "vgg16_cifar10"} <= set(table)
    total = 0
    for name, entry in table.items():
        assert entry.name == name and entry.command.startswith("python3 ")
        if entry.file:
            path = zoo.find(name)
            assert path.with_suffix("").name == name
            assert entry.sha256 in (zoo.FOLDER / f"{name}.md").read_text()
            total += path.stat().st_size
    assert total <= 4e6
