"""What every network of the registry must do, whatever it is: a new entry is covered by these."""

import math

import pytest
import torch
from torch import nn

import models
from analysis.energy import measure
from engine import checkpoint
from models import LIF, LogQuant, NeuronConfig, ReLU, Spiking
from models.activations import KINDS
from models.layers import StridedPointwise

STEPS = 2
ACTS = {
    "relu": ReLU(),
    "quant": LogQuant(3, "lvl"),
    "spiking": Spiking(NeuronConfig.vgg(2), STEPS, theta=0.5, leak=0.9),
    "frames": Spiking(NeuronConfig.vggsnn(2), STEPS, theta=0.5, encoding="frames"),
    "lif": LIF(STEPS, theta=0.5),
}
NEEDS_NEURONS = {"sdt"}  # an attention's neuron has a threshold of its own
CASES = [
    (name, kind)
    for name in models.NETWORKS
    for kind in ACTS
    if name not in NEEDS_NEURONS or kind not in ("relu", "quant")
]
NETWORKS = pytest.mark.parametrize("name", models.NETWORKS)
EVERY = pytest.mark.parametrize(("name", "kind"), CASES)

SHRINK = {"width_mult": 1 / 16, "dim": 16, "depth": 1}
IMAGE_SIZES = ("image_size", "img_size")
ACTIVATIONS = tuple(description.module for description in KINDS.values())
BATCH = 3
CLASSES = 7


def build(name, act, **arguments):
    """Network `name`, as small as its arguments make it."""
    shrunk = {key: value for key, value in SHRINK.items() if key in models.options(name)}
    return models.build(name, act, num_classes=CLASSES, **shrunk | arguments)


def weighted(net):
    """{name: layer} of all convolutions and linear layers."""
    return {n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def inputs(net):
    """A batch of images, or of frames, as the network wants them."""
    first = next(iter(weighted(net).values()))
    side = next(net.built[key] for key in IMAGE_SIZES if key in net.built)
    frames = getattr(net.act, "encoding", None) == "frames"
    return torch.randn(BATCH, *[STEPS] * frames, first.in_channels, side, side)


def lively(name, kind):
    """(network in training mode whose neurons fire in every layer, its inputs)

    Running statistics, thresholds and ranges are those of the inputs.
    """
    torch.manual_seed(0)
    net = build(name, ACTS[kind])
    x = inputs(net)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    quantisers = [m for m in net.modules() if isinstance(m, models.QuantReLU)]
    for norm in norms:
        nn.init.normal_(norm.weight, 2.0, 0.2)
        norm.momentum = 1.0
    for layer in weighted(net).values():
        if isinstance(layer, nn.Linear):  # these have no batch norm behind them
            nn.init.normal_(layer.weight, std=0.3)
    for quantiser in quantisers:
        quantiser.start()

    def threshold(site, args):
        if hasattr(site, "theta"):
            site.theta.data.copy_(args[0].relu().mean() + 1e-3)

    handles = [site.register_forward_pre_hook(threshold) for site in net.sites()]
    with torch.no_grad():
        net.train()(x)
    for handle in handles:
        handle.remove()
    for norm in norms:
        norm.momentum = 0.1
    for quantiser in quantisers:
        quantiser.stop()
    return net, x


# ---- construction


@NETWORKS
def test_arguments_are_remembered(name):
    net = build(name, ACTS["spiking"])
    assert net.built.keys() == {"name", *models.options(name)}
    assert net.built["name"] == name and net.built["num_classes"] == CLASSES


@EVERY
def test_shapes_are_known_without_memory(name, kind):
    with torch.device("meta"):
        net = build(name, ACTS[kind])
        for quantiser in net.modules():
            if isinstance(quantiser, models.QuantReLU):
                quantiser.stop()
        out = net(inputs(net))
        out.sum().backward()
    assert out.is_meta
    assert out.shape[-1] == CLASSES


@NETWORKS
def test_unknown_arguments_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} takes num_classes, .*; got colour, width"):
        models.build(name, ACTS["spiking"], width=1, colour=2)


@NETWORKS
def test_weights_have_the_same_names_whatever_the_activation(name):
    own = ("theta", "leak", "lo", "hi")  # what activations keep
    names = {
        kind: [n for n in build(name, ACTS[kind]).state_dict() if n.rpartition(".")[2] not in own]
        for other, kind in CASES
        if other == name
    }
    assert len(names) >= 3
    assert all(each == names["spiking"] for each in names.values())


@pytest.mark.parametrize("name", models.CNNS)
def test_a_cnn_takes_what_its_scripts_give(name):
    """The arguments that absorb_bn.py and snn_ddp.py set, and stages that can be converted."""
    taken = {"num_classes", "image_size", "width_mult", "bn", "bias", "dropout"}
    assert models.options(name).keys() >= taken
    net = build(name, ACTS["spiking"], bn=False, bias=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    stages = [stage for stage in net.stages if hasattr(stage, "firings")]
    assert [act for stage in stages for act, _ in stage.firings()] == net.sites()
    assert all(hasattr(stage, "fold_scale") for stage in stages)
    # of `layers.convolution`, since oneDNN's own may overrun its memory
    pointwise = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert all(isinstance(m, StridedPointwise) for m in pointwise if m.stride != (1, 1))


# ---- initialisation


def published_std(name, layer):
    """Standard deviation of new weights, docs/method.md section 3."""
    if name == "sdt":
        return 0.02
    if isinstance(layer, nn.Linear):
        return 0.01
    return math.sqrt(2 / (layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels))


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "sdt", "vggsnn"])
def test_the_rule_of_initial_weights(name):
    net = build(name, ACTS["spiking"])
    for layer in weighted(net).values():
        assert net.weight_std(layer) == pytest.approx(published_std(name, layer))


