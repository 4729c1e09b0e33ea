"""A price on energy in the loss of any recipe (docs/method.md, section 5)."""

from dataclasses import dataclass

import torch

from models.rates import Additions

from ..dist import World
from ..settings import fraction, nonnegative_float, option, positive_float

MOST = 10.0  # weight where the energy is over what is aimed at by more than `BAND`
BAND = 0.02  # share of the energy


@dataclass(frozen=True)
class PriceOptions:
    """price on energy"""

    rate_penalty: float = option(
        0.0,
        "weight of the share of MACs that become additions in the loss: less energy, for some "
        "accuracy",
        nonnegative_float,
    )
    penalty_warm_up: float | None = option(
        None,
        "epochs until the price has the full weight, default 0; with a target until the "
        "target is due, default half of the training",
        nonnegative_float,
        unit="epochs",
    )
    energy_target: float | None = option(
        None,
        "energy of an image, by the energy model paper, that training aims at: the weight of the "
        "price follows",
        positive_float,
        unit="uJ",
    )

    rate_target: float | None = option(
        None,
        "share of MACs that become additions, first layer aside, that training aims at: an energy "
        "target for any width",
        fraction,
    )

    @property
    def on(self):
        """Whether spikes have a price."""
        return bool(self.rate_penalty or self.energy_target or self.rate_target)

    def target(self, fixed, full):
        """The energy that is aimed at, in uJ, or None; fixed, full: see `Price`."""
        if self.rate_target:
            return fixed + self.rate_target * full
        return self.energy_target


class Price:
    """What is added to the loss of an image: `weight * share of the MACs that become additions`.

    The weight rises linearly from 0 over `penalty_warm_up` epochs. With a target it is 0 while the
    energy E of the batch is under what is aimed at, then grows to `MOST` at once (a penalty that is
    exact: E ends at the target where `MOST` outweighs what accuracy asks for, and no higher price
    is paid than that takes). The aim goes in a line from the first batch's energy down to the
    target over those epochs. E is of training images, augmented: that of a test set differs.

    Args:
        net: the network, watched from now on. epochs: of the training.
        fixed: energy that no spike of the network saves, uJ. full: energy if all other MACs were
            additions, uJ.
    """

    def __init__(self, options: PriceOptions, net, epochs, fixed, full, world: World):
        self.fixed, self.full, self.world = fixed, full, world
        self.options = options
        self.target = options.target(fixed, full)
        self.warm = options.penalty_warm_up
        if self.warm is None:
            self.warm = epochs / 2 if self.target else 0
        self.additions = Additions(net)
        self.full_weight = torch.tensor(options.rate_penalty, device=world.device)
        self.weight = self.full_weight  # of the last batch
        self.energy = torch.zeros((), device=world.device)  # of the last batch
        self.first = None  # energy of the first batch
        self.epoch = None  # the one that is trained
        self.sums = torch.zeros(2, device=world.device)  # of its energies, and how many they are

    def __call__(self, epoch, part=1.0):
        """0-dim, differentiable, of the forward that has just run.

        epoch: see `Recipe.set_rate`. part: of the batch, that this process has.
        """
        share = self.additions()
        mean = self.world.sum(share.detach() * part)
        self.energy = self.fixed + self.full * mean
        if self.epoch != int(epoch):
            self.epoch = int(epoch)
            self.sums = torch.zeros_like(self.sums)
        self.sums += torch.stack([self.energy, torch.ones_like(self.energy)])
        risen = min(1, (epoch - 1) / self.warm) if self.warm else 1
        if not self.target:
            self.weight = self.full_weight * risen
            return self.weight * share

        if self.first is None:
            self.first = self.energy
        # one that begins below the target pays when it comes to exceed it
        aim = (self.first + risen * (self.target - self.first)).clamp(min=self.target)
        excess = self.energy / aim - 1
        self.weight = MOST * (excess / BAND).clamp(0, 1)
        return self.weight * share

    def missed(self):
        """By what share the last epoch's mean energy is over the target by more than `BAND`, else
        0.
        """
        total, count = self.sums.tolist()
        if not self.target or not count:
            return 0
        over = total / count / self.target - 1
        return over if over > BAND else 0

    def figures(self):
        """{name: number} for the log."""
        return {"penalty": self.weight.item(), "batch_energy_uj": self.energy.item()}

    def state_dict(self):
        """Plain values for `last.pth`."""
        return {
            "first": None if self.first is None else self.first.item(),
            "fixed": self.fixed,
            "full": self.full,
            # of the last batch, for the log
            "weight": self.weight.item(),
            "energy": self.energy.item(),
            "epoch": self.epoch,
            "sums": self.sums.tolist(),
        }

    def load_state_dict(self, state):
        """The inverse of `state_dict`."""
        if state["first"] is not None:
            self.first = torch.tensor(state["first"], device=self.world.device)
        # files of earlier versions do not have them; here they may be of other images
        if "fixed" in state:
            self.fixed, self.full = float(state["fixed"]), float(state["full"])
            self.target = self.options.target(self.fixed, self.full)
        self.epoch = state.get("epoch")
        for name in ("weight", "energy", "sums"):
            if name in state:
                value = torch.tensor(state[name], dtype=torch.float32)
                setattr(self, name, self.world.send(value))
