"""From a trained ANN to a spiking network (docs/method.md section 4).

`fuse_bn` absorbs batch norm into the weights and `to_spiking` puts them into a spiking network. Its
thresholds come from `balance_thresholds` (as published), or from `match_activations`, with output
scales that `fold_scales` absorbs when the network is trained.
"""

import copy
import math
from dataclasses import replace
from functools import partial
from operator import itemgetter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import ReLU, build, how_built
from .activations import unfold
from .layers import Synapse, evaluating, hooked, norms
from .neuron.backends.dispatch import mlif
from .published import fit
from .quantize import QuantReLU
from .statistics import percentile

PERCENT = 99.7
MEMORY = 3e9  # bytes that a conversion may take
CURRENTS = 5e8  # bytes that a layer's currents may take; above, they are computed a second time
# Candidates of the matched conversion for theta, of the percentile value: 0.15, 0.2, ... 1.
FRACTIONS = [0.15 + 0.05 * i for i in range(18)]

# Tensors by the last part of their names: what only an SNN has, and the ranges of an LQ-ANN.
NEW = ("theta", "leak", "scale")
LEFT = ("lo", "hi")


# A converted network computes what the original does, or there is no converted network.


class ConversionError(RuntimeError):
    """The converted network is not equal to the original."""


def relative_error(a, b):
    """Largest difference relative to the largest magnitude of a."""
    difference = (a - b).abs().max()
    largest = a.abs().max().clamp(min=1e-12)
    return (difference / largest).item()


def prove(what, original, converted, tolerance):
    """The relative error of the converted network's outputs.

    Raises:
        ConversionError: it is more than `tolerance`, or NaN.
    """
    error = relative_error(original, converted)
    if not error <= tolerance:
        raise ConversionError(
            f"the {what} network differs by {error:.1e} (relative), allowed {tolerance:.0e}"
        )
    return error


# Fusing: a batch norm in eval mode is a factor and a shift of each channel.


@torch.no_grad()
def fuse_bn(net, images, tolerance=1e-4):
    """Absorb every batch norm: (fused network, largest relative error of its outputs on `images`).

        w' = w * g / sqrt(var + eps)
        b' = (b - mean) * g / sqrt(var + eps) + beta

    Args:
        net: a network with batch norm, compared in eval mode. images: [B, C, H, W].
    Raises:
        ValueError: net has no batch norm, or `build` cannot make it without.
        ConversionError: the outputs differ by more than `tolerance`.
    """
    built = how_built(net)
    if not norms(net):
        raise ValueError("the network has no batch norm that can be fused")

    # only networks that can be built without batch norm say whether they have it
    lacking = [name for name in ("bn", "bias") if name not in built]
    if lacking:
        raise ValueError(
            f"{built['name']} takes no argument {' and no '.join(lacking)}, so it cannot be built "
            "without batch norm and with biases"
        )
    net = copy.deepcopy(net).eval()
    merged = copy.deepcopy(net).double()
    # in double precision, so that the only rounding is the last one
    for synapse in merged.modules():
        if isinstance(synapse, Synapse) and isinstance(synapse.norm, nn.BatchNorm2d):
            synapse.map = fuse_conv_bn_eval(synapse.map, synapse.norm)
            synapse.norm = nn.Identity()

    left = set(norms(merged))
    for name, module in merged.named_modules():
        if module in left:
            raise ValueError(f"{name} cannot be fused: it is not the batch norm of a Synapse")

    built = built | {"bn": False, "bias": True}
    fused = build(act=net.act, **built).eval().to(net.head.weight)
    fit(fused, merged.state_dict())

    # rounded weights may carry a value to another level: there the exact ones are compared
    compared = copy.deepcopy(fused).double() if isinstance(net.act, ReLU) else merged
    # in double precision, since a GPU rounds products of float32 to TF32
    images = images.double()
    outputs = _outputs(net.double(), images), _outputs(compared, images)
    return fused, prove("fused", *outputs, tolerance)


def to_spiking(net, act, keep_norm=False):
    """The spiking network of a fused ANN or LQ-ANN, on its device and in its mode.

    keep_norm: of an ANN with batch norm, which trains on and `stored_form` fuses at the end.

    Its weights are those of `net`, its thetas and leaks, too, if that is an SNN; else these are as
    `act` (a `Spiking`) starts them.

    Raises:
        ValueError: net has batch norm that is not kept, `build` did not make it, or it has a ReLU
            that is not from `act.layer`.
    """
    if norms(net) and not keep_norm:
        raise ValueError("the network has batch norm: fuse it first (fuse_bn), or keep_norm")

    spiking = build(act=act, **how_built(net)).to(net.head.weight)
    for name, module in spiking.named_modules():
        if isinstance(module, (nn.ReLU, QuantReLU)):
            raise ValueError(f"{name} would stay a ReLU: take act.layer() for it")

    fit(spiking, net.state_dict(), NEW, LEFT)
    return spiking.train(net.training)


