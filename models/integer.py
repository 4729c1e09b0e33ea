"""The integer network of a trained SNN: after its first layer it shifts, adds and compares
(docs/method.md section 9).

Feature maps are [N, C, H, W], features [N, C, 1, 1]; time is folded into N, as everywhere.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .activations import Spiking, unfold
from .layers import Layer, Residual, norms

WHITE = 255  # the largest pixel
TOP = 127  # the largest int8 weight
LIMIT = 2**31 - 1  # of an int32
# least scale of a channel, in thetas: a channel of tiny weights, or none, needs no finer unit
FINEST = 2.0**-16


def pixels(images, mean, std):
    """The uint8 images of which float `images` [B, C, H, W] are the normalised ones.

    mean, std: per channel, of pixels in [0, 1].
    """
    mean, std = (images.new_tensor(values)[:, None, None] for values in (mean, std))
    return ((images * std + mean) * WHITE).round().clamp(0, WHITE).to(torch.uint8)


# Sums of weights. A sum has two forms, equal bit for bit: the first is the definition, the second
# is fast enough for a test set.


def choose_and_add(ones, weight, stride, padding):
    """The sum of the weights that a 1 meets: int32 [N, O, H, W], by additions alone.

    ones: int32 [N, I, H, W] of 0 and 1. weight: int8 [O, I, k, k].
    """
    size = weight.shape[2:]
    # im2col copies; it knows no integers
    patches = F.unfold(ones.float(), size, padding=padding, stride=stride)  # [N, I*k*k, places]
    met = patches[:, None] == 1
    chosen = torch.where(met, weight.flatten(1)[:, :, None], 0)  # [N, O, I*k*k, places]
    sums = chosen.sum(2, dtype=torch.int32)
    rows = (ones.shape[2] + 2 * padding[0] - size[0]) // stride[0] + 1
    return sums.unflatten(2, (rows, -1))


def convolve(ones, weight, stride, padding):
    """The same by a convolution, since a product with 0 or 1 does nothing but choose.

    float64 adds integers exactly up to 2^53.
    """
    return F.conv2d(ones.double(), weight.double(), stride=stride, padding=padding).int()


def binary(x, highest):
    """Yield (digit, int32 of 0 and 1) for the binary digits of integers from 0 to `highest`."""
    for digit in range(highest.bit_length()):
        yield digit, x >> digit & 1


def geometry(module, highest):
    """Line of a module of sums for `print(net)`; bits: of its largest sum, and the sign.

    A bias, a shortcut and a potential are not in it. highest: the largest integer of its input.
    """
    outputs, inputs, *size = module.weight.shape
    bits = int(_reach(module.weight, highest).max()).bit_length() + 1
    return (
        f"{inputs} -> {outputs}, {'x'.join(map(str, size))}, stride={module.stride}, "
        f"padding={module.padding}, inputs 0 to {highest}, sums of {bits} bits"
    )


class Sum(nn.Module):
    """Weighted sums of integers from 0 to `highest`: [N, I, H, W] -> int32 [N, O, H, W].

    Every binary digit of an input, of which a one-hot spike has one, adds shifted weights.
    """

    def __init__(self, weight, layer, highest):
        super().__init__()
        self.register_buffer("weight", weight)  # int8 [O, I, k, k]
        # a linear layer is a 1x1 convolution
        self.stride = getattr(layer, "stride", (1, 1))
        self.padding = getattr(layer, "padding", (0, 0))
        self.highest = highest
        self.add = convolve

    def forward(self, x):
        total = 0
        for digit, ones in binary(x, self.highest):
            total = total + (self.add(ones, self.weight, self.stride, self.padding) << digit)
        return total

    def extra_repr(self):
        return geometry(self, self.highest)


class Factor(nn.Module):
    """A shortcut without weights: integers times their channel's factor, by shifted additions."""

    def __init__(self, factor, highest):
        super().__init__()
        self.register_buffer("factor", factor)  # int32 [C]
        self.highest = highest

    def forward(self, x):
        total = 0
        for digit, ones in binary(x, self.highest):
            shifted = self.factor[:, None, None] << digit
            total = total + torch.where(ones == 1, shifted, 0)
        return total


