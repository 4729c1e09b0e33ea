"""The forms in which a trained network is written, each compared before with what it is made of.

A new one is a function, and an entry of TARGETS.
"""

import json
import math
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from analysis.agreement import compare, outputs
from engine import integer_file, integer_onnx, nir_file, onnx_file
from engine.errors import RunError, UseError
from engine.files import write_atomic
from engine.log import versions
from models import describe, image_side, integer
from models.activations import NeuronActivation
from models.rates import weighted

# least share of equal predictions: rounding moves some images of a spiking network, faults move all
AGREED = 0.95


@dataclass(frozen=True)
class Source:
    """What is exported.

    path: the checkpoint. net: its network, in eval mode. about: what its data set is. mean, std:
    of the normalisation of its images, per channel, of pixels in [0, 1]; None where its data set is
    not read. batches: iterable of (normalised images [B, 3, H, W], labels [B] or None) to compare
    on. shown: what these are. opset: of ONNX. tune: network -> a copy fine-tuned for its integer
    network, by `tuned`: {"qat_epochs", "learning_rate"}; None: that is not asked for.
    """

    path: Path
    net: nn.Module
    about: dict
    mean: tuple
    std: tuple
    batches: Iterable
    shown: str
    opset: int
    tune: Callable | None = None
    tuned: dict | None = None


def image_shape(net):
    """Shape of one image (or of its frames) of a network."""
    first, *_ = weighted(net)
    side = image_side(net)
    frames = (net.act.steps,) if net.act.encoding == "frames" else ()
    return *frames, first.in_channels, side, side


@contextmanager
def has_no(form, source):
    """A ValueError inside means that there is no such form of the source."""
    try:
        yield
    except ValueError as error:
        raise UseError(f"{source.path} has no {form}: {error}") from None


def made_integer(source, made):
    """(what `made` makes of the SNN, or of its fine-tuned copy, in which the integer network stands
    first; its `Agreement` with the SNN).

    made: network -> (integer network, ...).
    """
    mean, std = source.mean, source.std

    def of(net):
        found = made(net)
        whole, *_ = found
        batches = ((x, integer.pixels(x, mean, std), labels) for x, labels in source.batches)
        return found, compare(source.net, whole, batches)

    # what cannot be made is told before anything is trained
    found, agreement = of(source.net)
    if source.tune:
        print(f"before fine-tuning: {agreement.told()}")
        found, agreement = of(source.tune(source.net))
    print(agreement.table())
    return found, agreement


def write_integer(source, path):
    """Write the integer network of an SNN to `path`; returns the text of what was found."""
    mean, std = source.mean, source.std

    def made(net):
        with has_no("integer network", source):
            return (integer.to_integer(net, mean, std),)

    (whole,), agreement = made_integer(source, made)
    about = {"source": str(source.path), "data": source.about, "fine_tuned": source.tuned}
    integer_file.save(path, whole, source.net, mean, std, **about)
    return agreement.told()


def write_integer_onnx(source, path):
    """Write the integer network of an SNN for ONNX Runtime; returns the text of what was found."""
    mean, std = source.mean, source.std

    def made(net):
        with has_no("integer network in bytes", source):
            whole = integer.to_integer(net, mean, std)
            return whole, *integer_onnx.build(whole, image_shape(source.net)[-1])

    (whole, model, watched), agreement = made_integer(source, made)
    header = onnx_header(source) | {"scale": whole.scale, "fine_tuned": source.tuned}
    content = onnx_file.stamped(model, header)
    other = onnx_file.OnnxNetwork(content, watched.SerializeToString())
    batches = ((integer.pixels(x, mean, std), labels) for x, labels in source.batches)
    found = compare(whole, other, ((x, x, labels) for x, labels in batches))
    if found.difference or set(found.spikes.values()) != {1.0}:
        told = found.told("models/integer.py")
        raise RunError(f"ONNX Runtime computes something else: {told}; not written")
    onnx_file.save(path, content)
    return (
        f"opset {integer_onnx.OPSET}, {agreement.told()}; every spike of {len(found.spikes)} "
        "layers and every logit are those of models/integer.py, bit for bit"
    )


