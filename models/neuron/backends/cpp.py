"""Backend `cpp`: kernels/mlif.cu compiled for this CPU when it is used, on torch's threads.

Libraries are kept in $XDG_CACHE_HOME/mlif (else ~/.cache/mlif), named by a hash of source, flags,
compiler and processor. Each ends with a digest of its bytes, since half a library would end the
process.
"""

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from .source import FOLDER, STORAGE, CudaSource, text

OPTIONS = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=off",  # every product and sum is rounded by itself, as in the definition
    "-fno-trapping-math",
    "-fno-math-errno",
    "-fno-tree-vrp",  # the value ranges of g++ 12 turn selects back into branches
    "-fopenmp",
    "-w",
    "-shared",
    "-fPIC",
]
KERNELS = ("forward", "backward")
GRAIN = 1 << 15  # neurons that are worth a thread
LEFT = 3600  # seconds after which a folder of the compiler has been left behind


def compiler():
    """The C++ compiler as words of a command: $CXX, else g++ or clang++ on the PATH, else None."""
    chosen = os.environ.get("CXX", "").strip()
    commands = [["g++"], ["c++"], ["clang++"]]
    if chosen:
        # a path with spaces, or several words as in `ccache g++`
        commands = [[chosen], chosen.split()]
    for name, *more in commands:
        path = shutil.which(name)
        if path:
            return [path, *more]
    return None


@lru_cache
def cache_folder():
    """Where libraries are kept; if that is not writable, a folder of this process alone."""
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(caches) / "mlif"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # read-only, or no home
        folder = tempfile.mkdtemp(prefix="mlif-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)


@lru_cache
def _machine():
    """What a library is good for: this compiler on this processor."""
    features = []
    info = Path("/proc/cpuinfo")
    if info.exists():
        # as x86 and as ARM name them; an empty line ends the first core
        wanted = ("model name", "flags", "Features", "CPU implementer", "CPU variant", "CPU part")
        first, _, _ = info.read_text().partition("\n\n")
        features = [line for line in first.splitlines() if line.startswith(wanted)]
    version = _output([*compiler(), "--version"]).stdout
    facts = [platform.platform(), platform.processor(), version, *features]
    return "\n".join(facts)


def _output(command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _program(variants, half):
    """C++ source with `launch_forward_k` and `launch_backward_k` for the k-th variant.

    half: with float16.
    """
    parts = ["#define HALF"] if half else []
    parts.append(text("shim.h"))
    for k, variant in enumerate(variants):
        flags = variant.flags()
        parts += [f"#define {name} {value}" for name, value in flags.items()]
        # The source comes once for each variant: namespaces keep the kernels apart.
        parts += [f"namespace variant_{k} {{", text(), "}"]
        parts += [f"#undef {name}" for name in flags]
        parts += [
            f'extern "C" void launch_{kernel}_{k}'
            "(long long grid, long long block, int threads, const long long *args) "
            f"{{ launch(variant_{k}::mlif_{kernel}, grid, block, threads, args); }}"
            for kernel in KERNELS
        ]
    return "\n".join(parts)


def _digest(content):
    return hashlib.sha256(content).digest()


def _whole(path):
    """Whether a library is there, byte for byte as it was built."""
    if not path.exists():
        return False
    content = path.read_bytes()
    size = hashlib.sha256().digest_size
    return _digest(content[:-size]) == content[-size:]


def _remove_left(folder):
    """Remove the folders of compilers that were killed."""
    for each in folder.glob(f"{tempfile.gettempprefix()}*"):
        with suppress(OSError):  # another process was quicker
            if time.time() - each.stat().st_mtime > LEFT:
                shutil.rmtree(each)


def compile_library(variants, half=False):
    """Path of the shared library of these variants' kernels (see `_program`).

    half: with float16 though no variant has it.
    Raises:
        RuntimeError: there is no compiler, or it fails; the message ends with its first error.
    """
    if compiler() is None:
        raise RuntimeError(
            "no C++ compiler found: install g++ (Debian: apt install g++) or set CXX"
        )
    half = half or any(variant.dtype == torch.float16 for variant in variants)
    program = _program(variants, half)
    command = [*compiler(), *OPTIONS]
    facts = "\n".join([program, *command, _machine()])
    key = hashlib.sha256(facts.encode()).hexdigest()
    path = cache_folder() / f"{key[:24]}.so"
    if _whole(path):
        return path

    _remove_left(path.parent)
    # Built beside and renamed, so that no other process ever loads half a library.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder) / "mlif.cpp"
        library = Path(folder) / "mlif.so"
        source.write_text(program, encoding="utf-8")
        done = _output([*command, str(source), "-o", str(library)])
        if done.returncode:
            lines = done.stderr.splitlines()
            errors = [line for line in lines if "error" in line]
            first = next(iter(errors or lines), "no message")
            raise RuntimeError(
                f"{shlex.join(compiler())} cannot compile {FOLDER / 'mlif.cu'}: {first}"
            )
        with library.open("ab") as file:
            file.write(_digest(library.read_bytes()))
        library.replace(path)
    return path


_functions = {}  # (variant, kernel) -> its launcher


def prepare(variants):
    """Compile and load variants as one library, which is quicker than one by one."""
    path = compile_library(variants)
    library = ctypes.CDLL(str(path))
    for k, variant in enumerate(variants):
        for kernel in KERNELS:
            function = getattr(library, f"launch_{kernel}_{k}")
            _functions[variant, kernel] = function


class Cpp(CudaSource):
    """Launches on torch's threads.

    A CPU vectorises over a tile, and a tile's potentials stay in its first cache.
    """

    warp = block = 1

    def tile(self, steps, dtype):
        return 128  # neurons: several vectors of any width

    def launch(self, variant, kernel, threads, values, device):
        if (variant, kernel) not in _functions:
            prepare([variant])
        run = _functions[variant, kernel]
        blocks = -(-threads // self.block)
        grains = -(-threads * variant.tile // GRAIN)
        workers = min(torch.get_num_threads(), grains)
        run(
            ctypes.c_longlong(blocks),
            ctypes.c_longlong(self.block),
            ctypes.c_int(workers),
            (ctypes.c_longlong * len(values))(*values),  # an array
        )


@lru_cache
def _broken(half):
    """Why not even an empty program can be compiled here, or None; half: one with float16."""
    try:
        ctypes.CDLL(str(compile_library([], half)))
    except (RuntimeError, OSError) as error:
        return str(error)
    return None


def why_not(device, dtype):
    """Reason why this backend cannot run there, or None."""
    if device.type != "cpu":
        return f"it runs on a CPU, the tensor is on {device}"
    if dtype not in STORAGE:
        return f"it has no {dtype} kernel"
    return _broken(dtype == torch.float16)


_launcher = Cpp()
forward, backward = _launcher.forward, _launcher.backward
