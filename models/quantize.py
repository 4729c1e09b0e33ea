"""Fake quantisation of activations for the LQ-ANN (SPEC section 2), with straight-through gradients.

y = (x - lo) / (hi - lo),  k = round(log2 y),  q = 2^k for k_min <= k <= 0, else 0,  out = q * (hi - lo) + lo
"""

import torch
from torch import nn

from .statistics import percentile

SCHEMES = ("log", "lvl", "uniform")


def quantize(x, lo, hi, bits, scheme):
    """Quantise x of any shape to the levels of `scheme`; values outside [lo, hi] saturate. The input is not touched.

    'log' keeps 2^bits - 1 powers of two and zero, 'lvl' keeps `bits` powers and zero, 'uniform' 2^bits even levels.

    Raises:
        ValueError: unknown scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"quant_id must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    span = (hi - lo).clamp(min=torch.finfo(x.dtype).tiny)  # a layer that is always zero has no span
    y = (x - lo) / span
    if scheme == "uniform":
        top = 2**bits - 1
        q = torch.round(y.clamp(0, 1) * top) / top
    else:
        lowest = -(2**bits - 2) if scheme == "log" else -(bits - 1)
        k = torch.round(torch.log2(y.clamp(min=torch.finfo(x.dtype).tiny))).clamp(max=0)
        q = torch.where((k >= lowest) & (y > 0), torch.exp2(k), 0.0)
    return q * span + lo


class _FakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lo, hi, bits, scheme):
        return quantize(x, lo.to(x.dtype), hi.to(x.dtype), bits, scheme)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None, None, None


class QuantReLU(nn.Module):
    """ReLU followed by the quantiser; its range `lo`, `hi` are buffers set by `calibrate`.

    Raises:
        RuntimeError: used before it was calibrated.
    """

    def __init__(self, bits, scheme="log", percent=99.7):
        super().__init__()
        if scheme not in SCHEMES:
            raise ValueError(f"quant_id must be one of {', '.join(SCHEMES)}, got {scheme!r}")
        if bits < 1 or not 0 < percent <= 100:
            raise ValueError(
                f"a quantiser needs bits >= 1 and a percentile in (0, 100], got {bits} and {percent}"
            )
        self.bits, self.scheme, self.percent = bits, scheme, percent
        self.register_buffer("lo", torch.zeros(()))
        self.register_buffer("hi", torch.full((), float("nan")))
        self.observing = False
        self.ready = False
        self.register_load_state_dict_post_hook(
            lambda module, _: setattr(module, "ready", bool(module.hi.isfinite()))
        )

    def start(self):
        """Forget the range and observe the inputs to come, which pass through unquantised."""
        self.observing, self.ready = True, False
        self.lo.zero_()
        self.hi.zero_()

    def observe(self, x):
        """Widen the range by one batch: lo by its minimum (from 0 down), hi by its percentile (from 0 up)."""
        self.lo.copy_(torch.minimum(self.lo, x.min()))
        self.hi.copy_(torch.maximum(self.hi, percentile(x, self.percent)))

    def stop(self):
        self.observing, self.ready = False, True

    def forward(self, x):
        x = torch.relu(x)
        if self.observing:
            self.observe(x)
            return x
        if not self.ready:
            raise RuntimeError(
                "the quantiser has no range yet: calibrate it (models.quantize.calibrate) or load one"
            )
        return _FakeQuant.apply(x, self.lo, self.hi, self.bits, self.scheme)

    def extra_repr(self):
        return f"bits={self.bits}, scheme={self.scheme}, percent={self.percent}"


@torch.no_grad()
def calibrate(net, batches):
    """Set the range of every quantiser of `net` from an iterable of image batches [B, C, H, W]; net in eval mode."""
    quantizers = [m for m in net.modules() if isinstance(m, QuantReLU)]
    training = net.training
    net.eval()
    for q in quantizers:
        q.start()
    for images in batches:
        net(images)
    for q in quantizers:
        q.stop()
    net.train(training)
