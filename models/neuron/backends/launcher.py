"""What the kernels in CUDA and in Triton share: compile-time constants, tensors, partial sums."""

import torch


def constants(config):
    """{NAME: value} of a neuron; RESET and SURROGATE are its words, all else is a number."""
    first_inner = min(1, config.levels - 1)  # with one lane there is none, and it is not used
    parameters = config.surrogate_parameters.items()
    return {
        "LEVELS": config.levels,
        "ONE_HOT": int(config.one_hot),
        "INCLUSIVE": int(config.inclusive),
        "RESET": config.reset,
        "DETACH": int(config.detach_reset),
        "GAIN": config.gain,
        "INPUT_GAIN": float(config.input_gain),
        "SURROGATE": config.surrogate,
        "RELATIVE": int(config.relative),
        "INNER": config.slopes[first_inner],
        # the source divides by them
        **{name.upper(): float(value) for name, value in parameters},
    }


class Launcher:
    """The two functions of a backend (see `function.py`) over two kernels that `run` launches."""

    def programs(self, x):
        """How many partial sums of the gradients of theta and leak the backward writes."""
        raise NotImplementedError

    def run(self, kernel, config, x, v, state, tensors):
        """Launch `kernel`, "forward" or "backward".

        Args:
            x: [T, n]. v: [n] or None. state: the potential after the last step matters.
            tensors: the kernel's arguments between x and its step stride, and n; some are None.
        """
        raise NotImplementedError

    def forward(
        self,
        x,
        theta,
        leak,
        v,
        config,
        want_state,
    ):
        o = torch.empty_like(x, memory_format=torch.contiguous_format)
        last = None
        if want_state:
            last = torch.empty_like(x[0], dtype=theta.dtype)
        tensors = [theta, leak, v, o, last]
        self.run("forward", config, x, v, want_state, tensors)
        return o, last

    def backward(
        self,
        x,
        g,
        theta,
        leak,
        v,
        g_last,
        config,
    ):
        gx = torch.empty_like(g)
        gv = None if v is None else torch.empty_like(v)
        count = self.programs(x)
        partial = theta.new_empty((count, 2))  # sums of the gradients of theta, leak
        tensors = [g, theta, leak, v, g_last, gx, gv, partial]
        state = g_last is not None
        self.run("backward", config, x, v, state, tensors)
        # Added up in one order, wide: the same result at every run, for any number of neurons.
        d_theta, d_leak = partial.sum(0, dtype=torch.float64)
        return gx, gv, d_theta, d_leak
