"""Temporal efficient training (TET): a loss on the readout of every timestep, and the recipe of
VGGSNN.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..settings import boolean, finite, option, share
from .base import Recipe, mean_readout
from .cnn import TrainingOptions, cosine


@dataclass(frozen=True)
class TETOptions:
    """loss"""

    TET: bool = option(
        True,
        "true: loss at every timestep; false: cross-entropy of the mean readout",
        boolean,
        nargs="?",
        const=True,
    )
    means: float = option(
        1.0,
        "value that the regulariser of TET pulls the readout to",
        finite,
        spellings=("--TET_means",),
    )
    lamb: float = option(1e-3, "weight of the regulariser of TET", share, spellings=("--TET_lamb",))


def tet_loss(out, targets, options: TETOptions, smoothing=0.0):
    """TET of the readouts of T steps, out [T, B, classes], summed over the B images.

    (1 - lamb) * mean_t CE(y_t, targets) + lamb * MSE(y_t, means)       (docs/method.md, section 3)

    targets: labels [B] or class probabilities [B, classes].
    """
    flat = out.flatten(0, 1)  # [T*B, classes]
    repeated = targets.repeat(len(out), *[1] * (targets.dim() - 1))
    entropy = F.cross_entropy(flat, repeated, reduction="sum", label_smoothing=smoothing)
    # a mean over everything, times B: the loss is a sum over images
    pull = (out - options.means).square().mean() * out.shape[1]
    return (1 - options.lamb) * (entropy / len(out)) + options.lamb * pull


class TETRecipe(Recipe):
    """Adam, its rate a cosine to 0 over the epochs, set once per epoch, as published; TET loss.

    Args:
        training: epochs, learning_rate and weight_decay count.
    """

    def __init__(self, training: TrainingOptions, loss: TETOptions):
        super().__init__(training.epochs)
        self.training, self.options = training, loss

    def optimizer(self, net):
        rate, decay = self.training.learning_rate, self.training.weight_decay
        return torch.optim.Adam(net.parameters(), rate, weight_decay=decay, fused=True)

    def set_rate(self, optimizer, epoch):
        # whole epochs alone, as published
        rate = cosine(int(epoch), self.epochs, self.training.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def loss(self, out, targets):
        if not self.options.TET:
            return F.cross_entropy(mean_readout(out), targets, reduction="sum")
        return tet_loss(out, targets, self.options)