class Products(nn.Module):
    """The first layer, the only one with products: uint8 [B, I, H, W] -> int32 [B, O, H, W]."""

    def __init__(self, weight, layer, mean):
        super().__init__()
        self.register_buffer("weight", weight)  # int8 [O, I, k, k]
        self.register_buffer("mean", mean)  # uint8 [I], the pixel around the image
        self.stride = layer.stride
        self.padding = layer.padding

    def forward(self, x):
        batch, _, height, width = x.shape
        above, left = self.padding
        size = height + 2 * above, width + 2 * left
        framed = self.mean[None, :, None, None].repeat(batch, 1, *size)
        framed[..., above : above + height, left : left + width] = x
        # exact in float64
        return F.conv2d(framed.double(), self.weight.double(), stride=self.stride).int()

    def extra_repr(self):
        return geometry(self, WHITE)


class PoolSum(nn.Module):
    """The sum of each square of `size` x `size`: an average pooling without its division."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        squares = x.unfold(2, self.size, self.size).unfold(3, self.size, self.size)
        return squares.sum((-2, -1), dtype=torch.int32)

    def extra_repr(self):
        return f"{self.size}x{self.size}"


class Flatten(nn.Module):
    """[N, C, H, W] -> [N, C*H*W, 1, 1]."""

    def forward(self, x):
        return x.flatten(1)[:, :, None, None]


# Neurons: comparisons.


class Neurons(nn.Module):
    """Neurons of one step: lane i passes where the sum is above edges[i], which hold the bias.

    int32 [N, C, H, W] -> int32 outputs 0, 1, 2, 4 ... of the same shape.
    """

    def __init__(self, act, edges):
        super().__init__()
        self.register_buffer("edges", edges)  # int32 [S, C]
        # by how much a lane that passes is shifted
        self.shifts = [int(jump).bit_length() - 1 for jump in act.config.jumps]

    def passed(self, u):
        """Of every lane whether the sum is above its edge: bool [S, N, C, H, W]."""
        return u > self.edges[:, None, :, None, None]

    def output(self, passed):
        """The merged output of the lanes that pass."""
        return sum(lane.int() << shift for lane, shift in zip(passed, self.shifts))

    def forward(self, sums):
        return self.output(self.passed(sums))


class Membranes(Neurons):
    """Neurons of several steps, with a membrane potential in the unit of the sums.

    int32 [T*B, C, H, W] (a constant current: [B, C, H, W]) -> int32 [T*B, C, H, W].
    """

    def __init__(self, act, edges, bias, theta):
        super().__init__(act, edges)
        self.register_buffer("bias", bias)  # int32 [C], added at each step
        self.register_buffer("theta", theta)  # int32 [C]
        self.hard = act.config.reset == "hard"
        self.steps = act.steps
        self.constant = act.constant

    def reset(self, u, passed):
        """The potential after firing."""
        if self.hard:
            return torch.where(passed[0], 0, u)
        theta = self.theta[:, None, None]
        for lane, shift in zip(passed, self.shifts):
            u = u - torch.where(lane, theta << shift, 0)
        return u

    def forward(self, sums):
        outputs = []
        v = 0
        for current in unfold(sums, self.steps, self.constant):
            u = v + current + self.bias[:, None, None]
            passed = self.passed(u)
            outputs.append(self.output(passed))
            v = self.reset(u, passed)
        return torch.cat(outputs)


# The network.


class IntegerLayer(nn.Module):
    """Sums and neurons."""

    def __init__(self, sums, neurons):
        super().__init__()
        self.sums = sums
        self.neurons = neurons

    def forward(self, x):
        return self.neurons(self.sums(x))


class IntegerResidual(nn.Module):
    """Basic block: the neurons see the sums of the second layer and of the shortcut."""

    def __init__(self, inner, sums, shortcut, neurons):
        super().__init__()
        self.inner = inner
        self.sums = sums
        self.shortcut = shortcut
        self.neurons = neurons

    def forward(self, x):
        return self.neurons(self.sums(self.inner(x)) + self.shortcut(x))


class IntegerNetwork(nn.Module):
    """uint8 images [B, C, H, W] -> int32 [B, classes], the readout summed over the steps.

    scale: what an integer of it is worth in the readout of the spiking network, its mean; None of
    files of before, which do not say it.
    """

    def __init__(self, stages, head, steps, scale):
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.head = head
        self.steps = steps
        self.scale = scale

    def sites(self):
        """The neurons of every layer, in the order in which the signal reaches them."""
        return [m for m in self.modules() if isinstance(m, Neurons)]

    def add_by(self, add):
        """Compute all sums after the first layer by `choose_and_add` or by `convolve`."""
        for module in self.modules():
            if isinstance(module, Sum):
                module.add = add
        return self

    @torch.no_grad()
    def forward(self, images):
        y = self.head(self.stages(images)).flatten(1)  # [T*B, classes]
        return y.unflatten(0, (self.steps, -1)).sum(0, dtype=torch.int32)


# From a spiking network. All numbers are float64 until they are rounded.


@dataclass(frozen=True)
class Signal:
    """What a stage gets: integers from 0 to `highest`, each of which is worth `unit`."""

    highest: int
    unit: float = 1.0

    @classmethod
    def spikes(cls, config):
        """The outputs of neurons: in units of their lowest lane, up to all that pass."""
        return cls(int(sum(config.jumps)))

    def pooled(self, side):
        """The sums of squares of `side` x `side`, whose average they stand for."""
        return Signal(self.highest * side**2, self.unit / side**2)


def check(net):
    """Raise ValueError for a network that has no integer form."""
    check_parts(net)
    if net.head.bias is not None:
        raise ValueError("its readout has biases")
    _check_stages(net)
    _check_leaks(net)


def check_parts(net):
    """Raise ValueError for neurons, normalisation or geometry that no such network has, be it of
    integers or a graph of NIR.
    """
    if not isinstance(net.act, Spiking):
        raise ValueError("its activations are no multi-level neurons")
    if norms(net):
        raise ValueError("it has batch norm: fuse it first")
    if net.act.scale:
        raise ValueError("its output scales are not folded")
    if net.act.encoding != "direct":
        raise ValueError(f"its input encoding is {net.act.encoding}, expected direct")
    neuron = net.act.neuron
    if neuron.scaled or neuron.input_gain != 1 or neuron.reset == "soft_theta":
        raise ValueError("its neurons are not those of VGG16 and ResNet20 (NeuronConfig.vgg)")
    _check_geometry(net)


def _check_stages(net):
    for name, stage in net.stages.named_children():
        if not isinstance(stage, (Layer, Residual, nn.AvgPool2d, nn.Flatten)):
            kind = type(stage).__name__
            raise ValueError(f"stages.{name} is a {kind}, which has no integer form")
    # the first sees pixels, and has products
    first = net.stages[0]
    constant = [site for site in net.sites() if site.constant]
    if not isinstance(first, Layer) or constant != [first.act]:
        raise ValueError(
            "its stages do not begin with a layers.Layer of act.layer(first=True), the only one"
        )


def _check_leaks(net):
    steps = net.act.steps
    # at T = 1 there is no potential to leak
    if steps == 1:
        return
    for name, site in net.named_modules():
        if isinstance(site, net.act.module) and site.leak != 1:
            raise ValueError(
                f"{name.removesuffix('.act')} has the leak {site.leak.item():.7g}: with {steps} "
                "steps an integer network has none: convert the ANN anew, with --leak 1 "
                "--fixed_leak or with --timesteps 1"
            )


def weight_of(layer):
    """float64 [O, I, k, k]; of a linear layer k is 1."""
    weight = layer.weight.double()
    return weight if weight.dim() == 4 else weight[:, :, None, None]


def _bias(layer):
    """float64 [O]"""
    bias = layer.bias
    return layer.weight.new_zeros(len(layer.weight)).double() if bias is None else bias.double()


def scale_of(act, *weights):
    """The unit of each channel's sum [O] that the neurons `act` see, of all weights in it."""
    rows = [weight.flatten(1) for weight in weights]
    largest = torch.cat(rows, 1).abs().amax(1)
    return (largest / TOP).clamp(min=act.theta * FINEST)


