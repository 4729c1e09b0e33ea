"""Measure a network's activity: hooks count, while it runs, what `analysis.pricing` prices.

Of every weighted layer (convolution or linear) the hooks count, at each step, the inputs and the
additions that these inputs cause, told apart by kind of input (`Counts`). Of every layer of neurons
they count the spikes of each lane. What the counts are for: docs/method.md, section 7.
"""

from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from engine.dist import World
from models import MLIF, LIFLayer, ReLU, SpikingLayer, build, image_side
from models.activations import Activation
from models.layers import WEIGHTED, evaluating
from models.rates import macs_of

from .pricing import Energy, NeuronCounts, Row

# What costs something, and is no layer with a matrix of its own.
UNCOUNTED = (nn.MultiheadAttention, MLIF)


def _has_matrix(module):
    """Whether a module itself has weights: batch norms and neurons have one value per channel."""
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _check_padding(name, module):
    """Refuse what `fan_out` does not know: other values than zeros, sizes that are words."""
    mode = getattr(module, "padding_mode", "zeros")
    padding = getattr(module, "padding", 0)
    if mode != "zeros" or isinstance(padding, str):
        raise ValueError(
            f"{name} pads by {padding!r} with {mode}: what is counted are zeros, and their number "
            "on each side"
        )


def fan_out(module, x, out):
    """Weights that one input meets: a number for a linear layer, [H*W, 1] for a convolution.

    Inputs at the border of an image meet fewer weights, and a stride makes a difference too.

    Args:
        x, out: input and output of the layer; only their shapes count.
    """
    if isinstance(module, nn.Linear):
        return module.out_features

    # With weights of 1, the gradient of all outputs with respect to an input is the number of
    # outputs that use it. One channel shows it, as all of them have the same geometry.
    uses = nn.grad.conv2d_input(
        (1, 1, *x.shape[2:]),
        x.new_ones(1, 1, *module.kernel_size),
        x.new_ones(1, 1, *out.shape[2:]),
        module.stride,
        module.padding,
        module.dilation,
    )
    channels = module.out_channels // module.groups
    return uses.double().reshape(-1, 1) * channels


def worths(levels):
    """What the 4S - 1 binary digits of an input are worth that count as digits of spikes.

    The spikes of a neuron with S lanes need S digits, 1 to 2^(S-1); products of two, as of a gate,
    need them up to 2^(2S-2). Those of a scaled neuron lie below, down to 2^(1-S), and products of
    two of them, and averages of four spikes, lower still.
    """
    return [2.0**k for k in range(-2 * levels, 2 * levels - 1)]


def marks(x, levels):
    """Yield a mask of x's shape for each kind of input, in the order of the fields of `Counts`.

    They come one after the other so that no more than one of them is in memory.
    """
    digits = len(worths(levels))
    scaled = x.float() * 4.0**levels  # the least digit becomes worth 1
    code = scaled.int()
    binary = (code == scaled) & (code >> digits == 0)
    nonzero = x != 0

    yield nonzero
    yield nonzero & ~binary
    code *= binary  # other inputs have no digits
    for k in range(digits):
        yield code >> k & 1


class Counts(NamedTuple):
    """Counts of a layer at each step, by kind of input; each is a list over the T steps.

    nonzero: of all inputs but 0. other: of those among them that are no binary numbers of few
    digits, that is, of analog values. digits: {worth of a digit: of those that have it}.
    """

    nonzero: list
    other: list
    digits: dict

    @classmethod
    def of(cls, kinds, levels):
        """Names for the columns of a tensor [T, kinds], which come in the order of `marks`."""
        nonzero, other, *digits = kinds.T.tolist()
        by_worth = zip(worths(levels), digits, strict=True)
        return cls(nonzero, other, dict(by_worth))


