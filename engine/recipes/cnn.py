"""What a training step is beside forward and backward: optimizer, schedule, loss. Here that of the published CNNs."""

import math

import torch
from torch.nn import functional as F

THRESHOLDS = ("theta", "scale")  # parameters that --thr_lr governs


def make_optimizer(net, args):
    """SGD with momentum or Adam. With `thr_lr` > 0 thetas (and scales) form a group of their own at that rate."""
    thr_lr = getattr(args, "thr_lr", 0)
    named = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    thresholds = [p for n, p in named if thr_lr and n.rpartition(".")[2] in THRESHOLDS]
    kept = {id(p) for p in thresholds}
    groups = [
        {
            "params": [p for _, p in named if id(p) not in kept],
            "lr": args.learning_rate,
            "scheduled": True,
        }
    ]
    if thresholds:
        groups.append({"params": thresholds, "lr": thr_lr, "scheduled": False})
    if args.optimizer == "SGD":
        return torch.optim.SGD(
            groups, momentum=args.momentum, weight_decay=args.weight_decay, fused=True
        )
    betas = tuple(getattr(args, "betas", (0.9, 0.999)))
    return torch.optim.Adam(
        groups,
        betas=betas,
        weight_decay=args.weight_decay,
        amsgrad=getattr(args, "amsgrad", True),
        fused=True,
    )


def cosine(epoch, epochs, rate):
    """Half a cosine from `rate` at epoch 1 to 0 after `epochs` epochs."""
    return rate * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def learning_rate(epoch, args):
    """Learning rate at `epoch`, counted from 1: 2.5 is the middle of the second epoch.

    'step' (published): divided by lr_reduce from epoch int(f * epochs) on, for every f in lr_interval, whole epochs alone.
    'cosine': half a cosine from learning_rate to 0, step by step. Before either, with `warm_up`, linear from warm_up_lr
    over warm_up_epochs epochs.
    """
    warm, smooth = args.warm_up_epochs if args.warm_up else 0, args.lr_schedule == "cosine"
    epoch = epoch if smooth else int(epoch)
    if epoch - 1 < warm:
        return args.warm_up_lr + (args.learning_rate - args.warm_up_lr) * (epoch - 1) / warm
    if smooth:
        return cosine(epoch - warm, args.epochs - warm, args.learning_rate)
    drops = sum(1 <= int(f * args.epochs) <= epoch for f in args.lr_interval)
    return args.learning_rate / args.lr_reduce**drops


def set_learning_rate(optimizer, epoch, args):
    """Apply the schedule of `epoch` (the threshold group keeps its rate, as published); return the rate."""
    rate = learning_rate(epoch, args)
    for group in optimizer.param_groups:
        if group["scheduled"]:
            group["lr"] = rate
    return rate


def whole(out):
    """[B, classes] of a readout, averaged if it is one for every timestep [T, B, classes]."""
    return out.mean(0) if out.dim() == 3 else out


class Recipe:
    """The published CNN recipe; another recipe overrides what it does otherwise.

    epochs: how many to train. teacher: a trained network whose softened outputs the loss follows, too (Hinton et al. 2015):
    `(1 - w) * CE + w * t^2 * KL(softmax(teacher / t) || softmax(out / t))`. price: () -> what the forward that has just run
    adds to the loss of an image, 0-dim, or None. State that a resumed run needs, beside the optimizer's, goes through
    `state_dict`.
    """

    def __init__(self, args, teacher=None, price=None):
        self.args, self.epochs, self.teacher, self.price = args, args.epochs, teacher, price

    def optimizer(self, net):
        return make_optimizer(net, self.args)

    def set_rate(self, optimizer, epoch):
        """Apply the schedule before a step; epoch: counted from 1, with the fraction of it that is done. Returns the rate."""
        return set_learning_rate(optimizer, epoch, self.args)

    def targets(self, images, labels, epoch):
        """The images, which may be mixed, and what the loss compares with; runs inside the step's autocast."""
        if self.teacher is None:
            return images, (labels, None)
        with torch.no_grad():
            return images, (labels, whole(self.teacher(images).float()))

    def loss(self, out, targets):
        """Loss summed over the images of out [B, classes]."""
        (labels, wanted), args = targets, self.args
        loss = F.cross_entropy(out, labels, reduction="sum", label_smoothing=args.label_smoothing)
        if wanted is not None:
            w, t = args.distill_weight, args.distill_temperature
            follow = F.kl_div(
                F.log_softmax(out / t, 1),
                F.log_softmax(wanted / t, 1),
                reduction="sum",
                log_target=True,
            )
            loss = (1 - w) * loss + w * t**2 * follow
        return loss if self.price is None else loss + len(out) * self.price()

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


def tet_loss(out, targets, lamb=0.0, means=1.0, smoothing=0.0):
    """TET (temporal efficient training) of the readouts of T steps, out [T, B, classes], summed over the B images:
    (1 - lamb) * mean_t CE(y_t, targets) + lamb * MSE(y_t, means)."""
    flat = out.flatten(0, 1)
    repeated = targets.repeat(len(out), *[1] * (targets.dim() - 1))
    entropy = F.cross_entropy(flat, repeated, reduction="sum", label_smoothing=smoothing) / len(out)
    return (1 - lamb) * entropy + lamb * (out - means).square().mean() * out.shape[1]
