"""What is computed: networks, the injected activation, the neuron. No I/O, no argument parsing, no choice of device."""

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
)
from .neuron import BACKENDS, MLIF, NeuronConfig, choose, lanes
from .quantize import QuantReLU, calibrate

__all__ = [
    "BACKENDS",
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
    "lanes",
    "network",
    "options",
]

NETWORKS = {
    "vgg16": "vgg.VGG16",
    "resnet20": "resnet.ResNet20",
    "sdt": "transformer.SpikeDrivenTransformer",
    "vggsnn": "vggsnn.VGGSNN",
}


def network(name):
    """Class of network `name`; imported when asked for, since the transformer brings timm along.

    Raises:
        ValueError: there is no such network.
    """
    if name.lower() not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    module, cls = NETWORKS[name.lower()].split(".")
    return getattr(import_module(f".{module}", __name__), cls)


def options(name):
    """Names of the arguments that network `name` takes beside its activation.

    Raises:
        ValueError: there is no such network.
    """
    return [
        p for p in inspect.signature(network(name).__init__).parameters if p not in ("self", "act")
    ]


def build(name, act, **arguments):
    """Build network `name` (one of `NETWORKS`) with activation `act` (`ReLU()`, `LogQuant(...)`, `Spiking(...)`).

    The weights have the same names whatever the activation. `arguments`: see the network's class. The result remembers
    how it was built in `net.built = {"name": ..., **all arguments}`.
    """
    unknown = set(arguments) - set(options(name))
    if unknown:
        raise ValueError(
            f"{name} takes {', '.join(options(name))}; got {', '.join(sorted(unknown))}"
        )
    parameters = inspect.signature(network(name).__init__).parameters
    defaults = {k: parameters[k].default for k in options(name)}
    net = network(name)(act, **arguments)
    net.built = {"name": name.lower(), **defaults, **arguments}
    return net
