"""Backend `cupy`: kernels/mlif.cu compiled by NVRTC and launched through CuPy, on torch's stream.

CuPy's own device context is never entered: leaving it would reset the device that torch works on
(and break DDP).
"""

from functools import cache, lru_cache

import numpy as np
import torch

from .source import STORAGE, CudaSource, text

BLOCK = 128  # threads
# Without --fmad=false a product and a sum are rounded together, not as in the definition.
OPTIONS = ("--std=c++17", "--fmad=false")


@lru_cache
def _missing():
    """Why CuPy cannot be used here, or None."""
    cuda = torch.version.cuda
    if cuda is None:
        return "this torch was built without CUDA: install a CUDA build of torch"
    major = cuda.split(".")[0]
    wheel = f"cupy-cuda{major}x"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy is missing ({error}): pip install {wheel}"
    built = cupy.cuda.runtime.runtimeGetVersion() // 1000
    if built != int(major):
        return (
            f"the installed CuPy is built for CUDA {built}, torch for {cuda}: pip install {wheel}"
        )
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # its loader raises errors of several kinds
        return f"CuPy finds no NVRTC ({type(error).__name__}): pip install '{wheel}[ctk]'"
    return None


def why_not(device, dtype):
    """Reason why this backend cannot run there, or None."""
    if device.type != "cuda":
        return f"it runs on a CUDA GPU, the tensor is on {device}"
    return f"it has no {dtype} kernel" if dtype not in STORAGE else _missing()


@cache
def _kernel(variant, name, index):
    """Compiled for device `index`, which is the current one."""
    import cupy

    options = (*OPTIONS, *variant.options())
    module = cupy.RawModule(code=text(), options=options, backend="nvrtc")
    return module.get_function(f"mlif_{name}")


class CuPy(CudaSource):
    """Launches on the current stream of the tensors' device."""

    def launch(self, variant, kernel, threads, values, device):
        import cupy

        with torch.cuda.device(device):
            stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
            blocks = -(-threads // BLOCK)
            run = _kernel(variant, kernel, torch.cuda.current_device())
            arguments = tuple(map(np.int64, values))
            run((blocks,), (BLOCK,), arguments, stream=stream)


_launcher = CuPy()
forward, backward = _launcher.forward, _launcher.backward
