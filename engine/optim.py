"""What a training step is beside forward and backward: optimizer, schedule, loss. Here that of the published CNNs."""

import torch
from torch.nn import functional as F

THRESHOLDS = ("theta", "scale")  # parameters that --thr_lr governs


def make_optimizer(net, args):
    """SGD with momentum or Adam. With `thr_lr` > 0 thetas (and scales) form a group of their own at that rate."""
    thr_lr = getattr(args, "thr_lr", 0)
    named = list(net.named_parameters())
    thresholds = [p for n, p in named if thr_lr and n.rpartition(".")[2] in THRESHOLDS]
    kept = {id(p) for p in thresholds}
    groups = [{"params": [p for _, p in named if id(p) not in kept], "lr": args.learning_rate, "scheduled": True}]
    if thresholds:
        groups.append({"params": thresholds, "lr": thr_lr, "scheduled": False})
    if args.optimizer == "SGD":
        return torch.optim.SGD(groups, momentum=args.momentum, weight_decay=args.weight_decay, fused=True)
    betas = tuple(getattr(args, "betas", (0.9, 0.999)))
    return torch.optim.Adam(groups, betas=betas, weight_decay=args.weight_decay, amsgrad=getattr(args, "amsgrad", True),
                            fused=True)


def learning_rate(epoch, args):
    """Learning rate of an epoch, counted from 1: divided by lr_reduce from epoch int(f * epochs) on, for every f in
    lr_interval; before that, with `warm_up`, linear from warm_up_lr over warm_up_epochs epochs."""
    warm = args.warm_up_epochs if getattr(args, "warm_up", False) else 0
    if epoch <= warm:
        return args.warm_up_lr + (args.learning_rate - args.warm_up_lr) * (epoch - 1) / warm
    drops = sum(1 <= int(f * args.epochs) <= epoch for f in args.lr_interval)
    return args.learning_rate / args.lr_reduce**drops


def set_learning_rate(optimizer, epoch, args):
    """Apply the schedule of `epoch` (the threshold group keeps its rate, as published); return the rate."""
    rate = learning_rate(epoch, args)
    for group in optimizer.param_groups:
        if group["scheduled"]:
            group["lr"] = rate
    return rate


class Recipe:
    """The published CNN recipe; another recipe overrides what it does otherwise.

    epochs: how many to train. State that a resumed run needs, beside the optimizer's, goes through `state_dict`.
    """

    def __init__(self, args):
        self.args, self.epochs = args, args.epochs

    def optimizer(self, net):
        return make_optimizer(net, self.args)

    def set_rate(self, optimizer, epoch):
        """Apply the schedule of `epoch`, counted from 1; return the rate."""
        return set_learning_rate(optimizer, epoch, self.args)

    def targets(self, images, labels, epoch):
        """What the loss compares with, and the images, which may be mixed for it."""
        return images, labels

    def loss(self, out, targets):
        """Loss summed over the images of out [B, classes]."""
        return F.cross_entropy(out, targets, reduction="sum")

    def before_step(self, net, optimizer, scaler):
        """Between backward and the optimizer's step."""

    def after_step(self, net):
        """After the optimizer's step."""

    def trained(self, net):
        """The network that is evaluated and stored."""
        return net

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
