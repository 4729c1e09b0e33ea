"""Files of integer networks: read back when they are written, and refused when damaged."""

import io
import json

import numpy as np
import pytest
import torch

import models
from engine import integer_file
from engine.errors import RunError, UseError
from models import NeuronConfig, Spiking, integer

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def network(steps=1):
    act = Spiking(NeuronConfig.vgg(3), steps)
    return models.build("resnet20", act, width_mult=1 / 16, bn=False)


@pytest.fixture
def stored(tmp_path):
    """A file of an integer network."""
    net = network()
    whole = integer.to_integer(net, MEAN, STD)
    integer_file.save(tmp_path / "net.npz", whole, net, MEAN, STD, source="snn.pth")
    return tmp_path / "net.npz"


@pytest.mark.parametrize("steps", [1, 2])
def test_round_trip(steps, tmp_path):
    net = network(steps)
    whole = integer.to_integer(net, MEAN, STD)
    integer_file.save(tmp_path / "net.npz", whole, net, MEAN, STD, data={"name": "CIFAR10"})
    again, header = integer_file.load(tmp_path / "net.npz")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(again(images), whole(images))
    assert header["mean"] == list(MEAN) and header["data"] == {"name": "CIFAR10"}
    assert [path.name for path in tmp_path.iterdir()] == ["net.npz"]


def test_leaks_that_were_learned_up_to_1_are_stored(tmp_path):
    act = Spiking(NeuronConfig.vgg(3), 2, leak=0.9)
    net = models.build("resnet20", act, width_mult=1 / 16, bn=False)
    for site in net.sites():
        site.leak.data.fill_(1.0)
    whole = integer.to_integer(net, MEAN, STD)
    integer_file.save(tmp_path / "net.npz", whole, net, MEAN, STD)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    again, _ = integer_file.load(tmp_path / "net.npz")
    assert torch.equal(again(images), whole(images))


def test_anyone_can_read_it(stored):
    """Arrays of integers and a text, without a pickle."""
    with np.load(stored, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(str(arrays.pop("header")))
    assert (header["network"]["name"], header["source"]) == ("resnet20", "snn.pth")
    assert {str(array.dtype) for array in arrays.values()} == {"int8", "int32", "uint8"}
    assert arrays["stages.0.sums.weight"].shape == (4, 3, 3, 3)
    assert arrays["stages.0.neurons.edges"].shape == (3, 4)


def changed(path, **more):
    """Write the file anew with other arrays; None leaves one out."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | more
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


HEAD = "head.weight"
DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("accuracy 93.5 %\n"),
    "one array": lambda path: path.write_bytes(npy(np.zeros(3))),
    "pickle": lambda path: changed(path, **{HEAD: np.array([{}])}),
    "no header": lambda path: changed(path, header=None),
    "no JSON": lambda path: changed(path, header="mlif"),
    "list": lambda path: changed(path, header="[]"),
    "other format": lambda path: changed(path, header=later_header(path)),
    "missing": lambda path: changed(path, **{HEAD: None}),
    "surplus": lambda path: changed(path, more=np.zeros(3)),
    "other type": lambda path: changed(path, **{HEAD: np.zeros((10, 128, 1, 1), "float32")}),
    "other size": lambda path: changed(path, **{HEAD: np.zeros((10, 64, 1, 1), "int8")}),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


def later_header(path):
    """The header of a file, as if of a later format."""
    with np.load(path) as file:
        return str(file["header"]).replace(integer_file.FORMAT, "mlif-integer-9")


def npy(array):
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_told_in_a_line(damage, stored):
    damage(stored)
    with pytest.raises(UseError, match=r"net\.npz is damaged or no integer network \(.+\): write"):
        integer_file.load(stored)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UseError, match=r"no integer network at .*none\.npz"):
        integer_file.load(tmp_path / "none.npz")


def test_nothing_is_written_that_is_not_read_back(stored, monkeypatch):
    """A disk that keeps other numbers than it was given: the file that was there stays."""
    before = stored.read_bytes()
    savez = np.savez

    def wrong(file, **arrays):
        arrays[HEAD] = arrays[HEAD] + 1
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", wrong)
    net = network()
    whole = integer.to_integer(net, MEAN, STD)
    with pytest.raises(RunError, match="read back otherwise"):
        integer_file.save(stored, whole, net, MEAN, STD)
    assert stored.read_bytes() == before
    assert list(stored.parent.iterdir()) == [stored]
