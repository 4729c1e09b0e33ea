"""A loader of given batches, and a network that fits on a line."""

import torch


class Batches:
    """A loader of batches that are given: [(images, labels)]."""

    def __init__(self, *batches):
        self.given = batches
        self.batch_size = len(batches[0][1])
        self.images = sum(len(labels) for _, labels in batches)

    def __len__(self):
        return len(self.given)

    def epoch(self, epoch, start=0):
        for images, labels in self.given[start:]:
            yield images, labels, len(labels)


def noise(*sizes):
    return Batches(*((torch.randn(n, 5), torch.arange(n) % 3) for n in sizes))


def linear():
    net = torch.nn.Linear(5, 3)
    net.built = {"name": "linear"}
    return net
