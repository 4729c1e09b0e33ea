"""Compute energy of a network from its measured activity (SPEC section 7).

    E = E_MAC * MAC_first + E_AC * sum_(l > first) rate_l * MAC_l        (SNN, directly encoded)
    E = E_MAC * rate_first * MAC_first + ...                             (transformer: the first layer at every step)
    E = E_MAC * sum_l MAC_l                                              (ANN, LQ-ANN)

rate_l = nonzero inputs of layer l / inputs per step, summed over the T steps, averaged over the images.
"""

import csv
import json
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from engine.files import write_atomic
from models import LIFLayer, SpikingLayer, lanes

E_MAC, E_AC = 4.6, 0.9  # pJ, 45 nm, float32


@dataclass
class Row:
    """A weighted layer: MACs of one image and step, inputs of one step, rate over all steps, energy in uJ, rate per step."""

    name: str
    macs: int
    inputs: int
    rate: float
    energy_uj: float
    step_rates: list = field(default_factory=list)


@dataclass
class Energy:
    """Energy of one image in uJ, per layer and in all; firing rate per lane over all neurons and per layer.

    Lane rates are summed over the T steps; lane_rates_per_step is {layer: [step][lane]}.
    """

    total_uj: float
    ann_uj: float
    macs: int
    images: int
    steps: int
    layers: list
    lane_rates: list = field(default_factory=list)
    lane_rates_per_layer: dict = field(default_factory=dict)
    lane_rates_per_step: dict = field(default_factory=dict)

    def as_dict(self):
        return asdict(self)

    def table(self):
        """The layers as text."""
        lines = [f"{'layer':<28}{'MACs':>14}{'rate':>9}{'uJ':>12}"]
        lines += [f"{r.name:<28}{r.macs:>14,}{r.rate:>9.4f}{r.energy_uj:>12.4f}" for r in self.layers]
        lines.append(f"{'total':<28}{self.macs:>14,}{'':>9}{self.total_uj:>12.4f}   (ANN: {self.ann_uj:.2f})")
        if self.lane_rates:
            lines.append("firing rate per lane: " + "  ".join(f"{2**s}: {v:.4f}" for s, v in enumerate(self.lane_rates)))
        return "\n".join(lines)

    def write(self, stem):
        """Write <stem>.json and <stem>.csv."""
        write_atomic(f"{stem}.json", lambda p: p.write_text(json.dumps(self.as_dict(), indent=2) + "\n"))

        def rows(path):
            with open(path, "w", newline="") as file:
                writer = csv.DictWriter(file, ["name", "macs", "inputs", "rate", "energy_uj"])
                writer.writeheader()
                writer.writerows({k: v for k, v in asdict(r).items() if k != "step_rates"} for r in self.layers)

        write_atomic(f"{stem}.csv", rows)


def macs_of(module, out):
    """MACs of one row of a convolution or linear layer with output `out`."""
    per_output = module.weight[0].numel()
    return out[0].numel() * per_output


class Counter:
    """Counts events while the network runs: `with Counter(net) as counter: ...; counter.energy(world)`.

    The counts are hooks' sums on the device, read once at the end; nothing enters the state_dict.
    """

    def __init__(self, net):
        self.net, self.handles, self.images = net, [], 0
        self.weighted = {n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        self.neurons = {n: m for n, m in net.named_modules() if isinstance(m, (SpikingLayer, LIFLayer))}
        self.nonzero, self.shape, self.fired, self.outputs = {}, {}, {}, {}

    def _weighted(self, name):
        def hook(module, args, out):
            x = args[0]
            steps = len(x) // self.batch  # 1 where the input is shown to the network once
            count = torch.count_nonzero(x.detach().reshape(steps, -1), dim=1)
            self.nonzero[name] = self.nonzero.get(name, 0) + count.expand(self.net.act.steps) / (self.net.act.steps // steps)
            self.shape[name] = (macs_of(module, out), x[0].numel())
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
        self.handles = [m.register_forward_hook(self._weighted(n)) for n, m in self.weighted.items()]
        self.handles += [m.register_forward_hook(self._neuron(n)) for n, m in self.neurons.items()]
        self.handles.append(self.net.register_forward_pre_hook(self._images))
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def energy(self, world=None):
        """The `Energy` of what was counted, over all processes of `world`."""
        names, act = list(self.shape), self.net.act
        device = self.nonzero[names[0]].device
        counts = torch.stack([self.nonzero[n].double() for n in names])  # [layers, T]
        images = torch.tensor(float(self.images), dtype=torch.float64, device=device)
        fired = torch.stack([self.fired[n] for n in self.fired]) if self.fired else None  # [layers, T, S]
        outputs = torch.tensor([float(n) for n in self.outputs.values()], dtype=torch.float64, device=device)
        if world is not None:
            counts, images = world.sum(counts), world.sum(images)
            fired, outputs = (world.sum(fired), world.sum(outputs)) if fired is not None else (None, outputs)
        images, spiking = int(images.item()), fired is not None
        per_step = [(n / (images * self.shape[name][1])).tolist() for n, name in zip(counts, names, strict=True)]
        first_is_analog = not spiking or act.encoding == "direct"
        rows = []
        for i, (name, rates) in enumerate(zip(names, per_step, strict=True)):
            each_step = i == 0 and self.net.each_step  # its input is shown at each step, though it was counted once
            rates = [r * act.steps for r in rates] if each_step else rates
            rows.append(row(name, *self.shape[name], rates, spiking, first_is_analog and i == 0, each_step))
        macs = sum(r.macs for r in rows)
        energy = Energy(sum(r.energy_uj for r in rows), E_MAC * macs * 1e-6, macs, images, act.steps, rows)
        if spiking:
            energy.lane_rates = (fired.sum((0, 1)) / outputs.sum()).tolist()
            shares = {n: f / o for n, f, o in zip(self.fired, fired, outputs, strict=True)}
            energy.lane_rates_per_layer = {n: share.sum(0).tolist() for n, share in shares.items()}
            energy.lane_rates_per_step = {n: share.tolist() for n, share in shares.items()}
        return energy


def row(name, macs, inputs, rates, spiking, analog, each_step=False):
    """Energy row of a layer: MACs at E_MAC for an ANN or an analog input (by its rate if billed at each step), else
    additions at E_AC times the rate. rates: of nonzero inputs, one per step."""
    rate = sum(rates)
    picojoule = E_AC * rate * macs if spiking and not analog else E_MAC * macs * (rate if each_step else 1)
    return Row(name, macs, inputs, rate, picojoule * 1e-6, rates)


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
    return {f"rate/{name}/lane{2**i}": rate for name, lane in rates.items() for i, rate in enumerate(lane)}
