"""Training step of the SNN against the ANN and the LQ-ANN of a network, all without batch norm.

And of the transformer with M-LIF neurons against SpikingJelly's LIF.

python -m benchmarks.step                 this CPU, batch 32 (part of `make bench`; with
                                          --no_compile it takes a minute)
python -m benchmarks.step --device cuda   a GPU, batch 256, in bf16 also with CUDA graphs

Forward, loss, backward, clamped parameters and fused SGD on images that lie on the device. The
steps of one comparison alternate in one process; ratios are medians over the rounds [quartiles].
Peak memory: on a GPU the allocator's, on a CPU the high-water mark of a fresh process for each,
after five steps. Writes <out>.json.
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
from engine.dist import World
from engine.machine import fast_amp, keep_memory

from .common import alternate, begin, machine, milliseconds, option_parser, ratio, write

WARMUP = 3  # rounds
PEAK_STEPS = 5


def activation(kind, name, levels, steps):
    """What makes a network an ann, lq, snn or (the transformer alone) lif."""
    if kind == "ann":
        return models.ReLU()
    if kind == "lq":
        return models.LogQuant(3, "lvl")
    if name != "sdt":
        neuron = models.NeuronConfig.vgg(levels)
        return models.Spiking(neuron, steps, theta=0.5)

    from models import transformer

    if kind == "lif":
        return transformer.activation("lif", 1, steps)
    return transformer.activation("mlif", levels, steps)


def step_of(
    kind,
    name,
    batch,
    width,
    device,
    levels=3,
    steps=1,
    amp="none",
    mode="none",
    recompute=False,
):
    """A function that does one training step of a network.

    Args:
        kind: see `activation`. name: of the network.
        width: factor of the layers' widths; of the transformer its dim.
        device: its name. levels, steps: S and T.
        amp: none or bf16. mode: of torch.compile, or none.
        recompute: compute activations again in the backward.
    """
    torch.manual_seed(0)
    device = torch.device(device)
    # As after fusing: no batch norm, but biases.
    sizes = {"width_mult": width, "bn": False, "bias": True}
    if name == "sdt":
        sizes = {"dim": width}
    act = activation(kind, name, levels, steps)
    net = models.build(name, act, **sizes)
    net = World(device=device).place(net)
    net.recompute = recompute
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, fused=True)

    images = torch.randn(batch, 3, 32, 32, device=device)  # of CIFAR's size
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device=device)
    if kind == "lq":  # its quantisers refuse to run without a range
        models.calibrate(net, [images])
    model = net
    if mode != "none":
        model = torch.compile(net, mode=mode, dynamic=False)
    leaks = []  # that training clamps
    if kind == "snn" and name != "sdt":
        leaks = [site.leak for site in net.sites()]
    bf16 = amp == "bf16"

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = model(images)
        F.cross_entropy(out.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # a leak is at most 1
            if leaks:
                torch._foreach_clamp_max_(leaks, 1.0)

    return step


def several(settings):
    """Take the steps after which memory is read."""
    step = step_of(**settings)
    for _ in range(PEAK_STEPS):
        step()


def high_water():
    """High-water mark of this process in MiB."""
    status = Path("/proc/self/status")  # ru_maxrss would inherit the parent's
    text = status.read_text() if status.exists() else ""
    _, _, mark = text.partition("VmHWM:")
    if mark:
        return int(mark.split()[0]) / 1024  # KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def say_peak(settings):
    """Print (MiB after the steps, MiB before): what `peak` asks a fresh process for."""
    before = high_water()
    several(settings)
    print(high_water(), before)


def peak(settings):
    """Peak memory of five steps in MiB: (in all, without what was there before the network)."""
    if settings["device"].startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        several(settings)
        own = (torch.cuda.max_memory_allocated() - before) / 2**20
        return own, own
    # A process's mark never falls, so that each network needs a process of its own.
    command = [sys.executable, "-m", "benchmarks.step", "--peak", json.dumps(settings)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    *_, whole, before = map(float, done.stdout.split())
    return whole, whole - before


def compare(title, contenders, memory, args):
    """Time {name: settings} against the first of them; returns and prints rows."""
    torch.compiler.reset()  # what was compiled before must not fill the recompile limit
    steps = {name: step_of(**settings) for name, settings in contenders.items()}
    device = torch.device(args.device)
    seconds = alternate(steps, args.repeats, device, WARMUP)
    base = next(iter(contenders))
    rows = []
    print(f"\n{title}")
    for name, settings in contenders.items():
        taken = seconds[name]
        times = milliseconds(taken)
        row = {
            "comparison": title,
            **settings,
            "network": settings["name"],
            "name": name,
            **times,
            "images_per_s": settings["batch"] / times["ms"] * 1e3,
            "seconds": taken,
            "to": base,
            "ratio": ratio(taken, seconds[base]),
        }
        if memory:
            row["peak_mib"], row["peak_own_mib"] = peak(settings)
        rows.append(row)
        print(line(row, rows[0]), flush=True)
    return rows


def line(row, base):
    """What is printed of a row beside the row that it is compared with."""
    compared = row is not base
    text = (
        f"  {row['name']:<14} {row['ms']:8.1f} ms [{row['low_ms']:.1f} to {row['high_ms']:.1f}] "
        f"{row['images_per_s']:8.0f} images/s"
    )
    if compared:
        text += "   x{:.3f} [{:.2f} to {:.2f}]".format(*row["ratio"])
    if "peak_mib" in row:
        text += f"   peak {row['peak_mib']:.0f} MiB"
        if compared:
            whole = row["peak_mib"] / base["peak_mib"]
            own = row["peak_own_mib"] / base["peak_own_mib"]
            text += f" x{whole:.2f} (step alone x{own:.2f})"
    return text


def against_ann(network, amp, mode):
    """SNN and, if nothing is compiled, LQ-ANN against the ANN."""
    ann = {"kind": "ann", **network, "amp": amp, "mode": mode}
    contenders = {"ANN": ann, "SNN": {**ann, "kind": "snn"}}
    eager = mode == "none"
    if eager:  # compiling another network takes a minute
        contenders["LQ-ANN"] = {**ann, "kind": "lq"}
    precision = "float32" if amp == "none" else amp
    way = "eager" if eager else f"compiled, {mode}"
    title = f"{network['name']}, {precision}, {way}: SNN S=3 T=1 against ANN"
    return title, contenders, eager and amp == "none"


def scaling(network):
    """The SNN of four lanes against that of one, and likewise timesteps."""
    title = f"{network['name']}, float32, eager"
    snn = {"kind": "snn", **network}
    one = {**snn, "levels": 1}
    four = {**snn, "levels": 4}
    yield f"{title}: lanes", {"S=1": one, "S=4": four}, False

    four = {**snn, "steps": 4}
    recomputed = {**four, "recompute": True}
    contenders = {"T=1": snn, "T=4": four, "T=4 --recompute": recomputed}
    yield f"{title}: timesteps", contenders, True


def transformer(common, dim, steps):
    """M-LIF neurons against SpikingJelly's LIF."""
    lif = {"kind": "lif", "name": "sdt", **common}
    lif |= {"width": dim, "steps": steps}
    title = f"transformer-2-{dim}, float32, eager, T={steps}: M-LIF S=3 against SpikingJelly's LIF"
    return title, {"LIF": lif, "M-LIF": {**lif, "kind": "snn"}}, False


