"""The recipe of a spiking network: bounds on thresholds and leaks, folded batch norm and output
scales.
"""

import torch

from models import convert

from ..errors import RunError
from .cnn import CNNRecipe

THETA_MIN = 1e-4  # thresholds and output scales are kept above it


class SpikingRecipe(CNNRecipe):
    """The CNNs' recipe, for a network with `Spiking` activations.

    Args:
        net: the network that is trained.
        images: function that gives images [B, 3, H, W] on which what is stored is proved.
    """

    def __init__(self, options, net, images=None, teacher=None):
        super().__init__(options, teacher)
        self.images = images
        sites = net.sites()
        self.scaled = net.act.scale
        self.leaks = [site.leak for site in sites]
        self.positive = [site.theta for site in sites]
        if self.scaled:
            self.positive += [site.scale for site in sites]

    @torch.no_grad()
    def after_step(self, net):
        # a leak over 1 would amplify, a threshold below 0 would fire on nothing
        torch._foreach_clamp_max_(self.leaks, 1.0)
        torch._foreach_clamp_min_(self.positive, THETA_MIN)

    def export(self, net):
        """The network with batch norm and scales in its weights, proved equal; see `Recipe`."""
        try:
            if net.built["bn"]:
                net, _ = convert.fuse_bn(net, self.images())
            return convert.fold_scales(net, self.images()) if self.scaled else net
        except convert.ConversionError as error:
            raise RunError(
                f"{error}: lower --thr_lr or --learning_rate, last.pth holds the state before"
            ) from None
