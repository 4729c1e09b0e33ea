"""Spiking networks of one step as NIR graphs (Neuromorphic Intermediate Representation), and back
through the neurons of another simulator (docs/export.md).

A file is HDF5, written and read by `nir`. Its nodes have the names of the network's modules.
"""

import io
import warnings
from functools import partial

import numpy as np
import torch
from torch import nn

from models import image_side
from models.integer import check_parts
from models.layers import Layer, Residual

from .extras import need


class _Graph:
    """A graph that grows.

    A signal is {factor: names of nodes}: the sum of what these nodes give, times their factors. So
    a weight meets nothing but spikes, for which each factor has weights of its own.
    """

    def __init__(self, shape):
        self.nir = need("nir")
        self.nodes = {"input": self.nir.Input(np.array(shape))}
        self.edges = []

    def add(self, name, node, sources):
        """Add a node that gets the sum of the nodes `sources`; returns its name."""
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def shape(self, sources):
        """What the nodes `sources` give: [C, H, W]."""
        return self.nodes[sources[0]].output_type["output"]

    def weigh(self, name, signal, weight, bias=None, stride=1, padding=0):
        """Convolutions by `weight` [O, I, k, k] and the factors; returns their names."""
        if bias is None:
            bias = torch.zeros(len(weight))
        names = []
        for factor, sources in signal.items():
            node = self.nir.Conv2d(
                tuple(self.shape(sources)[1:]),
                (weight * factor).numpy(),
                stride,
                padding,
                dilation=1,
                groups=1,
                bias=bias.numpy(),
            )
            names.append(self.add(f"{name}.x{factor:g}", node, sources))
            # added once
            bias = torch.zeros_like(bias)
        return names

    def current(self, name, layer, signal):
        """A convolution, or a linear layer, which is a convolution of the size of its input."""
        if isinstance(layer, nn.Conv2d):
            shape = {"stride": layer.stride, "padding": layer.padding}
            return self.weigh(name, signal, layer.weight, layer.bias, **shape)
        (sources, *_) = signal.values()
        weight = layer.weight.unflatten(1, tuple(self.shape(sources)))
        return self.weigh(name, signal, weight, layer.bias)

    def pool(self, name, side, signal):
        """Sums of squares, whose average is left to the factors."""
        square = np.array([side, side])
        nothing = np.array([0, 0])
        pooled = {}
        for factor, sources in signal.items():
            channels, height, width = self.shape(sources)
            node = self.nir.SumPool2d(square, square, nothing)
            shape = channels, height // side, width // side
            node.output_type = {"output": np.array(shape)}
            added = self.add(f"{name}.x{factor:g}", node, sources)
            pooled[factor / side**2] = [added]
        return pooled

    def fire(self, name, act, currents):
        """Lanes, each of which fires above its edge alone: their jumps make the merged output."""
        shape = tuple(self.shape(currents))
        signal = {}
        steps = zip(act.config.boundaries, act.config.jumps)
        for lane, (boundary, jump) in enumerate(steps):
            edge = act.theta * boundary
            if act.config.inclusive:
                # IF fires above its threshold: from the edge on is above the number before it
                edge = torch.nextafter(edge, torch.tensor(-torch.inf))
            threshold = np.full(shape, edge.item(), np.float32)
            resistance = np.ones_like(threshold)
            reset = np.zeros_like(threshold)
            node = self.nir.IF(resistance, threshold, reset)
            names = signal.setdefault(jump, [])
            names.append(self.add(f"{name}.lane{lane}", node, currents))
        return signal

    def layer(self, name, stage, signal):
        """Synapse and neurons."""
        current = self.current(f"{name}.synapse", stage.synapse.map, signal)
        return self.fire(f"{name}.act", stage.act, current)

    def residual(self, name, stage, signal):
        """Both branches of a block, and the neurons that see their sum."""
        inner = self.layer(f"{name}.inner", stage.inner, signal)
        currents = self.current(f"{name}.synapse", stage.synapse.map, inner)
        shortcut = f"{name}.shortcut"
        if isinstance(stage.shortcut, nn.Identity):
            channels = stage.synapse.map.out_channels
            ones = torch.eye(channels)
            across = self.weigh(shortcut, signal, ones[:, :, None, None])
        else:
            across = self.current(shortcut, stage.shortcut.map, signal)
        return self.fire(f"{name}.act", stage.act, currents + across)


