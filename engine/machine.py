"""The machine that this runs on: its names, and what makes it fast."""

import ctypes
import platform
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def processor():
    """What the processor is sold as."""
    info = Path("/proc/cpuinfo")
    # on Linux `platform` has its architecture alone
    lines = info.read_text().splitlines() if info.exists() else []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def fast_amp(device="auto"):
    """The faster autocast type of a device: bf16 on GPUs that have it and on CPUs with AVX-512.

    Else none: there bf16 is emulated and takes ten times as long as float32.
    """
    if str(device) != "cpu" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "none"
    return "bf16" if "AVX512" in torch.backends.cpu.get_cpu_capability() else "none"


def device_name(device):
    """What a torch device is sold as, a processor with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} {'thread' if threads == 1 else 'threads'}"


def keep_memory():
    """Have glibc keep what is freed on the CPU; elsewhere this does nothing.

    The next step asks for the same sizes again, and fetching the pages anew from the kernel costs
    up to a quarter of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # above these sizes (bytes) memory would go back to the kernel
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
