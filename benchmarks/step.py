"""Training step of the SNN against the ANN and the LQ-ANN of the same network, all without batch norm; of the transformer
with M-LIF neurons against SpikingJelly's LIF.

python -m benchmarks.step                 this CPU, batch 32      (part of `make bench`; --no_compile takes a minute)
python -m benchmarks.step --device cuda   a GPU, batch 256, in bf16 also with CUDA graphs

Forward, loss, backward, clamped parameters and fused SGD on images that lie on the device. The steps of one comparison
alternate in one process; ratios are medians over the rounds [quartiles]. Peak memory: on a GPU the allocator's, on a CPU
the high-water mark of a fresh process for each, after five steps. Writes <out>.json.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import models
from cli import run
from engine.dist import World, fast_amp, keep_memory

from .common import alternate, machine, ratio, summary, write


def step_of(
    kind, name, batch, width, device, levels=3, steps=1, amp="none", mode="none", recompute=False
):
    """A function that does one training step of a network; kind: ann, lq, snn, or lif (of the transformer, `width` is its
    dim)."""
    torch.manual_seed(0)
    device = torch.device(device)
    if name == "sdt":
        from models.transformer import neurons

        act, sizes = (
            neurons("lif" if kind == "lif" else "mlif", 1 if kind == "lif" else levels, steps),
            {"dim": int(width)},
        )
    else:
        neuron, sizes = (
            models.NeuronConfig.vgg(levels),
            {"width_mult": width, "bn": False, "bias": True},
        )
        act = {
            "ann": models.ReLU(),
            "lq": models.LogQuant(3, "lvl"),
            "snn": models.Spiking(neuron, steps, theta=0.5),
        }[kind]
    net = run.place(models.build(name, act, **sizes), World(device=device))
    net.recompute = recompute
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, fused=True)
    images = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device=device)
    if kind == "lq":
        models.calibrate(net, [images])
    model = net if mode == "none" else torch.compile(net, mode=mode, dynamic=False)
    leaks = [site.leak for site in net.sites()] if kind == "snn" and name != "sdt" else []

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16"):
            out = model(images)
        F.cross_entropy(out.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            if leaks:
                torch._foreach_clamp_max_(leaks, 1.0)

    return step


def high_water():
    """High-water mark of this process in MiB."""
    status = Path("/proc/self/status")  # ru_maxrss would inherit the parent's
    lines = status.read_text().splitlines() if status.exists() else []
    kib = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    return (kib or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def peak(settings):
    """Peak memory of five steps in MiB: (in all, without what was there before the network)."""
    if settings["device"].startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        step = step_of(**settings)
        for _ in range(5):
            step()
        whole = torch.cuda.max_memory_allocated() / 2**20
        return whole - before, whole - before
    command = [sys.executable, "-m", "benchmarks.step", "--peak", json.dumps(settings)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    whole, before = map(float, done.stdout.split()[-2:])
    return whole, whole - before


def compare(title, base, others, args, memory=False):
    """Time `others` against `base` ({name: settings}); returns and prints rows."""
    torch.compiler.reset()
    base_name = next(iter(base))
    settings = base | others
    seconds = alternate(
        {name: step_of(**s) for name, s in settings.items()},
        args.repeats,
        torch.device(args.device),
        3,
    )
    rows = []
    print(f"\n{title}")
    for name, s in settings.items():
        middle, low, high = summary(seconds[name])
        row = {
            "comparison": title,
            **s,
            "network": s["name"],
            "name": name,
            "ms": middle * 1e3,
            "low_ms": low * 1e3,
            "high_ms": high * 1e3,
            "images_per_s": s["batch"] / middle,
            "seconds": seconds[name],
            "to": base_name,
            "ratio": ratio(seconds[name], seconds[base_name]),
        }
        if memory:
            row["peak_mib"], row["peak_own_mib"] = peak(s)
        rows.append(row)
        text = (
            f"  {name:<14} {row['ms']:8.1f} ms [{row['low_ms']:.1f} to {row['high_ms']:.1f}] "
            f"{row['images_per_s']:8.0f} images/s"
        )
        if name != base_name:
            text += "   x{:.3f} [{:.2f} to {:.2f}]".format(*row["ratio"])
        if memory:
            text += f"   peak {row['peak_mib']:.0f} MiB"
            if name != base_name:
                whole, own = (row[key] / rows[0][key] for key in ("peak_mib", "peak_own_mib"))
                text += f" x{whole:.2f} (step alone x{own:.2f})"
        print(text, flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--networks", nargs="+", default=["resnet20", "vgg16"], choices=("resnet20", "vgg16")
    )
    parser.add_argument(
        "--batch", type=int, default=0, help="images per step; default 32, on a GPU 256"
    )
    parser.add_argument("--width", type=float, default=1.0, help="factor of every layer's width")
    parser.add_argument("--dim", type=int, default=128, help="width of the transformer")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--amp",
        nargs="+",
        default=None,
        choices=("none", "bf16"),
        help="default: both, on a CPU without AVX-512, which emulates bf16, only none",
    )
    parser.add_argument(
        "--no_compile", action="store_true", help="leave out what torch.compile has to compile"
    )
    parser.add_argument(
        "--no_scaling", action="store_true", help="leave out S, T and the transformer"
    )
    parser.add_argument("--out", default="runs/bench/step", help="stem of the JSON file")
    parser.add_argument("--peak", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_memory()  # as the training scripts do
    if args.peak:
        before = high_water()
        step = step_of(**json.loads(args.peak))
        for _ in range(5):
            step()
        print(high_water(), before)
        return
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA GPU here")
        return
    where, rows = machine(device), []
    args.amp = args.amp or list(dict.fromkeys(["none", fast_amp(device)]))
    batch = args.batch or (256 if device.type == "cuda" else 32)
    print(
        f"{where['machine']}, torch {where['torch']}, batch {batch}, width x{args.width:g}, medians of {args.repeats} "
        f"[quartiles], neuron backend {models.choose('auto', device)}"
    )
    for name in args.networks:
        common = {"name": name, "batch": batch, "width": args.width, "device": args.device}
        for amp in args.amp:
            graphs = device.type == "cuda" and amp == "bf16"
            modes = (
                ["none"] if args.no_compile else ["none", "default"] + ["reduce-overhead"] * graphs
            )
            for mode in modes:
                kinds = {
                    kind: {"kind": kind, **common, "amp": amp, "mode": mode}
                    for kind in ("ann", "snn", "lq")
                }
                if mode != "none":
                    kinds.pop("lq")
                title = f"{name}, {'float32' if amp == 'none' else amp}, "
                title += "eager" if mode == "none" else f"compiled, {mode}"
                rows += compare(
                    f"{title}: SNN S=3 T=1 against ANN",
                    {"ANN": kinds["ann"]},
                    {{"snn": "SNN", "lq": "LQ-ANN"}[k]: s for k, s in kinds.items() if k != "ann"},
                    args,
                    memory=mode == "none" and amp == "none",
                )
        if not args.no_scaling:
            one = {"kind": "snn", **common}
            four = one | {"steps": 4}
            rows += compare(
                f"{name}, float32, eager: lanes",
                {"S=1": one | {"levels": 1}},
                {"S=4": one | {"levels": 4}},
                args,
            )
            rows += compare(
                f"{name}, float32, eager: timesteps",
                {"T=1": one},
                {"T=4": four, "T=4 --recompute": four | {"recompute": True}},
                args,
                memory=True,
            )
    if not args.no_scaling:
        for steps in (1, 4):
            base = {
                "kind": "lif",
                "name": "sdt",
                "batch": batch,
                "width": args.dim,
                "device": args.device,
                "steps": steps,
            }
            rows += compare(
                f"transformer-2-{args.dim}, float32, eager, T={steps}: M-LIF S=3 against SpikingJelly's LIF",
                {"LIF": base},
                {"M-LIF": base | {"kind": "snn"}},
                args,
            )
    write(f"{args.out}.json", {**where, "rows": rows})
    print(f"\nwritten: {args.out}.json")


if __name__ == "__main__":
    main()
