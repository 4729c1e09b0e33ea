"""Stand-ins for data sets: images of noise in memory, and in files."""

import torch

from engine.dist import World
from inputs.images import Data, Memory
from inputs.loader import BatchOptions, loaders
from inputs.table import CIFAR10, DataOptions, load


def marked(count, side=32, crop=4, flip=True):
    """A data set in memory whose image i has the label i; its pixels are noise."""
    rng = torch.Generator().manual_seed(count)
    train, test = (
        Memory(
            torch.randint(0, 256, (n, side, side, 3), generator=rng, dtype=torch.uint8),
            torch.arange(n),
        )
        for n in (count, count - 1)
    )
    about = {"num_classes": count, "image_size": side}
    return Data(train, test, about, CIFAR10.mean, CIFAR10.std, crop, flip)


def files(folder, side):
    """The data set of an image folder."""
    return load(DataOptions(dataset="FOLDER", dataset_dir=str(folder), image_size=side), World())


def make(data, rank=0, size=1, seed=0, workers=0, **batches):
    """(training, choosing, test) loaders of a process of several."""
    return loaders(data, BatchOptions(workers=workers, **batches), seed, World(rank, size))


def batches(loader, epoch=1, start=0):
    """[(images, labels, size of the whole batch)] of an epoch."""
    return [(images.clone(), labels, n) for images, labels, n in loader.epoch(epoch, start)]


def normalised(images, mean, std):
    """(x / 255 - mean) / std of images [..., 3], written out."""
    return (images.float() / 255 - torch.tensor(mean)) / torch.tensor(std)
