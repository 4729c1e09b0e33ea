"""MLIF: the neuron as a module, with SpikingJelly's multi-step interface."""

from math import isfinite

import torch
from torch import nn

from .backends import dispatch
from .config import NeuronConfig, check_positive
from .lanes import lanes

STEP_MODES = ("s", "m")


class MLIF(nn.Module):
    """Multi-level LIF neurons with one threshold and one leak per layer.

    Behaves as a SpikingJelly neuron: `step_mode` 'm' takes [T, ...], 's' takes one step [...]. The
    potential `v` is kept from call to call until `reset()` (or SpikingJelly's
    `functional.reset_net`), and is never part of the state_dict.

    Args:
        config: what the neuron is (levels, reset, surrogate ...).
        theta: initial threshold, > 0. leak: initial leak; 1 means none. Both are finite.
        learn_theta, learn_leak: whether they are parameters or buffers.
        step_mode, backend: can be set later as well.
        stateless: start every call from zero instead, as the networks here do.
    Raises:
        ValueError: theta or leak is out of range, or there is no such step mode or backend.
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
        check_positive("theta", theta)
        if not isfinite(leak):
            raise ValueError(f"leak must be finite, got {leak}")
        self.config = config or NeuronConfig()
        self._add("theta", theta, learn_theta)
        self._add("leak", leak, learn_leak)
        self.stateless = stateless
        self.step_mode = step_mode
        self.backend = backend
        self.v = None  # the potential [...] of one step; None: zero

    def _add(self, name, value, learn):
        tensor = torch.tensor(float(value))  # 0-dim
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    # What SpikingJelly's `functional` asks for and sets on every neuron of a network.

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
        return STEP_MODES

    @property
    def step_mode(self):
        return self._step_mode

    @step_mode.setter
    def step_mode(self, mode):
        if mode not in STEP_MODES:
            raise ValueError(f"step_mode must be 's' or 'm', got {mode!r}")
        self._step_mode = mode

    def _apply(self, fn, *args, **kwargs):
        # `.to(device)` takes the potential along; one without memory has nothing to take
        if self.v is not None:
            self.v = None if self.v.is_meta else fn(self.v)
        return super()._apply(fn, *args, **kwargs)

    def __getstate__(self):
        # a copy does not belong to the graph that the potential came from
        state = dict(super().__getstate__())
        if self.v is not None:
            state["v"] = self.v.detach()
        return state

    def reset(self):
        """Forget the potential."""
        self.v = None

    def detach(self):
        """Cut the potential from the graph of the steps before."""
        if self.v is not None:
            self.v = self.v.detach()

    def forward(self, x):
        """[T, ...] -> [T, ...] merged output ('m'), or [...] -> [...] ('s')."""
        multi = self.step_mode == "m"
        o, v = dispatch.mlif(
            x if multi else x[None],
            self.theta,
            self.leak,
            self.config,
            v=None if self.stateless else self.v,
            want_state=not self.stateless,
            backend=self.backend,
        )
        if not self.stateless:
            self.v = v
        return o if multi else o[0]

    def lanes(self, o):
        """View of a merged output [T, ...] as binary lanes [T, S, ...]."""
        return lanes(o, self.config)

    def extra_repr(self):
        return f"{self.config}, step_mode={self.step_mode}, backend={self.backend}"
