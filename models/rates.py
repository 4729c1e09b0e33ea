"""The firing rate as something to train on: a price on spikes in the loss.

Energy is paid per spike (docs/method.md section 7).
"""

import torch


class FiringRate:
    """Mean firing rate of a network's spiking layers in its last forward, differentiable.

    A layer's rate is the share of its neurons that fire, summed over the T steps. Every layer
    counts alike: the convolutions of these networks have about the same MACs, so that this is about
    the share of MACs that become additions. A spike worth o passes the gradient on as
    `d rate / d o = 1 / o`, a silent neuron as if its output were the least spike.

    Args:
        net: a network of `Spiking` or `LIF` neurons; from now on it is watched while it trains.
    """

    def __init__(self, net):
        self.rates = []
        net.register_forward_pre_hook(lambda module, args: self.rates.clear())
        for site in net.sites():
            site.register_forward_hook(self._count)

    def _count(self, site, args, out):
        if not site.training:
            return
        # an output scale of the matched conversion is no part of the spike
        o = out / site.scale.to(out.dtype) if hasattr(site, "scale") else out
        fired = o / o.detach().clamp(min=site.config.gain)  # 1 where a neuron fires, else 0
        self.rates.append(fired.mean(dtype=torch.float32) * site.steps)

    def __call__(self):
        """0-dim float32, of the forward that has just run in training mode; it is read once."""
        rate = torch.stack(self.rates).mean()
        self.rates.clear()
        return rate