# Balancing: theta_l is a percentile of layer l's current while every earlier layer fires.


@torch.no_grad()
def affordable(net, images, once, each):
    """How many of `images` can be converted within MEMORY bytes.

    once, each: bytes of a neuron for an image, whatever its stage is, and more for each layer of
        the stage: see `balanced_bytes` and `matched_bytes`.
    """
    most = 0  # bytes of a stage for an image
    x = net.act.encode(images[:1])
    with evaluating(net):
        for stage in net.stages:
            x = stage(x)
            layers = len(stage.firings()) if hasattr(stage, "firings") else 1
            most = max(most, x[0].numel() * (once + layers * each))

    count = int(MEMORY / most)
    return max(1, min(len(images), count))


def balanced_bytes(steps):
    """(once, each) of `affordable` for `balance_thresholds`.

    Every layer of a block has its spikes, half a byte each; the last ones take the place of the
    block's input. The tensors of a step take 30 (measured: ResNet20's stem, 512 images).
    """
    return 30, steps / 2


def matched_bytes(steps):
    """(once, each) of `affordable` for `match_activations`, which runs T steps of a layer at once.

    Currents, outputs and the search of a percentile: measured 60 at T = 1, 100 at T = 4.
    """
    return 45 + 15 * steps, 0


@torch.no_grad()
def silent_layers(net, images):
    """Names of the layers none of whose neurons fires for `images`."""
    names = {site: name for name, site in net.named_modules()}
    found = []

    def look(site, args, out):
        if not out.any():
            found.append(names[site])

    with evaluating(net), hooked(net.sites(), look):
        net(images)
    return found


@torch.no_grad()
def balance_thresholds(
    net,
    images,
    steps=100,
    which="all",
    progress=iter,
):
    """Find and set the threshold of each spiking layer, in order; returns them, unscaled.

    theta_l is the maximum over `steps` steps of the 99.7 percentile of layer l's current, divided
    by 2^(S-1) times the gain, every earlier layer firing with its own theta and leak 1. Where that
    is not positive, the largest current takes its place; a layer without any positive current keeps
    the threshold that it has. Each layer runs its steps once; spike trains are stored packed.

    Args:
        net: SNN, directly encoded, whose stages have `firings`.
        images: [B, C, H, W]. which: 'all', or 'stem' (the leading layers, `net.stem` of them).
        progress: wraps the range of layers (a progress bar).
    Raises:
        ValueError: 'stem' for a network without one, images not directly encoded, or a network that
            cannot be converted: without `firings`, or with a module that fires at two places.
    """
    name = (net.built or {}).get("name", type(net).__name__)
    if which == "stem" and not net.stem:
        raise ValueError(f"{name} has no stem: balance 'all'")
    if net.act.encoding != "direct":
        raise ValueError("thresholds are balanced under direct encoding")

    once = _Once(net)
    for stage in net.stages:
        if hasattr(stage, "firings"):
            for act, _ in stage.firings():
                once.check(act)

    count = net.stem if which == "stem" else len(net.sites())
    # A layer fires when the next one is asked for, and the last one has no need to: so the count
    # stands first, which ends the walk.
    with evaluating(net):
        layers = zip(progress(range(count)), _thetas(net, images, steps))
        thetas = [theta for _, theta in layers]
    if len(thetas) < count:
        raise ValueError(f"{name} has activations without `firings`: it cannot be balanced")
    return thetas


class _Once:
    """Refuses an activation module that fires at a second place: it has one threshold."""

    def __init__(self, net):
        self.names = {module: name for name, module in net.named_modules()}
        self.met = set()

    def check(self, act):
        if act in self.met:
            raise ValueError(
                f"{self.names[act]} fires at two places: give each an act.layer() of its own"
            )
        self.met.add(act)


def _thetas(net, images, steps):
    """Set the threshold of one layer after the other, and yield it.

    The layer fires when the next one is asked for.
    """
    inputs = [images] * steps
    pool = nn.Sequential()  # applied to a stage's input each time that it is read
    for stage in net.stages:
        if not hasattr(stage, "firings"):
            pool.append(stage)
            continue

        # what the stage's currents are made of: its input, and its own spike trains so far
        trains = [inputs]
        firings = stage.firings()
        for number, (act, function) in enumerate(firings, 1):
            current = partial(_current, function, pool, trains)
            kept = _balance(act, current, steps)
            yield act.theta.item()

            # the stage's last layer is the last one to read its input, and takes its place
            last = number == len(firings)
            room = getattr(inputs, "room", None) if last else None
            trains.append(_fire(act, current, kept, steps, room))

        inputs = trains[-1]
        pool = nn.Sequential()