@torch.no_grad()
def build(net, **metadata):
    """The `nir.NIRGraph` of a spiking CNN of one step, fused and without output scales.

    Its input is a normalised image [C, H, W], its output [classes, 1, 1]; metadata goes with it.
    Raises:
        ValueError: NIR cannot express the network. UseError: `nir` is not installed.
    """
    check_parts(net)
    if net.act.steps > 1:
        raise ValueError(
            f"it runs {net.act.steps} steps, in which its lanes share a potential and its reset, "
            "while each IF of NIR has its own: train with --timesteps 1"
        )
    side = image_side(net)
    channels = net.stages[0].synapse.map.in_channels
    graph = _Graph((channels, side, side))
    signal = {1: ["input"]}
    for index, stage in enumerate(net.stages):
        name = f"stages.{index}"
        if isinstance(stage, Layer):
            signal = graph.layer(name, stage, signal)
        elif isinstance(stage, Residual):
            signal = graph.residual(name, stage, signal)
        elif isinstance(stage, nn.AvgPool2d):
            signal = graph.pool(name, stage.kernel_size, signal)
        elif not isinstance(stage, nn.Flatten):
            raise ValueError(f"{name} is a {type(stage).__name__}, which NIR has no node for")
    readout = {1: graph.current("head", net.head, signal)}
    # a pooling of single pixels adds them up: nirtorch hands on the inputs of an output one by one
    ((_, last),) = graph.pool("readout", 1, readout).items()
    graph.add("output", graph.nir.Output(graph.shape(last)), last)
    return graph.nir.NIRGraph(graph.nodes, graph.edges, metadata)


def encode(graph):
    """The bytes of a NIR file."""
    file = io.BytesIO()
    need("nir").write(file, graph)
    return file.getvalue()


class Simulated(nn.Module):
    """A NIR file of the network `net`, run for one step by Norse: [B, C, H, W] -> [B, classes].

    `sites()` are modules that hand on the merged outputs, in the order of those of `net`.

    Args:
        data: the bytes of the file. dtype: of the simulation.
    """

    def __init__(self, data, net, dtype=torch.float64):
        super().__init__()
        nir = need("nir")
        graph = nir.read(io.BytesIO(data))
        with warnings.catch_warnings():
            # of what torch deprecates
            warnings.simplefilter("ignore")
            norse = need("norse.torch.utils.import_nir")
        # Norse's own from_nir runs a node before all of its inputs are there
        node = norse._import_norse_module
        kinds = dict.fromkeys((nir.Conv2d, nir.IF, nir.SumPool2d), node)
        self.graph = need("nirtorch").nir_to_torch(graph, kinds, dtype=dtype)
        names = {site: name for name, site in net.named_modules()}
        self.fired = {}
        self.merged = []
        for site in net.sites():
            lanes = {}
            for lane, jump in enumerate(site.config.jumps):
                name = f"{names[site]}.lane{lane}".replace(".", "_")
                module = self.graph.get_submodule(name)
                module.register_forward_hook(partial(self._keep, name))
                lanes[name] = jump
            self.merged.append((nn.Identity(), lanes))

    def _keep(self, name, module, args, out):
        self.fired[name], _ = out

    def sites(self):
        return [site for site, _ in self.merged]

    def forward(self, images):
        readout, _ = self.graph(images)
        for site, lanes in self.merged:
            fired = [jump * self.fired[name] for name, jump in lanes.items()]
            site(sum(fired))
        return readout.flatten(1)
