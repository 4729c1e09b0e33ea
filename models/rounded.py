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
    Raises:
        ValueError: it has no integer form.
    """

    def __init__(self, net, mean, std):
        super().__init__()
        integer.check(net)
        self.net = copy.deepcopy(net)
        self.act, self.built = net.act, net.built
        for stage in self.net.stages:
            if isinstance(stage, Residual) and isinstance(stage.shortcut, nn.Identity):
                stage.shortcut = Gain(len(stage.synapse.map.weight))
        for site in self.sites():
            site.leak.requires_grad_(False)

        # the image is framed by its mean pixel, which has been rounded
        first = self.net.stages[0].synapse.map
        if first.bias is None:
            # the mean goes into an integer bias; a buffer, as no file has it
            del first.bias
            first.register_buffer("bias", torch.zeros(len(first.weight)), persistent=False)
        above, left = first.padding
        self.frame = left, left, above, above
        first.padding = 0, 0
        for name, values in (("mean", mean), ("std", std)):
            channels = torch.tensor(values, dtype=torch.float64)
            self.register_buffer(name, channels[:, None, None])

    def sites(self):
        """As `Network.sites`."""
        return self.net.sites()

    @torch.no_grad()
    def values(self):
        """{weight, bias or gain: its rounded value}, float64."""
        found = {}
        # only pixels stand above the numbers that they mean
        offset = integer.WHITE * self.mean
        image = integer.Signal(integer.WHITE, 1 / (integer.WHITE * self.std))
        *parts, (_, head, _) = integer.seen(self.net, image)
        for _, stage, signal in parts:
            if isinstance(stage, Layer):
                found |= layer_values(stage, signal.unit, offset)
                offset = 0.0
            elif isinstance(stage, Residual):
                found |= layer_values(stage.inner, signal.unit)
                found |= residual_values(stage, signal)
        scale = integer.scale_of_readout(integer.weight_of(head))
        found[head.weight] = on_grid(head, 1.0, scale, scale)
        return found

    def forward(self, images):
        pixel = (integer.WHITE * self.mean).round()
        value = (pixel / integer.WHITE - self.mean) / self.std
        value = value.to(images.dtype)
        # padded with zeros, it has the value of the frame
        images = F.pad(images - value, self.frame) + value
        values = self.values()
        state = {}
        named = (*self.net.named_parameters(), *self.net.named_buffers())
        for name, real in named:
            if real in values:
                rounded = values[real].to(real.dtype)
                # zero, with the gradient of the real number
                straight = real - real.detach()
                state[name] = rounded + straight
        return functional_call(self.net, state, (images,))


def on_grid(layer, unit, scale, worth):
    """Rounded weights of a layer: integers in units of `scale` [O], each of which is `worth` [O].

    unit: what an integer of the input is worth.
    """
    whole = integer.whole_weight(integer.weight_of(layer) * unit, scale)
    value = whole * worth[:, None, None, None] / unit
    return value.view_as(layer.weight)


def worth_of(act, scale):
    """What an integer of a sum in units of `scale` [O] is worth, so that theta is whole [O]."""
    side = 1 if act.config.inclusive else -1
    return act.theta.double() / integer.whole_theta(act, scale) * (1 + side * NUDGE)


def bias_value(layer, scale, worth, above=0.0, others=0.0):
    """{bias: rounded value} of a layer, or {} if it has none.

    above: what the integer sum stands above the real one. others: biases that are added to it.
    """
    if layer.bias is None:
        return {}
    real = (layer.bias + others).double()
    whole = (real / scale - above).round()
    return {layer.bias: (whole + above) * worth - others}


def layer_values(stage, unit, offset=0.0):
    """{weight or bias: rounded value} of a layer.

    unit: what an integer of the input is worth. offset: what these stand above the real numbers.
    """
    act, layer = stage.act, stage.synapse.map
    weight = integer.weight_of(layer) * unit
    scale = integer.scale_of(act, weight)
    worth = worth_of(act, scale)
    # the mean of the image is in the integer bias
    above = (integer.whole_weight(weight, scale) * offset).sum((1, 2, 3))
    weights = {layer.weight: on_grid(layer, unit, scale, worth)}
    return weights | bias_value(layer, scale, worth, above)


def residual_values(stage, signal):
    """{weight, bias or gain: rounded value} of a block behind its inner layer."""
    act, second, shortcut = stage.act, stage.synapse.map, stage.shortcut
    weight, others = integer.weight_of(second), 0.0
    if isinstance(shortcut, Gain):
        scale = integer.scale_of(act, weight)
        scale, factor = integer.shared_scale(act, scale, signal)
        worth = worth_of(act, scale)
        found = {shortcut.gain: factor * worth / signal.unit}
    else:
        direct = shortcut.map
        beside = integer.weight_of(direct) * signal.unit
        scale = integer.scale_of(act, weight, beside)
        worth = worth_of(act, scale)
        found = {direct.weight: on_grid(direct, signal.unit, scale, worth)}
        others = 0.0 if direct.bias is None else direct.bias
    found[second.weight] = on_grid(second, 1.0, scale, worth)
    return found | bias_value(second, scale, worth, others=others)
