"""The part that makes one network an ANN, an LQ-ANN or an SNN: what follows each weighted layer.

A description (`ReLU`, `LogQuant`, `Spiking`, `LIF`) is small and frozen. Networks ask it for

    layer(first, theta)   the module of one layer; all are of the class `module`
    encode(x)             what the first layer sees
    readout(y)            the mean of the last layer's output over time

Time is folded into the batch: inside a network every tensor is [T*B, ...], and an ANN is T = 1.
"""

from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from .neuron import MLIF, NeuronConfig, lanes
from .neuron.backends import exported
from .neuron.reference import membrane_dtype
from .quantize import QuantReLU


def unfold(x, steps, constant):
    """The current at each step, [T, B, ...].

    Args:
        x: folded time, [T*B, ...]; if `constant`, one current [B, ...] that all steps share.
    """
    if constant:
        # without the leading axis autograd would sum a full-size gradient, even at T = 1
        return x[None].expand(steps, *x.shape)
    return x.unflatten(0, (steps, -1))


def rate_code(x, steps):
    """Bernoulli spikes of pixels scaled to [0, 1] per image: [B, ...] -> [T*B, ...]."""
    pixels = tuple(range(1, x.dim()))
    lowest = x.amin(pixels, keepdim=True)
    highest = x.amax(pixels, keepdim=True)
    # an image of one colour has no span
    rate = (x - lowest) / (highest - lowest).clamp(min=1e-12)
    return torch.bernoulli(rate.repeat(steps, *[1] * len(pixels)))


class Activation:
    """What all descriptions do before the first layer and after the last one; see `Spiking`."""

    steps = 1
    encoding = "direct"
    scale = False
    backend = "auto"

    def encode(self, x):
        """What the first layer sees: [B, ...] if it is the same at each step, else [T*B, ...]."""
        if self.encoding == "direct":
            return x
        if self.encoding == "rate":
            return rate_code(x, self.steps)

        if x.dim() < 3 or x.shape[1] != self.steps:
            raise ValueError(
                f"expected frames [B, {self.steps}, ...], one for each step, got {list(x.shape)}"
            )
        return x.transpose(0, 1).flatten(0, 1)  # [B, T, ...] -> [T*B, ...]

    def readout(self, y):
        """The mean over time: [T*B, classes] -> [B, classes]."""
        if self.steps == 1:
            return y
        return y.unflatten(0, (self.steps, -1)).mean(0)


@dataclass(frozen=True)
class ReLU(Activation):
    """The ANN."""

    kind = "relu"
    module = nn.ReLU

    def layer(self, first=False):
        return nn.ReLU()


@dataclass(frozen=True)
class LogQuant(Activation):
    """The LQ-ANN: ReLU and a quantiser of `bits` with levels `scheme` up to a percentile."""

    bits: int = 2
    scheme: str = "log"
    percent: float = 99.7

    kind = "quant"
    module = QuantReLU

    def layer(self, first=False):
        return QuantReLU(self.bits, self.scheme, self.percent)


class NeuronActivation(Activation):
    """Descriptions of neurons, whose threshold one layer may have for itself."""

    def layer(self, first=False, theta=None):
        # the current of the image is the same at each step
        constant = first and self.encoding == "direct"
        return self.module(self, constant, self.theta if theta is None else theta)


class SpikingLayer(MLIF):
    """MLIF on folded time: [T*B, ...] -> [T*B, ...]; a constant current [B, ...] -> [T*B, ...].

    `scale` (matched conversion) multiplies the output; it folds away into the weights that follow.
    """

    def __init__(self, spec, constant, theta):
        super().__init__(
            spec.neuron,
            theta,
            spec.leak,
            learn_theta=spec.learn,
            learn_leak=spec.learn,
            backend=spec.backend,
            stateless=True,
        )
        self.steps = spec.steps
        self.constant = constant
        # no parameter without a conversion that fits one: the weights keep their names
        if spec.scale:
            self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        if exported.exporting():
            o = self.unrolled(x)
        else:
            x = unfold(x, self.steps, self.constant)
            o = super().forward(x).flatten(0, 1)
        if hasattr(self, "scale"):
            o = o * self.scale.to(o.dtype)
        return o

    def lanes(self, o):
        """View of an output [T, ...], with its scale, as binary lanes [T, S, ...]."""
        if hasattr(self, "scale"):
            # a division may miss a whole number by its last bit
            gain = self.config.gain
            o = (o / (self.scale * gain)).round() * gain
        return super().lanes(o)

    def unrolled(self, x):
        """The forward for a graph for others, in which one step needs no axis of time."""
        alike = self.constant or self.steps == 1
        currents = [x] * self.steps if alike else unfold(x, self.steps, False).unbind()
        out, _ = exported.mlif(currents, self.theta, self.leak, self.config)
        return torch.cat(out) if self.steps > 1 else out[0]


