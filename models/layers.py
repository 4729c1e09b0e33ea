"""Parts shared by the networks: layers, the residual block, and `Network`, which runs them."""

from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

WEIGHTED = (nn.Conv2d, nn.Linear)  # the layers whose MACs are counted
# whether the processor multiplies bfloat16 matrices in tiles; to torch.compile it is a constant
AMX = bool(torch.cpu.get_capabilities().get("amx_bf16"))
FEW_PIXELS = 16  # a map of so many is made by one product, where there is AMX


def scaled_width(width, factor):
    """A number of channels times `factor`, at least 1."""
    return max(1, round(width * factor))


def final_side(name, image_size, reduction):
    """Side of the last feature map of a network that reduces images by `reduction`.

    Raises:
        ValueError: `reduction` does not divide image_size.
    """
    side, rest = divmod(image_size, reduction)
    if rest or not side:
        raise ValueError(f"{name} expects an image size that {reduction} divides, got {image_size}")
    return side


class HeldDropout(nn.Module):
    """Dropout whose mask is drawn once per image and held over the T steps of [T*B, ...].

    `whole` drops whole images (stochastic depth of a residual branch).
    """

    def __init__(
        self,
        p,
        steps,
        whole=False,
    ):
        super().__init__()
        self.p = p
        self.steps = steps
        self.whole = whole

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        if self.steps == 1 and not self.whole:
            return F.dropout(x, self.p)

        x = x.unflatten(0, (self.steps, -1))  # [T, B, ...]
        if self.whole:
            mask = x.new_ones(1, x.shape[1], *[1] * (x.dim() - 2))  # [1, B, 1, ...]
        else:
            mask = torch.ones_like(x[:1])  # [1, B, ...]
        return (x * F.dropout(mask, self.p)).flatten(0, 1)

    def extra_repr(self):
        return f"p={self.p}, steps={self.steps}"


class Synapse(nn.Module):
    """A weighted map and its batch norm, if any: what turns spikes into current.

    Raises:
        ValueError: not one convolution or linear layer, or a linear one with `norm`.
    """

    def __init__(self, weighted, norm=False):
        super().__init__()
        # between two there would be no spikes, which energies and prices count
        kinds = nn.Conv2d if norm else WEIGHTED
        if not isinstance(weighted, kinds):
            wanted = "Conv2d" if norm else "Conv2d or Linear"
            raise ValueError(
                f"a synapse {'with batch norm ' if norm else ''}is one {wanted}, "
                f"got {type(weighted).__name__}"
            )
        self.map = weighted
        self.norm = nn.BatchNorm2d(weighted.out_channels) if norm else nn.Identity()

    def forward(self, x):
        return self.norm(self.map(x))


class StridedPointwise(nn.Conv2d):
    """A 1x1 convolution with a stride: what `nn.Conv2d` computes, and by its names of weights."""

    def forward(self, x):
        if not x.is_cpu:
            return super().forward(x)
        # oneDNN 3.12 overruns its buffers in the weight gradient of a strided 1x1 convolution with
        # fewer input channels than its block, which is 8 with AVX2 and 16 with AVX-512. So the
        # pixels are picked first, by a pooling, whose backward is cheaper than that of a slice.
        return F.conv2d(F.avg_pool2d(x, 1, self.stride), self.weight, self.bias)


def convolve_by_product(x, weight, bias=None, stride=1):
    """`F.conv2d` with the padding that keeps the resolution, as one product of matrices.

    x [n, inputs, h, w]; weight [outputs, inputs, k, k], k odd. Returns [n, outputs, h', w'] in
    channels_last; h' is h / stride, rounded up.
    """
    high, wide = x.shape[-2:]
    size = weight.shape[-1]
    reach = size // 2
    pixels = x.permute(0, 2, 3, 1)  # channels last
    padded = F.pad(pixels, (0, 0, reach, reach, reach, reach))
    shifted = [
        padded[:, row : row + high : stride, column : column + wide : stride]
        for row in range(size)
        for column in range(size)
    ]
    # all that the output of a pixel sees
    seen = torch.stack(shifted, 3).flatten(3)  # [n, h', w', k * k * inputs]
    rows = weight.permute(0, 2, 3, 1).flatten(1)  # in the same order
    return F.linear(seen, rows, bias).permute(0, 3, 1, 2)


