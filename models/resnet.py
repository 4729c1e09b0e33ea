"""ResNet20 in the wide form with a three-layer stem (docs/method.md section 3)."""

from functools import partial

from torch import nn

from .layers import Layer, Network, Residual, convolution, final_side, scaled_width

WIDTHS = (64, 128, 256, 512)  # of the four stages; the stem has the first
STRIDES = (1, 2, 2, 2)  # the stem's pooling has already halved the images of the first stage


class ResNet20(Network):
    """ResNet20: a stem of three convolutions and a 2x2 pooling, four stages of two basic blocks.

    The head is linear.

    Args:
        act: the injected activation. bn, bias: of the convolutions. width_mult: scales every width.
        dropout: after the first two stem layers and inside the blocks.
    Raises:
        ValueError: 16 does not divide image_size.
    """

    stem = 3

    def __init__(
        self,
        act,
        num_classes=10,
        image_size=32,
        width_mult=1.0,
        bn=True,
        bias=True,
        dropout=0.0,
    ):
        side = final_side("ResNet20", image_size, 16)
        widths = [scaled_width(width, width_mult) for width in WIDTHS]
        synapse = partial(convolution, bias=bias, norm=bn)

        stages = []
        channels = 3  # of the image
        for drop in (dropout, dropout, 0.0):
            neurons = act.layer(first=not stages)
            stages.append(Layer(synapse(channels, widths[0]), neurons, drop))
            channels = widths[0]
        stages.append(nn.AvgPool2d(2))

        for width, first_stride in zip(widths, STRIDES):
            for stride in (first_stride, 1):
                first = synapse(channels, width, stride=stride)
                # a basic block; its shortcut has weights where the shape changes
                inner = Layer(first, act.layer(), dropout)
                shortcut = nn.Identity()
                if stride > 1 or channels != width:
                    shortcut = synapse(channels, width, size=1, stride=stride)
                second = synapse(width, width)
                stages.append(Residual(inner, second, shortcut, act.layer()))
                channels = width

        stages.append(nn.Flatten())
        features = channels * side * side
        super().__init__(act, stages, nn.Linear(features, num_classes, bias=False))
