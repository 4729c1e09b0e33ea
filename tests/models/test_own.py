"""A network of the user's own: what it can do once it is registered, and what is said before."""

import pytest
import torch
from torch import nn

import models
from analysis.energy import measure
from engine import checkpoint
from models import MLIF, NeuronConfig, ReLU, Spiking, convert, integer
from models.layers import Layer, Network, Residual, Synapse
from models.rates import sources
from models.rounded import Rounded

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PICTURES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


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


def test_a_forgotten_first_layer_is_told(registered):
    """Else its images were taken for steps."""
    snn = models.build("own", Spiking(steps=2))
    snn.stages[0].act = snn.act.layer()
    for use in (lambda: snn(IMAGES), lambda: measure(snn, [IMAGES])):
        with pytest.raises(ValueError, match="4 images of 2 steps became 4 rows: the first layer"):
            use()


def test_a_module_that_fires_at_two_places_is_told(registered):
    """It has one threshold."""
    act = Spiking(NeuronConfig.vgg(3), scale=True)
    snn = Own(act, middle=[Layer(Synapse(nn.Conv2d(4, 4, 1)), act.layer())])
    snn.stages[1].act = snn.stages[0].act
    assert len(snn.sites()) == 1
    for use in (convert.match_activations, convert.balance_thresholds):
        with pytest.raises(ValueError, match=r"stages\.0\.act fires at two places"):
            use(snn, IMAGES)
    with pytest.raises(ValueError, match=r"stages\.0\.act runs twice"):
        measure(snn, [IMAGES])


def test_a_scale_that_no_stage_absorbs_is_told():
    act = Spiking(NeuronConfig.vgg(3), scale=True)
    inner = Layer(Synapse(nn.Conv2d(4, 4, 1)), act.layer())
    snn = Own(act, middle=[nn.Sequential(inner)])
    with pytest.raises(ValueError, match=r"stages\.1\.0\.act cannot be folded"):
        convert.fold_scales(snn, IMAGES)


class Torn(Network):
    """With a ReLU and a batch norm of its own."""

    def __init__(self, act, image_size=8, bn=True, bias=True):
        first = Layer(Synapse(nn.Conv2d(3, 4, 3, padding=1)), act.layer(first=True))
        norm = nn.BatchNorm2d(4) if bn else nn.Identity()
        stages = [first, norm, nn.ReLU(), nn.Flatten()]
        super().__init__(act, stages, nn.Linear(4 * image_size**2, 2))


def test_what_a_conversion_leaves_over_is_told(registered):
    models.register("torn", Torn)
    with pytest.raises(ValueError, match=r"stages\.1 cannot be fused: it is not the batch norm of"):
        convert.fuse_bn(models.build("torn", ReLU()), IMAGES)
    with pytest.raises(ValueError, match=r"stages\.2 would stay a ReLU: take act\.layer"):
        convert.to_spiking(models.build("torn", ReLU(), bn=False), Spiking())


def test_a_conversion_keeps_double_precision(registered):
    ann = models.build("own", ReLU()).double()
    snn = convert.to_spiking(ann, Spiking())
    assert torch.equal(snn.head.weight, ann.head.weight)
    fused, _ = convert.fuse_bn(models.build("vgg16", ReLU(), width_mult=1 / 16).double(), PICTURES)
    assert fused.head.weight.dtype == torch.float64


@pytest.mark.parametrize(
    "make",
    [
        lambda: Synapse(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1))),
        lambda: Synapse(nn.Linear(3, 3), norm=True),
        lambda: Residual(None, None, nn.AvgPool2d(2), None),
    ],
    ids=["two maps", "norm of a linear layer", "shortcut"],
)
def test_parts_that_no_conversion_knows_are_refused(make):
    with pytest.raises(ValueError, match=r"a (synapse|shortcut) .*got (Seq|Linear|AvgPool)"):
        make()


def test_what_no_file_can_hold_is_told_before_it_is_stored(registered):
    net = models.build("own", ReLU())
    with pytest.raises(ValueError, match=r"'data' of a checkpoint takes plain.*holds a Tensor"):
        checkpoint.content(net, "ann", {"mean": torch.zeros(3)}, {})

    class Any(Own):
        def __init__(self, act, **more):
            super().__init__(act, **more)

    with pytest.raises(ValueError, match="Any takes any more: name them"):
        models.register("any", Any)


def pooled_first(net):
    net.stages.insert(0, nn.AvgPool2d(2))


def first_as_any_other(net):
    net.stages[0].act = net.act.layer()


@pytest.mark.parametrize("use", [integer.to_integer, Rounded])
@pytest.mark.parametrize("spoil", [pooled_first, first_as_any_other])
def test_integers_need_a_first_layer(spoil, use):
    """It has products, and the normalisation of pixels."""
    net = Own(Spiking(NeuronConfig.vgg(3)))
    net.head = nn.Linear(4 * 64, 2, bias=False)
    spoil(net)
    with pytest.raises(ValueError, match="do not begin with a layers"):
        use(net, (0.5,) * 3, (0.2,) * 3)


def test_integers_are_not_refused_for_a_batch_norm_that_is_not_there():
    net = Own(Spiking(NeuronConfig.vgg(3)))
    net.head = nn.Linear(4 * 64, 2, bias=False)
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
