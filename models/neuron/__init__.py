"""The one-hot multi-level LIF neuron: description, definition, backends, module."""

from .backends.dispatch import SUPPORTED as BACKENDS
from .backends.dispatch import choose
from .config import NeuronConfig
from .module import MLIF
from .reference import lanes

__all__ = ["BACKENDS", "MLIF", "NeuronConfig", "choose", "lanes"]
