"""Fake quantisation of activations for the LQ-ANN (docs/method.md section 2).

    y = (x - lo) / (hi - lo)
    k = round(log2 y)
    q = 2^min(k, 0) for k >= k_min, else 0
    out = q * (hi - lo) + lo

The gradient is straight-through: the quantiser counts as the identity in the backward pass.
"""

import torch
from torch import nn

from .layers import evaluating
from .statistics import percentile

SCHEMES = ("log", "lvl", "uniform")
MAX_BITS = 24  # even levels that float32 can count


def check_scheme(scheme):
    """Raises ValueError for a name that is not in `SCHEMES`."""
    if scheme not in SCHEMES:
        raise ValueError(f"quant_id must be one of {', '.join(SCHEMES)}, got {scheme!r}")


def quantize(
    x,
    lo,
    hi,
    bits,
    scheme,
):
    """Quantise x of any shape to the levels of `scheme`; values outside [lo, hi] saturate.

    'log' keeps 2^bits - 1 powers of two and zero, 'lvl' keeps `bits` powers and zero, 'uniform'
    keeps 2^bits even levels. The input is not touched.

    Raises:
        ValueError: unknown scheme.
    """
    check_scheme(scheme)
    tiny = torch.finfo(x.dtype).tiny
    span = (hi - lo).clamp(min=tiny)  # a layer that is always zero has no span
    y = (x - lo) / span

    if scheme == "uniform":
        top = 2**bits - 1
        q = torch.round(y.clamp(0, 1) * top) / top
    else:
        lowest = -(2**bits - 2) if scheme == "log" else -(bits - 1)
        k = torch.round(torch.log2(y.clamp(min=tiny))).clamp(max=0)
        # log2 of the clamped zero may still reach `lowest` where bits is large: y > 0 decides.
        # NaN stays NaN, so that a training that diverges is noticed.
        q = torch.where((k < lowest) | (y <= 0), 0.0, torch.exp2(k))

    return q * span + lo


class _FakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lo, hi, bits, scheme):
        # the range is float32, x may be narrower under autocast
        return quantize(x, lo.to(x.dtype), hi.to(x.dtype), bits, scheme)

    @staticmethod
    def backward(ctx, grad):
        # none for the range, which is measured and not learned
        return grad, None, None, None, None


class QuantReLU(nn.Module):
    """ReLU followed by the quantiser; its range `lo`, `hi` are buffers that `calibrate` sets.

    Args:
        bits, scheme: see `quantize`. percent: the percentile that `hi` is measured at.
    Raises:
        ValueError: an argument is out of range.
        RuntimeError: used before it was calibrated.
    """

    def __init__(
        self,
        bits,
        scheme="log",
        percent=99.7,
    ):
        super().__init__()
        check_scheme(scheme)
        if not 1 <= bits <= MAX_BITS or not 0 < percent <= 100:
            raise ValueError(
                f"a quantiser needs 1 to {MAX_BITS} bits and a percentile in (0, 100], "
                f"got {bits} and {percent}"
            )
        self.bits = bits
        self.scheme = scheme
        self.percent = percent
        self.register_buffer("lo", torch.zeros(()))
        self.register_buffer("hi", torch.full((), float("nan")))  # not calibrated yet
        self.observing = False
        self.ready = False
        # a loaded range is as good as a calibrated one
        self.register_load_state_dict_post_hook(QuantReLU._loaded)

    def _loaded(self, incompatible_keys):
        # A plain flag, since asking the buffer in each forward would wait for the GPU.
        self.ready = bool(self.hi.isfinite())

    def start(self):
        """Forget the range and observe the inputs to come, which pass through unquantised."""
        self.observing = True
        self.ready = False
        self.lo.zero_()
        self.hi.zero_()

    def observe(self, x):
        """Widen the range by one batch: lo by its minimum, hi by its percentile, both from 0."""
        self.lo.copy_(torch.minimum(self.lo, x.min()))
        self.hi.copy_(torch.maximum(self.hi, percentile(x, self.percent)))

    def stop(self):
        """Quantise from now on."""
        self.observing = False
        self.ready = True

    def forward(self, x):
        x = torch.relu(x)
        if self.observing:
            self.observe(x)
            return x
        if not self.ready:
            raise RuntimeError(
                "the quantiser has no range yet: "
                "calibrate it (models.quantize.calibrate) or load one"
            )
        return _FakeQuant.apply(x, self.lo, self.hi, self.bits, self.scheme)

    def extra_repr(self):
        return f"bits={self.bits}, scheme={self.scheme}, percent={self.percent}"


@torch.no_grad()
def calibrate(net, batches):
    """Set the range of every quantiser of `net` from an iterable of image batches [B, C, H, W].

    The images pass the network in eval mode and unquantised.

    Raises:
        ValueError: there is no batch.
    """
    quantisers = [m for m in net.modules() if isinstance(m, QuantReLU)]
    count = 0
    for quantiser in quantisers:
        quantiser.start()
    try:
        with evaluating(net):
            for images in batches:
                net(images)
                count += 1
    finally:
        # ranges of some of the images are none
        for quantiser in quantisers:
            quantiser.observing = False

    if not count:
        raise ValueError("ranges need a batch of images, got none")
    for quantiser in quantisers:
        quantiser.stop()
