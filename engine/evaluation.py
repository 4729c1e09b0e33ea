"""Loss and accuracy of a network over a loader."""

from contextlib import nullcontext

import numpy as np
import torch
from torch.nn import functional as F

from models.layers import evaluating

from .errors import RunError
from .log import progress
from .recipes.base import mean_readout

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device, amp):
    """Autocast context of --amp."""
    if amp == "none":
        return nullcontext()
    return torch.autocast(device.type, AMP[amp])


def finite(net):
    """Whether every weight is a finite number."""
    return all(p.isfinite().all() for p in net.parameters())


@torch.no_grad()
def evaluate(net, loader, world, amp="none", label="test", advice="give other weights"):
    """Loss and accuracy (fraction) over the loader.

    Every image is counted once whatever the number of processes.

    Raises:
        RunError: weights or outputs are not finite numbers; the advice is part of it.
    """
    # outputs need not show it: a neuron of SpikingJelly takes NaN for 0
    if not finite(net):
        raise RunError(f"the network has weights that are not finite numbers: {advice}")
    # loss, correct, images: summed on the device in float64, read once at the end
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    bar = progress(loader.epoch(0), world, total=len(loader), desc=label)
    with evaluating(net), bar:
        for images, labels, _ in bar:
            with autocast(world.device, amp):
                out = mean_readout(net(images).float())  # [B, classes]
            loss = F.cross_entropy(out, labels, reduction="sum")
            correct = (out.argmax(1) == labels).sum()
            sums += torch.stack([loss, correct, out.new_full((), len(labels))]).double()
    loss, correct, count = world.sum(sums).tolist()
    if not np.isfinite(loss):
        raise RunError(
            f"the {label} loss is {loss}: the network's outputs are not finite numbers, so there "
            f"is no accuracy; {advice}"
        )
    return {"loss": loss / count, "accuracy": correct / count, "images": int(count)}
