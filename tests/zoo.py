"""A zoo of one small network on scikit-learn's digits, and of one that is described alone."""

import csv

import torch

import models
from engine import checkpoint, zoo
from models import NeuronConfig, Spiking

NAME = "resnet20_w0.0625_digits"
MADE = "python3 demo.py"
MEAN, STD = (0.3, 0.3, 0.3), (0.37, 0.37, 0.37)
DATA = {"name": "DIGITS", "num_classes": 10, "image_size": 32, "source": "scikit-learn digits"}


def network(steps=1, levels=3):
    """A small SNN whose outputs differ from image to image."""
    torch.manual_seed(0)
    act = Spiking(NeuronConfig.vgg(levels), steps)
    net = models.build("resnet20", act, width_mult=1 / 16, bn=False)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.normal_(0, 0.1)
            elif parameter.dim() > 1:
                parameter.mul_(2)
        net.head.weight.mul_(10)
    return net.eval()


def fill(folder):
    """Write the zoo to `folder`."""
    data = {**DATA, "mean": MEAN, "std": STD}
    path = folder / f"{NAME}.pth"
    content = checkpoint.content(network(), "snn", data, {"dataset": "DIGITS"}, accuracy=0.1)
    checkpoint.save(path, zoo.packed(content))
    described = zoo.Entry("resnet20_cifar10", command=MADE)
    entry = zoo.Entry(NAME, path.name, zoo.digest(path), accuracy="0.1", command=MADE)
    zoo.write([entry, described], folder)
    with open(folder / "zoo.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 3
