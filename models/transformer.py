"""Spike-driven transformer: convolutional patch embedding, then blocks of linear attention and MLP on a membrane stream.

Neurons are injected; what crosses a block is the membrane current, never spikes. Registered with timm as `sdt` and as the
named sizes `sdt_2_512_cifar` and `sdt_8_512_imagenet`. Equations: SPEC section 3.
"""

import re

import torch
from timm.models import register_model
from torch import nn

from .activations import LIF, Spiking
from .layers import HeldDropout, Layer, Network, Synapse, fit
from .neuron import NeuronConfig

ATTENTION_THETA = 0.5  # threshold of the neuron behind the attention's sum, relative to the others'
MODES = ("lif", "plif", "mlif", "fast_mlif")


def _conv(inputs, outputs, size=1, bias=False):
    return Synapse(nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=bias), norm=True)


class Embed(nn.Module):
    """Last embedding stage: its (pooled) current is the stream, to which a convolution of its spikes adds the position."""

    def __init__(self, synapse, pool, act, position):
        super().__init__()
        self.synapse, self.pool, self.act, self.position = synapse, pool, act, position

    def forward(self, x):
        x = self.pool(self.synapse(x))
        return x + self.position(self.act(x))


class Attention(nn.Module):
    """Spike-driven self-attention: the sum of k * v over the tokens, fired once more, gates q. [T*B, C, H, W] -> same."""

    def __init__(self, act, dim, drop):
        super().__init__()
        self.act = act.layer()
        self.q, self.k, self.v = (Layer(_conv(dim, dim), act.layer()) for _ in range(3))
        self.gate = act.layer(theta=ATTENTION_THETA * act.theta)
        self.out, self.drop = _conv(dim, dim, bias=True), drop

    def forward(self, x):
        spikes = self.act(x)
        gate = self.gate(torch.einsum("nchw,nchw->nc", self.k(spikes), self.v(spikes)))
        return x + self.drop(self.out(self.q(spikes) * gate[:, :, None, None]))


class MLP(nn.Module):
    """Two 1x1 convolutions, each fed by a neuron, around a wider layer. [T*B, C, H, W] -> same."""

    def __init__(self, act, dim, hidden, drop):
        super().__init__()
        self.act, self.wide = act.layer(), Layer(_conv(dim, hidden, bias=True), act.layer())
        self.out, self.drop = _conv(hidden, dim, bias=True), drop

    def forward(self, x):
        return x + self.drop(self.out(self.wide(self.act(x))))


class MeanSpace(nn.Module):
    """[N, C, H, W] -> [N, C]"""

    def forward(self, x):
        return x.mean((2, 3))


