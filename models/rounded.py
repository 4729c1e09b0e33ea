"""A spiking network that computes with the weights of its integer network, for its training.

Its forward is that of `integer.to_integer`, spike for spike but for rounding at the boundaries (in
double precision: at none). Its gradients are those of a network without rounding (straight-through
estimator, Bengio et al. 2013).
"""

import copy

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from . import integer
from .layers import Layer, Residual

# a sum that meets its boundary exactly must stay on the same side in floating point
NUDGE = 2.0**-20


class Gain(nn.Module):
    """A shortcut without weights, times a factor of each channel."""

    def __init__(self, channels):
        super().__init__()
        # no weight: the names of the weights stay
        self.register_buffer("gain", torch.ones(channels), persistent=False)

    def forward(self, x):
        return x * self.gain[:, None, None]


class Rounded(nn.Module):
    """Normalised images [B, C, H, W] -> [B, classes], by a copy of `net`, which is trained.

    Args:
        net: spiking network that has an integer form. mean, std: as `integer.to_integer` has them.

    `net`, the copy, has the weights before rounding, by their names.
    """

    def __init__(self, net, mean, std):
        super().__init__()
        self.net = copy.deepcopy(net)
        self.act, self.built = net.act, net.built
        for stage in self.net.stages:
            if isinstance(stage, Residual) and isinstance(stage.shortcut, nn.Identity):
                stage.shortcut = Gain(len(stage.synapse.map.weight))
        for site in self.sites():
            site.leak.requires_grad_(False)

        # the image is framed by its mean pixel, which has been rounded
        first = self.net.stages[0].synapse.map
        above, left = first.padding
        self.frame = left, left, above, above
        first.padding = 0, 0
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])

    def sites(self):
        """As `Network.sites`."""
        return self.net.sites()

    @torch.no_grad()
    def values(self):
        """{weight, bias or gain: its rounded value}, float64."""
        found = {}
        spikes = integer.Signal(int(sum(self.act.neuron.jumps)))
        signal = integer.Signal(integer.WHITE, 1 / (integer.WHITE * self.std))
        offset = integer.WHITE * self.mean
        for stage in self.net.stages:
            if isinstance(stage, Layer):
                found |= layer_values(stage, signal.unit, offset)
                signal, offset = spikes, 0.0
            elif isinstance(stage, Residual):
                found |= layer_values(stage.inner, signal.unit)
                found |= residual_values(stage, signal)
                signal = spikes
            elif isinstance(stage, nn.AvgPool2d):
                area = stage.kernel_size**2
                signal = integer.Signal(signal.highest * area, signal.unit / area)
        head = self.net.head
        scale = integer._scale([integer._weight(head).flatten()[None]]).expand(len(head.weight))
        found[head.weight] = on_grid(head, signal.unit, scale, scale)
        return found

    def forward(self, images):
        frame = ((integer.WHITE * self.mean).round() / integer.WHITE - self.mean) / self.std
        frame = frame.to(images.dtype)
        images = F.pad(images - frame, self.frame) + frame
        values = self.values()
        state = {}
        for name, real in (*self.net.named_parameters(), *self.net.named_buffers()):
            if real in values:
                # the rounded number, with the gradient of the real one
                state[name] = values[real].to(real.dtype) + (real - real.detach())
        return functional_call(self.net, state, (images,))


def on_grid(layer, unit, scale, worth):
    """Rounded weights of a layer: integers in units of `scale` [O], each of which is `worth` [O].

    unit: what an integer of the input is worth.
    """
    whole = (integer._weight(layer) * unit / scale[:, None, None, None]).round()
    return (whole * worth[:, None, None, None] / unit).view_as(layer.weight)


def scale_of(act, weights):
    """The unit of each channel's sum [O], see `integer`."""
    return integer._scale(weights, act.theta * integer.FINEST)


def worth_of(act, scale):
    """What an integer of a sum in units of `scale` [O] is worth, so that theta is whole [O]."""
    side = 1 if act.config.inclusive else -1
    theta = act.theta.double()
    return theta / (theta / scale).round().clamp(min=1) * (1 + side * NUDGE)


def bias_value(layer, scale, worth, above=0.0, others=0.0):
    """{bias: rounded value} of a layer, or {} if it has none.

    above: what the integer sum stands above the real one. others: biases that are added to it.
    """
    if layer.bias is None:
        return {}
    total = ((layer.bias + others).double() / scale - above).round() + above
    return {layer.bias: total * worth - others}


def layer_values(stage, unit, offset=0.0):
    """{weight or bias: rounded value} of a layer.

    unit: what an integer of the input is worth. offset: what these stand above the real numbers.
    """
    act, layer = stage.act, stage.synapse.map
    weight = integer._weight(layer) * unit
    scale = scale_of(act, [weight])
    worth = worth_of(act, scale)
    # the mean of the image is in the integer bias
    whole = (weight / scale[:, None, None, None]).round()
    above = (whole * offset).sum((1, 2, 3))
    weights = {layer.weight: on_grid(layer, unit, scale, worth)}
    return weights | bias_value(layer, scale, worth, above)


def residual_values(stage, signal):
    """{weight, bias or gain: rounded value} of a block behind its inner layer."""
    act, second, shortcut = stage.act, stage.synapse.map, stage.shortcut
    weight, others = integer._weight(second), 0.0
    if isinstance(shortcut, Gain):
        scale = scale_of(act, [weight])
        levels = act.config.levels
        scale, factor = integer._shared(scale, signal, act.theta.double(), levels)
        worth = worth_of(act, scale)
        found = {shortcut.gain: factor * worth / signal.unit}
    else:
        direct = shortcut.map
        scale = scale_of(act, [weight, integer._weight(direct) * signal.unit])
        worth = worth_of(act, scale)
        found = {direct.weight: on_grid(direct, signal.unit, scale, worth)}
        others = 0.0 if direct.bias is None else direct.bias
    found[second.weight] = on_grid(second, 1.0, scale, worth)
    return found | bias_value(second, scale, worth, others=others)
