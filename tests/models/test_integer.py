"""The integer network: by hand, against float networks that are exact, and without products."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import models
from analysis.agreement import outputs
from models import NeuronConfig, Spiking, integer
from models.layers import Layer, Network, Synapse
from models.rounded import Rounded
from tests.models import golden

NAMES = tuple(golden.CNNS)
MEAN, STD = (0.2, 0.4, 0.6), (1 / 255,) * 3  # the image is the pixel less 51, 102, 153
UNIT = 2**-10


def random(name, steps=1, config=None, **more):
    """A small SNN with biases."""
    act = Spiking(config or NeuronConfig.vgg(3), steps, **more)
    net = models.build(name, act, width_mult=1 / 16, bn=False)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.Conv2d):
                m.bias.normal_(0, 0.1)
                m.weight.mul_(2)
            elif isinstance(m, nn.Linear):
                m.weight.mul_(20)
    return net.eval()


def exact(name, config, steps, bias=True):
    """A small SNN whose weights, biases and thetas are int8 weights and integers, but for UNIT."""
    sizes = {"width_mult": 1 / 16, "bn": False, "bias": bias}
    net = models.build(name, Spiking(config, steps), **sizes).eval()
    maps = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for m in maps:
            whole = torch.randint(-127, 128, m.weight.shape)
            whole[:, 0] = 127  # the unit of every channel is UNIT then
            m.weight.copy_(whole * UNIT)
            if m.bias is not None:
                m.bias.copy_(torch.randint(-300, 300, m.bias.shape) * UNIT)
        for site in net.sites():
            site.theta.fill_((12000 if site.constant else 256) * UNIT)
    return net


def pixels(count=4):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)


# ---- what it computes


def by_hand(inclusive, bias=0.5):
    """Of one channel: 1x1 convolution, pooling, 1x1 convolution, readout of two classes."""
    act = Spiking(NeuronConfig(inclusive=inclusive))
    first, second = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    stages = [
        Layer(Synapse(first), act.layer(first=True, theta=32.0)),
        nn.AvgPool2d(2),
        Layer(Synapse(second), act.layer(theta=2.0)),
        nn.Flatten(),
    ]
    net = Network(act, stages, nn.Linear(1, 2, bias=False))
    net.built = {"bn": False}
    with torch.no_grad():
        first.weight.fill_(127 / 128)
        first.bias.fill_(bias)
        second.weight.fill_(4 * 127 / 128)
        second.bias.fill_(-2.0)
        net.head.weight.copy_(torch.tensor([[1.0], [-0.5]]))
    return net


@pytest.mark.parametrize(("inclusive", "at_the_edge"), [(False, 1), (True, 2)])
def test_a_network_by_hand(inclusive, at_the_edge):
    """u = 127/128 p + 1/2 > 32, 64, 128 is 127 p > 4032, 8128, 16320."""
    net = integer.to_integer(by_hand(inclusive), mean=(0.0,), std=(1 / 255,))
    first, _, second, _ = net.stages
    at = int(inclusive)
    assert first.sums.weight.tolist() == second.sums.weight.tolist() == [[[[127]]]]
    assert first.neurons.edges.flatten().tolist() == [4032 - at, 8128 - at, 16320 - at]
    # the quarter of the pooling is in the unit, 1/128: (2 * 2^i + 2) * 128
    assert second.neurons.edges.flatten().tolist() == [512 - at, 768 - at, 1280 - at]
    assert net.head.weight.flatten().tolist() == [127, -64]
    assert (
        first.sums.weight.dtype == second.sums.weight.dtype == net.head.weight.dtype == torch.int8
    )

    image = torch.tensor([[[[31, 32], [64, 129]]]], dtype=torch.uint8)
    readout, (spikes, last) = outputs(net, image)
    assert spikes.flatten().tolist() == [0, 1, at_the_edge, 4]
    # 127 * 6 = 762 (inclusive: 127 * 7 = 889) against 512, 768, 1280
    assert last.item() == at_the_edge
    assert readout.tolist() == [[127 * at_the_edge, -64 * at_the_edge]]


@pytest.mark.parametrize("inclusive", [False, True])
def test_theta_and_bias_are_rounded_and_doubled_thetas_are_exact(inclusive):
    """theta = 32.003 * 128 = 4096.4, bias = 0.506 * 128 = 64.8."""
    net = by_hand(inclusive, bias=0.506)
    with torch.no_grad():
        net.stages[0].act.theta.fill_(32.003)
    edges = integer.to_integer(net, (0.0,), (1 / 255,)).stages[0].neurons.edges.flatten()
    assert (edges + int(inclusive)).tolist() == [4096 - 65, 2 * 4096 - 65, 4 * 4096 - 65]


@pytest.mark.parametrize("pooled", [4, 5])
def test_a_shortcut_and_its_theta_are_multiples_of_one_integer(pooled):
    """1 / 0.45 is 20/9, and 0.25 / 0.45 is 5/9."""
    net = random("resnet20", theta=0.45)
    block = integer.to_integer(net, MEAN, STD).stages[pooled]
    edges, factor = block.neurons.edges, block.shortcut.factor
    theta = edges[1] - edges[0]
    assert torch.equal(theta * (5 if pooled == 4 else 20), factor * 9)
    assert (theta % 9 == 0).all() and theta.unique().numel() > 1


def test_fractions_are_near_and_count_in_a_byte():
    assert integer._fraction(1.0, 4, 4) == (1, 1)
    assert integer._fraction(1 / 0.7, 4, 4) == (10, 7)
    found = [
        (ratio, integer._fraction(ratio, 4, 4)) for ratio in torch.linspace(0.8, 4, 100).tolist()
    ]
    pairs = [(ratio, *pair) for ratio, pair in found if pair]
    assert len(pairs) > 90
    assert all(abs(m / n / ratio - 1) < 1 / 128 and 3 * n + 4 * m < 255 for ratio, m, n in pairs)
    assert integer._fraction(100.0, 4, 4) is None


def test_else_a_shortcut_is_int8_numbers_times_a_power_of_2():
    """Behind the pooling, 0.25 / 0.49 is near to no fraction that a byte counts."""
    net = random("resnet20", theta=0.49)
    with torch.no_grad():
        weight = net.stages[4].synapse.map.weight
        weight.clamp_(-0.1, 0.1)
        weight[:, 0, 0, 0] = 0.1
        weight[1, 0, 0, 0] = 0.05
        weight[1].clamp_(-0.05, 0.05)
    block = integer.to_integer(net, MEAN, STD).stages[4]
    # 0.25 * 127 / 0.1 = 317.5 and twice that: multiples of 8, the larger of which are int8 ones
    assert block.shortcut.factor.tolist() == [312, 632, 312, 312]
    scale = 0.25 / torch.tensor([312, 632, 312, 312])
    want = (net.stages[4].synapse.map.weight / scale[:, None, None, None]).round()
    assert torch.equal(block.sums.weight.float(), want) and want.max() <= 127


def test_what_is_added_up_has_one_unit():
    """The second convolution of a block (at most 1) and its shortcut (at most 2): 2/127."""
    net = random("resnet20")
    block = net.stages[6]
    with torch.no_grad():
        block.synapse.map.weight.fill_(1.0)
        block.shortcut.map.weight.fill_(-2.0)
    block = integer.to_integer(net, MEAN, STD).stages[6]
    assert block.sums.weight.unique().tolist() == [64]
    assert block.shortcut.weight.unique().tolist() == [-127]


CONFIGS = {
    "one-hot": NeuronConfig.vgg(3),
    "multi-hot": NeuronConfig.vgg(3, hardware_opt=2),
    "hard": NeuronConfig.vgg(3, reset_to_zero=True),
    "inclusive": NeuronConfig(inclusive=True),
    "one-lane": NeuronConfig.vgg(1),
}


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_integer_already_loses_nothing(name, config, steps):
    """Spike for spike, ties at the boundaries included."""
    net = exact(name, config, steps)
    whole = integer.to_integer(net, MEAN, STD)
    images = pixels()
    mean = torch.tensor([51.0, 102.0, 153.0])[:, None, None]
    with torch.no_grad():
        readout, spikes = outputs(net, images - mean)
    readout_of_integers, spikes_of_integers = outputs(whole, images)
    assert len(spikes) == len(spikes_of_integers) == len(net.sites())
    for ours, theirs in zip(spikes_of_integers, spikes):
        assert ours.dtype == torch.int32
        assert torch.equal(ours.flatten(), theirs.int().flatten())  # features have four axes here
    levels = torch.cat([ours.flatten() for ours in spikes_of_integers]).unique().tolist()
    assert len(levels) == config.levels + 1
    assert torch.equal(readout_of_integers.float() * UNIT, steps * readout)


# ---- how it computes it


class Operations(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


PRODUCTS = ("mul", "mm", "conv", "div", "dot", "pow", "lerp", "linear", "matmul")


def products(names):
    return sorted(name for name in names if any(word in name for word in PRODUCTS))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_after_the_first_layer_there_is_no_product(name, steps):
    net = integer.to_integer(random(name, steps), MEAN, STD).add_by(integer.choose_and_add)
    with Operations() as first:
        x = net.stages[0](pixels(1))
    with Operations() as rest:
        net.head(net.stages[1:](x))
    assert products(first.names) == ["convolution"]
    assert products(rest.names) == []
    assert {"add", "__lshift__", "__rshift__", "gt"} <= rest.names


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_additions_and_convolutions_agree_bit_for_bit(name, steps):
    net = integer.to_integer(random(name, steps), MEAN, STD)
    images = pixels()
    readout, spikes = outputs(net, images)
    again, added = outputs(net.add_by(integer.choose_and_add), images)
    assert torch.equal(readout, again)
    for ours, theirs in zip(spikes, added, strict=True):
        assert torch.equal(ours, theirs)
    assert sum(ours.count_nonzero() for ours in spikes[-2:]) > 0


def test_a_pooling_may_stand_at_two_places():
    """A module that is shared is met at each of them."""
    pool = nn.AvgPool2d(2)

    def built(*pools):
        torch.manual_seed(0)
        act = Spiking(NeuronConfig.vgg(3))
        first = Layer(Synapse(nn.Conv2d(3, 4, 3, padding=1)), act.layer(first=True))
        second = Layer(Synapse(nn.Conv2d(4, 4, 3, padding=1)), act.layer())
        stages = [first, pools[0], second, pools[1], nn.Flatten()]
        return Network(act, stages, nn.Linear(16, 5, bias=False)).eval()

    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    shared, apart = built(pool, pool), built(nn.AvgPool2d(2), nn.AvgPool2d(2))
    found, wanted = (integer.to_integer(net, MEAN, STD)(images) for net in (shared, apart))
    assert torch.equal(found, wanted)
    found, wanted = (Rounded(net, MEAN, STD).values().values() for net in (shared, apart))
    assert all(map(torch.equal, found, wanted))


def test_sums_tell_their_geometry():
    assert repr(integer.PoolSum(2)) == "PoolSum(2x2)"
    weight = torch.full((4, 2, 1, 1), -3, dtype=torch.int8)
    layer = integer.Sum(weight, nn.Conv2d(2, 4, 1, stride=2), highest=7)
    # the largest is -42: six bits and a sign
    expected = "2 -> 4, 1x1, stride=(2, 2), padding=(0, 0), inputs 0 to 7, sums of 7 bits"
    assert expected in repr(layer)


def test_the_frame_is_the_mean_pixel():
    net = integer.to_integer(random("vgg16"), (0.4914, 0.4822, 0.4465), STD)
    assert net.stages[0].sums.mean.tolist() == [125, 123, 114]


def test_a_float_image_has_its_pixels_back():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    images = pixels()
    shape = torch.tensor([mean, std])[:, :, None, None]
    assert torch.equal(integer.pixels((images / 255 - shape[0]) / shape[1], mean, std), images)


def test_noise_beyond_black_and_white_stays_there():
    images = torch.tensor([-0.02, 1.02]).view(1, 1, 1, 2)
    assert integer.pixels(images, (0.0,), (1.0,)).flatten().tolist() == [0, 255]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_channel_without_weights_follows_its_bias(steps):
    net = random("vgg16", steps)
    with torch.no_grad():
        layer = net.stages[1].synapse.map
        layer.weight[:2] = 0
        layer.bias[:2] = torch.tensor([2.5, -1.0])
    _, spikes = outputs(integer.to_integer(net, MEAN, STD), pixels())
    assert spikes[1][:, 0].unique().tolist() == [2]
    assert spikes[1][:, 1].unique().tolist() == [0]


# ---- what is refused


def refused(net, words):
    with pytest.raises(ValueError, match=words):
        integer.to_integer(net, MEAN, STD)


def test_networks_without_an_integer_form_are_refused():
    refused(models.build("vgg16", models.ReLU(), width_mult=1 / 16), "no multi-level neurons")
    refused(models.build("vgg16", Spiking(), width_mult=1 / 16), "batch norm: fuse it")
    refused(random("vgg16", scale=True), "scales are not folded")
    refused(random("vgg16", encoding="rate"), "input encoding is rate")
    scaled = models.build("vgg16", Spiking(NeuronConfig(scaled=True)), width_mult=1 / 16, bn=False)
    refused(scaled, r"NeuronConfig\.vgg")
    net = random("vgg16")
    net.stages[2] = nn.MaxPool2d(2)
    refused(net, r"stages\.2 is a MaxPool2d")
    for pool in (
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d((2, 2)),
        nn.AvgPool2d(2, 1),
        nn.AvgPool2d(2, ceil_mode=True),
    ):
        net.stages[2] = pool
        refused(net, r"stages\.2 is AvgPool2d\(.*expected squares beside one another")
    net = random("vgg16")
    net.stages[1].synapse.map.padding_mode = "reflect"
    refused(net, r"stages\.1\.synapse\.map is .*expected no groups, no dilation, and a padding of")


def test_a_leak_is_refused_where_it_matters():
    refused(random("resnet20", steps=2, leak=0.9), r"stages\.0 has the leak 0\.9: with 2 steps")
    integer.to_integer(random("resnet20", leak=0.9), MEAN, STD)


def test_sums_that_do_not_fit_32_bits_are_refused():
    net = random("resnet20", steps=2)
    with torch.no_grad():
        net.stages[5].inner.synapse.map.bias[1] = 1e9
    refused(net, r"stages\.5\.inner may reach .* more than 32 bits hold")

    net = random("resnet20")
    with torch.no_grad():
        # nothing but the shortcut, in a unit that follows the tiny threshold
        net.stages[4].synapse.map.weight.zero_()
        net.stages[4].act.theta.fill_(1e-6)
    refused(net, r"stages\.4 may reach")


def test_a_bias_beyond_all_sums_decides_alone():
    """It is cut to what 32 bits hold."""
    net = random("vgg16")
    with torch.no_grad():
        net.stages[1].synapse.map.bias[0] = 1e9
        net.stages[1].synapse.map.bias[1] = -1e9
    layer = integer.to_integer(net, MEAN, STD).stages[1]
    reach = 4 * layer.sums.weight.long().abs().sum((1, 2, 3))
    edges = layer.neurons.edges
    assert (edges[:, 0] < -reach[0]).all() and (edges[:, 1] >= reach[1]).all()
    assert edges.abs().max() < 2**20
