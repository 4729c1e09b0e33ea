"""Training step of the SNN (S = 3, T = 1) against the ANN of the same network, both without batch norm.

python -m benchmarks.step            (part of `make bench`)

Times alternate in one process, medians of several; peak memory is the high-water mark of a fresh process for each.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import models


def step_of(name, kind, batch, width, levels, steps):
    """A function that does one training step of the network, and its optimizer's parameters count."""
    torch.manual_seed(0)
    act = models.ReLU() if kind == "ann" else models.Spiking(models.NeuronConfig.vgg(levels), steps)
    net = models.build(name, act, width_mult=width, bn=False).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))

    def step():
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def high_water():
    """High-water mark of this process in MiB."""
    status = Path("/proc/self/status")  # ru_maxrss would inherit the parent's
    lines = status.read_text().splitlines() if status.exists() else []
    kib = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    return (kib or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def peak_mib(arguments):
    """High-water marks in MiB of a fresh process: after five steps, and before the network is built."""
    command = [sys.executable, "-m", "benchmarks.step", "--peak", json.dumps(arguments)]
    return [float(v) for v in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "vgg16"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=float, default=1.0, help="factor of every layer's width")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peak", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        imports = high_water()
        step = step_of(*json.loads(args.peak))
        for _ in range(5):
            step()
        print(high_water(), imports)
        return
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"float32, batch {args.batch}, S={args.levels}, T={args.steps}, width x{args.width:g}, median of {args.repeats}")
    for name in args.networks:
        settings = {kind: (name, kind, args.batch, args.width, args.levels, args.steps) for kind in ("ann", "snn")}
        run = {kind: step_of(*settings[kind]) for kind in settings}
        seconds = {kind: [] for kind in run}
        for repeat in range(args.repeats + 2):  # the first two warm up
            for kind, step in run.items():
                start = time.perf_counter()
                step()
                if repeat > 1:
                    seconds[kind].append(time.perf_counter() - start)
        ratios = [s / a for a, s in zip(seconds["ann"], seconds["snn"], strict=True)]
        ann, snn = (statistics.median(seconds[kind]) for kind in ("ann", "snn"))
        memory = {kind: peak_mib(settings[kind]) for kind in settings}
        peak, own = ({kind: m[0] - m[1] * less for kind, m in memory.items()} for less in (0, 1))
        print(f"{name:<10} ANN {ann * 1e3:6.1f} ms {peak['ann']:5.0f} MiB   SNN {snn * 1e3:6.1f} ms {peak['snn']:5.0f} MiB   "
              f"time x{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})   "
              f"memory x{peak['snn'] / peak['ann']:.3f}, of the step alone x{own['snn'] / own['ann']:.3f}")



if __name__ == "__main__":
    main()
