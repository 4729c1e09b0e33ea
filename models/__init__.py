"""What is computed: networks, the injected activation, the neuron.

Tensors in, tensors out: nothing here reads files, parses options or chooses a device.
"""

import inspect
from importlib import import_module

from .activations import (
    LIF,
    LIFLayer,
    LogQuant,
    ReLU,
    Spiking,
    SpikingLayer,
    describe,
    from_description,
    set_backend,
)
from .neuron import BACKENDS, MLIF, NeuronConfig, choose, lanes
from .quantize import QuantReLU, calibrate

__all__ = [
    "BACKENDS",
    "CNNS",
    "LIF",
    "MLIF",
    "NETWORKS",
    "LIFLayer",
    "LogQuant",
    "NeuronConfig",
    "QuantReLU",
    "ReLU",
    "Spiking",
    "SpikingLayer",
    "build",
    "calibrate",
    "choose",
    "describe",
    "from_description",
    "how_built",
    "image_side",
    "lanes",
    "network",
    "options",
    "register",
    "set_backend",
]

# A network is one file here and one entry: its name, and module.class in this package.
# CNNS are those that go from an ANN to an SNN (ann_ddp.py, absorb_bn.py, snn_ddp.py). They take the
# arguments num_classes, image_size, width_mult, bn, bias and dropout, and their stages have
# `firings` and `fold_scale` (see `layers.Network`).
CNNS = {
    "vgg16": "vgg.VGG16",
    "resnet20": "resnet.ResNet20",
}
NETWORKS = CNNS | {"sdt": "transformer.SpikeDrivenTransformer", "vggsnn": "vggsnn.VGGSNN"}


def network(name):
    """Class of network `name`; imported when asked for, since the transformer brings timm along.

    Raises:
        ValueError: there is no such network.
    """
    if name.lower() not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    known = NETWORKS[name.lower()]
    # one of `register` is the class itself
    if not isinstance(known, str):
        return known
    module, cls = known.split(".")
    return getattr(import_module(f".{module}", __name__), cls)


def register(name, cls):
    """Let `build` know a network of your own, and so conversions, checkpoints and exports.

    It lasts as long as the process. cls: a `layers.Network`, which takes an activation `act` first;
    its other arguments are plain values.
    Raises:
        ValueError: a network of this package has that name, or the class takes no `act`, or
            arguments without names.
    """
    if isinstance(NETWORKS.get(name.lower()), str):
        raise ValueError(f"{name} is the name of a network of this package: give another")
    parameters = inspect.signature(cls).parameters
    first = next(iter(parameters), None)
    if first != "act":
        raise ValueError(
            f"the first argument of {cls.__name__} must be act, the activation; got {first}"
        )
    for p in parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise ValueError(f"{cls.__name__} takes any {p.name}: name them, since they are stored")
    NETWORKS[name.lower()] = cls


def how_built(net):
    """`net.built`, by which `build` can make the network again.

    Raises:
        ValueError: `build` did not make it.
    """
    if net.built is None:
        raise ValueError(
            f"this {type(net).__name__} was not made by models.build, which could make it again: "
            "see models.register"
        )
    return net.built


def image_side(net):
    """Width and height in pixels of the images that a network of `build` was built for.

    Raises:
        ValueError: `build` did not make it, or it has no argument that says so.
    """
    built = how_built(net)
    # the published transformer has its own name for it
    for name in ("image_size", "img_size"):
        if name in built:
            return built[name]
    raise ValueError(
        f"{built['name']} takes no argument image_size: give its class one, which says how many "
        "pixels a side its images have"
    )


def options(name):
    """{argument: default} of what network `name` takes beside its activation.

    Raises:
        ValueError: there is no such network.
    """
    parameters = inspect.signature(network(name)).parameters
    return {p.name: p.default for p in parameters.values() if p.name != "act"}


def build(name, act, **arguments):
    """Build network `name` (of `NETWORKS`) with an activation: `ReLU()`, `Spiking(...)`, ...

    The weights have the same names whatever the activation. The result remembers how it was built,
    in `net.built = {"name": ..., **all arguments}`.

    Args:
        arguments: see the network's class.
    Raises:
        ValueError: there is no such network, or it does not take these arguments.
    """
    defaults = options(name)
    unknown = sorted(arguments.keys() - defaults)
    if unknown:
        raise ValueError(f"{name} takes {', '.join(defaults)}; got {', '.join(unknown)}")

    net = network(name)(act, **arguments)
    net.built = {"name": name.lower(), **defaults, **arguments}
    return net
