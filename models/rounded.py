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
        unit = 1 / (integer.WHITE * self.std)
        offset = integer.WHITE * self.mean
        for stage in self.net.stages:
            if isinstance(stage, Layer):
                found |= layer_values(stage.act, [stage.synapse.map], [unit], offset)[0]
                unit, offset = 1.0, 0.0
            elif isinstance(stage, Residual):
                found |= layer_values(stage.inner.act, [stage.inner.synapse.map], [unit])[0]
                found |= residual_values(stage, unit)
                unit = 1.0
            elif isinstance(stage, nn.AvgPool2d):
                unit = unit / stage.kernel_size**2
        head = self.net.head
        scale = integer._scale([integer._weight(head).flatten()[None]]).expand(len(head.weight))
        found[head.weight] = on_grid(head, unit, scale, scale)
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


def layer_values(act, maps, units, offset=0.0):
    """({weight or bias: rounded value}, scale [O], worth [O]) of `maps`, which `act` sees added up.

    units: of the input of each map. scale, worth: of the sums, see `on_grid`. offset: what the
    integers of the input stand above its real numbers.
    """
    weights = [integer._weight(layer) * unit for layer, unit in zip(maps, units)]
    scale = integer._scale(weights, act.theta * integer.FINEST)
    worth = scale
    # at one step biases and thresholds are rounded without loss: a sum of integers is above a
    # number where it is above its floor
    if act.steps > 1:
        side = 1 if act.config.inclusive else -1
        theta = act.theta.double()
        worth = theta / (theta / scale).round().clamp(min=1) * (1 + side * NUDGE)
    found = {layer.weight: on_grid(layer, unit, scale, worth) for layer, unit in zip(maps, units)}
    first, *others = maps
    # the mean of the image is in the integer bias
    if act.steps > 1 and first.bias is not None:
        whole = (weights[0] / scale[:, None, None, None]).round()
        above = (whole * offset).sum((1, 2, 3))
        rest = sum(layer.bias for layer in others)
        total = ((first.bias + rest).double() / scale - above).round() + above
        found[first.bias] = total * worth - rest
    return found, scale, worth


def residual_values(stage, unit):
    """{weight, bias or gain: rounded value} of a block behind its inner layer."""
    second, shortcut = stage.synapse.map, stage.shortcut
    if not isinstance(shortcut, Gain):
        return layer_values(stage.act, [second, shortcut.map], [1.0, unit])[0]
    found, scale, worth = layer_values(stage.act, [second], [1.0])
    found[shortcut.gain] = (unit / scale).round() * worth / unit
    return found
