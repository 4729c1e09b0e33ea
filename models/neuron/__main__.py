"""Which backends of the neuron run here, and why the others do not.

python -m models.neuron                 a table: backend x device, and what `auto` takes
python -m models.neuron --registers     compile kernels/mlif.cu for GPUs (none is needed) and count
                                        registers and spills
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from itertools import product
from pathlib import Path

import torch

from .backends import dispatch, source
from .backends.cupy import OPTIONS, CuPy
from .config import NeuronConfig

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ARCHITECTURES = [75, 80, 90, 100]  # sm_75 Turing, sm_80 Ampere, sm_90 Hopper, sm_100 Blackwell


def doctor():
    """Lines of the table."""
    lines = [f"torch {torch.__version__}"]
    for device, title in _devices().items():
        lines.append("")
        lines.append(f"{device} ({title}): auto takes {dispatch.choose('auto', device)}")
        for name in dispatch.BACKENDS:
            lines.append(f"  {name:<9} {_verdict(name, device)}")
    return lines


def _verdict(name, device):
    """The types for which a backend runs on a device, or why it does not."""
    runs = [dtype for dtype in DTYPES if dispatch.why_not(name, device, dtype) is None]
    if runs:
        return "runs: " + ", ".join(map(_short, runs))
    return f"no: {dispatch.why_not(name, device)}"


def _devices():
    """{device: what to call it}; a machine without a GPU is told what would run on one."""
    devices = {"cpu": "this CPU"}
    for i in range(torch.cuda.device_count()):
        devices[f"cuda:{i}"] = torch.cuda.get_device_name(i)
    if len(devices) == 1:
        devices["cuda"] = (
            "none is visible; with one, this is what would run"
            if torch.version.cuda
            else "none is visible, and this torch is built without CUDA"
        )
    return devices


def _short(dtype):
    return str(dtype).removeprefix("torch.")


def _nvcc(options, arch):
    """Log of nvcc and its assembler."""
    with tempfile.TemporaryDirectory() as folder:
        program = source.FOLDER / "mlif.cu"
        target = Path(folder) / "mlif.cubin"  # nobody needs it, but nvcc must write it
        command = ["nvcc", "-cubin", f"-arch=sm_{arch}"]
        command += ["-Xptxas", "-v", *options]
        command += [str(program), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvcc cannot compile mlif.cu for sm_{arch}: {done.stderr.strip()}")
    return done.stdout + done.stderr


def _nvrtc(options, arch):
    """Log of NVRTC and its assembler."""
    from cuda.bindings import nvrtc

    text = source.text().encode()
    _, program = nvrtc.nvrtcCreateProgram(text, b"mlif.cu", 0, [], [])
    options = [*options, f"--gpu-architecture=sm_{arch}", "--ptxas-options=-v"]
    encoded = [option.encode() for option in options]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)

    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size  # NVRTC writes into it
    nvrtc.nvrtcGetProgramLog(program, log)
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC cannot compile mlif.cu for sm_{arch}: {log.decode().strip()}")
    return log.decode()


def compilers():
    """{name: function (options, arch) -> log} of the CUDA compilers found here."""
    found = {}
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
        found["NVRTC"] = _nvrtc
    except (ImportError, RuntimeError):  # no bindings, or no library beside them
        pass
    if shutil.which("nvcc"):
        found["nvcc"] = _nvcc
    return found


def registers(compile_one, arch, config, steps, dtype):
    """{kernel: (registers per thread, bytes spilled)} for one variant."""
    variant = CuPy().variant(config, steps, dtype, False, False)  # no potential in or out
    log = compile_one([*OPTIONS, *variant.options()], arch)
    # The assembler names a kernel, then says what it spills, then how many registers it uses.
    kernels = re.findall(
        r"Compiling entry function '\w*mlif_(\w+)'"
        r".*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        log,
        flags=re.DOTALL,
    )
    counts = {}
    for kernel, stores, loads, used in kernels:
        counts[kernel] = int(used), int(stores) + int(loads)
    return counts


def report_registers():
    """Print the registers of two neurons for all architectures.

    Raises:
        SystemExit: there is no CUDA compiler here.
    """
    found = compilers()
    if not found:
        raise SystemExit(
            "no CUDA compiler: pip install nvidia-cuda-nvrtc cuda-bindings, or put nvcc on the PATH"
        )
    name, compile_one = next(iter(found.items()))
    print(f"{name}: registers per thread (bytes spilled), forward | backward")
    neurons = {
        "ResNet20, VGG16": NeuronConfig.vgg(),
        "transformer": NeuronConfig.transformer(),
    }
    dtypes = [torch.float32, torch.bfloat16]  # float16 takes as many registers as bfloat16
    for title, dtype, steps in product(neurons, dtypes, [1, 4, 8, 16]):
        cells = []
        for arch in ARCHITECTURES:
            counts = registers(compile_one, arch, neurons[title], steps, dtype)
            forward = "{} ({})".format(*counts["forward"])
            backward = "{} ({})".format(*counts["backward"])
            cells.append(f"sm_{arch} {forward} | {backward}")
        row = f"{title:<16} {_short(dtype):<9} T={steps:<3} " + "   ".join(cells)
        print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m models.neuron", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--registers",
        action="store_true",
        help="compile the CUDA kernels and report registers and spills",
    )
    if parser.parse_args().registers:
        report_registers()
    else:
        print("\n".join(doctor()))


if __name__ == "__main__":
    main()
