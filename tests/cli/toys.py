"""A small network, and the images that it says it was trained on."""

import models

ABOUT = {"name": "CIFAR10", "source": "noise", "num_classes": 10, "image_size": 32}


def toy():
    return models.build("resnet20", models.ReLU(), width_mult=1 / 32)