class Watched(nn.Module):
    """A network's readout [B, classes] and, behind it, the outputs of its layers of neurons."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        readout, fired = outputs(self.net, x)
        return readout, *fired


def onnx_header(source):
    """What an ONNX file says of the network."""
    return {
        "network": source.net.built,
        "activation": describe(source.net.act),
        "mean": source.mean,
        "std": source.std,
        "data": source.about,
        "source": str(source.path),
        "versions": versions(),
    }


def write_onnx(source, path):
    """Write the network in float32 to `path`; returns the text of what was found."""
    net = source.net
    if net.act.encoding == "rate":
        raise UseError(
            f"{source.path} draws the spikes of its images by chance (--input_encoding 0), which "
            "no graph does: give a network that sees the images themselves"
        )
    net.per_step = False  # a file has one readout
    spiking = isinstance(net.act, NeuronActivation)
    example = torch.zeros(2, *image_shape(net))
    seen = Watched(net).eval() if spiking else net
    model = onnx_file.draw(seen, example, source.opset)
    watched = model.SerializeToString() if spiking else None
    del model.graph.output[1:]
    content = onnx_file.stamped(model, onnx_header(source))

    other = onnx_file.OnnxNetwork(content, watched)
    batches = ((x, x, labels) for x, labels in source.batches)
    found = compare(net, other, batches, spiking)
    if spiking:
        print(found.table())
    told = f"{found.told('torch')}, logits differ by up to {found.difference:.1e}"
    differing = round((1 - found.predictions) * found.images)
    # of few images one may differ, too
    if differing > max(1, (1 - AGREED) * found.images) or math.isnan(found.difference):
        raise RunError(f"ONNX Runtime computes something else than torch: {told}; not written")
    onnx_file.save(path, content)
    return f"opset {source.opset}, {told}"


def write_nir(source, path):
    """Write the NIR graph of an SNN to `path`; returns the text of what was found.

    What was written computes every spike of the SNN in another simulator, or nothing is written:
    in float64, where no order of a sum moves a potential across a threshold.
    """
    about = {
        "source": str(source.path),
        "mean": np.array(source.mean),
        "std": np.array(source.std),
        # as the header of an ONNX file has it
        "data": json.dumps(source.about),
    }
    with has_no("NIR graph", source):
        graph = nir_file.build(source.net, **about)

    data = nir_file.encode(graph)
    net = source.net.double()
    batches = ((x.double(), x.double(), labels) for x, labels in source.batches)
    agreement = compare(net, nir_file.Simulated(data, net), batches)
    print(agreement.table())
    shares = {f"spikes of {name}": share for name, share in agreement.spikes.items()}
    shares["predictions"] = agreement.predictions
    worst = min(shares, key=shares.get)
    if shares[worst] < 1:
        raise RunError(
            f"{path} is not written: read back and run by Norse, it computes {shares[worst]:.6%} "
            f"of the {worst}, expected all"
        )
    write_atomic(path, lambda temporary: temporary.write_bytes(data))
    return f"read back and run by Norse, {agreement.told()}"


@dataclass(frozen=True)
class Target:
    """A form: function of (`Source`, path) that writes it; suffix of its file; kinds of checkpoint
    that have it; why other kinds do not; images that it is compared on, None: all.
    """

    write: Callable
    suffix: str
    kinds: tuple
    lacks: dict = field(default_factory=dict)
    images: int | None = None


OTHER_DATA = ("sdt", "vggsnn")  # kinds whose data other scripts read
NO_NIR = {
    "ann": "NIR's neurons are spiking",
    "lq": "NIR's neurons are spiking",
    "sdt": "NIR has no product of two signals, which attention needs",
    "vggsnn": "its lanes share a potential over its steps, while each IF of NIR has its own",
}
TARGETS = {
    "integer": Target(write_integer, "_integer.npz", ("snn",)),
    "integer-onnx": Target(write_integer_onnx, "_integer.onnx", ("snn",)),
    "onnx": Target(write_onnx, ".onnx", ("ann", "lq", "snn", *OTHER_DATA)),
    "nir": Target(write_nir, ".nir", ("snn",), NO_NIR, images=1000),
}
