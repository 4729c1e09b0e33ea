"""Which backends of the neuron run here, and why the others do not.

python -m models.neuron                 a table: backend x device, and what `auto` takes
python -m models.neuron --registers     compile kernels/mlif.cu for GPUs (none is needed) and count registers and spills
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import torch

from .backends import dispatch, source
from .backends.cupy import OPTIONS, CuPy
from .config import NeuronConfig

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ARCHITECTURES = (75, 80, 90, 100)


def doctor():
    """Lines of the table."""
    devices = {"cpu": "this CPU"} | {
        f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
    }
    if len(devices) == 1:
        devices["cuda"] = (
            "none is visible; with one, this is what would run"
            if torch.version.cuda
            else ("none is visible, and this torch is built without CUDA")
        )
    lines = [f"torch {torch.__version__}"]
    for device, title in devices.items():
        lines += ["", f"{device} ({title}): auto takes {dispatch.choose('auto', device)}"]
        for name in dispatch.BACKENDS:
            reasons = {dtype: dispatch.why_not(name, device, dtype) for dtype in DTYPES}
            runs = [str(dtype).removeprefix("torch.") for dtype in DTYPES if reasons[dtype] is None]
            lines.append(
                f"  {name:<9} {'runs: ' + ', '.join(runs) if runs else 'no: ' + reasons[torch.float32]}"
            )
    return lines


def _nvcc(options, arch):
    """Log of nvcc and its assembler."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "nvcc",
            "-cubin",
            f"-arch=sm_{arch}",
            "-Xptxas",
            "-v",
            *options,
            str(source.FOLDER / "mlif.cu"),
            "-o",
            str(Path(folder) / "mlif.cubin"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvcc cannot compile mlif.cu for sm_{arch}: {done.stderr.strip()}")
    return done.stdout + done.stderr


def _nvrtc(options, arch):
    """Log of NVRTC and its assembler."""
    from cuda.bindings import nvrtc

    def check(result, *rest):
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            _, size = nvrtc.nvrtcGetProgramLogSize(program)
            log = b" " * size
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(
                f"NVRTC cannot compile mlif.cu for sm_{arch}: {log.decode().strip()}"
            )
        return rest[0] if rest else None

    program = None
    program = check(*nvrtc.nvrtcCreateProgram(source.text().encode(), b"mlif.cu", 0, [], []))
    options = [
        option.encode()
        for option in (*options, f"--gpu-architecture=sm_{arch}", "--ptxas-options=-v")
    ]
    check(*nvrtc.nvrtcCompileProgram(program, len(options), options))
    log = b" " * check(*nvrtc.nvrtcGetProgramLogSize(program))
    check(*nvrtc.nvrtcGetProgramLog(program, log))
    return log.decode()


def compilers():
    """{name: function (options, arch) -> log} of the CUDA compilers found here."""
    found = {}
    try:
        import cuda.bindings.nvrtc as nvrtc

        nvrtc.nvrtcVersion()
        found["NVRTC"] = _nvrtc
    except (ImportError, RuntimeError):
        pass
    try:
        subprocess.run(["nvcc", "--version"], capture_output=True, check=True)
        found["nvcc"] = _nvcc
    except (OSError, subprocess.CalledProcessError):
        pass
    return found


def registers(compile_one, arch, config, steps, dtype):
    """{kernel: (registers per thread, bytes spilled)} for one variant."""
    tile = CuPy().tile(steps, dtype)
    variant = source.Variant(config, steps, dtype, False, False, tile, True)
    log = compile_one([*OPTIONS, *variant.options()], arch)
    result, kernel = {}, None
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel, spilled = found[1].removeprefix("mlif_"), 0
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(found[1]) + int(found[2])
        elif kernel and (found := re.search(r"Used (\d+) registers", line)):
            result[kernel] = int(found[1]), spilled
    return result


def main():
    parser = argparse.ArgumentParser(
        prog="python -m models.neuron", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--registers",
        action="store_true",
        help="compile the CUDA kernels and report registers and spills",
    )
    if not parser.parse_args().registers:
        print("\n".join(doctor()))
        return
    found = compilers()
    if not found:
        raise SystemExit(
            "no CUDA compiler: pip install nvidia-cuda-nvrtc cuda-bindings, or put nvcc on the PATH"
        )
    name, compile_one = next(iter(found.items()))
    print(f"{name}: registers per thread (bytes spilled), forward | backward")
    for title, config in (
        ("ResNet20, VGG16", NeuronConfig.vgg()),
        ("transformer", NeuronConfig.transformer()),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            for steps in (1, 4, 8, 16):
                cells = []
                for arch in ARCHITECTURES:
                    counts = registers(compile_one, arch, config, steps, dtype)
                    cells.append(
                        f"sm_{arch} "
                        + " | ".join(
                            "{} ({})".format(*counts[kernel]) for kernel in ("forward", "backward")
                        )
                    )
                print(
                    f"{title:<16} {str(dtype).removeprefix('torch.'):<9} T={steps:<3} "
                    + "   ".join(cells),
                    flush=True,
                )


if __name__ == "__main__":
    main()
