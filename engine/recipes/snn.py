"""The recipe of a spiking network: bounds on thresholds and leaks, lanes that go while it trains,
folded batch norm and output scales.
"""

from dataclasses import dataclass

import torch

from models import convert
from models.layers import norms
from models.neuron.config import MAX_LEVELS
from models.rates import neuron_counts

from ..errors import RunError
from ..settings import number, option
from .cnn import CNNRecipe, TrainingOptions

THETA_MIN = 1e-4  # thresholds and output scales are kept above it

lane_count = number(int, low=1, high=MAX_LEVELS)


def falling_lanes(text):
    """Type of falling numbers of lanes S, separated by spaces or commas."""
    values = tuple(map(lane_count, text.replace(",", " ").split()))
    if list(values) != sorted(set(values), reverse=True):
        raise ValueError(f"expected falling numbers such as '5 4', got {text!r}")
    return values


@dataclass(frozen=True)
class LevelOptions:
    """training of levels"""

    lsq_gradient: bool = option(
        False,
        "divide gradients of thresholds and output scales by sqrt(neurons of the layer * top "
        "level), as LSQ does",
    )
    first_lanes: tuple = option(
        (),
        "lanes S that the first half of the epochs has, such as '5 4', each for an equal part; "
        "then --num_channels",
        falling_lanes,
    )


class SpikingRecipe(CNNRecipe):
    """The CNNs' recipe, for a network with `Spiking` activations.

    Args:
        net: the network that is trained.
        images: function that gives images [B, 3, H, W] on which what is stored is proved.
        lanes: S at the end; None: that of the network.
    """

    def __init__(
        self,
        options: TrainingOptions,
        net,
        images=None,
        teacher=None,
        levels: LevelOptions = LevelOptions(),
        lanes=None,
    ):
        super().__init__(options, teacher)
        self.images = images
        self.lanes = (*levels.first_lanes, lanes or net.act.neuron.levels)
        sites = net.sites()
        self.has_scales = net.act.scale
        self.leaks = [site.leak for site in sites]
        self.positive = [site.theta for site in sites]
        if self.has_scales:
            self.positive += [site.scale for site in sites]
        self.counts = None  # of neurons, in the order of `positive`
        if levels.lsq_gradient:
            by_site = neuron_counts(net)
            counts = [by_site[site] for site in sites]
            # of thetas, then of output scales
            self.counts = counts * 2 if self.has_scales else counts

    def before_epoch(self, net, epoch):
        # each of the first S has an equal part of the first half of the epochs
        first = len(self.lanes) - 1
        part = int(2 * first * (epoch - 1) / self.epochs)
        wanted = self.lanes[min(part, first)]
        if net.act.neuron.levels != wanted:
            convert.set_levels(net, wanted)

    def before_step(self, net, optimizer, scaler):
        if self.counts:
            # Esser et al. 2020, section 2.2
            top = 2 ** (net.act.neuron.levels - 1)
            gradients = [parameter.grad for parameter in self.positive]
            torch._foreach_mul_(gradients, [(n * top) ** -0.5 for n in self.counts])

    @torch.no_grad()
    def after_step(self, net):
        # a leak over 1 would amplify, a threshold below 0 would fire on nothing
        torch._foreach_clamp_max_(self.leaks, 1.0)
        torch._foreach_clamp_min_(self.positive, THETA_MIN)

    def export(self, net):
        """The network with batch norm and scales in its weights, proved equal; see `Recipe`."""
        if not (norms(net) or self.has_scales):
            return net
        try:
            return convert.stored_form(net, self.images())
        except convert.ConversionError as error:
            raise RunError(
                f"{error}: lower --thr_lr or --learning_rate, last.pth holds the state before"
            ) from None
