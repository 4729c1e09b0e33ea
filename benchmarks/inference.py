"""Inference on this CPU: latency and throughput under ONNX Runtime and torch.

python -m benchmarks.inference                  VGG16 and ResNet20, full width, batch 1 and 32, one
                                                thread and two (part of `make bench`)
python -m benchmarks.inference --ann ann.pth --snn snn.pth        of checkpoints, without batch norm

    ann      the ANN in float32, which ratios of the same runtime are to
    snn      the SNN in float32, S = 3, T = 1
    int8     the ANN quantised as usual: QDQ, static, per channel, calibrated on the images
    integer  the SNN's integer network in bytes (export.py --to integer-onnx)

Images are noise, and so are weights without checkpoints: the operations are the same. All
contenders of a setting alternate; figures are medians [quartiles]. Nothing is timed where ONNX
Runtime computes something else than torch. Writes <out>.json.
"""

import argparse
import tempfile
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

import models
from engine import checkpoint, integer_onnx, onnx_file
from engine.dist import World
from engine.errors import UseError, guard
from engine.extras import need
from engine.machine import keep_memory
from inputs.table import TABLE
from models import convert, integer

from .common import alternate, machine, milliseconds, ratio, write

CALLS = 10  # of a batch of 1, timed together
WARMUP = 3  # rounds
CALIBRATION = 64  # images
AGREED = 0.9  # least share of predictions as torch's
CPU = torch.device("cpu")
FAST = ("avx512_vnni", "avx_vnni", "amx_int8")  # what a CPU has for int8


@dataclass(frozen=True)
class Pair:
    """The ANN and the SNN of one shape, in eval mode, and noise images [N, 3, H, W]."""

    ann: nn.Module
    snn: nn.Module
    images: torch.Tensor

    @cached_property
    def ann_graph(self):
        return graph(self.ann, self.images)


def graph(net, images):
    """The ONNX file of a network, as bytes."""
    return onnx_file.draw(net, images[:2]).SerializeToString()


def quantised(pair):
    """The ONNX file of the ANN in int8, as bytes."""
    quantization = need("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        batches = iter(pair.images.split(8))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        whole, fused, small = (Path(folder, name) for name in ("whole", "fused", "small"))
        whole.write_bytes(pair.ann_graph)
        quantization.quant_pre_process(whole, fused)
        quantization.quantize_static(
            fused,
            small,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return small.read_bytes()


def in_bytes(pair):
    """The ONNX file of the SNN's integer network, as bytes."""
    entry = TABLE["CIFAR10"]
    whole = integer.to_integer(pair.snn, entry.mean, entry.std)
    model, _ = integer_onnx.build(whole, pair.snn.built["image_size"])
    return model.SerializeToString()


# ---- contenders: a new one is an entry; a Pair -> the bytes of an ONNX file, or a module

GRAPHS = {
    "ann": lambda pair: pair.ann_graph,
    "snn": lambda pair: graph(pair.snn, pair.images),
    "int8": quantised,
    "integer": in_bytes,
}
MODULES = {"ann": lambda pair: pair.ann, "snn": lambda pair: pair.snn}


def feed(session, images):
    """What a session is fed: images, or pixels where it takes bytes."""
    if session.get_inputs()[0].type == "tensor(uint8)":
        images = ((images + 3) * 42).clamp(0, 255).byte()
    return {"images": images.numpy()}


def onnx_runs(graphs, images, threads):
    """{name: function that runs the images through a graph and returns the readout}"""
    runs = {}
    for name, content in graphs.items():
        session = onnx_file.session(content, threads)
        runs[name] = partial(session.run, None, feed(session, images))
    return runs


def torch_runs(modules, images, threads):
    """The same of modules, in torch's faster layout."""
    torch.set_num_threads(threads)
    x = images.contiguous(memory_format=torch.channels_last)
    return {name: partial(module, x) for name, module in modules.items()}


def check(graphs, modules, images):
    """Compare what both runtimes compute of a network.

    Raises:
        SystemExit: ONNX Runtime computes something else.
    """
    ours = torch_runs(modules, images, 1)
    for name, other in onnx_runs(graphs, images, 1).items():
        if name not in ours:
            continue
        want = ours[name]()
        got, *_ = other()
        classes = torch.from_numpy(got).argmax(1)
        same = (want.argmax(1) == classes).double().mean().item()
        if same < AGREED:
            raise SystemExit(f"{name}: {same:.0%} of the predictions are torch's; nothing is timed")


def repeated(run, calls):
    for _ in range(calls):
        run()


def measure(setting, graphs, modules, images, repeats):
    """Rows of one setting {"network", "width", "batch", "threads"}; prints them."""
    threads, batch = setting["threads"], setting["batch"]
    runtimes = {
        "onnxruntime": onnx_runs(graphs, images, threads),
        "torch": torch_runs(modules, images, threads),
    }
    calls = CALLS if batch == 1 else 1
    runs = {
        (runtime, name): partial(repeated, each, calls)
        for runtime, several in runtimes.items()
        for name, each in several.items()
    }
    seconds = alternate(runs, repeats, CPU, WARMUP)

    print("\n{network}, width x{width:g}, batch {batch}, threads {threads}".format(**setting))
    rows = []
    for (runtime, name), taken in seconds.items():
        each = [second / calls for second in taken]
        times = milliseconds(each)
        row = {
            **setting,
            "runtime": runtime,
            "name": name,
            **times,
            "images_per_s": batch / times["ms"] * 1e3,
            "seconds": each,
            "ratio": ratio(taken, seconds[runtime, "ann"]),
        }
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row):
    """What is printed of a row."""
    return (
        "  {runtime:<12} {name:<8} {ms:8.2f} ms [{low_ms:.2f} to {high_ms:.2f}] "
        "{images_per_s:8.0f} images/s".format(**row)
        + "   x{:.3f} [{:.2f} to {:.2f}]".format(*row["ratio"])
    )


# ---- networks


def untrained(name, width):
    """(ANN, SNN) of noise weights."""
    torch.manual_seed(0)
    ann = models.build(name, models.ReLU(), width_mult=width, bn=False)
    act = models.Spiking(models.NeuronConfig.vgg(3), theta=0.5)
    return ann, convert.to_spiking(ann, act)


def trained(ann, snn):
    """(ANN, SNN) of two checkpoints.

    Raises:
        UseError: they are of different shapes.
    """
    ann, snn = (checkpoint.rebuild(checkpoint.load(path)).eval() for path in (ann, snn))
    plain = {"bn": False, "dropout": 0.0}
    one, other = ann.built | plain, snn.built | plain
    if one != other:
        raise UseError(f"--ann is {one}, --snn is {other}: give two of one shape")
    if ann.built["bn"]:
        ann, _ = convert.fuse_bn(ann, noise(ann, 2))
    return ann, snn


def noise(net, count):
    """Images [count, 3, H, W] of the size of a network."""
    side = net.built["image_size"]
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, side, side, generator=draw)


