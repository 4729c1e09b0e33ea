"""The one-hot multi-level LIF neuron: description, definition, backends, module."""

from .config import NeuronConfig
from .module import MLIF
from .reference import lanes

__all__ = ["MLIF", "NeuronConfig", "lanes"]