@NETWORKS
def test_initial_weights_follow_the_rule(name):
    """Mean 0 and the stated deviation in each layer, within 5 standard errors; zero biases."""
    net = build(name, ACTS["spiking"])
    for layer in weighted(net).values():
        z = layer.weight.detach() / net.weight_std(layer)
        assert abs(z.mean()) < 5 / math.sqrt(z.numel())
        assert abs(z.std() - 1) < 5 / math.sqrt(2 * z.numel())
        assert layer.bias is None or not layer.bias.any()


@NETWORKS
def test_initial_weights_are_normal(name):
    """All layers together: mean, deviation, and the shares within one and two deviations."""
    net = build(name, ACTS["spiking"])
    scaled = [m.weight.detach().flatten() / net.weight_std(m) for m in weighted(net).values()]
    z = torch.cat(scaled)
    error = 1 / math.sqrt(z.numel())
    assert abs(z.mean()) < 5 * error
    assert abs(z.std() - 1) < 5 * error / math.sqrt(2)
    for deviations in (1, 2):
        share = math.erf(deviations / math.sqrt(2))
        assert abs((z.abs() < deviations).float().mean() - share) < 5 * error / 2


@NETWORKS
def test_batch_norm_starts_as_the_identity(name):
    net = build(name, ACTS["spiking"])
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all((m.weight == 1).all() and not m.bias.any() for m in norms)


# ---- what it computes


@EVERY
def test_shape_of_the_readout(name, kind):
    net, x = lively(name, kind)
    steps = [net.act.steps] if net.per_step else []
    assert net(x).shape == (*steps, BATCH, CLASSES)
    assert net.readouts(x).shape == (net.act.steps * BATCH, CLASSES)


@EVERY
def test_evaluation_is_deterministic(name, kind):
    net, x = lively(name, kind)
    net.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@EVERY
def test_images_do_not_see_each_other_in_evaluation(name, kind):
    net, x = lively(name, kind)
    net.eval()
    x = x.double()  # rounding must not flip a spike
    with torch.no_grad():
        whole = net.double().readouts(x).unflatten(0, (-1, BATCH))  # [T, B, classes]
        alone = net.readouts(x[1:2]).unflatten(0, (-1, 1))
    assert torch.allclose(whole[:, 1:2], alone)
    assert not torch.allclose(whole[:, :1], whole[:, 1:2])


@EVERY
def test_a_checkpoint_rebuilds_the_network(name, kind, tmp_path):
    net, x = lively(name, kind)
    checkpoint.save(tmp_path / "net.pth", checkpoint.content(net, "any", {}, {}))
    again = checkpoint.rebuild(checkpoint.load(tmp_path / "net.pth"))
    assert again.built == net.built and again.act == net.act
    with torch.no_grad():
        assert torch.equal(again.eval()(x), net.eval()(x))


# ---- training


def gradients(net, x):
    """{parameter: gradient} of one training step, with the same random numbers each time."""
    torch.manual_seed(1)
    net.zero_grad()
    net(x).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters()}


@EVERY
def test_gradients_reach_every_parameter(name, kind):
    net, x = lively(name, kind)
    found = gradients(net, x)
    normed = {
        n for n, m in net.named_modules() if isinstance(getattr(m, "norm", 0), nn.BatchNorm2d)
    }
    for parameter, gradient in found.items():
        assert gradient is not None and gradient.isfinite().all(), parameter
        synapse = parameter.removesuffix(".map.bias")
        # a batch norm takes the bias before it out again
        assert gradient.any() or synapse in normed, parameter


@EVERY
def test_running_stages_again_gives_the_same_gradients(name, kind):
    net, x = lively(name, kind)
    plain = gradients(net, x)
    net, x = lively(name, kind)
    net.recompute = True
    again = gradients(net, x)
    assert all(torch.equal(gradient, again[key]) for key, gradient in plain.items())


# ---- activations and counts


@EVERY
def test_sites_are_all_activations_in_the_order_of_the_signal(name, kind, monkeypatch):
    made = []
    description = type(ACTS[kind])
    layer = description.layer

    def noted(self, *args, **kwargs):
        made.append(layer(self, *args, **kwargs))
        return made[-1]

    monkeypatch.setattr(description, "layer", noted)
    net, x = lively(name, kind)
    sites = net.sites()
    assert len(sites) == len(made) == len(set(sites)) and set(sites) == set(made)

    run = []
    for m in net.modules():
        if isinstance(m, ACTIVATIONS):
            m.register_forward_hook(lambda module, args, out: run.append(module))
    net(x)
    assert run == sites


def macs_by_hand(layer, out):
    """For one image and step, from the shapes alone."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    height, width = layer.kernel_size
    pixels = out.shape[2] * out.shape[3]
    return height * width * layer.in_channels // layer.groups * layer.out_channels * pixels


@EVERY
def test_every_weighted_layer_is_counted(name, kind):
    net, x = lively(name, kind)
    wanted = {}
    for layer_name, layer in weighted(net).items():
        layer.register_forward_hook(
            lambda m, args, out, n=layer_name: wanted.update({n: macs_by_hand(m, out)})
        )
    energy = measure(net, [x])
    assert wanted.keys() == weighted(net).keys()
    assert {row.name: row.macs for row in energy.layers} == wanted
    assert min(wanted.values()) > 0 and energy.macs == sum(wanted.values())
