"""Timing that others can trust: alternating rounds, a synchronised device, medians with quartiles."""

import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch


def machine(device):
    """{"machine": ..., "torch": ..., "threads": ...} of the device that is measured."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), name
        )
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{name}, {torch.get_num_threads()} threads"
    )
    return {
        "machine": where,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


def alternate(runs, repeats, device, warmup=2, queued=False):
    """{name: [seconds]} of every function in `runs`; each round runs all of them once, the first rounds warm up.

    queued: a GPU is kept busy for about 10 ms first, in which the host queues the run, so that kernels alone are timed.
    """
    seconds = {name: [] for name in runs}
    for repeat in range(repeats + warmup):
        for name, run in runs.items():
            if device.type == "cuda":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                if queued:
                    torch.cuda._sleep(20_000_000)
                begin.record()
                run()
                end.record()
                torch.cuda.synchronize(device)
                taken = begin.elapsed_time(end) / 1e3
            else:
                start = time.perf_counter()
                run()
                taken = time.perf_counter() - start
            if repeat >= warmup:
                seconds[name].append(taken)
    return seconds


def summary(values):
    """(median, lower quartile, upper quartile)"""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def ratio(of, to):
    """(median, lower quartile, upper quartile) of the rounds' ratios."""
    return summary([a / b for a, b in zip(of, to, strict=True)])


def write(path, content):
    """JSON, written beside and renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
