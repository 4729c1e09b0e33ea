"""NeuroBench's harness counts of a spiking network, lane by lane, what our counters count."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import energy as command
import models
from analysis import neurobench
from engine import checkpoint
from engine.dist import World
from engine.errors import RunError, UseError
from engine.log import read_json
from models import NeuronConfig, Spiking
from tests.analysis.networks import IMAGE, silent_chain, spiking

pytest.importorskip("neurobench")


class Loader:
    """Noise, or `image` alone, in two batches of different sizes."""

    def __init__(self, *batches):
        self.batches = batches or torch.randn(5, 3, 32, 32).split(3)
        self.images = sum(map(len, self.batches))

    def __len__(self):
        return len(self.batches)

    def epoch(self, number):
        for images in self.batches:
            yield images, torch.zeros(len(images)), len(images)


def check(found):
    """Both counters agree on all but what a convolution of ones over padding is."""
    by_lane, ours = dict(found["by_lane"]), dict(found["counters"])
    assert by_lane.pop("ActivationSparsity") == pytest.approx(ours.pop("ActivationSparsity"), 1e-12)
    del by_lane["Dense"], ours["Dense"]
    assert by_lane == ours
    assert ours["Effective_ACs"] > 0


@pytest.mark.parametrize(("name", "steps"), [("vgg16", 1), ("resnet20", 1), ("resnet20", 2)])
def test_equal_to_our_counters(name, steps):
    """Behind poolings, too, where inputs have several digits; the merged outputs are MACs."""
    net = spiking(name, 3, steps)
    found = neurobench.compare(net, Loader(), World())
    check(found)
    assert found["merged"]["Effective_ACs"] == 0
    assert found["merged"]["Effective_MACs"] > found["by_lane"]["Effective_MACs"] > 0
    assert found["footprint"] == 4 * sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("more", [{"encoding": "rate"}, {"neuron": NeuronConfig.vgg(2, 2)}])
def test_other_inputs_and_neurons(more):
    """Bernoulli spikes of the image, drawn alike for both counters; multi-hot neurons."""
    act = Spiking(**{"neuron": NeuronConfig.vgg(2), "steps": 2, "theta": 0.05, **more})
    net = models.build("resnet20", act, width_mult=1 / 16, bn=False).eval()
    found = neurobench.compare(net, Loader(), World())
    check(found)
    assert (found["counters"]["Effective_MACs"] == 0) == (act.encoding == "rate")


def test_by_hand():
    """Four pixels meet a weight each, once; the spikes 0 1 2 0 and 0 1 2 1 of two steps meet four
    weights each. Of 8 neurons with 2 lanes and 2 steps five lanes fire.
    """
    net = silent_chain()
    net.stages[1].synapse.map.weight.data.fill_(-1)
    found = neurobench.compare(net, Loader(IMAGE), World())
    check(found)
    by_lane = found["by_lane"]
    assert (by_lane["Effective_MACs"], by_lane["Effective_ACs"]) == (4, 20)
    assert by_lane["ActivationSparsity"] == 1 - 5 / 32
    # of 36 weights of the 3x3 convolution 20 lie on padding, which NeuroBench leaves out
    assert (found["merged"]["Dense"], found["counters"]["Dense"]) == (52, 4 + 2 * 36 + 2 * 8)


def test_a_weight_of_zero_is_no_operation_of_neurobench():
    found = neurobench.compare(silent_chain(), Loader(IMAGE), World())
    assert found["by_lane"]["Effective_ACs"] == 0
    assert found["counters"]["Effective_ACs"] == 20


def test_hooks_see_lanes_and_the_network_computes_what_it_did():
    net = spiking("resnet20", 3, 2)
    split = neurobench.by_lane(net)
    seen = []
    for layer in split.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(split(images), net(images))
    assert torch.equal(seen[0], images)
    assert {value for x in seen[1:] for value in x.unique().tolist()} == {0, 1}


def test_analog_inputs_stay_macs():
    layer = neurobench.ByLane(nn.Linear(3, 2, bias=False), levels=2)
    seen = []
    layer.layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0].tolist()))
    layer(torch.tensor([[0.3, 2.0, 0.0]]))
    assert seen == [[[0, 1, 0]], [[pytest.approx(0.3), 0, 0]]]


def test_the_command(cifar, tmp_path, capsys):
    """energy.py prints the table and writes what it shows, of a few batches here."""
    net = spiking("resnet20", 3, 1)
    about = {"name": "CIFAR10", "num_classes": 10, "image_size": 32, "source": "CIFAR-10"}
    path = tmp_path / "snn.pth"
    checkpoint.save(path, checkpoint.content(net, "snn", about, {"dataset": "CIFAR10"}))
    argv = f"{path} --data_root {cifar} --neurobench --batch_size 4 --limit_eval_batches 2"
    summary = command.main(argv.split())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NeuroBench", "2.3.0", "merged", "by_lane", "counters"]

    found = read_json(tmp_path / "snn_energy_neurobench.json")
    check(found)
    assert found["images"] == summary["test_images"] == 8
    shown = f"{found['counters']['Effective_ACs']:,.2f}"
    (line,) = [line.split() for line in lines if line.startswith("Effective_ACs")]
    assert line == ["Effective_ACs", "0.00", shown, shown]


def test_what_has_no_lanes():
    net = models.build("resnet20", models.ReLU(), width_mult=1 / 16)
    with pytest.raises(UseError, match="counts the lanes of an SNN in one process"):
        neurobench.compare(net, Loader(), World())
    with pytest.raises(UseError, match="in one process"):
        neurobench.compare(silent_chain(), Loader(IMAGE), SimpleNamespace(size=2))


def test_a_metric_that_fails_is_no_count_of_zero(monkeypatch):
    from neurobench.metrics.workload import SynapticOperations

    monkeypatch.setattr(SynapticOperations, "compute", lambda self: 1 / 0)
    with pytest.raises(RunError, match="SynapticOperations failed"):
        neurobench.compare(silent_chain(), Loader(IMAGE), World())
