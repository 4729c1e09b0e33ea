"""ResNet20 in the wide form with a three-layer stem."""

from torch import nn

from .layers import Layer, Network, Residual, Synapse


class ResNet20(Network):
    """ResNet20: stem of three 64-channel convolutions and a 2x2 pooling, four stages of two basic blocks, a linear head.

    Args: as VGG16, without its kernel size and head dropout. dropout: after the first two stem layers and inside blocks.
    Raises:
        ValueError: 16 does not divide image_size.
    """

    stem = 3

    def __init__(
        self, act, num_classes=10, image_size=32, width_mult=1.0, bn=True, bias=True, dropout=0.0
    ):
        side, rest = divmod(image_size, 16)
        if rest or not side:
            raise ValueError(f"ResNet20 expects an image size that 16 divides, got {image_size}")
        widths = [max(1, round(n * width_mult)) for n in (64, 128, 256, 512)]

        def conv(inputs, outputs, size=3, stride=1):
            return Synapse(
                nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=bias), bn
            )

        stages, channels = [], 3
        for i in range(3):
            stages.append(
                Layer(
                    conv(channels, widths[0]),
                    act.layer(first=i == 0),
                    dropout if i < 2 else 0.0,
                    act.steps,
                )
            )
            channels = widths[0]
        stages.append(nn.AvgPool2d(2))
        for i, width in enumerate(widths):
            for stride in (2 if i else 1, 1):
                inner = Layer(conv(channels, width, stride=stride), act.layer(), dropout, act.steps)
                plain = stride == 1 and channels == width
                shortcut = nn.Identity() if plain else conv(channels, width, size=1, stride=stride)
                stages.append(Residual(inner, conv(width, width), shortcut, act.layer()))
                channels = width
        stages.append(nn.Flatten())
        super().__init__(act, stages, nn.Linear(channels * side * side, num_classes, bias=False))
