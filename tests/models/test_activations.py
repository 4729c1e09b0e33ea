"""Descriptions of activations: what they make of an image, and what a checkpoint stores of them."""

import pytest
import torch

import models
from models import NeuronConfig, describe, from_description

DESCRIPTIONS = (
    models.ReLU(),
    models.LogQuant(3, "lvl", 99.0),
    models.Spiking(NeuronConfig.vgg(2, inner_slope="paper"), 4, 0.5, 0.9, "rate", scale=True),
    models.LIF(2, learn_tau=True),
)


@pytest.mark.parametrize("act", DESCRIPTIONS, ids=lambda act: act.kind)
def test_a_description_is_read_back(act):
    assert from_description(describe(act)) == act


@pytest.mark.parametrize("odd", [{"tau": 1.0}, {"tau": True}, {"theta": 0}, {"steps": 0}])
def test_a_lif_neuron_that_cannot_be_is_refused(odd):
    with pytest.raises(ValueError, match="a LIF neuron needs"):
        from_description(describe(models.LIF(2)) | odd)


def test_a_lif_neuron_takes_whole_numbers():
    assert models.LIF(2, tau=3, theta=1) == models.LIF(2, tau=3.0, theta=1.0)
    models.LIF(2, tau=3, theta=1).layer()


@pytest.mark.parametrize("learn_tau", [False, True])
def test_the_potential_of_a_lif_neuron_is_float32_under_autocast(learn_tau):
    layer = models.LIF(3, learn_tau=learn_tau).layer()
    currents = torch.rand(3 * 500, generator=torch.Generator().manual_seed(0)) + 0.5
    narrow = currents.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        spikes = layer(narrow)
    assert spikes.dtype == torch.bfloat16
    assert torch.equal(spikes.float(), layer(narrow.float()))


def test_the_backend_belongs_to_the_machine():
    assert "backend" not in describe(models.Spiking(backend="torch"))
    assert from_description(describe(models.Spiking(backend="torch"))).backend == "auto"


def test_a_description_of_an_earlier_version_loads():
    """The inner slope was stored as `edge`, and the backend was stored too."""
    neuron = {
        "levels": 3,
        "one_hot": True,
        "inclusive": False,
        "input_gain": 1.0,
        "reset": "soft",
        "detach_reset": True,
        "scaled": False,
        "surrogate": "triangle",
        "gamma": 0.3,
        "alpha": 4.0,
        "relative": True,
        "edge": "paper",
    }
    stored = {
        "kind": "spiking",
        "neuron": neuron,
        "steps": 2,
        "theta": 1.0,
        "leak": 1.0,
        "encoding": "direct",
        "scale": False,
        "backend": "cpp",
        "learn": True,
    }
    act = from_description(stored)
    assert act == models.Spiking(NeuronConfig.vgg(3, inner_slope="paper"), 2)
    assert neuron["edge"] == "paper"  # what was read is not changed


def test_rate_coding_has_the_pixels_mean():
    act = models.Spiking(steps=400, encoding="rate")
    x = torch.rand(2, 3, 4, 4)
    spikes = act.encode(x).unflatten(0, (400, 2))
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    lowest = x.amin((1, 2, 3), keepdim=True)
    highest = x.amax((1, 2, 3), keepdim=True)
    error = (spikes.mean(0) - (x - lowest) / (highest - lowest)).abs()
    assert error.max() < 0.15


def test_frames_are_folded_step_by_step():
    act = models.Spiking(steps=3, encoding="frames")
    x = torch.arange(6.0).view(2, 3, 1, 1, 1)  # two recordings of three frames
    assert act.encode(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    with pytest.raises(ValueError, match=r"frames \[B, 3, \.\.\.\], one for each step, got \[2, 4"):
        act.encode(torch.zeros(2, 4, 1, 1, 1))


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"encoding": "latency"}])
def test_refusals(arguments):
    with pytest.raises(ValueError, match="steps >= 1 and encoding 'direct', 'rate' or 'frames'"):
        models.Spiking(**arguments)