class Counter:
    """Counts events while the network runs: `with Counter(net) as counter: ...`, then `energy`.

    The counts are sums on the device, read once at the end; nothing enters the state_dict.

    Attributes, each {layer: ...} and filled by the hooks in the order in which the layers run:
        sizes: `Row` without counts.
        counts: float64 [2, T, kinds] over all images: inputs and additions, by kind (`Counts`).
        spikes: float64 [T, S] over all images. neurons: their number.
        behind: the weighted layer that ran last before the neurons.
    Raises:
        ValueError: it is no `Network`, or has weights or neurons that are not counted.
    """

    def __init__(self, net):
        if not isinstance(getattr(net, "act", None), Activation):
            raise ValueError(f"energies are of a models.layers.Network, got a {type(net).__name__}")
        self.net = net
        self.steps = net.act.steps
        self.levels = 0  # S, the most of any layer; of a network without spikes 0
        self.hooks = {}
        for name, module in net.named_modules():
            if isinstance(module, WEIGHTED):
                _check_padding(name, module)
                self.hooks[module] = partial(self._count_inputs, name)
            elif isinstance(module, (SpikingLayer, LIFLayer)):
                self.hooks[module] = partial(self._count_spikes, name)
                self.levels = max(self.levels, module.config.levels)
            elif isinstance(module, UNCOUNTED) or _has_matrix(module):
                raise ValueError(
                    f"{name} is a {type(module).__name__}, which is not counted: energies are of "
                    "Conv2d, Linear and the neurons of act.layer()"
                )

        self.images = 0
        self.sizes = {}
        self.counts = defaultdict(int)
        self.spikes = defaultdict(int)
        self.neurons = {}
        self.behind = {}
        self.batch = 0  # images of this call
        self.met = set()  # layers that have run in it
        self.last = None  # the weighted layer that ran last

    def __enter__(self):
        # A layer sees [T*B, ...]: the images are counted where they enter the network.
        self.handles = [self.net.register_forward_pre_hook(self._count_images)]
        for module, hook in self.hooks.items():
            self.handles.append(module.register_forward_hook(hook))
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _count_images(self, net, args):
        self.batch = len(args[0])
        self.images += self.batch
        self.met.clear()

    def _meet(self, name):
        if name in self.met:
            raise ValueError(f"{name} runs twice in a forward: give each place its own layer")
        self.met.add(name)

    def _count_inputs(self, name, module, args, out):
        self._meet(name)
        x = args[0].detach()
        self.sizes[name] = Row(
            name,
            macs_of(module, out),
            x[0].numel(),
            module.weight.numel(),
            outputs=out[0].numel(),
        )
        self.last = name
        shown = len(x) // self.batch  # T, or 1 where one current serves all steps
        apart = x.reshape(shown, self.batch, x.shape[1], -1)  # [shown, B, C, H*W]

        # The places stay apart, since the additions depend on them. Over images and channels an
        # int32 sum is several times as fast as a wider one.
        found = []
        for mask in marks(apart, self.levels):
            found.append(mask.sum((1, 2), dtype=torch.int32))
        inputs = torch.stack(found, -1).double()  # [shown, H*W, kinds]
        additions = inputs * fan_out(module, x, out)
        both = torch.stack([inputs, additions]).sum(2)  # [2, shown, kinds]

        # What is shown once is spread evenly over the steps: in their sum it counts once.
        repeats = self.steps // shown
        self.counts[name] += both.expand(-1, self.steps, -1) / repeats

    def _count_spikes(self, name, module, args, out):
        self._meet(name)
        fired = module.lanes(out.reshape(self.steps, -1))  # [T, S, B * neurons]
        self.spikes[name] += fired.sum(2, dtype=torch.float64)
        self.neurons[name] = out[0].numel()
        self.behind[name] = self.last

    def energy(self, world: World | None = None):
        """The `Energy` of what was counted by all processes of `world` (None: by this one)."""
        world = world or World()
        images = torch.tensor(self.images, device=world.device)
        images = int(world.sum(images))
        counts = _total(self.counts, world)
        rows = [self._row(name, count, images) for name, count in counts.items()]
        rows[-1].readout = True
        energy = Energy(images, self.steps, rows)

        if not self.spikes:
            return energy

        spikes = _total(self.spikes, world)
        by_name = {row.name: row for row in rows}
        for name, fired in spikes.items():
            rates = fired / (self.neurons[name] * images)  # [T, S]
            energy.lane_rates_per_step[name] = rates.tolist()
            energy.lane_rates_per_layer[name] = rates.sum(0).tolist()
            per_image = (fired.sum(1) / images).tolist()
            row = by_name[self.behind[name]]
            row.neurons = [
                *row.neurons,
                NeuronCounts(self.neurons[name], fired.shape[1], per_image),
            ]
        fired = sum(spikes.values()).sum(0)  # [S]
        outputs = sum(self.neurons.values()) * images
        energy.lane_rates = (fired / outputs).tolist()
        return energy

    def _row(self, name, counts, images):
        """`Row` of a layer from its counts, [2, T, kinds], over all images."""
        first = name == next(iter(self.sizes))
        # Inputs that are no spikes are billed as MACs: those of an ANN, and an SNN's image.
        analog = not self.levels or (first and self.net.act.encoding == "direct")
        # The image is the same at each step, and so is its current: it is billed once, except in a
        # network whose published energy bills it at each step.
        once = analog and not (first and self.net.each_step)
        if analog and not once:
            counts = counts * self.steps  # one showing was spread; here each step shows all of it

        # The first layer reads no spikes of these neurons: S says nothing of its inputs.
        least = 1 if first else self.levels
        row = _counted(self.sizes[name], counts, images, self.levels, least)
        if analog:
            row.code = 0
        if once:
            later = [0.0] * (self.steps - 1)
            row.dense = [1.0, *later]
            row.step_rates = [row.rate, *later]
            row.reads = 1
        elif analog:
            row.dense = row.step_rates  # as published: zeros of the image cost nothing
        return row


