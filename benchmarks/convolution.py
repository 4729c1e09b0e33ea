"""Convolutions on few pixels: one product of matrices against torch's convolution.

python -m benchmarks.convolution    this CPU, bf16, a minute (part of `make bench`)

The 3x3 convolutions of VGG16's and ResNet20's last stages, forward and backward, and whole training
steps of their ANNs with the product and without. Networks take the product where the processor has
AMX, for maps of up to `models.layers.FEW_PIXELS` pixels: the table says whether that is right here.
Writes <out>.json.
"""

import argparse
from unittest.mock import patch

import torch
from torch.nn import functional as F

from engine.machine import keep_memory
from models import layers

from .common import alternate, machine, milliseconds, ratio, write
from .step import step_of

CPU = torch.device("cpu")
LAYERS = (  # input channels, output channels, side of the output, stride
    (512, 512, 2, 1),
    (512, 512, 4, 1),
    (256, 256, 8, 1),
    (256, 512, 2, 2),
    (128, 256, 4, 2),
    (64, 128, 8, 2),
)
NETWORKS = {"vgg16": "VGG16", "resnet20": "ResNet20"}


def layer_runs(inputs, outputs, side, stride, batch):
    """{name: a forward and backward} of a convolution, as the library and as the product do it."""

    def pixels(channels, side):
        made = torch.randn(batch, channels, side, side, dtype=torch.bfloat16)
        return made.to(memory_format=torch.channels_last)

    x = pixels(inputs, side * stride).requires_grad_()
    upstream = pixels(outputs, side)
    weight = torch.randn(outputs, inputs, 3, 3)
    weight = weight.to(memory_format=torch.channels_last).requires_grad_()
    bias = torch.zeros(outputs, requires_grad=True)

    def library():
        with torch.autocast("cpu", torch.bfloat16):
            out = F.conv2d(x, weight, bias, stride, padding=1)
        out.backward(upstream)

    def product():
        with torch.autocast("cpu", torch.bfloat16):
            out = layers.convolve_by_product(x, weight, bias, stride)
        out.backward(upstream)

    return {"library": library, "product": product}


def network_runs(name, width, batch):
    """{name: a training step} of a network's ANN with torch's convolutions, and with products."""
    step = step_of("ann", name, batch, width, "cpu", amp="bf16")

    def with_pixels(count):
        def run():
            # measured on processors without AMX, too
            with patch.multiple(layers, AMX=True, FEW_PIXELS=count):
                step()

        return run

    return {"library": with_pixels(0), "product": with_pixels(layers.FEW_PIXELS)}


def measure(name, runs, repeats):
    """Time the two against each other and print their line; returns it as a dict."""
    seconds = alternate(runs, repeats, CPU)
    times = {kind: milliseconds(taken) for kind, taken in seconds.items()}
    share = ratio(seconds["product"], seconds["library"])
    shown = ", ".join(f"{kind} {time['ms']:.1f} ms" for kind, time in times.items())
    print(f"{name}: {shown}, x{share[0]:.2f} [{share[1]:.2f} to {share[2]:.2f}]", flush=True)
    return {"what": name, **times, "ratio": share}


def options(argv):
    """The parsed command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.convolution", description=__doc__)
    parser.add_argument("--width", type=float, default=1.0, help="factor of every layer's width")
    parser.add_argument("--batch", type=int, default=128, help="images of a step")
    parser.add_argument("--repeats", type=int, default=9, help="rounds")
    parser.add_argument(
        "--out",
        default="runs/bench/convolution",
        help="stem of the file that is written",
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = options(argv)
    keep_memory()
    where = {
        **machine(CPU),
        "amx": layers.AMX,
        "dtype": "bf16",
        "width": args.width,
        "batch": args.batch,
    }
    print(f"{where['machine']}, torch {where['torch']}, AMX: {'yes' if where['amx'] else 'no'}")
    rows = []
    for inputs, outputs, side, stride in LAYERS:
        inputs, outputs = (layers.scaled_width(full, args.width) for full in (inputs, outputs))
        runs = layer_runs(inputs, outputs, side, stride, args.batch)
        what = f"{inputs} to {outputs} channels, {side}x{side}, stride {stride}"
        rows.append(measure(what, runs, args.repeats))
    for name, shown in NETWORKS.items():
        runs = network_runs(name, args.width, args.batch)
        rows.append(measure(f"training step of {shown}'s ANN", runs, args.repeats))
    write(f"{args.out}.json", where, rows)
    print(f"written: {args.out}.json")


if __name__ == "__main__":
    main()
