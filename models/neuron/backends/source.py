"""The kernels of `kernels/mlif.cu` for whoever compiles and launches them: flags and arguments."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from ..config import RESETS, SURROGATES, NeuronConfig
from .launcher import Launcher, constants

FOLDER = Path(__file__).parent / "kernels"
STORAGE = {
    torch.float32: 0,
    torch.float64: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
}
WIDEST_ACCESS = 16  # bytes that a GPU's thread reads or writes at once
POTENTIALS = 24  # of a thread that a GPU's registers hold


@dataclass(frozen=True)
class Variant:
    """One compilation of the kernels.

    Fields:
        config: the neuron. steps: T. dtype: of the current and the output. tile: neurons of a
        thread. has_v: a potential comes in. state: the last potential goes out.
    """

    config: NeuronConfig
    steps: int
    dtype: torch.dtype
    has_v: bool
    state: bool
    tile: int

    @property
    def packed(self):
        """A tile can be one wide access."""
        return self.tile * self.dtype.itemsize <= WIDEST_ACCESS

    def flags(self):
        """{macro: value} of the compilation."""
        return {
            **constants(self.config),
            # The preprocessor compares only numbers.
            "RESET": RESETS.index(self.config.reset),
            "SURROGATE": SURROGATES.index(self.config.surrogate),
            # The tensors.
            "REAL": "double" if self.dtype == torch.float64 else "float",
            "STORAGE": STORAGE[self.dtype],
            "STEPS": self.steps,
            "TILE": self.tile,
            "PACKED": int(self.packed),
            "HAS_V": int(self.has_v),
            "STATE": int(self.state),
        }

    def options(self):
        """The flags as compiler options."""
        flags = self.flags()
        return [f"-D{name}={value}" for name, value in flags.items()]


@lru_cache
def text(name="mlif.cu"):
    """Source text of a kernel file."""
    return (FOLDER / name).read_text(encoding="utf-8")


class CudaSource(Launcher):
    """Launches mlif.cu through `launch`."""

    warp = 32  # threads that write one partial sum together

    def tile(self, steps, dtype):
        """Neurons of a thread: one wide access, fewer where their T potentials fill registers."""
        fits = POTENTIALS // steps  # neurons
        power_of_two = 2 ** (fits.bit_length() - 1)
        return max(1, min(WIDEST_ACCESS // dtype.itemsize, power_of_two))

    def variant(self, config, steps, dtype, has_v, state):
        """The compilation for these tensors."""
        tile = self.tile(steps, dtype)
        return Variant(config, steps, dtype, has_v, state, tile)

    def programs(self, x):
        steps, n = x.shape
        neurons = self.tile(steps, x.dtype) * self.warp
        return -(-n // neurons)

    def launch(self, variant, kernel, threads, values, device):
        """Run `kernel` on at least `threads` threads.

        values: its arguments, 64 bits wide: addresses of tensors (0: none) and integers.
        """
        raise NotImplementedError

    def run(self, kernel, config, x, v, state, tensors):
        steps, n = x.shape
        variant = self.variant(config, steps, x.dtype, v is not None, state)
        addresses = [0 if each is None else each.data_ptr() for each in tensors]

        # Whole tiles of x and of what has its shape are read and written at once.
        aligned = variant.packed and n % variant.tile == 0
        access = variant.tile * x.itemsize  # bytes
        for each in (x, *tensors):
            if each is not None and each.shape == x.shape:
                aligned = aligned and each.data_ptr() % access == 0

        values = [
            x.data_ptr(),
            x.stride(0),
            *addresses,
            n,
            int(aligned),
        ]
        threads = -(-n // variant.tile)
        self.launch(variant, kernel, threads, values, x.device)