def scale_of_readout(weight):
    """The same of the readout [O], one unit for all classes."""
    return (weight.abs().max() / TOP).expand(len(weight))


def whole_weight(weight, scale):
    """Weights [O, I, k, k] as whole numbers, float64, of units of `scale` [O]."""
    return (weight / scale[:, None, None, None]).round()


def whole_theta(act, scale):
    """The threshold of a channel as a whole number, float64 [O], of units of `scale` [O]."""
    return (act.theta.double() / scale).round().clamp(min=1)


def _quantised(weight, scale):
    """int8 weights [O, I, k, k] in units of `scale` [O]."""
    return whole_weight(weight, scale).to(torch.int8)


def _reach(weight, highest):
    """The largest magnitude of each channel's sum, int64 [O]."""
    return weight.long().abs().sum((1, 2, 3)) * highest


def _check_reach(reach, name):
    if reach.max() > LIMIT:
        raise ValueError(
            f"the sums of {name} may reach {reach.max():.3g}, more than 32 bits hold: it "
            "adds too many inputs over too many steps, or its threshold is too small for its "
            "biases or its shortcut"
        )


def _fraction(ratio, top, highest):
    """(m, n), the first fraction m / n within 1/128 of `ratio`, or None.

    Everything that counts below `top` thetas of n units, lifted by up to `highest` integers of m
    units, has at most 255 steps.
    """
    for n in range(1, 255):
        m = max(1, round(ratio * n))
        if n * (top - 1) + m * highest < 255 and abs(m - ratio * n) < ratio * n / 128:
            return m, n
    return None


