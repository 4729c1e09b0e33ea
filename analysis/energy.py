"""Measure a network's activity: every count that `analysis.pricing` prices, taken by hooks while the network runs."""

import torch
from torch import nn

from models import LIFLayer, ReLU, SpikingLayer, build, lanes

from .pricing import E_AC, E_MAC, MODELS, Energy, Row

__all__ = ["E_AC", "E_MAC", "MODELS", "Counter", "Energy", "Row", "macs_of", "measure", "of_ann"]


def macs_of(module, out):
    """MACs of one row of a convolution or linear layer with output `out`."""
    per_output = module.weight[0].numel()
    return out[0].numel() * per_output


def fan_out(module, x, out):
    """Weights that one input meets: a number, or [H, W] of a convolution, whose border inputs meet fewer."""
    if isinstance(module, nn.Linear):
        return x.new_tensor(module.out_features, dtype=torch.float64)
    ones, size = x.new_ones(()), module.kernel_size
    uses = nn.grad.conv2d_input(
        (1, 1, *x.shape[2:]),
        ones.expand(1, 1, *size),
        ones.expand(1, 1, *out.shape[2:]),
        module.stride,
        module.padding,
        module.dilation,
    )
    return uses[0, 0].double() * (len(module.weight) // module.groups)


def marks(x, levels):
    """Which inputs are nonzero, which of them are no binary numbers, which have the digit worth 4^-S, ... 2^(S-1)."""
    scaled = x.float() * 4.0**levels
    code = scaled.int()
    binary = (code == scaled) & (code >> 3 * levels == 0)
    yield x != 0
    yield (x != 0) & ~binary
    code *= binary
    for digit in range(
        3 * levels
    ):  # spikes have the upper S; scaled ones, their products and averages of four the lower
        yield code >> digit & 1


class Counter:
    """Counts events while the network runs: `with Counter(net) as counter: ...; counter.energy(world)`.

    The counts are hooks' sums on the device, read once at the end; nothing enters the state_dict.
    """

    def __init__(self, net):
        self.net, self.handles, self.images = net, [], 0
        self.weighted = {
            n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))
        }
        self.neurons = {
            n: m for n, m in net.named_modules() if isinstance(m, (SpikingLayer, LIFLayer))
        }
        self.levels = max((m.config.levels for m in self.neurons.values()), default=0)
        self.counts, self.shape, self.fired, self.outputs = {}, {}, {}, {}

    def _weighted(self, name):
        def hook(module, args, out):
            x = args[0].detach()
            steps = len(x) // self.batch  # 1 where the input is shown to the network once
            each = torch.stack(
                [
                    mark.sum((1, 2), dtype=torch.int32)  # several times as fast as a wider sum
                    for mark in marks(x.unflatten(0, (steps, -1)), self.levels)
                ],
                -1,
            ).double()  # [T, (H, W,) marks]
            both = torch.stack([each, each * fan_out(module, x, out)[..., None]])
            count = both.reshape(2, steps, -1, both.shape[-1]).sum(
                2
            )  # [inputs or additions, T, marks]
            count = count.expand(-1, self.net.act.steps, -1) / (self.net.act.steps // steps)
            self.counts[name] = self.counts.get(name, 0) + count
            self.shape[name] = (macs_of(module, out), x[0].numel(), module.weight.numel())

        return hook

    def _neuron(self, name):
        def hook(module, args, out):
            o = (out / module.scale).round() if hasattr(module, "scale") else out
            each = lanes(o.detach().reshape(module.steps, -1), module.config)  # [T, S, neurons]
            count = each.sum(2, dtype=torch.float64)
            self.fired[name] = self.fired.get(name, 0) + count
            self.outputs[name] = self.outputs.get(name, 0) + o.numel() // module.steps

        return hook

    def _images(self, module, args):
        self.batch = len(args[0])
        self.images += self.batch

    def __enter__(self):
        self.handles = [
            m.register_forward_hook(self._weighted(n)) for n, m in self.weighted.items()
        ]
        self.handles += [m.register_forward_hook(self._neuron(n)) for n, m in self.neurons.items()]
        self.handles.append(self.net.register_forward_pre_hook(self._images))
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def energy(self, world=None):
        """The `Energy` of what was counted, over all processes of `world`."""
        names = list(self.shape)
        counts = torch.stack(
            [self.counts[n] for n in names]
        )  # [layers, inputs or additions, T, marks]
        device = counts.device
        images = torch.tensor(float(self.images), dtype=torch.float64, device=device)
        fired = (
            torch.stack([self.fired[n] for n in self.fired]) if self.fired else None
        )  # [layers, T, S]
        outputs = torch.tensor(
            [float(n) for n in self.outputs.values()], dtype=torch.float64, device=device
        )
        if world is not None:
            counts, images = world.sum(counts), world.sum(images)
            fired, outputs = (
                (world.sum(fired), world.sum(outputs)) if fired is not None else (None, outputs)
            )
        images = int(images.item())
        rows = [
            self._row(name, *both, images, first=name == names[0])
            for name, both in zip(names, counts.cpu(), strict=True)
        ]
        rows[-1].readout = True
        energy = Energy(images, self.net.act.steps, rows)
        if fired is not None:
            energy.lane_rates = (fired.sum((0, 1)) / outputs.sum()).tolist()
            shares = {n: f / o for n, f, o in zip(self.fired, fired, outputs, strict=True)}
            energy.lane_rates_per_layer = {n: share.sum(0).tolist() for n, share in shares.items()}
            energy.lane_rates_per_step = {n: share.tolist() for n, share in shares.items()}
        return energy

    def _row(self, name, inputs, additions, images, first):
        """`Row` of a layer from its two counts [T, marks] over all images."""
        (macs, size, weights), steps = self.shape[name], len(inputs)
        analog = not self.neurons or (first and self.net.act.encoding == "direct")
        once = analog and not (first and self.net.each_step)
        if analog and not once:  # shown at each step, though it was counted once
            inputs, additions = inputs * steps, additions * steps
        seen = [k for k in range(3 * self.levels) if inputs[:, 2 + k].any()]
        values = bool(inputs[:, 1].any())  # some inputs are no binary numbers
        one_hot = not values and bool(inputs[:, 2:].sum() == inputs[:, 0].sum())
        width = max(seen[-1] - seen[0] + 1 if seen else 0, 1 if first else self.levels)
        code = 0 if analog or values else width.bit_length() if one_hot else width
        rates, additions = (inputs / (images * size)).T.tolist(), (additions / images).T.tolist()
        by_lane = [
            {2.0 ** (k - 2 * self.levels): count[2 + k] for k in seen}
            for count in (rates, additions)
        ]
        dense = None if not analog else [1.0] + [0.0] * (steps - 1) if once else rates[0]
        return Row(
            name,
            macs,
            size,
            weights,
            rates[0],
            *additions[:2],
            *by_lane,
            one_hot,
            dense,
            code,
            1 if once else steps,
        )


def of_ann(name, **arguments):
    """`Energy` of a network as an ANN, from its shapes alone; arguments: see `models.build`."""
    with torch.device("meta"):
        net = build(name, ReLU(), **arguments).eval()
        with Counter(net) as counter:
            net(torch.empty(1, 3, net.built["image_size"], net.built["image_size"]))
    return Energy(1, 1, [Row(n, *shape, dense=[1.0]) for n, shape in counter.shape.items()])


@torch.no_grad()
def measure(net, batches):
    """Energy of `net` (eval mode) over an iterable of image batches [B, C, H, W]."""
    training = net.training
    net.eval()
    with Counter(net) as counter:
        for images in batches:
            net(images)
    net.train(training)
    return counter.energy()


@torch.no_grad()
def lane_curves(net, images):
    """Firing rate of every lane on one batch, in eval mode, for TensorBoard: {'rate/<layer>/lane<worth>': rate}."""
    rates = measure(net, [images]).lane_rates_per_layer
    return {
        f"rate/{name}/lane{2**i}": rate
        for name, lane in rates.items()
        for i, rate in enumerate(lane)
    }
