"""Order statistics as the published code takes them."""

import torch


def rank(n, percent):
    """1-based rank of the percentile among n sorted values: 1 + round(percent / 100 * (n - 1)), half to even."""
    return 1 + round(percent / 100 * (n - 1))


def percentile(x, percent, floor=None):
    """The value of that rank among all entries of x, 0-dim.

    With `floor`, the larger of it and that value; entries not above it are then set aside first, which makes the
    running maximum of many percentiles cheap.
    """
    values, below = x.flatten(), 0
    if floor is not None:
        kept = values[values > floor]
        below = values.numel() - kept.numel()
        if rank(values.numel(), percent) <= below:
            return floor
        return torch.kthvalue(kept, rank(values.numel(), percent) - below).values
    return torch.kthvalue(values, rank(values.numel(), percent)).values
