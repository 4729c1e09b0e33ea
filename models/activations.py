"""The part that makes one network an ANN, an LQ-ANN or an SNN: what follows every weighted layer but the last.

Each description builds the module of a layer (`layer`), encodes the image (`encode`) and averages the readout over
time (`readout`). Time is folded into the batch: inside a network every tensor is [T*B, ...]; an ANN is T = 1.
"""

from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from .neuron import MLIF, NeuronConfig
from .quantize import QuantReLU


@dataclass(frozen=True)
class ReLU:
    """The ANN."""

    kind = "relu"
    steps = 1

    def layer(self, first=False):
        return nn.ReLU()

    def encode(self, x):
        return x

    def readout(self, y):
        return y


@dataclass(frozen=True)
class LogQuant(ReLU):
    """The LQ-ANN: ReLU and a quantiser of `bits` with levels `scheme` and a range up to the `percent` percentile."""

    bits: int = 2
    scheme: str = "log"
    percent: float = 99.7

    kind = "quant"

    def layer(self, first=False):
        return QuantReLU(self.bits, self.scheme, self.percent)


class SpikingLayer(MLIF):
    """MLIF on folded time: [T*B, ...] -> [T*B, ...]; a constant current [B, ...] -> [T*B, ...].

    `scale` (matched conversion) multiplies the output; it folds away into the weights that follow.
    """

    def __init__(self, spec, constant, theta=None):
        super().__init__(
            spec.neuron,
            spec.theta if theta is None else theta,
            spec.leak,
            spec.learn,
            spec.learn,
            backend=spec.backend,
            stateless=True,
        )
        self.steps, self.constant = spec.steps, constant
        if spec.scale:
            self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = (
            x[None].expand(self.steps, *x.shape)
            if self.constant
            else x.unflatten(0, (self.steps, -1))
        )
        o = super().forward(x).flatten(0, 1)
        return o * self.scale.to(o.dtype) if hasattr(self, "scale") else o


@dataclass(frozen=True)
class Spiking:
    """The SNN: a neuron run for `steps` = T steps.

    encoding: 'direct' (the analog image is the input of every step; the first layer's current is computed once), 'rate'
    (Bernoulli spikes of pixels scaled to [0, 1] per image) or 'frames' (the input has a frame for each step, [B, T, ...]).
    theta, leak: initial values, parameters if `learn`, else buffers. scale: see SpikingLayer.
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

    def __post_init__(self):
        if self.encoding not in ("direct", "rate", "frames") or self.steps < 1:
            raise ValueError(
                f"a spiking network needs steps >= 1 and encoding 'direct', 'rate' or 'frames', "
                f"got {self.steps} and {self.encoding!r}"
            )

    def layer(self, first=False, theta=None):
        return SpikingLayer(self, first and self.encoding == "direct", theta)

    def encode(self, x):
        if self.encoding == "direct":
            return x
        if self.encoding == "frames":
            if x.dim() < 3 or x.shape[1] != self.steps:
                raise ValueError(
                    f"expected frames [B, {self.steps}, ...], one for each step, got {list(x.shape)}"
                )
            return x.transpose(0, 1).flatten(0, 1)
        flat = x.flatten(1)
        lo, hi = flat.amin(1), flat.amax(1)
        shape = (-1, *[1] * (x.dim() - 1))
        rate = (x - lo.view(shape)) / (hi - lo).clamp(min=1e-12).view(shape)
        return torch.bernoulli(rate.repeat(self.steps, *[1] * (x.dim() - 1)))

    def readout(self, y):
        return y if self.steps == 1 else y.unflatten(0, (self.steps, -1)).mean(0)


class LIFLayer(nn.Module):
    """SpikingJelly's (parametric) LIF neuron on folded time, from zero at every call; shapes as SpikingLayer."""

    config = NeuronConfig(levels=1, inclusive=True, reset="hard")  # what it emits, for the counters

    def __init__(self, spec, constant, theta):
        super().__init__()
        from spikingjelly.activation_based import neuron, surrogate

        kind, tau = (
            (neuron.ParametricLIFNode, "init_tau") if spec.learn_tau else (neuron.LIFNode, "tau")
        )
        self.node = kind(
            **{tau: spec.tau},
            v_threshold=theta,
            v_reset=0.0,
            surrogate_function=surrogate.Sigmoid(alpha=4.0),
            detach_reset=True,
            step_mode="m",
        )
        self.steps, self.constant = spec.steps, constant

    def forward(self, x):
        self.node.reset()
        x = (
            x[None].expand(self.steps, *x.shape)
            if self.constant
            else x.unflatten(0, (self.steps, -1))
        )
        return self.node(x).flatten(0, 1)


@dataclass(frozen=True)
class LIF:
    """The LIF baseline of the transformer: SpikingJelly's neuron, hard reset, decaying input; learn_tau: PLIF."""

    steps: int = 4
    tau: float = 2.0
    theta: float = 1.0
    learn_tau: bool = False

    kind = "lif"
    encoding = "direct"
    scale = False
    encode, readout = Spiking.encode, Spiking.readout

    def layer(self, first=False, theta=None):
        return LIFLayer(self, first, self.theta if theta is None else theta)


def describe(act):
    """Plain dictionary of a description, for checkpoints; the backend belongs to the machine, not to the network."""
    values = {"kind": act.kind, **asdict(act)}
    values.pop("backend", None)
    return values


def from_description(values):
    """The description that `describe` wrote."""
    values = {k: v for k, v in values.items() if k != "backend"}
    kinds = {cls.kind: cls for cls in (ReLU, LogQuant, Spiking, LIF)}
    cls = kinds[values.pop("kind")]
    if cls is Spiking:
        values["neuron"] = NeuronConfig(**values["neuron"])
    return cls(**values)