def shared_scale(act, scale, signal):
    """(scale, factor) of a shortcut without weights beside weights in units of `scale` [C].

    A scale grows a little where that makes theta and the factor multiples of one integer, so that
    no more than a number of these needs to be known of a sum; else where it makes the factor int8
    numbers times a power of 2, the same in all channels. Where neither can be, it is rounded.
    """
    theta = act.theta.double()
    top = 2 ** (act.config.levels - 1)
    found = _fraction(signal.unit / theta.item(), top, signal.highest)
    if found:
        m, n = found
        multiple = (theta / scale / n).floor()
        if multiple.min() >= 1:
            return theta / (n * multiple), m * multiple

    factor = signal.unit / scale
    octaves = (factor.max() / TOP).log2().ceil()
    step = max(1.0, 2.0 ** octaves.item())
    coarse = (factor / step).floor() * step
    small = coarse < 1
    rounded = torch.where(small, factor.round(), coarse)
    return torch.where(small, scale, signal.unit / coarse), rounded


def _neurons(act, name, scale, bias, reach):
    """The neurons of sums in units of `scale` [C] whose current also has the real `bias` [C]."""
    config = act.config
    bias = (bias / scale).round()
    theta = whole_theta(act, scale)
    top = 2**config.levels * theta
    if act.steps == 1:
        # beyond what the sums reach, one bias is as good as another
        bias = bias.clamp(-reach - 1, reach + top)
    # a neuron that fired all lanes may fall below zero by less than its top output
    _check_reach(act.steps * (reach + bias.abs()) + top, name)
    boundaries = theta.new_tensor(config.boundaries)[:, None]  # [S, 1]
    edges = theta * boundaries - int(config.inclusive)
    if act.steps == 1:
        return Neurons(act, (edges - bias).int())
    return Membranes(act, edges.int(), bias.int(), theta.int())


def _first(stage, mean, std, name):
    """The first layer, which sees the image: its normalisation goes into weights and bias."""
    layer, act = stage.synapse.map, stage.act
    # multiplied by the inverse, as `rounded` does: a division may differ in the last bit
    weight = weight_of(layer) * (1 / (WHITE * std))[:, None, None]
    scale = scale_of(act, weight)
    weight = _quantised(weight, scale)
    # the mean taken off by the rounded weights: their errors then meet centred pixels alone
    grey = WHITE * mean[:, None, None]
    centre = (weight * grey).sum((1, 2, 3)) * scale
    bias = _bias(layer) - centre
    neurons = _neurons(act, name, scale, bias, _reach(weight, WHITE))
    around = (WHITE * mean).round().to(torch.uint8)
    return IntegerLayer(Products(weight, layer, around), neurons)


