"""VGG16 with average pooling."""

from torch import nn

from .layers import Layer, Network, Synapse

PLAN = (64, 64, "P", 128, 128, "P", 256, 256, 256, "P", 512, 512, 512, "P", 512, 512, 512)


class VGG16(Network):
    """VGG16: 13 convolutions and 3 linear layers without biases.

    Images of 128 pixels and more get a fifth pooling at the end (ImageNet's form).

    Args:
        act: the injected activation. bn, bias: of the convolutions. dropout: after each activation that is not followed
            by pooling; head_dropout: after the two hidden linear layers. width_mult: scales every width.
    Raises:
        ValueError: the poolings do not divide image_size.
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
        plan = [*PLAN, "P"] if image_size >= 128 else PLAN
        side, rest = divmod(image_size, 2 ** plan.count("P"))
        if rest or not side:
            raise ValueError(
                f"VGG16 expects an image size that {2 ** plan.count('P')} divides, got {image_size}"
            )
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")

        def width(n):
            return max(1, round(n * width_mult))

        stages, channels = [], 3
        for item, following in zip(plan, [*plan[1:], None], strict=True):
            if item == "P":
                stages.append(nn.AvgPool2d(2))
                continue
            conv = nn.Conv2d(
                channels, width(item), kernel_size, padding=kernel_size // 2, bias=bias
            )
            stages.append(
                Layer(
                    Synapse(conv, bn),
                    act.layer(first=not stages),
                    0.0 if following == "P" else dropout,
                    act.steps,
                )
            )
            channels = width(item)
        stages.append(nn.Flatten())
        features = channels * side * side
        for _ in range(2):
            stages.append(
                Layer(
                    Synapse(nn.Linear(features, width(4096), bias=False)),
                    act.layer(),
                    head_dropout,
                    act.steps,
                )
            )
            features = width(4096)
        super().__init__(act, stages, nn.Linear(features, num_classes, bias=False))
