"""The merged output seen as S binary spike trains: a view for statistics, hardware and export."""

import torch


def lanes(o, config):
    """Merged output [T, ...] -> [T, S, ...] of 0 and 1; lane s is worth 2^s, times the gain."""
    value = o / config.gain
    if config.one_hot:
        fired = [value == boundary for boundary in config.boundaries]
    else:
        # Lane s of a multi-hot neuron fires with all lanes below it, at 2^(s+1) - 1 and above.
        fired = [value >= 2 * boundary - 1 for boundary in config.boundaries]
    return torch.stack(fired, dim=1).to(o.dtype)  # [T, S, ...]