def _layer(stage, signal, name):
    layer, act = stage.synapse.map, stage.act
    weight = weight_of(layer) * signal.unit
    scale = scale_of(act, weight)
    weight = _quantised(weight, scale)
    neurons = _neurons(act, name, scale, _bias(layer), _reach(weight, signal.highest))
    return IntegerLayer(Sum(weight, layer, signal.highest), neurons)


def _residual(stage, signal, name):
    second, act = stage.synapse.map, stage.act
    spikes = Signal.spikes(act.config).highest
    real, bias = weight_of(second), _bias(second)
    if isinstance(stage.shortcut, nn.Identity):
        scale, factor = shared_scale(act, scale_of(act, real), signal)
        shortcut = Factor(factor.int(), signal.highest)
        across = factor * signal.highest
    else:
        direct = stage.shortcut.map
        # both are added, so they have one unit
        real_direct = weight_of(direct) * signal.unit
        scale = scale_of(act, real, real_direct)
        rounded = _quantised(real_direct, scale)
        shortcut = Sum(rounded, direct, signal.highest)
        across = _reach(rounded, signal.highest)
        bias = bias + _bias(direct)

    inner = _layer(stage.inner, signal, f"{name}.inner")
    weight = _quantised(real, scale)
    neurons = _neurons(act, name, scale, bias, _reach(weight, spikes) + across)
    return IntegerResidual(inner, Sum(weight, second, spikes), shortcut, neurons)


def _head(layer, signal, steps):
    """(the readout, with one unit for all classes; what an integer of its sum is worth)"""
    weight = weight_of(layer)
    scale = scale_of_readout(weight)
    weight = _quantised(weight, scale)
    _check_reach(steps * _reach(weight, signal.highest), "head")
    worth = scale[0].item() * signal.unit / steps
    return Sum(weight, layer, signal.highest), worth


def seen(net, image):
    """Yield (name, stage, the `Signal` that it gets), the head last; image: that of the pixels."""
    signal = image
    # a pooling may stand at several places
    for index, stage in enumerate(net.stages):
        yield f"stages.{index}", stage, signal
        if isinstance(stage, (Layer, Residual)):
            signal = Signal.spikes(net.act.neuron)
        elif isinstance(stage, nn.AvgPool2d):
            signal = signal.pooled(stage.kernel_size)
    yield "head", net.head, signal


def _check_geometry(net):
    """Refuse layers whose geometry the sums do not have."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            plain = (
                module.groups == 1,
                module.dilation == (1, 1),
                module.padding_mode == "zeros",
                not isinstance(module.padding, str),
            )
            wanted = "no groups, no dilation, and a padding of zeros in numbers"
        elif isinstance(module, nn.AvgPool2d):
            plain = (
                isinstance(module.kernel_size, int),
                module.stride == module.kernel_size,
                not module.padding,
                not module.ceil_mode,
                not module.divisor_override,
            )
            wanted = "squares beside one another, a side as one number, without padding"
        else:
            continue
        if not all(plain):
            raise ValueError(f"{name} is {module}, expected {wanted}")


@torch.no_grad()
def to_integer(net, mean, std):
    """The `IntegerNetwork` of a spiking CNN, fused and without output scales.

    Args:
        mean, std: of the normalisation of its images, per channel, of pixels in [0, 1].
    Raises:
        ValueError: it has no integer form, or its sums do not fit 32 bits.
    """
    check(net)
    exact = {"dtype": torch.float64, "device": net.head.weight.device}
    mean, std = (torch.tensor(values, **exact) for values in (mean, std))
    *parts, (_, head, into_head) = seen(net, Signal(WHITE))
    stages = []
    for name, stage, signal in parts:
        if not stages:
            stages.append(_first(stage, mean, std, name))
        elif isinstance(stage, Layer):
            stages.append(_layer(stage, signal, name))
        elif isinstance(stage, Residual):
            stages.append(_residual(stage, signal, name))
        elif isinstance(stage, nn.AvgPool2d):
            stages.append(PoolSum(stage.kernel_size))
        else:
            stages.append(Flatten())
    steps = net.act.steps
    head, scale = _head(head, into_head, steps)
    return IntegerNetwork(stages, head, steps, scale)