def pairs(args):
    """Yield the `Pair`s that are asked for."""
    if bool(args.ann) != bool(args.snn):
        raise UseError("give both --ann and --snn, or none of them for noise weights")
    if args.ann:
        found = [trained(args.ann, args.snn)]
    else:
        found = (untrained(name, args.width) for name in args.networks)
    world = World(device=CPU)
    for nets in found:
        ann, snn = (world.place(net.eval()) for net in nets)
        yield Pair(ann, snn, noise(ann, CALIBRATION))


def options(argv):
    """The parsed command line."""
    networks = ["resnet20", "vgg16"]
    parser = argparse.ArgumentParser("python -m benchmarks.inference", description=__doc__)
    add = parser.add_argument
    add("--networks", nargs="+", default=networks, choices=networks)
    add("--width", type=float, default=1.0, help="factor of every layer's width")
    add("--ann", default="", help="checkpoint, in the place of --networks and --width")
    add("--snn", default="", help="checkpoint of the same shape")
    add("--batches", nargs="+", type=int, default=[1, 32], help="images of a call")
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--repeats", type=int, default=15, help="rounds")
    add("--out", default="runs/bench/inference", help="stem of the file that is written")
    return parser.parse_args(argv)


def flags():
    """What this CPU has for int8, where Linux says so."""
    info = Path("/proc/cpuinfo")
    words = info.read_text().split() if info.exists() else []
    return [flag for flag in FAST if flag in words]


@torch.no_grad()
def main(argv=None):
    args = options(argv)
    keep_memory()
    where = {
        **machine(CPU),
        "onnxruntime": need("onnxruntime").__version__,
        "int8": flags(),
        "weights": [args.ann, args.snn] if args.ann else "noise",
    }
    print(
        f"{where['machine']} ({', '.join(where['int8']) or 'no VNNI'}), torch {where['torch']}, "
        f"ONNX Runtime {where['onnxruntime']}, weights {where['weights']}, medians of "
        f"{args.repeats} [quartiles], neuron backend {models.choose('auto', CPU)}"
    )
    before, rows = torch.get_num_threads(), []
    for pair in pairs(args):
        graphs = {name: make(pair) for name, make in GRAPHS.items()}
        modules = {name: make(pair) for name, make in MODULES.items()}
        check(graphs, modules, pair.images)
        built = pair.ann.built
        for threads, batch in product(args.threads, args.batches):
            setting = {
                "network": built["name"],
                "width": built["width_mult"],
                "batch": batch,
                "threads": threads,
            }
            rows += measure(setting, graphs, modules, noise(pair.ann, batch), args.repeats)
    torch.set_num_threads(before)
    write(f"{args.out}.json", where, rows)
    print(f"\nwritten: {args.out}.json")


if __name__ == "__main__":
    guard(main)
