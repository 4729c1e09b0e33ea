"""What a network's spikes cost, as something to train on: the MACs that become additions.

The energy model `paper` bills rate_l * MAC_l additions of a weighted layer l (docs/method.md,
section 7), so their sum is the energy but for a constant.
"""

import torch
import torch.nn.functional as F

from . import image_side
from .layers import WEIGHTED, Layer, evaluating, hooked


def weighted(net):
    """Its convolutions and linear layers."""
    return [m for m in net.modules() if isinstance(m, WEIGHTED)]


def macs_of(layer, out):
    """Multiply-accumulates of a weighted layer for one image and step.

    out: its output, [T*B, C, H, W] or [T*B, features].
    """
    return out[0].numel() * layer.weight[0].numel()


def run_once(net):
    """Run it on one image of zeros."""
    side = image_side(net)
    weight = net.head.weight
    net(torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype))


def neuron_counts(net):
    """{site: its neurons in an image}, found by running the network."""
    found = {}

    def count(site, args, out):
        found[site] = out[0].numel()

    with evaluating(net), hooked(net.sites(), count):
        run_once(net)
    return found


def sources(net):
    """{weighted layer: the site of neurons whose spikes it reads}, found by running the network.

    Args:
        net: a network of images [B, 3, image_size, image_size].
    Raises:
        ValueError: a layer reads the spikes of several, or of none.
    """
    outputs, found = {}, {}
    names = {module: name for name, module in net.named_modules()}

    def begin(site, args, out):
        # a graph of its own goes from here to the next neurons
        out = out.detach().requires_grad_()
        outputs[out] = site
        return out

    def end(module, args):
        x = args[0]
        if x.requires_grad:
            gradients = ()
            if outputs:
                # what leads to x may lead to the next layer, too
                gradients = torch.autograd.grad(
                    x.sum(), list(outputs), allow_unused=True, retain_graph=True
                )
            # each layer of neurons begins a graph of its own
            reached = [s for s, g in zip(outputs.values(), gradients) if g is not None]
            if len(reached) != 1:
                raise ValueError(
                    f"{names[module]} reads the spikes of {len(reached)} layers of neurons, "
                    "expected 1, since a price asks for its dropout or output scale"
                )
            (found[module],) = reached

    begins, ends = hooked(net.sites(), begin), hooked(weighted(net), end, before=True)
    with evaluating(net), begins, ends:
        run_once(net)
    return found


class _Fired(torch.autograd.Function):
    """apply(x, scale) -> share of spikes x >= 0 that are not 0, 0-dim float32, with the gradients
    of `Additions`; scale: of x, or None.

    Written out since a layer's input is large, in operations that are fast on a CPU: counting and
    choosing take ten times as long there.
    """

    @staticmethod
    def forward(ctx, x, scale):
        least = F.threshold(x, 0, torch.inf).amin()
        one = torch.ones_like(least) if scale is None else scale.to(x.dtype)
        least = torch.where(least.isinf(), one, least)  # of no spikes: any
        share = x.sign().mean(dtype=torch.float32)
        ctx.save_for_backward(x, scale, least, share)
        return share

    @staticmethod
    def backward(ctx, g):
        x, scale, least, share = ctx.saved_tensors
        gx = x.clamp(min=least)
        gx.reciprocal_()
        gx.mul_(g / x.numel())
        if scale is None:
            return gx, None
        # what x = scale * spikes brings to the scale is taken out again
        return gx, -g * share / scale


class Additions:
    """Share of the MACs that become additions in a network's last forward, differentiable.

        sum_l rate_l * MAC_l / sum_l MAC_l

    over the weighted layers l that read what the network computed (all but the first); rate_l is
    the share of inputs that are not 0, summed over the T steps, divided by the share that dropout
    keeps: it is off in the network that is measured. An input x passes the gradient on
    as `d rate / d x = 1 / x`, one that is 0 as if it were the least of the others. An output scale
    of the matched conversion is no part of x.

    Args:
        net: a network; from now on it is watched while it trains.
    """

    def __init__(self, net):
        self.steps = net.act.steps
        self.paid, self.macs = [], []
        self.counts = False  # not of what a backward pass runs again
        # of the inputs of layers: output scales, and the share that dropout keeps
        self.scales, self.kept = {}, {}
        kept = {m.act: 1 - m.drop.p for m in net.modules() if isinstance(m, Layer)}
        if net.act.scale or min(kept.values(), default=1) < 1:
            for module, site in sources(net).items():
                self.kept[module] = kept.get(site, 1)
                if net.act.scale:
                    self.scales[module] = site.scale
        net.register_forward_pre_hook(self._begin)
        for module in weighted(net):
            module.register_forward_hook(self._count)

    def __deepcopy__(self, memo):
        # The copy of a module would take along all modules, by the keys of the dicts, in a cycle
        # that waits for the garbage collector, which knows nothing of a GPU's memory.
        return self

    def _begin(self, net, args):
        self.counts = True
        self.paid.clear()
        self.macs.clear()

    def _count(self, module, args, out):
        x = args[0]
        # images and events are no spikes of the network
        if not (module.training and x.requires_grad):
            return
        fired = _Fired.apply(x, self.scales.get(module))
        rate = fired * (self.steps / self.kept.get(module, 1))
        macs = macs_of(module, out)
        if self.counts:
            self.paid.append(rate * macs)
            self.macs.append(macs)

    def __call__(self):
        """0-dim float32, of the forward that has just run in training mode; it is read once."""
        share = torch.stack(self.paid).sum() / sum(self.macs)
        self.counts = False
        # a step that is compiled finds the lists of every step as those of the first
        self.paid.clear()
        self.macs.clear()
        return share
