"""Order statistics as the published code takes them (docs/method.md section 2)."""

import torch


def rank(n, percent):
    """1-based rank of the percentile among n sorted values: 1 + round(percent / 100 * (n - 1)).

    `round` is half to even.
    """
    return 1 + round(percent / 100 * (n - 1))


def percentile(x, percent, floor=None):
    """The value of rank `rank(n, percent)` among all n entries of x, 0-dim.

    With `floor` (0-dim), the larger of it and that value. Entries that are not above the floor are
    set aside before the search, which makes the running maximum of many percentiles cheap.
    """
    values = x.flatten()
    position = rank(values.numel(), percent)
    if floor is not None:
        count = values.numel()
        values = values[values > floor]
        position -= count - values.numel()  # the entries set aside hold the lowest ranks
        if position <= 0:
            return floor

    return torch.kthvalue(values, position).values
