"""Parts shared by the networks. A stage is a module with `sites` (its activations) and `fold_scale`, or passes through."""

from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@contextmanager
def still(stage):
    """Keep the running statistics of its batch norms where they are: a second forward of the same batch must not count."""
    norms = [
        m
        for m in stage.modules()
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats
    ]
    kept = [(m, m.momentum) for m in norms]
    try:
        for m in norms:
            m.momentum = 0.0
        yield
    finally:
        for m, momentum in kept:
            m.momentum = momentum
            m.num_batches_tracked.sub_(1)


class HeldDropout(nn.Module):
    """Dropout whose mask is drawn once per image and held over the T steps of [T*B, ...]; `whole`: it drops whole images
    (stochastic depth of a residual branch)."""

    def __init__(self, p, steps, whole=False):
        super().__init__()
        self.p, self.steps, self.whole = p, steps, whole

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        if self.steps == 1 and not self.whole:
            return F.dropout(x, self.p)
        x = x.unflatten(0, (self.steps, -1))
        kept = (
            x.new_ones(1, x.shape[1], *[1] * (x.dim() - 2))
            if self.whole
            else torch.ones_like(x[:1])
        )
        return (x * F.dropout(kept, self.p)).flatten(0, 1)

    def extra_repr(self):
        return f"p={self.p}, steps={self.steps}"


class Synapse(nn.Module):
    """A weighted map and its batch norm, if any: what turns spikes into current."""

    def __init__(self, weighted, norm=False):
        super().__init__()
        self.map = weighted
        self.norm = nn.BatchNorm2d(weighted.out_channels) if norm else nn.Identity()

    def forward(self, x):
        return self.norm(self.map(x))


class Layer(nn.Module):
    """Synapse, activation, dropout."""

    def __init__(self, synapse, act, dropout=0.0, steps=1):
        super().__init__()
        self.synapse, self.act, self.drop = synapse, act, HeldDropout(dropout, steps)

    def sites(self):
        """[(activation, its current as a function of the stage's input)]"""
        return [(self.act, self.synapse)]

    def forward(self, x):
        return self.drop(self.act(self.synapse(x)))

    def fold_scale(self, q):
        """Absorb the factor q of the input into the weights; return the factor of the output."""
        self.synapse.map.weight.mul_(q)
        return self.act.scale


class Residual(nn.Module):
    """Basic block: Layer, synapse, plus the shortcut of the input; the activation acts on the sum."""

    def __init__(self, inner, synapse, shortcut, act):
        super().__init__()
        self.inner, self.synapse, self.shortcut, self.act = inner, synapse, shortcut, act

    def current(self, x, inner):
        return self.synapse(inner) + self.shortcut(x)

    def sites(self):
        """[(activation, its current as a function of the stage's input and the outputs of the sites before)]"""
        return [(self.inner.act, self.inner.synapse), (self.act, self.current)]

    def forward(self, x):
        return self.act(self.current(x, self.inner(x)))

    def fold_scale(self, q):
        inner = self.inner.fold_scale(q)
        if isinstance(
            self.shortcut, nn.Identity
        ):  # the shortcut cannot carry q: divide the whole current by it
            self.synapse.map.weight.mul_(inner / q)
            if self.synapse.map.bias is not None:
                self.synapse.map.bias.div_(q)
            self.act.theta.div_(q)
        else:
            self.synapse.map.weight.mul_(inner)
            self.shortcut.map.weight.mul_(q)
        return self.act.scale


class Network(nn.Module):
    """Stages and a linear readout: [B, C, H, W] (frames: [B, T, C, H, W]) -> [B, classes]. `act` is injected."""

    stem = 0  # number of leading stages that `--balance stem` measures; 0: the network has no stem
    each_step = False  # the energy bills the first layer once (its current does not change), or at every step
    per_step = False  # the readout of every step, [T, B, classes], for the TET loss, instead of its mean over the steps
    recompute = False  # keep only the stages' inputs for the backward and run each stage's T steps again there

    def __init__(self, act, stages, head):
        super().__init__()
        self.act, self.stages, self.head = act, nn.Sequential(*stages), head
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                fan_out = m.kernel_size[0] * m.kernel_size[1] * m.out_channels
                nn.init.normal_(m.weight, 0, (2 / fan_out) ** 0.5)
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01)
            if isinstance(m, (nn.Conv2d, nn.Linear)) and m.bias is not None:
                nn.init.zeros_(m.bias)

    def currents(self, x):
        """The readout at each step, [T*B, classes]."""
        x = self.act.encode(x)
        if not (self.recompute and torch.is_grad_enabled()):
            return self.head(self.stages(x))
        for stage in self.stages:
            x = checkpoint(
                stage,
                x,
                use_reentrant=False,
                context_fn=lambda stage=stage: (nullcontext(), still(stage)),
            )
        return self.head(x)

    def forward(self, x):
        y = self.currents(x)
        return y.unflatten(0, (self.act.steps, -1)) if self.per_step else self.act.readout(y)

    def sites(self):
        """Every activation module, in the order of the signal."""
        return [act for stage in self.stages if hasattr(stage, "sites") for act, _ in stage.sites()]


def fit(renamed, net, unknown=()):
    """Published weights under the names of `net`, completed by what it keeps beside weights (theta, leak of the neurons).

    unknown: keys that had no name in `net`.
    Raises:
        ValueError: a weight is missing, unknown, or of another size; the message names the first.
    """
    own = net.state_dict()
    unknown = [*unknown, *(k for k in renamed if k not in own)]
    missing = [k for k in own if k not in renamed and k.rpartition(".")[2] not in ("theta", "leak")]
    wrong = [
        f"{k} is {tuple(v.shape)}, expected {tuple(own[k].shape)}"
        for k, v in renamed.items()
        if k in own and v.shape != own[k].shape
    ]
    if missing or unknown or wrong:
        problem = (
            f"no {missing[0]}" if missing else f"an unknown {unknown[0]}" if unknown else wrong[0]
        )
        raise ValueError(
            f"the weights do not fit this {type(net).__name__} ({len(missing)} missing, {len(unknown)} unknown, "
            f"{len(wrong)} of another size): {problem}; check its size and number of classes"
        )
    return {k: renamed.get(k, v) for k, v in own.items()}
