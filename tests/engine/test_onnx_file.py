"""ONNX files: what stands in the graph, and that ONNX Runtime computes what torch does."""

from collections import Counter
from itertools import cycle

import pytest
import torch
from torch import nn

from engine import onnx_file
from engine.errors import RunError
from models import BACKENDS, LIF, MLIF, LogQuant, NeuronConfig, ReLU, Spiking, calibrate
from models.layers import Layer, Network, convolution
from tests.models.neuron.parity import SAMPLE

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


def toy(act):
    """A network of two layers of neurons."""
    first = Layer(convolution(3, 4, norm=False), act.layer(first=True))
    second = Layer(convolution(4, 4, norm=False), act.layer())
    return Network(act, [first, second, nn.Flatten()], nn.Linear(4 * 4 * 4, 10)).eval()


def nodes(model):
    return Counter(node.op_type for node in model.graph.node)


def runs(net, images, **more):
    """What ONNX Runtime makes of `images`, by the graph that is drawn of other images."""
    model = onnx_file.draw(net, torch.zeros(2, *images.shape[1:]), **more)
    return model, onnx_file.OnnxNetwork(model.SerializeToString())(images)


def test_a_neuron_of_one_step_is_comparisons_and_additions_of_bytes():
    model, _ = runs(toy(Spiking(NeuronConfig.vgg(3))), torch.randn(5, 3, 4, 4))
    neurons, lanes = 2, 3
    assert nodes(model) == {
        "Conv": 2,
        "Greater": neurons * lanes,
        "Cast": neurons * (lanes + 1),  # a byte for each lane, and the sum becomes float again
        "Mul": neurons,  # the third lane adds 2
        "Add": neurons * (lanes - 1),
        "Reshape": 1,
        "Gemm": 1,
    }
    kinds = {each.data_type for each in model.graph.initializer if not each.dims}
    assert kinds == {onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8}


class Neurons(nn.Module):
    """Neurons side by side, on backends whether they run here or not: [B, T, n] -> [B, k, T, n]."""

    def __init__(self, backends):
        super().__init__()
        pairs = zip(SAMPLE, cycle(backends))
        self.all = nn.ModuleList(
            MLIF(config, theta=0.75, leak=0.5, stateless=True, backend=backend)
            for config, backend in pairs
        )

    def forward(self, x):
        outputs = [neuron(x.transpose(0, 1)).transpose(0, 1) for neuron in self.all]
        return torch.stack(outputs, 1)


@pytest.mark.parametrize("steps", [1, 3])
def test_every_neuron_on_every_backend_equals_the_definition(steps):
    """Currents of a few values, that meet the thresholds exactly, too."""
    currents = torch.randint(-8, 32, (5, steps, 64)) / 8
    backends = [name for name in BACKENDS if name != "auto"]
    assert len(SAMPLE) >= len(backends)
    net = Neurons(backends).eval()
    _, got = runs(net, currents)
    assert {neuron.backend for neuron in net.all} == set(backends)
    assert torch.equal(got, Neurons(["reference"])(currents))


ACTIVATIONS = [
    ReLU(),
    LogQuant(2, "log"),
    LogQuant(4, "uniform"),
    Spiking(NeuronConfig.vgg(3), 2, theta=0.1, leak=0.9, scale=True),
    Spiking(NeuronConfig.vgg(3), 2, theta=0.1, encoding="frames"),
    LIF(2, theta=0.1),
]


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda act: f"{act.kind} {act.steps}")
def test_every_activation_computes_what_it_does_in_torch(act):
    net = toy(act)
    frames = [act.steps] if act.encoding == "frames" else []
    images = torch.randn(7, *frames, 3, 4, 4)
    calibrate(net, [images])
    _, got = runs(net, images)
    with torch.no_grad():
        want = net(images)
    assert got.abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_the_opset_is_the_one_that_was_asked_for():
    net, images = toy(Spiking(NeuronConfig.vgg(3), theta=0.3)), torch.randn(5, 3, 4, 4)
    latest = max(onnx_file.OPSETS)
    model, got = runs(net, images, opset=latest)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", latest)]
    torch.testing.assert_close(got, net(images).detach(), rtol=1e-5, atol=1e-6)


def test_an_opset_that_the_exporter_leaves_as_it_is(capfd):
    with pytest.raises(RunError, match=r"the exporter of torch .* wrote opset 18, not 13"):
        onnx_file.draw(toy(ReLU()), torch.zeros(2, 3, 4, 4), opset=13)


def test_the_file_says_nothing_of_this_machine(tmp_path):
    model = onnx_file.draw(toy(ReLU()), torch.zeros(2, 3, 4, 4))
    onnx_file.save(tmp_path / "net.onnx", onnx_file.stamped(model, {"mean": [0.5]}))
    content = (tmp_path / "net.onnx").read_bytes()
    assert b".py" not in content and b"File" not in content
    session = onnx_file.session(tmp_path / "net.onnx")
    assert session.get_modelmeta().custom_metadata_map == {"mean": "[0.5]"}
    (images,) = session.get_inputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, 4, 4])
