"""The random generators of a process: seeded, and stored with a run that goes on."""

import random
from array import array

import numpy as np
import torch


def rng_state(device):
    """State of every random generator, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state()
    # lists, since a checkpoint holds tensors and plain values alone
    return {
        "torch": torch.get_rng_state(),
        "numpy": [kind, keys.tolist(), *rest],
        "python": list(random.getstate()),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _words(values):
    """An array of a list of 32-bit numbers, as generators have them."""
    # in the place of the list or of a number, a small tensor may spread over any size
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"a generator's state is a {type(values).__name__}, expected a list")
    return array("I", values)


def set_rng_state(state, device):
    """The inverse of `rng_state`."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(_words(keys)), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(_words(internal)), gauss))
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_all(seed):
    """Seed every random generator."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
