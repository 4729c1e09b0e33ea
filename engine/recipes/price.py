"""A price on energy in the loss of any recipe (docs/method.md, section 5)."""

from dataclasses import dataclass

import torch

from models.rates import Additions

from ..settings import option, rate, strictly_positive

START = 0.01  # weight that --energy_target starts from
GAIN = 5.0  # an energy of 10 % over the target makes the weight e^0.5 times as large in an epoch


@dataclass(frozen=True)
class PriceOptions:
    """price on energy"""

    rate_penalty: float = option(
        0.0,
        "weight of the share of MACs that become additions in the loss: less energy, for some "
        "accuracy",
        rate,
    )
    penalty_warm_up: float = option(
        0.0, "training before the price has the full weight", rate, unit="epochs"
    )
    energy_target: float | None = option(
        None,
        "energy of an image, by the energy model paper, that training aims at: the weight of the "
        "price follows",
        strictly_positive,
        unit="uJ",
    )

    @property
    def on(self):
        """Whether spikes have a price."""
        return bool(self.rate_penalty or self.energy_target)


class Price:
    """What is added to the loss of an image: `weight * share of the MACs that become additions`.

    The weight rises linearly from 0 over `penalty_warm_up` epochs. With an `energy_target` it then
    follows the energy E of the batches: `d weight / d epoch = GAIN * weight * (E / target - 1)`.

    Args:
        options: `PriceOptions`. net: the network, watched from now on. fixed: energy that no spike
            of the network saves, uJ. full: energy if all other MACs were additions, uJ.
        world: `dist.World`.
    """

    def __init__(self, options, net, fixed, full, world):
        self.options, self.fixed, self.full, self.world = options, fixed, full, world
        self.additions = Additions(net)
        weight = options.rate_penalty or START
        self.weight = torch.tensor(weight, device=world.device)
        self.energy = torch.zeros((), device=world.device)  # of the last batch
        self.epoch = None  # of the last step

    def __call__(self, epoch):
        """0-dim, differentiable, of the forward that has just run; epoch: see `Recipe.set_rate`."""
        share = self.additions()
        mean = self.world.sum(share.detach().clone()) / self.world.size
        self.energy = self.fixed + self.full * mean
        done = epoch - 1
        warm = self.options.penalty_warm_up
        if done < warm:
            return self.weight * (done / warm) * share

        if self.options.energy_target and self.epoch is not None:
            excess = (self.energy / self.options.energy_target - 1).clamp(-1, 1)
            self.weight *= torch.exp(GAIN * (epoch - self.epoch) * excess)
        self.epoch = epoch
        return self.weight * share

    def figures(self):
        """{name: number} for the log."""
        return {"penalty": self.weight.item(), "batch_energy_uj": self.energy.item()}

    def state_dict(self):
        """Plain values for `last.pth`."""
        return {"weight": self.weight.item(), "epoch": self.epoch}

    def load_state_dict(self, state):
        """The inverse of `state_dict`."""
        self.weight.fill_(state["weight"])
        self.epoch = state["epoch"]
