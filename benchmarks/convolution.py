"""Convolutions on few pixels: one product of matrices against torch's convolution.

python -m benchmarks.convolution    this CPU, bf16, half a minute (part of `make bench`)

The 3x3 convolutions of VGG16's last stages, forward and backward, and a whole training step of its
ANN with the product and without. Networks take the product where the processor has AMX, on maps of
up to `models.layers.FEW_PIXELS` pixels: the table says whether that is right here. Writes
<out>.json.
"""

import argparse
from unittest.mock import patch

import torch
from torch.nn import functional as F

from engine.dist import keep_memory
from models import layers

from .common import alternate, machine, milliseconds, ratio, write
from .step import step_of

CPU = torch.device("cpu")
LAYERS = (  # channels, side of the map
    (512, 2),
    (512, 4),
    (256, 8),
)


def layer_runs(channels, side, batch):
    """{name: a forward and backward} of a convolution, as the library and as the product do it."""
    last = {"memory_format": torch.channels_last}
    shape = (batch, channels, side, side)
    x = torch.randn(shape, dtype=torch.bfloat16).to(**last).requires_grad_()
    upstream = torch.randn(shape, dtype=torch.bfloat16).to(**last)
    weight = torch.randn(channels, channels, 3, 3)
    weight = weight.to(**last).requires_grad_()
    bias = torch.zeros(channels, requires_grad=True)

    def library():
        with torch.autocast("cpu", torch.bfloat16):
            out = F.conv2d(x, weight, bias, padding=1)
        out.backward(upstream)

    def product():
        with torch.autocast("cpu", torch.bfloat16):
            out = layers.convolve_by_product(x, weight, bias)
        out.backward(upstream)

    return {"library": library, "product": product}


def network_runs(width, batch):
    """{name: a training step} of VGG16's ANN with torch's convolutions, and with products."""
    step = step_of("ann", "vgg16", batch, width, "cpu", amp="bf16")

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
    for full, side in LAYERS:
        channels = layers.scaled_width(full, args.width)
        runs = layer_runs(channels, side, args.batch)
        rows.append(measure(f"{channels} channels, {side}x{side}", runs, args.repeats))
    runs = network_runs(args.width, args.batch)
    rows.append(measure("training step of VGG16's ANN", runs, args.repeats))
    write(f"{args.out}.json", where, rows)
    print(f"written: {args.out}.json")


if __name__ == "__main__":
    main()