def comparisons(args):
    """(title, {name: settings}, whether memory is measured as well) of every table."""
    common = {"batch": args.batch, "width": args.width, "device": args.device}
    for name in args.networks:
        network = {"name": name, **common}
        for amp in args.amp:
            yield against_ann(network, amp, "none")
            if args.no_compile:
                continue
            yield against_ann(network, amp, "default")
            if amp == "bf16" and args.device.startswith("cuda"):
                yield against_ann(network, amp, "reduce-overhead")  # CUDA graphs
        if not args.no_scaling:
            yield from scaling(network)
    if not args.no_scaling:
        yield transformer(common, args.dim, 1)
        yield transformer(common, args.dim, 4)


def options():
    """The parsed command line."""
    networks = ["resnet20", "vgg16"]
    parser = option_parser("step", __doc__.splitlines()[0])
    add = parser.add_argument
    add("--networks", nargs="+", default=networks, choices=networks)
    add("--batch", type=int, help="images per step; default 32, on a GPU 256")
    add("--width", type=float, default=1.0, help="factor of every layer's width")
    add("--dim", type=int, default=128, help="width of the transformer")
    add(
        "--amp",
        nargs="+",
        choices=("none", "bf16"),
        help="default: both, on a CPU without AVX-512, which emulates bf16, only none",
    )
    add(
        "--no_scaling",
        action="store_true",
        help="leave out S, T and the transformer",
    )
    add("--peak", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = options()
    keep_memory()  # as the training scripts do
    if args.peak:
        say_peak(args.peak)
        return
    device = begin(args)
    if device is None:
        return

    if not args.amp:
        args.amp = ["none"]
        if fast_amp(device) == "bf16":
            args.amp.append("bf16")
    if not args.batch:
        args.batch = 256 if device.type == "cuda" else 32
    where = machine(device)
    print(
        f"{where['machine']}, torch {where['torch']}, batch {args.batch}, width x{args.width:g}, "
        f"medians of {args.repeats} [quartiles], "
        f"neuron backend {models.choose('auto', device)}"
    )
    rows = []
    for comparison in comparisons(args):
        rows += compare(*comparison, args)
    write(f"{args.out}.json", where, rows)
    print(f"\nwritten: {args.out}.json")


if __name__ == "__main__":
    main()
