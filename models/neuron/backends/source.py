"""The kernels of `kernels/mlif.cu` for whoever compiles and launches them: flags, arguments, partial sums."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from ..config import NeuronConfig

FOLDER = Path(__file__).parent / "kernels"
STORAGE = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_STEPS = 16  # unrolled; longer sequences are cut (see dispatch.py)


@dataclass(frozen=True)
class Variant:
    """One compilation: the neuron, T, x's dtype, whether a potential comes in (has_v) and goes out (state), tile shape."""

    config: NeuronConfig
    steps: int
    dtype: torch.dtype
    has_v: bool
    state: bool
    tile: int
    packed: bool

    def flags(self):
        """{macro: value} of the compilation."""
        c = self.config
        return {
            "REAL": "double" if self.dtype == torch.float64 else "float",
            "STORAGE": STORAGE[self.dtype],
            "STEPS": self.steps,
            "TILE": self.tile,
            "PACKED": int(self.packed),
            "LEVELS": c.levels,
            "ONE_HOT": int(c.one_hot),
            "INCLUSIVE": int(c.inclusive),
            "RESET": ("soft", "soft_theta", "hard").index(c.reset),
            "DETACH": int(c.detach_reset),
            "GAIN": c.gain,
            "INPUT_GAIN": c.input_gain,
            "SIGMOID": int(c.surrogate == "sigmoid"),
            "RELATIVE": int(c.relative),
            "GAMMA": c.gamma,
            "ALPHA": c.alpha if c.relative else c.alpha * c.gain,
            "INNER": c.slopes[-1],
            "HAS_V": int(self.has_v),
            "STATE": int(self.state),
        }

    def options(self):
        """The flags as compiler options."""
        return [f"-D{name}={value}" for name, value in self.flags().items()]


@lru_cache
def text(name="mlif.cu"):
    """Source text of a kernel file."""
    return (FOLDER / name).read_text(encoding="utf-8")


class Launcher:
    """The two functions of a backend (see `function.py`) over `launch`.

    launch(variant, kernel, threads, values, device) runs the kernel on at least `threads` threads; every value is the
    address of a tensor (0: none) or an integer, 64 bits wide.
    """

    warp = 32

    def tile(self, steps, dtype):
        """Neurons per thread: accesses of 16 bytes, narrower where the T potentials of each would fill the registers."""
        return max(1, min(16 // dtype.itemsize, 2 ** ((24 // steps).bit_length() - 1)))

    def launch(self, variant, kernel, threads, values, device):
        raise NotImplementedError

    def _run(self, kernel, x, state, v, config, tensors, others):
        steps, n = x.shape
        tile = self.tile(steps, x.dtype)
        packed = tile * x.dtype.itemsize <= 16
        variant = Variant(config, steps, x.dtype, v is not None, state, tile, packed)
        aligned = (
            packed
            and n % tile == 0
            and all(t.data_ptr() % (tile * t.itemsize) == 0 for t in others)
        )
        values = [
            x.data_ptr(),
            x.stride(0),
            *(0 if t is None else t.data_ptr() for t in tensors),
            n,
            int(aligned),
        ]
        self.launch(variant, kernel, -(-n // tile), values, x.device)

    def forward(self, x, theta, leak, v, config, want_state):
        o = torch.empty_like(x, memory_format=torch.contiguous_format)
        last = torch.empty_like(x[0], dtype=theta.dtype) if want_state else None
        self._run("forward", x, want_state, v, config, (theta, leak, v, o, last), (x, o))
        return o, last

    def backward(self, x, g, theta, leak, v, g_last, config):
        steps, n = x.shape
        gx, gv = torch.empty_like(g), None if v is None else torch.empty_like(v)
        warps = -(-n // (self.tile(steps, x.dtype) * self.warp))
        partial = torch.empty((warps, 2), dtype=theta.dtype, device=x.device)
        self._run(
            "backward",
            x,
            g_last is not None,
            v,
            config,
            (g, theta, leak, v, g_last, gx, gv, partial),
            (x, g, gx),
        )
        return gx, gv, *partial.sum(0, dtype=torch.float64)
