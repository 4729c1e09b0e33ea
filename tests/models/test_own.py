"""A network of the user's own: what it can do once it is registered, and what is said before."""

import pytest
import torch
from torch import nn

import models
from analysis.energy import measure
from engine import checkpoint
from models import MLIF, NeuronConfig, ReLU, Spiking, convert, integer
from models.layers import Layer, Network, Synapse
from models.rates import sources

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Own(Network):
    """A convolution, `middle` and a readout of images [B, 3, 8, 8]."""

    def __init__(self, act, num_classes=2, middle=()):
        first = Layer(Synapse(nn.Conv2d(3, 4, 3, padding=1)), act.layer(first=True))
        super().__init__(act, [first, *middle, nn.Flatten()], nn.Linear(4 * 64, num_classes))


@pytest.fixture
def registered(monkeypatch):
    """The networks with `Own` among them."""
    monkeypatch.setattr(models, "NETWORKS", dict(models.NETWORKS))
    models.register("Own", Own)


def test_a_registered_network_is_converted_and_rebuilt(registered, tmp_path):
    ann = models.build("own", ReLU(), num_classes=3)
    snn = convert.to_spiking(ann, Spiking(NeuronConfig.vgg(3), steps=2, theta=0.3)).eval()
    checkpoint.save(tmp_path / "own.pth", checkpoint.content(snn, "snn", {}, {}))
    again = checkpoint.rebuild(checkpoint.load(tmp_path / "own.pth")).eval()
    assert isinstance(again, Own)
    assert torch.equal(again(IMAGES), snn(IMAGES))
    assert torch.equal(again.head.weight, ann.head.weight)


def test_a_name_of_the_package_is_not_taken(registered):
    models.register("own", Own)  # a cell of a notebook runs twice
    with pytest.raises(ValueError, match="VGG16 is the name of a network of this package"):
        models.register("VGG16", Own)


def test_a_class_without_an_activation_is_refused(registered):
    with pytest.raises(ValueError, match=r"first argument of Linear must be act.*got in_feat"):
        models.register("linear", nn.Linear)


def test_what_runs_a_network_by_itself_is_told_its_size_of_image(registered):
    net = models.build("own", ReLU())
    with pytest.raises(ValueError, match="own takes no argument image_size: give its class one"):
        sources(net)


@pytest.mark.parametrize(
    "use",
    [
        convert.fuse_bn,
        lambda net, _: convert.to_spiking(net, Spiking()),
        lambda net, _: checkpoint.content(net, "ann", {}, {}),
    ],
    ids=["fuse", "convert", "store"],
)
def test_what_build_did_not_make_cannot_be_made_again(use):
    with pytest.raises(ValueError, match=r"this Own was not made by models.build.*register"):
        use(Own(ReLU()), IMAGES)


def test_a_batch_norm_that_no_argument_leaves_out_is_told(registered):
    ann = models.build("own", ReLU())
    ann.stages[0].synapse.norm = nn.BatchNorm2d(4)
    with pytest.raises(
        ValueError, match="own takes no argument bn and no bias, so it cannot be built without"
    ):
        convert.fuse_bn(ann, IMAGES)


def test_a_head_of_other_classes_is_told_before_it_is_stored(registered):
    net = models.build("own", ReLU(), num_classes=3)
    net.head = nn.Linear(4 * 64, 5)
    with pytest.raises(ValueError, match=r"head.bias \[5\] is not what models.build made"):
        checkpoint.content(net, "ann", {}, {})


def test_no_images_have_no_energy(registered):
    with pytest.raises(ValueError, match="there are no batches to measure"):
        measure(models.build("own", Spiking()), iter([]))


def test_lanes_do_not_go_without_output_scales(registered):
    net = models.build("own", Spiking(NeuronConfig.vgg(3)))
    with pytest.raises(ValueError, match=r"no output scales.*convert.to_spiking"):
        convert.set_levels(net, 2)
    assert net.act.neuron.levels == 3


def test_integers_are_not_refused_for_a_batch_norm_that_is_not_there():
    net = Own(Spiking(NeuronConfig.vgg(3)))
    integer.check(net)
    net.stages[0].synapse.norm = nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match="it has batch norm"):
        integer.check(net)


@pytest.mark.parametrize("module", [nn.Conv1d(4, 4, 1), nn.LSTMCell(4, 4), MLIF()])
def test_what_is_not_counted_is_refused(module):
    """It would cost nothing, or neurons be taken for an ANN."""
    net = Own(Spiking(), middle=[module])
    with pytest.raises(ValueError, match=rf"stages.1 is a {type(module).__name__}, .*act.layer"):
        measure(net, [IMAGES])
    with pytest.raises(ValueError, match=r"energies are of a .*Network, got a Conv1d"):
        measure(nn.Conv1d(4, 4, 1), [IMAGES])
