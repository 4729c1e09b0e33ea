"""Spike-driven transformer: a convolutional embedding, then blocks of linear attention and MLP.

Neurons are injected; what crosses a block is the membrane current, never spikes. Registered with
timm as `sdt`, `sdt_2_512_cifar` and `sdt_8_512_imagenet`. Equations: docs/method.md section 3.
"""

from functools import partial

import torch
from timm.models import register_model
from torch import nn

from . import build
from .activations import LIF, Spiking
from .layers import HeldDropout, Layer, Network, convolution
from .neuron import NeuronConfig

ATTENTION_THETA = 0.5  # threshold of the neuron behind the attention's sum, relative to the others'
ONE_LANE = ("lif", "plif")
MODES = (*ONE_LANE, "mlif", "fast_mlif")


pointwise = partial(convolution, size=1)


class Embed(nn.Module):
    """Last embedding stage: its (pooled) current is the stream [T*B, C, H, W].

    A convolution of its spikes adds the position.
    """

    def __init__(
        self,
        synapse,
        pool,
        act,
        position,
    ):
        super().__init__()
        self.synapse = synapse
        self.pool = pool
        self.act = act
        self.position = position

    def forward(self, x):
        x = self.pool(self.synapse(x))  # pooled before the neuron, as only this stage is
        return x + self.position(self.act(x))


class Attention(nn.Module):
    """Spike-driven self-attention, [T*B, C, H, W] -> same.

    The sum of k * v over the tokens, fired once more, gates q.
    """

    def __init__(self, act, dim, drop):
        super().__init__()
        self.act = act.layer()
        self.q, self.k, self.v = (
            Layer(pointwise(dim, dim, bias=False), act.layer()) for _ in range(3)
        )
        self.gate = act.layer(theta=ATTENTION_THETA * act.theta)
        self.out = pointwise(dim, dim)
        self.drop = drop

    def signal(self):
        # q comes last: it waits for the gate
        return self.act, self.k, self.v, self.gate, self.q, self.out

    def forward(self, x):
        spikes = self.act(x)
        # linear in the number of tokens: they are summed before q comes in
        current = torch.einsum("nchw,nchw->nc", self.k(spikes), self.v(spikes))
        gate = self.gate(current)[:, :, None, None]  # [T*B, C, 1, 1]
        return x + self.drop(self.out(self.q(spikes) * gate))


class MLP(nn.Module):
    """Two 1x1 convolutions, each fed by a neuron, around a wider layer; [T*B, C, H, W] -> same."""

    def __init__(
        self,
        act,
        dim,
        hidden,
        drop,
    ):
        super().__init__()
        self.act = act.layer()
        self.wide = Layer(pointwise(dim, hidden), act.layer())
        self.out = pointwise(hidden, dim)
        self.drop = drop

    def forward(self, x):
        return x + self.drop(self.out(self.wide(self.act(x))))


class MeanSpace(nn.Module):
    """[N, C, H, W] -> [N, C]"""

    def forward(self, x):
        return x.mean((2, 3))


def check_sizes(dim, num_heads, img_size, pooling):
    """Raises ValueError for sizes that make no network, see `SpikeDrivenTransformer`."""
    if dim % num_heads or dim % 8:
        raise ValueError(
            f"dim must be a multiple of num_heads and of 8, got dim {dim}, num_heads {num_heads}"
        )
    if len(pooling) != 4 or set(pooling) - {"0", "1"}:
        raise ValueError(
            f"pooling must be four digits 0 or 1, one per embedding stage, got {pooling!r}"
        )
    halvings = pooling.count("1")
    if img_size % 2**halvings:
        raise ValueError(
            f"pooling {pooling} halves the image {halvings} times: "
            f"img_size must be a multiple of {2**halvings}, got {img_size}"
        )


def embedding(act, in_chans, dim, pooling):
    """Stages of the patch embedding: 3x3 convolutions of dim/8, dim/4, dim/2 and dim channels."""
    synapse = partial(convolution, bias=False)
    stages = []
    channels = in_chans
    for shrink, digit in zip((8, 4, 2, 1), pooling):
        width = dim // shrink
        current = synapse(channels, width)
        neurons = act.layer(first=not stages)
        pool = nn.MaxPool2d(3, 2, 1) if digit == "1" else nn.Identity()
        # the stream begins with the last stage's current, which is pooled before it fires
        if shrink > 1:
            stages += [Layer(current, neurons), pool]
        else:
            stages.append(Embed(current, pool, neurons, synapse(dim, dim)))
        channels = width
    return stages