def _current(function, pool, trains, t):
    """A layer's current at step t, [B, ...]."""
    x, *inner = (train[t] for train in trains)
    return function(pool(x), *inner)


def _balance(act, current, steps):
    """Set the threshold of a layer; returns {step: current}, what was kept of its currents.

    The first is kept, and the others if all take no more than CURRENTS bytes.
    """
    kept = {}
    top, largest = None, -math.inf
    # under direct encoding, the first layer's current does not change
    for t in range(1 if act.constant else steps):
        u = current(t)
        if t == 0 or u.numel() * u.element_size() * steps <= CURRENTS:
            kept[t] = u
        top = percentile(u, PERCENT, top)
        largest = max(largest, u.amax().item())

    # The percentile comes to lie on the highest boundary, or the largest current where few are
    # positive. Where none is, the layer is silent anyway, and a threshold must be positive.
    reach = top if top > 0 else largest
    if reach > 0:
        highest = 2 ** (act.config.levels - 1) * act.config.gain
        act.theta.copy_(reach / highest)
    return dict.fromkeys(range(steps), u) if act.constant else kept


def _fire(
    act,
    current,
    kept,
    steps,
    room,
):
    """The spike train of a layer with its threshold and without leak.

    room: memory for it, or None, see `SpikeTrain`.
    """
    leak = torch.ones_like(act.leak)
    fired = SpikeTrain(act.config, steps, room)
    v = None
    for t in range(steps):
        u = kept.pop(t) if t in kept else current(t)
        o, v = mlif(u[None], act.theta, leak, act.config, v=v, want_state=True, backend=act.backend)
        fired[t] = o[0].div_(act.config.gain)
    return fired