class Convolution(nn.Conv2d):
    """A 3x3 convolution that keeps the resolution, but for its stride.

    It is `nn.Conv2d`, faster where its output has few pixels.
    """

    def forward(self, x):
        stride, _ = self.stride
        high, wide = (-(-side // stride) for side in x.shape[-2:])  # of the output, rounded up
        few = AMX and x.is_cpu and high * wide <= FEW_PIXELS
        # models/rounded.py frames the image itself
        whole = self.padding == (1, 1)
        # autocast leaves double precision alone
        narrow = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
        if not (few and whole and narrow):
            return super().forward(x)
        # oneDNN 3.12 leaves AMX idle on few pixels, above all in the weight gradient: see
        # benchmarks/convolution.py
        x = x.to(torch.get_autocast_dtype("cpu"))
        return convolve_by_product(x, self.weight, self.bias, stride)


def convolution(
    inputs,
    outputs,
    size=3,
    stride=1,
    bias=True,
    norm=True,
):
    """Synapse of a convolution that keeps the resolution, but for its stride."""
    padding = size // 2
    kind = nn.Conv2d
    if size == 3:
        kind = Convolution
    elif stride > 1 and size == 1:
        kind = StridedPointwise
    return Synapse(kind(inputs, outputs, size, stride, padding, bias=bias), norm)


class Layer(nn.Module):
    """Synapse, activation, dropout."""

    def __init__(
        self,
        synapse,
        act,
        dropout=0.0,
    ):
        super().__init__()
        self.synapse = synapse
        self.act = act
        self.drop = HeldDropout(dropout, getattr(act, "steps", 1))  # ReLU has no steps

    def forward(self, x):
        return self.drop(self.act(self.synapse(x)))

    def firings(self):
        return [(self.act, self.synapse)]

    def fold_scale(self, q):
        self.synapse.map.weight.mul_(q)
        return self.act.scale


class Residual(nn.Module):
    """Basic block: the activation acts on the sum of the second synapse and the shortcut.

    The current of the sum is `synapse(inner(x)) + shortcut(x)`.

    Raises:
        ValueError: the shortcut is neither `nn.Identity` nor a `Synapse`.
    """

    def __init__(
        self,
        inner,
        synapse,
        shortcut,
        act,
    ):
        super().__init__()
        if not isinstance(shortcut, nn.Identity | Synapse):
            raise ValueError(
                f"a shortcut is nn.Identity or a Synapse, got {type(shortcut).__name__}"
            )
        self.inner = inner
        self.synapse = synapse
        self.shortcut = shortcut
        self.act = act

    def current(self, x, inner):
        return self.synapse(inner) + self.shortcut(x)

    def forward(self, x):
        return self.act(self.current(x, self.inner(x)))

    def firings(self):
        return [*self.inner.firings(), (self.act, self.current)]

    def fold_scale(self, q):
        inner = self.inner.fold_scale(q)
        second = self.synapse.map
        if isinstance(self.shortcut, nn.Identity):
            # The shortcut has no weights to carry q, so the whole current is divided by q, and with
            # it the threshold: the neuron fires as before.
            second.weight.mul_(inner / q)
            if second.bias is not None:
                second.bias.div_(q)
            self.act.theta.div_(q)
        else:
            second.weight.mul_(inner)
            self.shortcut.map.weight.mul_(q)
        return self.act.scale


@contextmanager
def evaluating(net):
    """The network in eval mode; afterwards each of its modules in the mode that it had."""
    modes = {module: module.training for module in net.modules()}
    try:
        yield net.eval()
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def hooked(modules, hook, before=False):
    """`hook` after every call of `modules`, or before it."""
    handles = []
    try:
        for module in modules:
            register = module.register_forward_hook
            if before:
                register = module.register_forward_pre_hook
            handles.append(register(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def norms(module):
    """The batch norms in a module."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def still(stage):
    """Leave the running statistics of a stage's batch norms alone while a batch runs again."""
    found = norms(stage)
    momenta = [norm.momentum for norm in found]
    # With momentum 0 the forward is the same operation, which the second run must be: a batch norm
    # that tracks nothing would save other tensors for the backward.
    for norm in found:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(found, momenta):
            norm.momentum = momentum
            norm.num_batches_tracked.sub_(1)


def run_again(stage, x):
    """The stage's output; for the backward it is computed again, instead of kept."""

    def contexts():
        return nullcontext(), still(stage)

    return checkpoint(stage, x, use_reentrant=False, context_fn=contexts)


def in_signal_order(module):
    """Yield a module and all inside it, in the order in which the signal reaches them.

    That is the order of registration, unless a module has a method `signal` that lists its parts.
    """
    yield module
    parts = module.signal() if hasattr(module, "signal") else module.children()
    for part in parts:
        yield from in_signal_order(part)


class Network(nn.Module):
    """Stages and a linear readout: [B, C, H, W] (frames: [B, T, C, H, W]) -> [B, classes].

    A stage is any module on folded time. Activations are met in two ways:

    - `Network.sites()` lists every activation module of the network, for whoever watches, counts or
      sets them: all networks have it, whatever their stages.
    - `stage.firings()` tells how a stage comes to fire, for the conversion from an ANN:
      [(activation, its current)], where the current is a function of the stage's input and of the
      outputs of the stage's activations before. With it goes `stage.fold_scale(q)`, which absorbs a
      factor q of the stage's input into its weights and returns the factor of its output. Only
      stages of networks that can be converted have the two; stages without activations need none.

    Args:
        act: the injected activation, see `models.activations`. stages: modules, run in order.
        head: the linear layer that reads them out.
    """

    # {"name": ..., **arguments} with which `models.build` made it, and can make it again.
    built = None
    # Number of leading layers of neurons that `balance_thresholds(which="stem")` measures; 0: there
    # is no stem.
    stem = 0
    # Whether the energy bills the first layer at every step, or once (its current does not change).
    each_step = False
    # Return the readout of every step, [T, B, classes], for the TET loss, instead of their mean.
    per_step = False
    # Keep only the stages' inputs for the backward pass, and run each stage's T steps again there.
    recompute = False

    def __init__(self, act, stages, head):
        super().__init__()
        self.act = act
        self.stages = nn.Sequential(*stages)
        self.head = head
        self.initialise()

    def weight_std(self, layer):
        """Standard deviation of a new convolution's or linear layer's weights; their mean is 0.

        docs/method.md section 3. A network with another rule overrides this.
        """
        if isinstance(layer, nn.Linear):
            return 0.01
        fan_out = layer.weight[:, 0].numel()  # of one input channel: outputs * height * width
        return (2 / fan_out) ** 0.5

    def initialise(self, draw=nn.init.normal_):
        """Draw all weights anew, with zero biases."""
        for m in self.modules():
            if isinstance(m, WEIGHTED):
                draw(m.weight, std=self.weight_std(m))
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def sites(self):
        """Every activation module, once, in the order in which the signal reaches them."""
        found = [m for m in in_signal_order(self.stages) if isinstance(m, self.act.module)]
        return list(dict.fromkeys(found))

    def readouts(self, x):
        """The readout of every step, [T*B, classes]; `forward` takes their mean.

        Raises:
            ValueError: the stages do not return T*B of them, since the first layer is not that of
                `act.layer(first=True)`.
        """
        batch = x.shape[0]
        x = self.act.encode(x)
        if self.recompute and torch.is_grad_enabled():
            # stage by stage: what lies inside one is kept while it alone runs backward
            for stage in self.stages:
                x = run_again(stage, x)
        else:
            x = self.stages(x)
        y = self.head(x)
        if y.shape[0] != self.act.steps * batch:
            raise ValueError(
                f"{batch} images of {self.act.steps} steps became {y.shape[0]} rows: the first "
                "layer, and no other, must be that of act.layer(first=True)"
            )
        return y

    def forward(self, x):
        y = self.readouts(x)
        if self.per_step:
            return y.unflatten(0, (self.act.steps, -1))
        return self.act.readout(y)
