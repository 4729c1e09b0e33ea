"""NeuroBench's harness on spiking networks, lane by lane, beside our own counters (docs/energy.md).

NeuroBench counts an accumulation only for inputs that are all 0, 1 or -1, so it bills the outputs
0, 1, 2, 4 of a multi-level neuron as MACs. Here its hooks are shown every lane by itself.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from engine.errors import RunError, UseError
from engine.extras import need
from engine.settings import option
from inputs.loader import drawn_from
from models import SpikingLayer
from models.rates import weighted

from .energy import marks, measure

LINES = {
    "Effective_MACs": "{:,.2f}",
    "Effective_ACs": "{:,.2f}",
    "Dense": "{:,.2f}",
    "ActivationSparsity": "{:.6f}",
}


@dataclass(frozen=True)
class NeuroBenchOptions:
    """NeuroBench"""

    neurobench: bool = option(
        False,
        "count by NeuroBench's harness, too, lane by lane (how to install that: docs/install.md)",
    )


class ByLane(nn.Module):
    """A weighted layer whose hooks see each binary digit of its input by itself, as 0 and 1, and
    what has no digits as it is. It computes what it always does.
    """

    def __init__(self, layer, levels):
        super().__init__()
        self.layer = layer
        self.levels = levels

    def forward(self, x):
        _, other, *digits = marks(x, self.levels)
        for ones in digits:
            if ones.any():
                self.layer(ones.to(x.dtype))
        if other.any():
            self.layer(x * other)
        # no call, so no hook sees it
        return self.layer.forward(x)


class Lanes(nn.Identity):
    """The lanes of a layer of neurons, [T*B, S, ...] of 0 and 1: an activation of its own."""


class Fired(nn.Module):
    """Neurons that show their lanes to the hooks of `Lanes`."""

    def __init__(self, neurons):
        super().__init__()
        self.neurons = neurons
        self.lanes = Lanes()

    def forward(self, x):
        o = self.neurons(x)
        self.lanes(self.neurons.lanes(o))
        return o


def by_lane(net):
    """A copy of a spiking network that computes the same and shows its hooks lanes.

    A first layer that sees the image is left as it is.
    """
    net = deepcopy(net)
    levels = max(site.config.levels for site in net.sites())
    split = weighted(net)
    if net.act.encoding == "direct":
        _, *split = split
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if child in split:
                setattr(parent, name, ByLane(child, levels))
            elif isinstance(child, SpikingLayer):
                setattr(parent, name, Fired(child))
    return net


class Batches:
    """A `Loader` as the harness takes it: float64 images, as float32 is exact up to 2^24 only."""

    def __init__(self, loader):
        self.loader = loader
        self.dataset = range(loader.images)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for images, labels, _ in self.loader.epoch(0):
            yield images.double(), labels


def harness(net, activation, batches):
    """NeuroBench's figures of a float64 network over `Batches`, per image.

    activation: class of the modules whose outputs its sparsity counts.
    """
    model = need("neurobench.models").TorchModel(net)
    model.add_activation_module(activation)
    workload = need("neurobench.metrics.workload")
    metrics = [workload.ActivationSparsity, workload.SynapticOperations]
    benchmark = need("neurobench.benchmarks").Benchmark(model, batches, [], [], [[], metrics])
    with torch.no_grad(), drawn_from(0):
        found = benchmark.run(quiet=True)
    operations = found.pop("SynapticOperations")
    # it prints what goes wrong in a metric, and goes on with 0
    if not isinstance(operations, dict):
        raise RunError("NeuroBench's SynapticOperations failed on this network")
    return {**operations, **found}


def counters(net, batches):
    """The same figures by our counters, of lanes; `Dense` with the weights on padding."""
    with drawn_from(0):
        energy = measure(net, (images for images, _ in batches))
    macs = acs = dense = 0
    fired = outputs = 0
    for row in energy.layers:
        dense += row.macs * row.reads
        if row.dense is None:
            macs += sum(row.other)
            acs += sum(map(sum, row.lane_additions.values()))
        else:
            macs += sum(row.additions)
        fired += sum(sum(neurons.spikes) for neurons in row.neurons)
        outputs += sum(neurons.count * neurons.levels for neurons in row.neurons)

    def per_image(mean):
        # means of integers, which were added up layer by layer
        return round(mean * energy.images) / energy.images

    return {
        "Effective_MACs": per_image(macs),
        "Effective_ACs": per_image(acs),
        "Dense": dense,
        "ActivationSparsity": 1 - per_image(fired) / (outputs * energy.steps),
    }


def compare(net, loader, world):
    """What NeuroBench finds of a spiking network and what our counters find, as plain values.

    Args:
        net: in eval mode. loader: of the images. world: `engine.dist.World`.
    Raises:
        UseError: the network has no spikes, there are several processes, or no NeuroBench.
        RunError: NeuroBench failed.
    """
    if net.act.kind != "spiking" or world.size > 1:
        raise UseError("--neurobench counts the lanes of an SNN in one process: give one")
    footprint = need("neurobench.metrics.static").Footprint()
    model = need("neurobench.models").TorchModel(net)
    precise = deepcopy(net).double()
    batches = Batches(loader)
    return {
        "neurobench": need("neurobench").__version__,
        "images": loader.images,
        "footprint": footprint(model),
        "merged": harness(precise, SpikingLayer, batches),
        "by_lane": harness(by_lane(precise), Lanes, batches),
        "counters": counters(precise, batches),
    }


def table(found):
    """What `compare` found as text."""
    columns = ("merged", "by_lane", "counters")
    title = f"NeuroBench {found['neurobench']}"
    lines = [f"{title:<20}" + "".join(f"{column:>20}" for column in columns)]
    for name, form in LINES.items():
        cells = [form.format(found[column][name]) for column in columns]
        lines.append(f"{name:<20}" + "".join(f"{cell:>20}" for cell in cells))
    lines.append(f"{'Footprint':<20}{found['footprint']:>20,} bytes")
    return "\n".join(lines)
