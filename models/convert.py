"""From a trained ANN to a spiking network (SPEC section 4): fuse batch norm, find thresholds, fold scales."""

import copy
from dataclasses import replace

import torch
from torch import nn

import models
from models.statistics import percentile

PERCENT = 99.7
MEMORY = 3e9  # bytes that the stored spike trains of `balance_thresholds` may take
CURRENTS = 5e8  # bytes that a layer's currents may take; above, they are computed again once its theta is known
FRACTIONS = [
    0.15 + 0.05 * i for i in range(18)
]  # candidate thetas of the matched conversion, of the percentile value


class ConversionError(RuntimeError):
    """The converted network is not equal to the original."""


def relative_error(a, b):
    """Largest difference relative to the largest magnitude."""
    return ((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item()


@torch.no_grad()
def fuse_bn(net, images, tolerance=1e-4):
    """Absorb every batch norm into the synapse before it; returns (fused network, largest relative error on `images`).

        w' = w * g / sqrt(var + eps),    b' = (b - mean) / sqrt(var + eps) * g + beta

    Args:
        net: an ANN or LQ-ANN with batch norm. images: [B, C, H, W] to prove the result on, in eval mode.
    Raises:
        ValueError: net has no batch norm. ConversionError: the outputs differ by more than `tolerance`.
    """
    if not net.built["bn"]:
        raise ValueError("the network has no batch norm to fuse")
    net = copy.deepcopy(net).eval()
    built = {**net.built, "bn": False, "bias": True}
    fused = models.build(act=net.act, **built).eval()
    state = {k: v for k, v in net.state_dict().items() if k in fused.state_dict()}
    for name, synapse in net.named_modules():
        if isinstance(getattr(synapse, "norm", None), nn.BatchNorm2d):
            weight, norm = synapse.map, synapse.norm
            factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            bias = 0 if weight.bias is None else weight.bias.double()
            state[f"{name}.map.weight"] = (weight.weight.double() * factor.view(-1, 1, 1, 1)).to(
                weight.weight.dtype
            )
            state[f"{name}.map.bias"] = (
                (bias - norm.running_mean.double()) * factor + norm.bias
            ).to(weight.weight.dtype)
    fused.load_state_dict(state)
    error = relative_error(net(images), fused(images))
    if isinstance(
        net.act, models.LogQuant
    ):  # rounding may cross a quantiser's edge: compare in double precision
        error = relative_error(
            net.double()(images.double()), copy.deepcopy(fused).double()(images.double())
        )
    if not error <= tolerance:
        raise ConversionError(
            f"the fused network differs by {error:.1e} (relative), allowed {tolerance:.0e}"
        )
    return fused, error


def to_spiking(net, act):
    """The spiking network of a fused ANN or LQ-ANN: its weights, and thetas and leaks as `act` (a `Spiking`) starts them.

    Raises:
        ValueError: net still has batch norm.
    """
    if net.built["bn"]:
        raise ValueError("the network has batch norm: fuse it first (fuse_bn)")
    arguments = {k: v for k, v in net.built.items() if k != "name"}
    spiking = models.build(net.built["name"], act, **arguments).to(next(net.parameters()).device)
    weights = {
        k: v for k, v in net.state_dict().items() if k.rpartition(".")[2] not in ("lo", "hi")
    }
    spiking.load_state_dict(
        {**{k: v for k, v in spiking.state_dict().items() if k not in net.state_dict()}, **weights}
    )
    return spiking


class _Train:
    """Spike trains of one layer, [steps] tensors of one shape, four bits a spike."""

    def __init__(self, config):
        self.config, self.steps = config, []

    def append(self, o):
        edges = self.config.edges if self.config.one_hot else [2 * e - 1 for e in self.config.edges]
        codes = sum((o >= edge).to(torch.uint8) for edge in edges).flatten()
        if codes.numel() % 2:
            codes = nn.functional.pad(codes, (0, 1))
        self.steps.append((codes[::2] | codes[1::2] << 4, o.shape, o.dtype))

    def __getitem__(self, t):
        packed, shape, dtype = self.steps[t]
        codes = torch.stack((packed & 15, packed >> 4), 1).flatten()[: shape.numel()].to(dtype)
        value = torch.exp2(codes - 1) if self.config.one_hot else torch.exp2(codes) - 1
        return (
            value.round_().mul_(self.config.gain).view(shape)
        )  # one-hot code 0 is 2^-1, which rounds to 0

    def free(self, t):
        self.steps[t] = None


class _Constant:
    """The same tensor at every step."""

    def __init__(self, value):
        self.value = value

    def __getitem__(self, t):
        return self.value

    def free(self, t):
        pass


def affordable(net, images, steps):
    """How many of `images` can be balanced within MEMORY bytes of stored spikes (half a byte each, two layers)."""
    sizes = []
    handles = [
        site.register_forward_hook(lambda m, i, o: sizes.append(o[:1].numel()))
        for site in net.sites()
    ]
    with torch.no_grad():
        net(images[:1])
    for handle in handles:
        handle.remove()
    return max(1, min(len(images), int(MEMORY / (max(sizes) * steps))))


@torch.no_grad()
def balance_thresholds(net, images, steps=100, which="all", percent=PERCENT, progress=iter):
    """Find the threshold of each spiking layer in order and set it; returns the list of thresholds, unscaled.

    theta_l = max over `steps` steps of the `percent` percentile of layer l's current, divided by 2^(S-1), every earlier
    layer firing with its own theta and leak 1. Each layer runs its steps once; spike trains are stored packed.

    Args:
        net: SNN in eval mode, directly encoded. images: [B, C, H, W]. which: 'all', or 'stem' (the leading layers of
        `net.stem`). progress: wraps the list of layers (a progress bar).
    Raises:
        ValueError: 'stem' for a network without one, or images not directly encoded.
    """
    if which == "stem" and not net.stem:
        raise ValueError(f"{net.built['name']} has no stem: balance 'all'")
    if net.act.encoding != "direct":
        raise ValueError("thresholds are balanced under direct encoding")
    count = net.stem if which == "stem" else len(net.sites())
    thetas, before, inputs = [], [], _Constant(images)
    bar = progress(range(count))
    advance = iter(bar)
    for stage in net.stages:
        if len(thetas) == count:
            break
        if not hasattr(stage, "sites"):
            before.append(stage)  # a pooling: applied to its input each time it is read
            continue
        trains = [inputs]
        pre = nn.Sequential(*before)
        for act, current in stage.sites():
            next(advance)

            def at(t, trains=trains, current=current, pre=pre):
                return current(pre(trains[0][t]), *(train[t] for train in trains[1:]))

            constant = isinstance(
                inputs, _Constant
            )  # the image: its current is the same at every step
            first, top, kept = at(0), None, {}
            small = first.numel() * first.element_size() * steps <= CURRENTS
            for t in range(1 if constant else steps):
                u = at(t) if t else first
                top = percentile(u, percent, top)
                if t == 0 or small:
                    kept[t] = u
            thetas.append((top / 2 ** (act.config.levels - 1)).item())
            act.theta.fill_(thetas[-1])
            if len(thetas) == count:
                break
            leak, v, train = torch.ones_like(act.leak), None, _Train(act.config)
            last = act is stage.sites()[-1][0]
            for t in range(steps):
                u = kept[0] if constant else kept.pop(t) if t in kept else at(t)
                o, v = models.neuron.backends.dispatch.mlif(
                    u[None], act.theta, leak, act.config, v, True
                )
                train.append(o[0] / act.config.gain)
                if last:
                    for used in trains:
                        used.free(t)
            trains.append(train)
        inputs, before = trains[-1], []
    for _ in advance:
        pass
    return thetas


@torch.no_grad()
def match_activations(net, images, percent=PERCENT, progress=iter):
    """Matched conversion: for each spiking layer in order choose theta and the output scale q that minimise
    mean((relu(x) - q * o)^2) over `images`, and set them. Returns [(theta, q, relative squared error)].

    x is the layer's current, averaged over the T steps; o the neuron's output, likewise. theta is searched on FRACTIONS of
    the percentile value, q = sum relu(x) o / sum o^2.

    Raises:
        ValueError: the network was built without output scales.
    """
    if not net.act.scale:
        raise ValueError("matched conversion needs a network built with Spiking(scale=True)")
    chosen, steps = [], net.act.steps

    def fit(act, args):
        x = args[0]
        x = x[None].expand(steps, *x.shape) if act.constant else x.unflatten(0, (steps, -1))
        target = torch.relu(x.mean(0))
        top = percentile(x, percent) / 2 ** (act.config.levels - 1) / act.config.gain
        best = None
        for fraction in FRACTIONS:
            theta = (top * fraction).clamp(min=1e-6)
            o = models.neuron.backends.dispatch.mlif(x, theta, act.leak, act.config)[0].mean(0)
            power = (o * o).sum(dtype=torch.float64)
            q = (target * o).sum(dtype=torch.float64) / power.clamp(min=1e-12)
            error = (target * target).sum(dtype=torch.float64) - q * q * power
            if best is None or error < best[0]:
                best = (error, theta, q)
        error, theta, q = best
        act.theta.copy_(theta)
        act.scale.copy_(
            q if q > 0 else torch.ones_like(q)
        )  # a layer that never fires keeps scale 1
        chosen.append(
            (
                act.theta.item(),
                act.scale.item(),
                (error / (target * target).sum(dtype=torch.float64).clamp(min=1e-12)).item(),
            )
        )
        next(advance)

    advance = iter(progress(range(len(net.sites()))))
    handles = [site.register_forward_pre_hook(fit) for site in net.sites()]
    net.eval()(images)
    for handle in handles:
        handle.remove()
    for _ in advance:
        pass
    return chosen


@torch.no_grad()
def fold_scales(net, images=None, tolerance=1e-9):
    """The same network without output scales, emitting plain spikes: every q absorbed by what follows it.

    Proved in float64 on `images` [B, C, H, W] when given.
    Raises:
        ConversionError: the folded network's outputs differ by more than `tolerance` (relative).
    """
    original = copy.deepcopy(net).double().eval()
    scaled = copy.deepcopy(original)
    q = torch.ones((), dtype=torch.float64, device=next(net.parameters()).device)
    for stage in scaled.stages:
        if hasattr(stage, "fold_scale"):
            q = stage.fold_scale(q)
    scaled.head.weight.mul_(q)
    plain = models.build(act=replace(net.act, scale=False), **net.built).to(q.device, torch.float64)
    plain.load_state_dict(
        {k: v for k, v in scaled.state_dict().items() if not k.endswith(".scale")}
    )

    def outputs(net):
        with torch.random.fork_rng():
            torch.manual_seed(0)  # rate encoding draws the same spikes for both
            return net.eval()(images.double())

    if images is not None:
        error = relative_error(outputs(original), outputs(plain))
        if not error <= tolerance:
            raise ConversionError(
                f"the folded network differs by {error:.1e} (relative), allowed {tolerance:.0e}"
            )
    return plain.to(next(net.parameters()).dtype)