class SpikeDrivenTransformer(Network):
    """Transformer-`depth`-`dim`: [B, in_chans, img_size, img_size] -> [B, num_classes].

    Args:
        act: `Spiking` (M-LIF) or `LIF`, with its number of steps T.
        num_heads: only checked; heads change nothing in a sum.
        pooling: four digits, 1 halves the resolution in that embedding stage.
        drop_path: largest share of dropped branches, linear in depth.
        tet: return the readout of every step, [T, B, num_classes], for the TET loss.
    Raises:
        ValueError: dim is no multiple of num_heads and 8, pooling is not four digits 0 or 1, or it
            cannot halve img_size.
    """

    each_step = True  # the published energy bills the first layer at the image's own nonzero rate

    def __init__(
        self,
        act,
        num_classes=10,
        img_size=32,
        in_chans=3,
        dim=512,
        depth=2,
        num_heads=8,
        mlp_ratio=4.0,
        pooling="0011",
        drop_path=0.0,
        tet=False,
    ):
        check_sizes(dim, num_heads, img_size, pooling)

        stages = embedding(act, in_chans, dim, pooling)
        hidden = max(1, int(dim * mlp_ratio))
        # stochastic depth: one draw per image for each branch
        for block in range(depth):
            share = drop_path * block / max(depth - 1, 1)
            drop = HeldDropout(share, act.steps, whole=True)
            stages += [Attention(act, dim, drop), MLP(act, dim, hidden, drop)]
        stages += [MeanSpace(), act.layer()]  # the head reads spikes

        super().__init__(act, stages, nn.Linear(dim, num_classes))
        self.per_step = tet

    def weight_std(self, layer):
        """0.02 for every layer, as published."""
        return 0.02

    def initialise(self):
        # The first draw is thrown away, so that a seed gives the weights that it always gave.
        super().initialise()
        super().initialise(nn.init.trunc_normal_)


def activation(
    spike_mode="mlif",
    levels=3,
    steps=4,
    scaled=True,
    inner_slope="published",
    backend="auto",
):
    """The activation for a `spike_mode` of the published code.

    Raises:
        ValueError: an unknown mode, or several lanes for a neuron that has one.
    """
    if spike_mode not in MODES:
        raise ValueError(f"spike_mode must be one of {', '.join(MODES)}, got {spike_mode!r}")
    if spike_mode in ONE_LANE:
        if levels != 1:
            raise ValueError(
                f"spike_mode {spike_mode} has one lane, got mlif_channels {levels}: "
                "use mlif or fast_mlif"
            )
        return LIF(steps, learn_tau=spike_mode == "plif")

    # theta and leak are fixed, as published
    config = NeuronConfig.transformer(
        levels,
        fast=spike_mode == "fast_mlif",
        scaled=scaled,
        inner_slope=inner_slope,
    )
    return Spiking(config, steps, leak=0.5, backend=backend, learn=False)


@register_model
def sdt(
    pretrained=False,
    spike_mode="lif",
    mlif_channels=1,
    time_steps=4,
    scaled=False,
    surrogate_edge="published",
    neuron_backend="auto",
    pretrained_cfg=None,  # this one and the next two timm passes to every model
    pretrained_cfg_overlay=None,
    cache_dir=None,
    **arguments,
):
    """`SpikeDrivenTransformer` by the published option names; `arguments` are the network's."""
    if pretrained:
        raise ValueError("sdt has no pretrained weights to download: load a checkpoint")

    act = activation(spike_mode, mlif_channels, time_steps, scaled, surrogate_edge, neuron_backend)
    net = build("sdt", act, **arguments)
    size = net.built["img_size"]
    net.default_cfg = {"input_size": (net.built["in_chans"], size, size)}
    return net


# the neurons of networks that have a name of their own
M_LIF = {"spike_mode": "mlif", "mlif_channels": 3, "time_steps": 4, "scaled": True}
FAST = M_LIF | {"spike_mode": "fast_mlif", "time_steps": 1}
IMAGENET = {
    **FAST,
    "depth": 8,
    "img_size": 224,
    "num_classes": 1000,
    "pooling": "1111",
}


@register_model
def sdt_2_512_cifar(pretrained=False, **arguments):
    """Transformer-2-512 for 32x32 images, S = 3, T = 4: the sizes are the network's defaults."""
    return sdt(pretrained, **M_LIF | arguments)


@register_model
def sdt_8_512_imagenet(pretrained=False, **arguments):
    """Transformer-8-512 for ImageNet, S = 3, T = 1."""
    return sdt(pretrained, **IMAGENET | arguments)
