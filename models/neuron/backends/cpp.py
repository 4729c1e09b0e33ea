"""Backend `cpp`: kernels/mlif.cu compiled for this CPU, at the first use of a variant, and run on torch's threads.

Libraries are kept in $XDG_CACHE_HOME/mlif (else ~/.cache/mlif), named by a hash of source, flags, compiler and processor.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch

from .source import FOLDER, MAX_STEPS, STORAGE, Launcher, text  # noqa: F401  (MAX_STEPS is read by dispatch)

OPTIONS = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-fno-tree-vrp",
    "-fopenmp",
    "-w",
    "-shared",
    "-fPIC",
]  # g++ 12's value ranges turn selects back into branches
GRAIN = 1 << 15  # neurons that are worth a thread


def compiler():
    """Path of the C++ compiler: $CXX, else g++ or clang++ on the PATH, else None."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


@lru_cache
def cache_folder():
    """Where libraries are kept; if that is not writable, a folder of this process alone."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlif"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # read-only, or no home
        return Path(tempfile.mkdtemp(prefix="mlif-"))


@lru_cache
def _machine():
    """What a library is good for: this compiler on this processor."""
    info = Path("/proc/cpuinfo")
    features = (
        [
            line
            for line in info.read_text().splitlines()
            if line.startswith(("model name", "flags"))
        ][:2]
        if (info.exists())
        else []
    )
    version = subprocess.run(
        [compiler(), "--version"], capture_output=True, text=True, check=False
    ).stdout
    return "\n".join([platform.platform(), platform.processor(), version, *features])


def compile_library(variants):
    """Path of the shared library with `launch_forward_k` and `launch_backward_k` for the k-th variant.

    Raises:
        RuntimeError: there is no compiler, or it fails; the message ends with its first error.
    """
    if compiler() is None:
        raise RuntimeError(
            "no C++ compiler found: install g++ (Debian: apt install g++) or set CXX"
        )
    parts = [text("shim.h")]
    for k, variant in enumerate(variants):
        flags = variant.flags()
        parts += [
            f"namespace variant_{k} {{",
            *(f"#define {name} {value}" for name, value in flags.items()),
            text(),
            "}",
            *(f"#undef {name}" for name in flags),
        ]
        parts += [
            f'extern "C" void launch_{kernel}_{k}(long long grid, long long block, int threads, const long long *args) '
            f"{{ launch(variant_{k}::mlif_{kernel}, grid, block, threads, args); }}"
            for kernel in ("forward", "backward")
        ]
    program, command = "\n".join(parts), [compiler(), *OPTIONS]
    key = hashlib.sha256("\n".join([program, *command, _machine()]).encode()).hexdigest()[:24]
    path = cache_folder() / f"{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            source, library = Path(folder) / "mlif.cpp", Path(folder) / "mlif.so"
            source.write_text(program, encoding="utf-8")
            done = subprocess.run(
                [*command, str(source), "-o", str(library)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                errors = [
                    line for line in done.stderr.splitlines() if "error" in line
                ] or done.stderr.splitlines()
                raise RuntimeError(
                    f"{compiler()} cannot compile {FOLDER / 'mlif.cu'}: {(errors or ['no message'])[0]}"
                )
            library.replace(path)
    return path


_functions = {}  # (variant, kernel) -> its launcher


def prepare(variants):
    """Compile and load many variants at once, which takes a fraction of the time of one by one."""
    parts = [variants[start : start + 64] for start in range(0, len(variants), 64)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part, path in zip(parts, pool.map(compile_library, parts), strict=True):
            library = ctypes.CDLL(str(path))
            _functions.update(
                {
                    (variant, kernel): getattr(library, f"launch_{kernel}_{k}")
                    for k, variant in enumerate(part)
                    for kernel in ("forward", "backward")
                }
            )


class Cpp(Launcher):
    """Launches on torch's threads. A CPU vectorises over a tile, and a tile's potentials stay in its first cache."""

    warp = block = 1

    def tile(self, steps, dtype):
        return 128

    def launch(self, variant, kernel, threads, values, device):
        workers = min(torch.get_num_threads(), -(-threads * variant.tile // GRAIN))
        arguments = (ctypes.c_longlong * len(values))(*values)
        if (variant, kernel) not in _functions:
            prepare([variant])
        _functions[variant, kernel](
            ctypes.c_longlong(-(-threads // self.block)),
            ctypes.c_longlong(self.block),
            ctypes.c_int(workers),
            arguments,
        )


@lru_cache
def _broken():
    """Why not even an empty program can be compiled here, or None."""
    try:
        ctypes.CDLL(str(compile_library([])))
    except (RuntimeError, OSError) as error:
        return str(error)
    return None


def why_not(device, dtype):
    """Reason why this backend cannot run there, or None."""
    if device.type != "cpu":
        return f"it runs on a CPU, the tensor is on {device}"
    return f"it has no {dtype} kernel" if dtype not in STORAGE else _broken()


_launcher = Cpp()
forward, backward = _launcher.forward, _launcher.backward