@dataclass(frozen=True)
class Spiking(NeuronActivation):
    """The SNN: a neuron run for `steps` = T steps.

    Fields:
        encoding: 'direct' (the analog image is the input of each step; the first layer's current is
            computed once), 'rate' (Bernoulli spikes of pixels scaled to [0, 1] per image) or
            'frames' (the input has a frame for each step, [B, T, ...]).
        theta, leak: initial values, parameters if `learn`, else buffers.
        scale: see `SpikingLayer`. backend: see `models.neuron`.
    Raises:
        ValueError: no step, or an unknown encoding.
    """

    neuron: NeuronConfig = field(default_factory=NeuronConfig)
    steps: int = 1
    theta: float = 1.0
    leak: float = 1.0
    encoding: str = "direct"
    scale: bool = False
    backend: str = "auto"
    learn: bool = True

    kind = "spiking"
    module = SpikingLayer

    def __post_init__(self):
        if self.encoding not in ("direct", "rate", "frames") or self.steps < 1:
            raise ValueError(
                "a spiking network needs steps >= 1 and encoding 'direct', 'rate' or 'frames', "
                f"got {self.steps} and {self.encoding!r}"
            )


class LIFLayer(nn.Module):
    """SpikingJelly's (parametric) LIF neuron on folded time, from zero at every call.

    Shapes as `SpikingLayer`.
    """

    config = NeuronConfig(levels=1, inclusive=True, reset="hard")  # what it emits, for the counters

    def __init__(self, spec, constant, theta):
        super().__init__()
        # slow to import, and only the baselines need it
        from spikingjelly.activation_based import neuron, surrogate

        common = {
            "v_threshold": theta,
            "v_reset": 0.0,
            "surrogate_function": surrogate.Sigmoid(alpha=4.0),
            "detach_reset": True,
            "step_mode": "m",
        }
        if spec.learn_tau:
            self.node = neuron.ParametricLIFNode(init_tau=spec.tau, **common)
        else:
            self.node = neuron.LIFNode(tau=spec.tau, **common)
        self.steps = spec.steps
        self.constant = constant

    def forward(self, x):
        x = unfold(x, self.steps, self.constant)
        self.node.reset()
        # its potential has the type of its input, which autocast may have narrowed
        wide = x.to(membrane_dtype(x.dtype))
        out = self.node(wide).to(x.dtype).flatten(0, 1)
        # batches are independent, and a potential would hold their graph
        self.node.reset()
        return out

    def lanes(self, o):
        """As `SpikingLayer.lanes`: one lane, the spikes."""
        return lanes(o, self.config)


@dataclass(frozen=True)
class LIF(NeuronActivation):
    """The LIF baseline of the transformer: SpikingJelly's neuron, hard reset, decaying input.

    learn_tau makes it the PLIF baseline.

    Raises:
        ValueError: no step, or tau or theta are none of that neuron.
    """

    steps: int = 4
    tau: float = 2.0
    theta: float = 1.0
    learn_tau: bool = False

    kind = "lif"
    module = LIFLayer

    def __post_init__(self):
        numbers = {type(self.tau), type(self.theta)} <= {int, float}
        if not (numbers and self.tau > 1 and self.theta > 0 and self.steps >= 1):
            raise ValueError(
                "a LIF neuron needs numbers tau > 1, theta > 0 and steps >= 1, "
                f"got {self.tau!r}, {self.theta!r} and {self.steps!r}"
            )
        # SpikingJelly asserts that they are
        object.__setattr__(self, "tau", float(self.tau))
        object.__setattr__(self, "theta", float(self.theta))


def set_backend(net, backend):
    """Have all multi-level neurons of a network run on `backend`; returns how many there are."""
    sites = [site for site in net.sites() if isinstance(site, MLIF)]
    for site in sites:
        site.backend = backend
    return len(sites)


KINDS = {description.kind: description for description in (ReLU, LogQuant, Spiking, LIF)}


def describe(act):
    """Plain dictionary of a description, for checkpoints.

    Without the backend, which belongs to the machine and not to the network.
    """
    values = {"kind": act.kind, **asdict(act)}  # nested: the neuron becomes a dictionary, too
    values.pop("backend", None)
    return values


def from_description(values):
    """The description that `describe` wrote, today or in an earlier version."""
    values = dict(values)
    description = KINDS[values.pop("kind")]
    values.pop("backend", None)  # older checkpoints have it
    if "neuron" in values:
        neuron = dict(values["neuron"])
        if "edge" in neuron:  # the name of the inner slope in older checkpoints
            neuron["inner_slope"] = neuron.pop("edge")
        values["neuron"] = NeuronConfig(**neuron)

    return description(**values)
