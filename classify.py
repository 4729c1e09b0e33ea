"""What a trained network sees in a picture, and the energy that it takes for it.

python classify.py cat.jpg --network resnet20_w0.25_cifar10
"""

from dataclasses import dataclass
from pathlib import Path

from analysis import energy
from cli.parser import Parser
from engine.errors import UseError, guard
from engine.settings import Settings, group, option
from inputs.images import decode
from inputs.pretrained import from_pretrained

SHOWN = 5  # classes


@dataclass(frozen=True)
class PictureOptions:
    """picture"""

    image: str = option("", "image file", positional=True)
    network: str = option(
        "resnet20_w0.25_cifar10", "name of trained_models/zoo/zoo.csv, or a checkpoint"
    )


@dataclass(frozen=True)
class PictureSettings(Settings):
    """Options of classify.py."""

    picture: PictureOptions = group()


def get_parser():
    """Its command line."""
    return Parser("classify.py", "Classify a picture.", PictureSettings)


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv).picture
    path = Path(asked.image)
    if not path.is_file():
        raise UseError(f"no picture at {path}: give an image file")
    net = from_pretrained(asked.network)
    image = net.transform(decode(path, upright=True))[None]
    with energy.Counter(net) as counter:
        shares = net(image).detach().softmax(1)[0].tolist()
    bill = counter.energy()

    classes = dict(zip(net.classes, shares))
    for name in sorted(classes, key=classes.get, reverse=True)[:SHOWN]:
        print(f"{name:<20}{classes[name]:>8.2%}")
    print(
        f"energy of this picture: {bill.total_uj:.4g} uJ (model paper), as an ANN "
        f"{bill.ann_uj:.4g} uJ"
    )
    return {"classes": classes, "energy_uj": bill.total_uj, "ann_energy_uj": bill.ann_uj}


if __name__ == "__main__":
    guard(main)
