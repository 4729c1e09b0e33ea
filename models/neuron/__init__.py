"""The one-hot multi-level LIF neuron: description, definition, backends, module."""

from .config import NeuronConfig
from .dispatch import SUPPORTED as BACKENDS
from .dispatch import choose
from .module import MLIF
from .reference import lanes

__all__ = ["BACKENDS", "MLIF", "NeuronConfig", "choose", "lanes"]
