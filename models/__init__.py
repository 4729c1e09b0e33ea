"""What is computed: networks, the injected activation, the neuron. No I/O, no argument parsing, no choice of device."""

import inspect

from .activations import LIF, LIFLayer, LogQuant, ReLU, Spiking, SpikingLayer, describe, from_description
from .neuron import BACKENDS, MLIF, NeuronConfig, choose, lanes
from .quantize import QuantReLU, calibrate
from .resnet import ResNet20
from .transformer import SpikeDrivenTransformer
from .vgg import VGG16

__all__ = ["BACKENDS", "LIF", "LIFLayer", "MLIF", "NETWORKS", "LogQuant", "NeuronConfig", "QuantReLU", "ReLU", "Spiking", "SpikingLayer",
           "build", "calibrate", "choose", "describe", "from_description", "lanes", "options"]

NETWORKS = {"vgg16": VGG16, "resnet20": ResNet20, "sdt": SpikeDrivenTransformer}


def options(name):
    """Names of the arguments that network `name` takes beside its activation.

    Raises:
        ValueError: there is no such network.
    """
    if name.lower() not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    return [p for p in inspect.signature(NETWORKS[name.lower()].__init__).parameters if p not in ("self", "act")]


def build(name, act, **arguments):
    """Build network `name` ('vgg16', 'resnet20') with activation `act` (`ReLU()`, `LogQuant(...)`, `Spiking(...)`).

    The weights have the same names whatever the activation. `arguments`: see the network's class. The result remembers
    how it was built in `net.built = {"name": ..., **all arguments}`.
    """
    unknown = set(arguments) - set(options(name))
    if unknown:
        raise ValueError(f"{name} takes {', '.join(options(name))}; got {', '.join(sorted(unknown))}")
    parameters = inspect.signature(NETWORKS[name.lower()].__init__).parameters
    defaults = {k: parameters[k].default for k in options(name)}
    net = NETWORKS[name.lower()](act, **arguments)
    net.built = {"name": name.lower(), **defaults, **arguments}
    return net
