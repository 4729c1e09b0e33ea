"""MLIF: the neuron as a module, with SpikingJelly's multi-step interface."""

import torch
from torch import nn

from .backends import dispatch
from .config import NeuronConfig
from .reference import lanes


class MLIF(nn.Module):
    """Multi-level LIF neurons with one threshold and one leak per layer.

    Behaves as a SpikingJelly neuron: `step_mode` 'm' takes [T, ...], 's' takes one step [...]; the potential `v` is
    kept from call to call until `reset()` (or `spikingjelly.activation_based.functional.reset_net`), and is never part
    of the state_dict. `stateless=True` starts every call from zero instead, as the networks here do.

    Args:
        config: what the neuron is (levels, reset, surrogate ...).
        theta: initial threshold, > 0; leak: initial leak (1: none). learn_theta, learn_leak: parameters or buffers.
    Raises:
        ValueError: theta is not positive.
    """

    def __init__(
        self,
        config=None,
        theta=1.0,
        leak=1.0,
        learn_theta=True,
        learn_leak=True,
        step_mode="m",
        backend="auto",
        stateless=False,
    ):
        super().__init__()
        if not theta > 0:
            raise ValueError(f"theta must be positive, got {theta}")
        self.config = config if config is not None else NeuronConfig()
        for name, value, learn in (("theta", theta, learn_theta), ("leak", leak, learn_leak)):
            tensor = torch.tensor(float(value))
            self.register_parameter(name, nn.Parameter(tensor)) if learn else self.register_buffer(
                name, tensor
            )
        self.stateless = stateless
        self.step_mode, self.backend = step_mode, backend
        self.v = None

    @property
    def supported_backends(self):
        return dispatch.SUPPORTED

    @property
    def backend(self):
        return self._backend

    @backend.setter
    def backend(self, name):
        self._backend = dispatch.known(name)

    def supported_step_mode(self):
        return "s", "m"

    @property
    def step_mode(self):
        return self._step_mode

    @step_mode.setter
    def step_mode(self, mode):
        if mode not in ("s", "m"):
            raise ValueError(f"step_mode must be 's' or 'm', got {mode!r}")
        self._step_mode = mode

    def reset(self):
        """Forget the potential."""
        self.v = None

    def detach(self):
        """Cut the potential from the graph of the steps before."""
        self.v = None if self.v is None else self.v.detach()

    def forward(self, x):
        """[T, ...] -> [T, ...] merged output ('m'), or [...] -> [...] ('s')."""
        sequence = x if self.step_mode == "m" else x[None]
        v = None if self.stateless else self.v
        o, v = dispatch.mlif(
            sequence, self.theta, self.leak, self.config, v, not self.stateless, self.backend
        )
        if not self.stateless:
            self.v = v
        return o if self.step_mode == "m" else o[0]

    def lanes(self, o):
        """View of a merged output [T, ...] as binary lanes [T, S, ...]."""
        return lanes(o, self.config)

    def extra_repr(self):
        return f"{self.config}, step_mode={self.step_mode}, backend={self.backend}"
