"""The recipe of the published CNNs: SGD or Adam, a schedule of drops or a cosine, cross-entropy,
distillation.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from models.layers import norms

from .. import checkpoint
from ..errors import UseError
from ..settings import (
    boolean,
    fractions,
    nonnegative_float,
    number,
    option,
    pair,
    positive_float,
    positive_int,
    run_option,
    share,
)
from .base import Recipe, mean_readout

THRESHOLDS = ("theta", "scale")  # parameters that --thr_lr governs


def linear(epoch, epochs, rate):
    """A line from `rate` at epoch 1 to 0 after `epochs` epochs."""
    return rate * (1 - (epoch - 1) / epochs)


def cosine(epoch, epochs, rate):
    """Half a cosine from `rate` at epoch 1 to 0 after `epochs` epochs."""
    return rate * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


SMOOTH = {"cosine": cosine, "linear": linear}


@dataclass(frozen=True)
class TrainingOptions:
    """training"""

    epochs: int = option(300, "epochs to train", positive_int)
    learning_rate: float = option(
        1e-3, "initial learning rate", nonnegative_float, spellings=("-lr", "--lr")
    )
    lr_schedule: str = option(
        "step",
        "step: drops at --lr_interval, as published; cosine, linear: to 0, in every step",
        choices=("step", *SMOOTH),
    )
    lr_interval: tuple = option(
        (0.45, 0.70, 0.90),
        "fractions of the epochs, in (0, 1], at which the learning rate drops",
        fractions,
    )
    lr_reduce: float = option(10, "divisor of the learning rate at each drop", positive_float)
    thr_lr: float = option(
        0.0, "constant learning rate of the thresholds, 0: that of the weights", nonnegative_float
    )
    optimizer: str = option("SGD", "SGD with momentum, or Adam", choices=("SGD", "Adam"))
    weight_decay: float = option(5e-4, "L2 penalty on the parameters", nonnegative_float)
    momentum: float = option(0.9, "momentum of SGD; Adam does not use one", nonnegative_float)
    nesterov: bool = option(False, "Nesterov's momentum, for SGD")
    norm_bias_lr: float = option(
        1.0, "factor of the learning rate of batch norm's biases", positive_float
    )
    fixed_norm_scale: bool = option(
        False, "keep the scales of batch norm as they begin, new ones at 1"
    )
    amsgrad: bool = option(True, "Adam's AMSGrad variant: true or false", boolean)
    betas: tuple = option((0.9, 0.999), "Adam's two averaging factors", pair)
    warm_up: bool = option(False, "raise the learning rate linearly at the start")
    warm_up_epochs: int = option(5, "length of the warm-up", positive_int, unit="epochs")
    warm_up_lr: float = option(
        1e-6, "learning rate that the warm-up starts from", nonnegative_float
    )
    label_smoothing: float = option(
        0.0,
        "share of the target that label smoothing spreads over all classes",
        number(float, low=0, high=1),
        spellings=("--smoothing",),
    )
    # a resumed run checks that it is the same network
    distill: str = run_option(
        "", "checkpoint of a teacher whose softened outputs the loss follows, too"
    )
    distill_weight: float = option(0.5, "share of the teacher's part in the loss", share)
    distill_temperature: float = option(
        4.0, "temperature that softens the outputs of teacher and network", positive_float
    )


def make_optimizer(net, options: TrainingOptions):
    """SGD with momentum or Adam.

    With `thr_lr` > 0 thetas (and output scales) form a group of their own, at that constant rate.
    With a `norm_bias_lr` so do the biases of batch norm, at that multiple of the scheduled rate.
    """
    shifts = [norm.bias for norm in norms(net) if options.norm_bias_lr != 1]
    shifted = set(shifts)

    # a rate of 0 means one group, as published
    weights, thresholds = [], []
    for name, parameter in net.named_parameters():
        apart = options.thr_lr and name.rpartition(".")[2] in THRESHOLDS
        if parameter.requires_grad and parameter not in shifted:
            (thresholds if apart else weights).append(parameter)
    groups = [{"params": weights, "lr": options.learning_rate, "scheduled": True}]
    if thresholds:
        groups.append({"params": thresholds, "lr": options.thr_lr, "scheduled": False})
    if shifts:
        rate = options.norm_bias_lr * options.learning_rate
        groups.append(
            {"params": shifts, "lr": rate, "scheduled": True, "factor": options.norm_bias_lr}
        )

    # fused: one pass over all parameters instead of several for each
    common = {"weight_decay": options.weight_decay, "fused": True}
    if options.optimizer == "SGD":
        momentum, nesterov = options.momentum, options.nesterov
        return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, **common)
    return torch.optim.Adam(groups, betas=options.betas, amsgrad=options.amsgrad, **common)


def learning_rate(epoch, options: TrainingOptions):
    """Learning rate at `epoch`, counted from 1: 2.5 is the middle of the second epoch.

    'step' (published): divided by lr_reduce from epoch int(f * epochs) on, for every f in
    lr_interval, in whole epochs. 'cosine', 'linear': half a cosine or a line from learning_rate to
    0, step by step. Before each, with `warm_up`, linear from warm_up_lr over warm_up_epochs epochs.
    """
    top, schedule = options.learning_rate, options.lr_schedule
    if schedule == "step":
        epoch = int(epoch)
    # the warm-up's first step has warm_up_lr, the first one after it the full rate
    warm = options.warm_up_epochs if options.warm_up else 0
    if epoch - 1 < warm:
        return options.warm_up_lr + (top - options.warm_up_lr) * (epoch - 1) / warm
    if schedule != "step":
        return SMOOTH[schedule](epoch - warm, options.epochs - warm, top)
    # truncated, as published: 0.7 of 90 epochs is epoch 62
    drops = sum(1 <= int(f * options.epochs) <= epoch for f in options.lr_interval)
    return top / options.lr_reduce**drops


class CNNRecipe(Recipe):
    """The published recipe of ANN, LQ-ANN and SNN.

    Args:
        teacher: a trained network in eval mode whose softened outputs the loss follows, too
            (Hinton et al. 2015), with w = distill_weight and t = distill_temperature:
            `(1 - w) * CE + w * t^2 * KL(softmax(teacher / t) || softmax(out / t))`.
    """

    def __init__(self, options: TrainingOptions, teacher=None):
        super().__init__(options.epochs)
        self.options, self.teacher = options, teacher

    @cached_property
    def followed(self):
        """Digest of the teacher's weights, which stay as they are; "" without a teacher."""
        return checkpoint.digest(self.teacher.state_dict()) if self.teacher else ""

    def state_dict(self):
        return {"teacher": self.followed}

    def load_state_dict(self, state):
        # files of earlier versions do not say it
        if state.get("teacher", self.followed) != self.followed:
            raise UseError(
                "--distill names another network than the one that the interrupted run followed"
            )

    def optimizer(self, net):
        if self.options.fixed_norm_scale:
            for norm in norms(net):
                norm.weight.requires_grad_(False)
        return make_optimizer(net, self.options)

    def set_rate(self, optimizer, epoch):
        rate = learning_rate(epoch, self.options)
        for group in optimizer.param_groups:
            # the group of thresholds keeps its own rate, as published
            if group.get("scheduled", True):
                # optimizers of older runs have no factors
                group["lr"] = rate * group.get("factor", 1)
        return rate

    def targets(self, images, labels, epoch):
        if self.teacher is None:
            return images, (labels, None)
        with torch.no_grad():
            return images, (labels, mean_readout(self.teacher(images).float()))

    def loss(self, out, targets):
        labels, wanted = targets
        smoothing = self.options.label_smoothing
        loss = F.cross_entropy(out, labels, reduction="sum", label_smoothing=smoothing)
        if wanted is None:
            return loss
        # t^2 keeps the size of the teacher's gradient whatever the temperature
        w, t = self.options.distill_weight, self.options.distill_temperature
        ours, theirs = F.log_softmax(out / t, 1), F.log_softmax(wanted / t, 1)
        follow = F.kl_div(ours, theirs, reduction="sum", log_target=True)
        return (1 - w) * loss + w * t**2 * follow
