"""The one-hot multi-level LIF neuron: description, definition, backends, module."""

from .backends.dispatch import SUPPORTED as BACKENDS
from .backends.dispatch import choose
from .config import NeuronConfig
from .lanes import lanes
from .module import MLIF

__all__ = ["BACKENDS", "MLIF", "NeuronConfig", "choose", "lanes"]
