"""How a network of another kind agrees with the spiking network that it was made of."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Agreement:
    """Shares (0 to 1) over `images` images.

    predictions: on which both networks name the same class. spikes: {layer: of the outputs of its
    neurons, at every step, that are equal}. accuracy, other_accuracy: of the spiking network and
    of the other one; None where there are no labels.
    """

    images: int
    predictions: float
    spikes: dict
    accuracy: float | None
    other_accuracy: float | None

    def table(self):
        """The layers' shares as text."""
        lines = [f"{'equal spikes of':<28}{'share':>9}"]
        lines += [f"{name:<28}{share:>9.2%}" for name, share in self.spikes.items()]
        return "\n".join(lines)

    def told(self):
        """One line of it."""
        worst = min(self.spikes, key=self.spikes.get)
        accuracy = ""
        if self.accuracy is not None:
            accuracy = f"accuracy {self.other_accuracy:.2%} (the SNN: {self.accuracy:.2%}), "
        return (
            f"{accuracy}{self.predictions:.2%} of the predictions and, by layer, "
            f"{self.spikes[worst]:.2%} ({worst}) to {max(self.spikes.values()):.2%} of the spikes "
            "are equal"
        )


def outputs(net, x):
    """(readout [B, classes], the outputs of each layer of neurons, in order)."""
    seen = []

    def see(module, args, out):
        seen.append(out)

    with ExitStack() as hooks:
        for site in net.sites():
            hooks.callback(site.register_forward_hook(see).remove)
        return net(x), seen


@torch.no_grad()
def compare(net, other, batches):
    """The `Agreement` of two networks with the same layers of neurons, run side by side.

    net: spiking network in eval mode. batches: iterable of (images of `net`, images of `other`,
    labels [B] or None).
    """
    names = {site: name for name, site in net.named_modules()}
    layers = [names[site] for site in net.sites()]
    equal, counts = [0] * len(layers), [0] * len(layers)
    images = same = correct = other_correct = 0
    labelled = True
    for x, y, labels in batches:
        readout, fired = outputs(net, x)
        other_readout, other_fired = outputs(other, y)
        for layer, (a, b) in enumerate(zip(fired, other_fired, strict=True)):
            equal[layer] += (a.flatten() == b.flatten()).sum().item()
            counts[layer] += a.numel()
        classes, other_classes = readout.argmax(1), other_readout.argmax(1)
        images += len(classes)
        same += (classes == other_classes).sum().item()
        labelled = labels is not None
        if labelled:
            correct += (classes == labels).sum().item()
            other_correct += (other_classes == labels).sum().item()
    return Agreement(
        images,
        same / images,
        {name: hits / count for name, hits, count in zip(layers, equal, counts)},
        correct / images if labelled else None,
        other_correct / images if labelled else None,
    )
