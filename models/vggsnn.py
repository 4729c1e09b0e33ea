"""VGGSNN: the convolutional network for event recordings; strides in the place of poolings."""

from torch import nn

from .activations import Spiking
from .layers import Layer, Network, convolution, scaled_width
from .neuron import NeuronConfig

WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 2)


class VGGSNN(Network):
    """VGGSNN: eight 3x3 convolutions with batch norm, and a linear head with bias.

    [B, T, 2, 48, 48] with `Spiking(..., encoding="frames")` -> [T, B, num_classes], the readout of
    every step. Another activation takes [B, 2, 48, 48].

    Args:
        act: the injected activation. width_mult: scales every width.
    """

    per_step = True

    def __init__(
        self,
        act,
        num_classes=10,
        image_size=48,
        width_mult=1.0,
    ):
        stages = []
        channels = 2  # the two polarities of events
        side = image_size
        for width, stride in zip(WIDTHS, STRIDES):
            outputs = scaled_width(width, width_mult)
            synapse = convolution(channels, outputs, stride=stride)
            stages.append(Layer(synapse, act.layer(first=not stages)))
            channels = outputs
            side = -(-side // stride)  # a stride rounds up

        stages.append(nn.Flatten())
        features = channels * side * side  # 512 * 3 * 3 at full width
        super().__init__(act, stages, nn.Linear(features, num_classes))


def activation(
    levels,
    steps,
    inner_slope="published",
    backend="auto",
):
    """The activation: M-LIF of `levels` lanes over `steps` frames, theta 1, leak 0.5, both fixed.

    0 levels stand for the plain LIF baseline.
    """
    config = NeuronConfig.vggsnn(levels, inner_slope) if levels else NeuronConfig.lif()
    return Spiking(
        config,
        steps,
        leak=0.5,  # the published tau
        encoding="frames",
        backend=backend,
        learn=False,
    )
