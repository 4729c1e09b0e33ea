"""VGGSNN: the convolutional network for event recordings; strides in the place of poolings."""

import re

from torch import nn

from .activations import Spiking
from .layers import Layer, Network, Synapse, fit
from .neuron import NeuronConfig

PLAN = (
    (64, 1),
    (128, 2),
    (256, 1),
    (256, 2),
    (512, 1),
    (512, 2),
    (512, 1),
    (512, 2),
)  # channels, stride
COUNTERS = re.compile(
    r"features\.\d+\.ops|classifier_ops"
)  # what the published code counts and saves beside the weights


class VGGSNN(Network):
    """VGGSNN: eight 3x3 convolutions with batch norm, and a linear head with bias. Its readout is that of every step.

    [B, T, 2, 48, 48] with `Spiking(..., encoding="frames")` (another activation: [B, 2, 48, 48]) -> [T, B, num_classes].

    Args:
        act: the injected activation. width_mult: scales every width.
    """

    per_step = True

    def __init__(self, act, num_classes=10, image_size=48, width_mult=1.0):
        stages, channels, side = [], 2, image_size
        for width, stride in PLAN:
            width = max(1, round(width * width_mult))
            conv = nn.Conv2d(channels, width, 3, stride, padding=1)
            stages.append(Layer(Synapse(conv, norm=True), act.layer(first=not stages)))
            channels, side = width, -(-side // stride)
        super().__init__(
            act, [*stages, nn.Flatten()], nn.Linear(channels * side * side, num_classes)
        )


def neurons(levels, steps, edge="published", backend="auto"):
    """The activation: M-LIF of `levels` lanes (0: the plain LIF baseline) over `steps` frames; theta 1, leak 0.5, fixed."""
    config = NeuronConfig.vggsnn(levels, edge) if levels else NeuronConfig.lif()
    return Spiking(
        config, steps, theta=1.0, leak=0.5, encoding="frames", backend=backend, learn=False
    )


def from_published(state, net):
    """Weights of the published code under the names of `net`. Left out by name: its spike counters.

    Raises:
        ValueError: a weight is missing, unknown, or of another size; the message names the first.
    """
    renamed = {}
    for key, value in state.items():
        found = re.fullmatch(r"features\.(\d+)\.fwd\.module\.([01])\.(\w+)", key)
        if found:
            key = f"stages.{found[1]}.synapse.{('map', 'norm')[int(found[2])]}.{found[3]}"
        if not COUNTERS.fullmatch(key):
            renamed[key.replace("classifier.module.", "head.")] = value
    return fit(renamed, net)
