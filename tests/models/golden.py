"""Recorded numbers of the published code, and the networks that they belong to."""

import numpy as np
import torch

import models
from models import convert, published
from tests.helpers import GOLDEN

CNNS = {
    "vgg16": np.load(GOLDEN / "B1_vgg16_w8.npz"),
    "resnet20": np.load(GOLDEN / "B2_resnet20_w8.npz"),
}


def tensor(name, key):
    return torch.from_numpy(CNNS[name][key])


def group(name, prefix):
    """{rest of the key: numbers} of all keys that begin with `prefix`."""
    keys = (key for key in CNNS[name].files if key.startswith(prefix))
    return {key.removeprefix(prefix): tensor(name, key) for key in keys}


def by_number(name, prefix):
    """Scalars of `group`, in the order of the numbers in their keys."""
    found = group(name, prefix)
    order = sorted(found, key=lambda key: int("".join(filter(str.isdigit, key))))
    return [found[key].item() for key in order]


def close(got, want, tolerance):
    """Largest difference relative to the largest magnitude."""
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error <= tolerance, error


def build(name, act, **arguments):
    """A CNN at an eighth of the width, in eval mode, without dropout."""
    if name == "vgg16":
        arguments["head_dropout"] = 0.0
    return models.build(name, act, width_mult=1 / 8, **arguments).eval()


def put(net, state, new=()):
    """The network with weights by published names."""
    published.fit(net, published.rename(net, state), new=new)
    return net


def ann(name):
    """The recorded ANN."""
    return put(build(name, models.ReLU()), group(name, "ann_w/"))


def fused_state(name):
    """Fused weights by their published names; those of VGG16 are recomputed from the ANN."""
    if name == "resnet20":
        return group(name, "fused_w/")
    fused, _ = convert.fuse_bn(ann(name), torch.randn(4, 3, 32, 32))
    layers = [m.map for m in fused.modules() if hasattr(m, "map")] + [fused.head]
    paths = [f"features.{3 * i}" for i in range(13)] + [f"classifier.{3 * i}" for i in range(3)]
    return {
        f"{path}.{field}": value
        for path, layer in zip(paths, layers, strict=True)
        for field, value in layer.state_dict().items()
    }


def unbalanced_snn(name, neuron, steps=1):
    """The SNN of the fused weights, its thresholds still 1."""
    net = build(name, models.Spiking(neuron, steps), bn=False)
    return put(net, fused_state(name), new=("theta", "leak"))


def own_names(net, state):
    """{published key: name in `net`} of a published state_dict."""
    keys = list(state)
    marks = {key: torch.full(value.shape, float(i)) for i, (key, value) in enumerate(state.items())}
    renamed = published.rename(net, marks)
    return {keys[int(mark.flatten()[0])]: name for name, mark in renamed.items()}


def check_gradients(net, state, gradients, tolerance=1e-4):
    """Compare {published key: gradient} of `net`, whose published weights are `state`."""
    names = own_names(net, state)
    assert gradients
    for key, want in gradients.items():
        close(net.get_parameter(names[key]).grad, want, tolerance)
