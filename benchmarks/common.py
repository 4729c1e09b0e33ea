"""Timing that others can trust: alternating rounds, a synchronised device, medians, quartiles."""

import argparse
import json
import os
import time

import torch

from engine.files import write_text
from engine.machine import device_name
from models.neuron.backends import compiled


def option_parser(name, title):
    """Parser of `python -m benchmarks.<name>` with the options that all tables share."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=title)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--no_compile",
        action="store_true",
        help="leave out what torch.compile has to compile",
    )
    parser.add_argument(
        "--out",
        default=f"runs/bench/{name}",
        help="stem of the files that are written",
    )
    return parser


def begin(args):
    """The device to measure on; None, and a line that says so, where there is no such device.

    Where torch.compile cannot run there, `args.no_compile` is set, and the reason told.
    """
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA GPU here")
        return None
    if device.type == "cuda" and device.index is not None:
        # events and memory are those of the current one
        torch.cuda.set_device(device)
    reason = compiled.why_not(device, torch.float32)
    if reason and not args.no_compile:
        print(f"not measured compiled: {reason}")
        args.no_compile = True
    return device


def machine(device):
    """{"machine": ..., "torch": ..., "threads": ..., "load": ...} of the device."""
    return {
        "machine": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # of the last minute
    }


def alternate(runs, repeats, device, warmup=2, queued=False):
    """{name: [seconds]} of every function in `runs`.

    Each round runs all of them once, so that whatever else the machine does meets them all; the
    first rounds warm up.

    queued: a GPU is kept busy first, while the host queues the run: kernels alone are timed.
    """
    # A GPU works on after a call returns: its own clock tells how long the kernels took.
    clock = _event_seconds if device.type == "cuda" else _clock_seconds
    seconds = {name: [] for name in runs}
    for repeat in range(repeats + warmup):
        for name, run in runs.items():
            taken = clock(run, queued)
            if repeat >= warmup:
                seconds[name].append(taken)
    return seconds


def _clock_seconds(run, queued):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _event_seconds(run, queued):
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    if queued:
        torch.cuda._sleep(20_000_000)  # cycles, about 10 ms
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3  # milliseconds


def summary(values):
    """[median, lower quartile, upper quartile]"""
    wide = torch.tensor(values, dtype=torch.float64)
    return [wide.quantile(share).item() for share in (0.5, 0.25, 0.75)]


def milliseconds(seconds):
    """{"ms": median, "low_ms": lower quartile, "high_ms": upper quartile}"""
    middle, low, high = summary(seconds)
    return {
        "ms": middle * 1e3,
        "low_ms": low * 1e3,
        "high_ms": high * 1e3,
    }


def ratio(of, to):
    """[median, lower quartile, upper quartile] of the rounds' ratios."""
    rounds = zip(of, to, strict=True)
    return summary([a / b for a, b in rounds])


def write(path, where, rows):
    """The JSON file of a table: {**where, "rows": rows}."""
    content = {**where, "rows": rows}
    write_text(path, json.dumps(content, indent=1) + "\n")