class SpikeTrain:
    """The merged spikes of a layer before the gain, a tensor each step, four bits a spike.

    What is read is the output, with the gain. All steps lie in one piece of memory, the `room`
    [steps, bytes]: a piece for each, between what a step computes and forgets, would leave holes.

    Args:
        room: of another train, each step of which is read before that of this one is written; where
            there is none, or it is too narrow, the train makes one.
    """

    def __init__(self, config, steps, room=None):
        self.config = config
        self.steps = steps
        self.room = room
        self.shape = self.dtype = None  # of a step

    def __setitem__(self, t, o):
        # A spike's code is the number of boundaries that it has passed: 1, 2, 3 of the one-hot
        # outputs 1, 2, 4 and of the multi-hot outputs 1, 3, 7.
        codes = torch.zeros_like(o, dtype=torch.uint8)
        for boundary in self.config.boundaries:
            codes += o >= boundary
        codes = codes.flatten()
        codes = nn.functional.pad(codes, (0, len(codes) % 2))
        packed = codes[::2] | codes[1::2] << 4
        if self.room is None or self.room.shape[1] < len(packed):
            self.room = packed.new_empty(self.steps, len(packed))
        self.room[t, : len(packed)] = packed
        self.shape, self.dtype = o.shape, o.dtype

    def __getitem__(self, t):
        count = self.shape.numel()
        packed = self.room[t, : (count + 1) // 2]
        codes = torch.stack((packed & 15, packed >> 4), 1)  # [pairs, 2]
        # short numbers, since a step is large: up to 2^8
        power = 1 << codes.flatten()[:count].short()
        o = power >> 1 if self.config.one_hot else power - 1
        return o.to(self.dtype).mul_(self.config.gain).view(self.shape)


# Matched conversion: theta and an output scale q so that q * o follows the ANN's relu(x).


def _sum(values):
    return values.sum(dtype=torch.float64)


def best_fit(x, act):
    """(theta, q, relative squared error) of the layer `act` for its currents x [T, B, ...].

    0-dim tensors; see `match_activations`.
    """
    target = torch.relu(x.mean(0))
    whole = _sum(target * target)
    reach = percentile(x, PERCENT)
    # of a layer that fires rarely it is not positive, which would make the neurons switches
    reach = torch.where(reach > 0, reach, x.amax())
    top = reach / 2 ** (act.config.levels - 1)

    def tried(fraction):
        theta = (top / act.config.gain * fraction).clamp(min=1e-6)
        o, _ = mlif(x, theta, act.leak, act.config, backend=act.backend)
        o = o.mean(0)
        # least squares: q = sum relu(x) o / sum o^2, and what it leaves of the target
        power = _sum(o * o)
        q = _sum(target * o) / power.clamp(min=1e-12)
        return whole - q * q * power, theta, q

    # of equal errors the one of the smallest theta
    error, theta, q = min(map(tried, FRACTIONS), key=itemgetter(0))
    return theta, q, error / whole.clamp(min=1e-12)


@torch.no_grad()
def match_activations(net, images, progress=iter):
    """Choose theta and the output scale q of each spiking layer, in order, and set them.

    They minimise mean((relu(x) - q * o)^2) over `images`, where x is the layer's current and o its
    output, both averaged over the T steps. theta is one of FRACTIONS of the 99.7 percentile of x
    (of its maximum where that is not positive) over 2^(S-1) times the gain.

    Args:
        net: SNN with output scales. images: [B, C, H, W]. progress: wraps the range of layers.
    Returns:
        [(theta, q, relative squared error)]
    Raises:
        ValueError: the network was built without output scales, or a module fires at two places.
    """
    if not net.act.scale:
        raise ValueError("matched conversion needs a network built with Spiking(scale=True)")

    sites = net.sites()
    layers = iter(progress(range(len(sites))))
    once = _Once(net)
    chosen = []

    def match(act, args):
        once.check(act)
        x = unfold(args[0], act.steps, act.constant)
        theta, q, error = best_fit(x, act)
        if not q > 0:
            # it never fires, and keeps the threshold that it has
            theta, q = act.theta, torch.ones_like(q)
        act.theta.copy_(theta)
        act.scale.copy_(q)
        fitted = act.theta, act.scale, error
        chosen.append(tuple(value.item() for value in fitted))
        next(layers)

    # Each layer is set before it runs, so that the next one gets the spikes that it will get.
    with evaluating(net), hooked(sites, match, before=True):
        net(images)
    next(layers, None)  # lets a progress bar finish
    return chosen


@torch.no_grad()
def set_levels(net, levels):
    """Give every neuron `levels` = S lanes; the highest ones stay where they are.

    theta and the output scale double for each lane less, so that the lowest boundary goes:
    `scale * o` is what it was wherever the potential reaches the new theta. Scaled neurons have
    their top there, and stay. The network has output scales (`Spiking.scale`).

    Raises:
        ValueError: it has no output scales, or its neurons are multi-hot, whose output is another
            sum with a lane less.
    """
    before = net.act.neuron
    if not net.act.scale:
        raise ValueError(
            "the network has no output scales, which hold what a lane less takes from the output: "
            "convert.to_spiking gives its weights to one of other neurons"
        )
    if not before.one_hot:
        raise ValueError("multi-hot neurons emit other sums with a lane less")
    factor = 1.0 if before.scaled else 2.0 ** (before.levels - levels)
    neuron = replace(before, levels=levels)
    net.act = replace(net.act, neuron=neuron)
    for site in net.sites():
        site.config = neuron
        site.theta.mul_(factor)
        site.scale.mul_(factor)


# Folding: what follows a layer absorbs its output scale.


def stored_form(net, images):
    """The network with batch norm and output scales in its weights, proved equal on `images`.

    Raises:
        ConversionError: the outputs differ.
    """
    if norms(net):
        net, _ = fuse_bn(net, images)
    return fold_scales(net, images) if net.act.scale else net


@torch.no_grad()
def fold_scales(net, images):
    """The same network without output scales, emitting plain spikes.

    Every scale is absorbed by what follows it, which is proved in float64 on `images` [B, C, H, W].

    Raises:
        ValueError: a layer of neurons lies in a stage that cannot absorb a scale.
        ConversionError: the outputs differ by more than 1e-9 (relative).
    """
    _check_foldable(net)
    original = copy.deepcopy(net).double().eval()
    scaled = copy.deepcopy(original)
    q = torch.ones_like(scaled.head.weight[0, 0])  # images have no scale
    for stage in scaled.stages:
        if hasattr(stage, "fold_scale"):
            q = stage.fold_scale(q)
    scaled.head.weight.mul_(q)

    # in float64 and on the device, as q is
    plain = build(act=replace(net.act, scale=False), **how_built(net)).to(q)
    fit(plain, scaled.state_dict(), dropped=("scale",))

    images = images.double()
    prove("folded", _outputs(original, images), _outputs(plain, images), 1e-9)
    return plain.to(net.head.weight.dtype)


def _check_foldable(net):
    names = {module: name for name, module in net.named_modules()}
    absorbed = set()
    for stage in net.stages:
        if hasattr(stage, "fold_scale"):
            absorbed.update(act for act, _ in stage.firings())
    for site in net.sites():
        if site not in absorbed:
            raise ValueError(
                f"the output scale of {names[site]} cannot be folded: it is in no stage with "
                "firings and fold_scale, such as layers.Layer"
            )


def _outputs(net, images):
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)  # rate encoding draws the same spikes for both networks
        return net.eval()(images)