def _counted(size, counts, images, levels, least):
    """A copy of the row `size` with its counts per image, its inputs read as spikes at each step.

    Args:
        levels: S. least: the least number of digits of an input, see `_code_bits`.
    """
    inputs, additions = counts
    counts = Counts.of(inputs, levels)
    rates = Counts.of(inputs / (images * size.inputs), levels)
    per_image = Counts.of(additions / images, levels)
    seen = [worth for worth, count in counts.digits.items() if any(count)]

    # One digit to each nonzero input: all of them are binary numbers, and none has two digits.
    digits = sum(map(sum, counts.digits.values()))
    valued = any(counts.other)
    one_hot = not valued and digits == sum(counts.nonzero)
    return replace(
        size,
        step_rates=rates.nonzero,
        additions=per_image.nonzero,
        other=per_image.other,
        lane_rates={worth: rates.digits[worth] for worth in seen},
        lane_additions={worth: per_image.digits[worth] for worth in seen},
        one_hot=one_hot,
        code=0 if valued else _code_bits(seen, least, one_hot),
        reads=len(inputs),
    )


def _total(counts, world: World):
    """{layer: counts of all processes}, on the host: one reduction and one read for all layers."""
    stacked = torch.stack(list(counts.values()))
    total = world.sum(stacked).cpu()
    return dict(zip(counts, total))


def _code_bits(seen, least, one_hot):
    """Bits of an input as lanes: one for each digit from the lowest to the highest that is `seen`.

    A one-hot input needs no more than the number of its digit, or 0: w digits make w + 1 values.
    """
    width = least
    if seen:
        # Worths are powers of two, so that their ratio 2^k is a number of k + 1 bits.
        span = int(seen[-1] / seen[0]).bit_length()
        width = max(least, span)
    return width.bit_length() if one_hot else width


def of_ann(name, **arguments):
    """`Energy` of a network as an ANN, from its shapes alone: nothing is computed.

    Args:
        name, arguments: the network's, as `models.build` takes them.
    """
    with torch.device("meta"):
        net = build(name, ReLU(), **arguments).eval()
        side = image_side(net)
        with Counter(net) as counter:
            net(torch.empty(1, 3, side, side))
    rows = [replace(row, dense=[1.0]) for row in counter.sizes.values()]
    return Energy(1, 1, rows)


@torch.no_grad()
def measure(net, batches):
    """`Energy` of `net` in eval mode over an iterable of image batches [B, C, H, W].

    Raises:
        ValueError: there is no batch, or the network is none that can be counted.
    """
    with evaluating(net), Counter(net) as counter:
        for images in batches:
            net(images)
    if not counter.sizes:
        raise ValueError("there are no batches to measure: an iterator may be used up")
    return counter.energy()


def lane_curves(net, images):
    """Firing rate of each lane on one batch [B, C, H, W], in eval mode, for TensorBoard.

    Returns:
        {'rate/<layer>/lane<worth, the lowest one's being 1>': share of the neurons, summed over the
        T steps}.
    """
    rates = measure(net, [images]).lane_rates_per_layer
    return {
        f"rate/{name}/lane{2**i}": rate
        for name, by_lane in rates.items()
        for i, rate in enumerate(by_lane)
    }
