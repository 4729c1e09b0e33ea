"""Generators of random numbers, seeded and restored."""

import random

import numpy as np
import torch

import models
from engine import checkpoint
from engine.generators import rng_state, seed_all, set_rng_state

CPU = torch.device("cpu")


def draws():
    return (
        torch.rand(3).tolist(),
        np.random.rand(3).tolist(),
        np.random.randn(1).tolist(),
        [random.random(), random.gauss()],
    )


def test_every_generator_is_restored(tmp_path):
    """Through a file, as last.pth holds them."""
    net = models.build("resnet20", models.ReLU(), width_mult=1 / 32)
    seed_all(3)
    draws()  # numpy and python now hold the second half of a pair of normal numbers
    content = checkpoint.content(net, "ann", {}, {}, rng=rng_state(CPU))
    checkpoint.save(tmp_path / "rng.pth", content)
    expected = draws()
    seed_all(4)
    assert all(a != b for a, b in zip(draws(), expected, strict=True))
    set_rng_state(checkpoint.load(tmp_path / "rng.pth")["rng"], CPU)
    assert draws() == expected


def test_a_seed_sets_every_generator():
    seed_all(7)
    first = draws()
    seed_all(7)
    assert draws() == first
    seed_all(8)
    assert all(a != b for a, b in zip(draws(), first, strict=True))
