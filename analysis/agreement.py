"""How a network of another kind agrees with the spiking network that it was made of."""

from dataclasses import dataclass

import torch

from models.layers import hooked


@dataclass(frozen=True)
class Agreement:
    """Shares (0 to 1) over `images` images.

    predictions: on which both networks name the same class. spikes: {layer: of the outputs of its
    neurons, at every step, that are equal, silence included}. accuracy, other_accuracy: of the
    spiking network and of the other one; None where there are no labels. difference: the largest
    distance between their readouts.
    """

    images: int
    predictions: float
    spikes: dict
    accuracy: float | None
    other_accuracy: float | None
    difference: float

    def table(self):
        """The layers' shares as text."""
        lines = [f"{'equal outputs of':<28}{'share':>9}"]
        lines += [f"{name:<28}{share:>9.2%}" for name, share in self.spikes.items()]
        return "\n".join(lines)

    def told(self, of="the SNN"):
        """One line of it; of: what the first network is called."""
        accuracy = spikes = ""
        if self.accuracy is not None:
            accuracy = f"accuracy {self.other_accuracy:.2%} ({of}: {self.accuracy:.2%}), "
        if self.spikes:
            worst = min(self.spikes, key=self.spikes.get)
            best = max(self.spikes.values())
            spikes = (
                f" and, by layer, {self.spikes[worst]:.2%} ({worst}) to {best:.2%} of the outputs"
            )
        return f"{accuracy}{self.predictions:.2%} of the predictions{spikes} are equal"


def outputs(net, x):
    """(readout [B, classes], the outputs of each layer of neurons, in order)."""
    seen = []

    def see(module, args, out):
        seen.append(out)

    with hooked(net.sites(), see):
        return net(x), seen


@torch.no_grad()
def compare(net, other, batches, spiking=True):
    """The `Agreement` of two networks with the same layers of neurons, run side by side.

    net: network in eval mode. batches: iterable of (images of `net`, images of `other`, labels [B]
    or None). spiking: False of a network without spikes, whose layers are not compared.
    """
    names = {site: name for name, site in net.named_modules()}
    layers = [names[site] for site in net.sites()] if spiking else []
    equal, counts = [0] * len(layers), [0] * len(layers)
    images = same = correct = other_correct = 0
    difference = torch.zeros(())
    labelled = True
    for x, y, labels in batches:
        readout, fired = outputs(net, x)
        other_readout, other_fired = outputs(other, y)
        pairs = zip(fired, other_fired, strict=True) if spiking else ()
        for layer, (a, b) in enumerate(pairs):
            equal[layer] += (a.flatten() == b.flatten()).sum().item()
            counts[layer] += a.numel()
        # a maximum that keeps NaN
        difference = torch.maximum(difference, (readout - other_readout).abs().max())
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
        difference.item(),
    )