class SpikeDrivenTransformer(Network):
    """Transformer-`depth`-`dim`: [B, in_chans, img_size, img_size] -> [B, num_classes], or [T, B, num_classes] with `tet`.

    Args:
        act: `Spiking` (M-LIF) or `LIF`, with its number of steps T. num_heads: only checked; heads change nothing in a sum.
        pooling: four digits, 1 halves the resolution in that embedding stage. drop_path: largest share of dropped branches,
        linear in depth. tet: return the readout of every step, for the TET loss.
    Raises:
        ValueError: dim is no multiple of num_heads and 8, pooling is not four digits 0 or 1, or it cannot halve img_size.
    """

    each_step = True  # the published energy bills the first layer at every step, at the image's own nonzero rate

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
        if dim % num_heads or dim % 8:
            raise ValueError(
                f"dim must be a multiple of num_heads and of 8, got dim {dim}, num_heads {num_heads}"
            )
        if len(pooling) != 4 or set(pooling) - {"0", "1"}:
            raise ValueError(
                f"pooling must be four digits 0 or 1, one per embedding stage, got {pooling!r}"
            )
        if img_size % 2 ** pooling.count("1"):
            raise ValueError(
                f"pooling {pooling} halves the image {pooling.count('1')} times: img_size must be a multiple of "
                f"{2 ** pooling.count('1')}, got {img_size}"
            )
        pools = [nn.MaxPool2d(3, 2, 1) if digit == "1" else nn.Identity() for digit in pooling]
        widths = [in_chans, dim // 8, dim // 4, dim // 2, dim]
        stages = []
        for i in range(3):
            stages += [Layer(_conv(widths[i], widths[i + 1], 3), act.layer(first=i == 0)), pools[i]]
        stages.append(Embed(_conv(dim // 2, dim, 3), pools[3], act.layer(), _conv(dim, dim, 3)))
        for i in range(depth):
            drop = HeldDropout(drop_path * i / max(depth - 1, 1), act.steps, whole=True)
            stages += [Attention(act, dim, drop), MLP(act, dim, int(dim * mlp_ratio), drop)]
        stages += [MeanSpace(), act.layer()]
        super().__init__(act, stages, nn.Linear(dim, num_classes))
        self.per_step = tet
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(m.weight, std=0.02)


def from_published(state, net):
    """Weights of the published code, or of the original Spike-Driven Transformer, under the names of `net`.

    Left out by name: `talking_heads` and `attn_lif`, which those build and never use.
    Raises:
        ValueError: a weight is missing, unknown, or of another size; the message names the first.
    """
    own, renamed, unknown = net.state_dict(), {}, []
    for key, value in state.items():
        key = key.removeprefix("module.")
        found = re.fullmatch(
            r"(patch_embed|block\.(\d+)\.(attn|mlp)|head)\.(?:(\w+?)_?(conv|bn|lif)(\d?)\.)?(\w+)",
            key,
        )
        if not found or "talking_heads" in key or "attn_lif" in key:
            unknown += [key] if "talking_heads" not in key and "attn_lif" not in key else []
            continue
        where, block, part, name, kind, number, field = found.groups()
        if where == "head":
            new = f"head.{field}"
        elif where == "patch_embed":
            site = "6.position" if name == "rpe" else f"{2 * int(number or 0)}.synapse"
            new = f"stages.{site}.{'map' if kind == 'conv' else 'norm'}.{field}"
        else:
            site = {"proj": "out", "fc1": "wide.synapse", "fc2": "out"}.get(name, f"{name}.synapse")
            new = f"stages.{7 + 2 * int(block) + (part == 'mlp')}.{site}.{'map' if kind == 'conv' else 'norm'}.{field}"
        renamed[new] = (
            value.reshape(own[new].shape)
            if new in own and value.numel() == own[new].numel()
            else value
        )
    return fit(renamed, net, unknown)


def neurons(
    spike_mode="mlif", levels=3, steps=4, scaled=True, edge="published", soft=False, backend="auto"
):
    """The activation for a `spike_mode` of the published code.

    Raises:
        ValueError: an unknown mode, or lanes for a neuron that has one.
    """
    if spike_mode not in MODES:
        raise ValueError(f"spike_mode must be one of {', '.join(MODES)}, got {spike_mode!r}")
    if spike_mode in ("lif", "plif"):
        if levels != 1:
            raise ValueError(
                f"spike_mode {spike_mode} has one lane, got mlif_channels {levels}: use mlif or fast_mlif"
            )
        return LIF(steps, learn_tau=spike_mode == "plif")
    config = NeuronConfig.transformer(
        levels, spike_mode == "fast_mlif", soft=soft, scaled=scaled, edge=edge
    )
    return Spiking(config, steps, theta=1.0, leak=0.5, backend=backend, learn=False)


@register_model
def sdt(
    pretrained=False,
    spike_mode="lif",
    mlif_channels=1,
    time_steps=4,
    scaled=False,
    surrogate_edge="published",
    neuron_backend="auto",
    **arguments,
):
    """`SpikeDrivenTransformer` by the published option names; further arguments are the network's."""
    for name in (
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "cache_dir",
    ):  # timm passes them to every model
        arguments.pop(name, None)
    if pretrained:
        raise ValueError("sdt has no pretrained weights to download: load a checkpoint")
    act = neurons(
        spike_mode, mlif_channels, time_steps, scaled, surrogate_edge, backend=neuron_backend
    )
    net = SpikeDrivenTransformer(act, **arguments)
    net.default_cfg = {
        "input_size": (arguments.get("in_chans", 3), *[arguments.get("img_size", 32)] * 2)
    }
    return net


@register_model
def sdt_2_512_cifar(pretrained=False, **arguments):
    """Transformer-2-512 for 32x32 images, S = 3, T = 4."""
    return sdt(
        pretrained,
        **{
            "spike_mode": "mlif",
            "mlif_channels": 3,
            "scaled": True,
            "depth": 2,
            "dim": 512,
            "img_size": 32,
            "pooling": "0011",
        }
        | arguments,
    )


@register_model
def sdt_8_512_imagenet(pretrained=False, **arguments):
    """Transformer-8-512 for ImageNet, S = 3, T = 1."""
    return sdt(
        pretrained,
        **{
            "spike_mode": "fast_mlif",
            "mlif_channels": 3,
            "scaled": True,
            "time_steps": 1,
            "depth": 8,
            "dim": 512,
            "img_size": 224,
            "num_classes": 1000,
            "pooling": "1111",
        }
        | arguments,
    )
