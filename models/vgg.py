"""VGG16 with average pooling (docs/method.md section 3)."""

from torch import nn

from .layers import Layer, Network, Synapse, convolution, final_side, scaled_width

# Channels and number of convolutions between two poolings.
GROUPS = (
    (64, 2),
    (128, 2),
    (256, 3),
    (512, 3),
    (512, 3),
)
IMAGENET = 128  # pixels; images of that size and more get a fifth pooling at the end


class VGG16(Network):
    """VGG16: 13 convolutions and 3 linear layers without biases.

    Args:
        act: the injected activation. bn, bias: of the convolutions. width_mult: scales every width.
        dropout: after each activation that is not followed by pooling.
        head_dropout: after the two hidden linear layers.
    Raises:
        ValueError: the poolings do not divide image_size, or kernel_size is even.
    """

    def __init__(
        self,
        act,
        num_classes=10,
        image_size=32,
        width_mult=1.0,
        bn=True,
        bias=True,
        dropout=0.0,
        head_dropout=0.5,
        kernel_size=3,
    ):
        poolings = 5 if image_size >= IMAGENET else 4
        side = final_side("VGG16", image_size, 2**poolings)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")

        stages = []
        features = 3  # channels of the image
        for group, (channels, count) in enumerate(GROUPS):
            width = scaled_width(channels, width_mult)
            # a pooled activation has no dropout
            drops = [dropout] * count
            if group < poolings:
                drops[-1] = 0.0
            for drop in drops:
                synapse = convolution(features, width, kernel_size, bias=bias, norm=bn)
                neurons = act.layer(first=not stages)
                stages.append(Layer(synapse, neurons, drop))
                features = width
            if group < poolings:
                stages.append(nn.AvgPool2d(2))

        # hidden linear layers, without batch norm
        stages.append(nn.Flatten())
        features *= side * side
        width = scaled_width(4096, width_mult)
        for _ in range(2):
            synapse = Synapse(nn.Linear(features, width, bias=False))
            stages.append(Layer(synapse, act.layer(), head_dropout))
            features = width

        super().__init__(act, stages, nn.Linear(features, num_classes, bias=False))
