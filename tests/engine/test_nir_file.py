"""NIR graphs: what is in them, and that Norse computes the spikes of the SNN, ties included."""

import io
from collections import Counter

import pytest
import torch
from torch import nn

import models
from analysis.agreement import compare, outputs
from engine import nir_file
from models import NeuronConfig, Spiking
from models.layers import Layer, Network, Synapse
from tests.models import golden

nir = pytest.importorskip("nir")
pytest.importorskip("norse")

CONFIGS = {
    "one-hot": NeuronConfig.vgg(3),
    "multi-hot": NeuronConfig.vgg(3, hardware_opt=2),
    "hard": NeuronConfig.vgg(3, reset_to_zero=True),
    "inclusive": NeuronConfig(inclusive=True),
    "one-lane": NeuronConfig.vgg(1),
}


def small(name="resnet20", config=CONFIGS["one-hot"], **more):
    act = Spiking(config, theta=0.25, **more)
    return models.build(name, act, width_mult=1 / 16, bn=False).eval()


def exact(name, config):
    """An SNN whose sums float32 holds exactly, in whatever order, and that are thresholds often."""
    net = small(name, config)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                m.weight.copy_(torch.randint(-4, 5, m.weight.shape) / 16)
                if m.bias is not None:
                    m.bias.copy_(torch.randint(-4, 5, m.bias.shape) / 16)
    return net


def simulated(net, dtype=torch.float32):
    return nir_file.Simulated(nir_file.encode(nir_file.build(net)), net, dtype)


@pytest.mark.parametrize(
    ("name", "config"), [("vgg16", "one-hot"), *(("resnet20", config) for config in CONFIGS)]
)
def test_every_spike(name, config):
    """In both batches: nothing is kept from one to the next."""
    net = exact(name, CONFIGS[config])
    other = simulated(net)
    images = torch.randint(-8, 9, (2, 4, 3, 32, 32)) / 4
    agreement = compare(net, other, [(x, x, None) for x in images])
    assert (agreement.predictions, set(agreement.spikes.values())) == (1, {1})
    assert torch.equal(net(images[0]), other(images[0]))
    assert all(0 < fired.count_nonzero() < fired.numel() for fired in outputs(net, images[0])[1])


def test_weights_of_any_size():
    """In float64, where no order of a sum matters."""
    net = small()
    other = simulated(net, torch.float64)
    images = torch.randn(4, 3, 32, 32).double()
    agreement = compare(net.double(), other, [(images, images, None)])
    assert (agreement.predictions, set(agreement.spikes.values())) == (1, {1})


def relay(config, theta):
    """Neurons whose potential is the image, of one channel and 4x4 pixels, pooled and read out."""
    act = Spiking(config, theta=theta)
    synapse = Synapse(nn.Conv2d(1, 1, 1, bias=False))
    stages = [Layer(synapse, act.layer(first=True)), nn.AvgPool2d(2), nn.Flatten()]
    net = Network(act, stages, nn.Linear(4, 2, bias=False)).eval()
    net.built = {"bn": False, "image_size": 4}
    nn.init.ones_(synapse.map.weight)
    return net


@pytest.mark.parametrize("theta", [0.3, 1.0, 1e-6])
@pytest.mark.parametrize("inclusive", [False, True])
def test_at_a_threshold_and_at_the_numbers_beside_it(inclusive, theta):
    """IF fires above its threshold, in NIR and in Norse; a neuron that fires from it on, too, has
    the number below as threshold.
    """
    net = relay(NeuronConfig(inclusive=inclusive), theta)
    edges = torch.tensor(theta) * torch.tensor([1.0, 2.0, 4.0])
    below = edges.nextafter(torch.tensor(0.0))
    above = edges.nextafter(torch.tensor(torch.inf))
    rest = torch.tensor([0.0, -0.0, -1.0, 9.0, -theta, 3 * theta, 1e-45])
    image = torch.cat([below, edges, above, rest]).reshape(1, 1, 4, 4)
    _, (spikes,) = outputs(simulated(net), image)
    at = [1, 2, 4] if inclusive else [0, 1, 2]
    assert spikes.flatten().tolist() == [0, 1, 2, *at, 1, 2, 4, 0, 0, 0, 4, 0, 2, 0]
    assert torch.equal(spikes, net.stages[0](image))


def test_what_is_in_it():
    """The quarter of the pooling and the jump of a lane are in the weights behind them."""
    net = relay(NeuronConfig(), 0.5)
    file = io.BytesIO(nir_file.encode(nir_file.build(net, source="snn.pth")))
    graph = nir.read(file)
    assert graph.metadata == {"source": "snn.pth"}
    assert set(graph.edges) == {
        ("input", "stages.0.synapse.x1"),
        ("stages.0.synapse.x1", "stages.0.act.lane0"),
        ("stages.0.synapse.x1", "stages.0.act.lane1"),
        ("stages.0.synapse.x1", "stages.0.act.lane2"),
        ("stages.0.act.lane0", "stages.1.x1"),
        ("stages.0.act.lane1", "stages.1.x1"),
        ("stages.0.act.lane2", "stages.1.x2"),
        ("stages.1.x1", "head.x0.25"),
        ("stages.1.x2", "head.x0.5"),
        ("head.x0.25", "readout.x1"),
        ("head.x0.5", "readout.x1"),
        ("readout.x1", "output"),
    }
    lanes = [graph.nodes[f"stages.0.act.lane{lane}"] for lane in range(3)]
    assert [set(lane.v_threshold.flatten()) for lane in lanes] == [{0.5}, {1.0}, {2.0}]
    weight = net.head.weight.detach().reshape(2, 1, 2, 2).numpy()
    assert (graph.nodes["head.x0.25"].weight == weight / 4).all()
    assert (graph.nodes["head.x0.5"].weight == weight / 2).all()
    assert graph.output_type["output"].tolist() == [2, 1, 1]


@pytest.mark.parametrize("name", golden.CNNS)
def test_its_primitives(name):
    kinds = Counter(type(node).__name__ for node in nir_file.build(small(name)).nodes.values())
    assert set(kinds) == {"Input", "Conv2d", "IF", "SumPool2d", "Output"}
    assert kinds["IF"] == 3 * len(small(name).sites())


def test_a_bias_is_added_once():
    net = small()
    nn.init.ones_(net.stages[1].synapse.map.bias)
    nodes = nir_file.build(net).nodes
    assert set(nodes["stages.1.synapse.x1"].bias) == {1}
    assert set(nodes["stages.1.synapse.x2"].bias) == {0}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"steps": 2}, "2 steps, in which its lanes share a potential.* train with --timesteps 1"),
        ({"scale": True}, "its output scales are not folded"),
        ({"encoding": "rate"}, "its input encoding is rate"),
    ],
)
def test_what_nir_cannot_express(more, words):
    with pytest.raises(ValueError, match=words):
        nir_file.build(small(**more))


def test_a_stage_without_a_node():
    net = small()
    net.stages.append(nn.MaxPool2d(2))
    with pytest.raises(ValueError, match=r"stages.13 is a MaxPool2d, which NIR has no node for"):
        nir_file.build(net)
