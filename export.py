"""Write a trained network in another form, once it was compared with what it is made of.

python export.py trained_models/snn/snn_resnet20_cifar10_MC_T_1_H_1_C_3_Z_0.pth --to integer
"""

import math
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from analysis.agreement import compare, outputs
from cli import run
from cli.options import EnergyOptions, FileOptions
from cli.parser import Parser, refuse_idle
from engine import checkpoint, integer_file, integer_onnx, nir_file, onnx_file
from engine.dist import World
from engine.errors import RunError, UseError, guard
from engine.files import write_atomic
from engine.log import progress, versions
from engine.loop import finite
from engine.qat import fine_tune
from engine.recipes.cnn import TrainingOptions
from engine.settings import Settings, group, natural, number, option, positive
from inputs.loader import BatchOptions
from inputs.loader import loaders as make_loaders
from inputs.table import TABLE, DataOptions, load
from models import describe, integer
from models.activations import Neurons

RANDOM = 64  # random images, where there are no others
LARGE_RANDOM = 4  # the same above 64 pixels
# least share of equal predictions: rounding moves some images of a spiking network, faults move all
AGREED = 0.95


@dataclass(frozen=True)
class Again:
    """Batches that can be gone through again: `make` returns an iterator of them."""

    make: Callable

    def __iter__(self):
        return self.make()


@dataclass(frozen=True)
class Source:
    """What is exported.

    path: the checkpoint. net: its network, in eval mode. about: what its data set is. mean, std:
    of the normalisation of its images, per channel, of pixels in [0, 1]; None where its data set is
    not read. batches: iterable of (normalised images [B, 3, H, W], labels [B] or None) to compare
    on. shown: what these are. opset: of ONNX. tune: network -> a copy fine-tuned for its integer
    network; None: that is not asked for.
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


# ---- forms: a new one is a function, and an entry of TARGETS


@contextmanager
def has_no(form, source):
    """A ValueError inside means that there is no such form of the source."""
    try:
        yield
    except ValueError as error:
        raise UseError(f"{source.path} has no {form}: {error}") from None


def integer_of(source, net):
    """(the integer network of `net`, its `Agreement` with the SNN of the source)."""
    mean, std = source.mean, source.std
    with has_no("integer network", source):
        whole = integer.to_integer(net, mean, std)
    batches = ((x, integer.pixels(x, mean, std), labels) for x, labels in source.batches)
    return whole, compare(source.net, whole, batches)


def write_integer(source, path):
    """Write the integer network of an SNN to `path`; returns the text of what was found."""
    mean, std = source.mean, source.std
    whole, agreement = integer_of(source, source.net)
    if source.tune:
        print(f"before fine-tuning: {agreement.told()}")
        whole, agreement = integer_of(source, source.tune(source.net))
    print(agreement.table())
    made_of = {"source": str(source.path), "data": source.about}
    integer_file.save(path, whole, source.net, mean, std, **made_of)
    return agreement.told()


def write_integer_onnx(source, path):
    """Write the integer network of an SNN for ONNX Runtime; returns the text of what was found."""
    mean, std = source.mean, source.std
    net = source.tune(source.net) if source.tune else source.net
    with has_no("integer network in bytes", source):
        whole = integer.to_integer(net, mean, std)
        model, watched = integer_onnx.build(whole, image_shape(source.net)[-1])
    content = onnx_file.stamped(model, onnx_header(source))
    other = onnx_file.OnnxNetwork(content, watched.SerializeToString())
    batches = ((integer.pixels(x, mean, std), labels) for x, labels in source.batches)
    found = compare(whole, other, ((x, x, labels) for x, labels in batches))
    if found.difference or set(found.spikes.values()) != {1.0}:
        told = found.told("models/integer.py")
        raise RunError(f"ONNX Runtime computes something else: {told}; not written")
    onnx_file.save(path, content)
    accuracy = "" if found.accuracy is None else f"accuracy {found.accuracy:.2%}, "
    return (
        f"opset {integer_onnx.OPSET}, {accuracy}every spike of {len(found.spikes)} layers and "
        "every logit are those of models/integer.py, bit for bit"
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
    spiking = isinstance(net.act, Neurons)
    example = torch.zeros(2, *image_shape(net))
    model = onnx_file.draw(Watched(net).eval() if spiking else net, example, source.opset)
    watched = model.SerializeToString() if spiking else None
    del model.graph.output[1:]
    content = onnx_file.stamped(model, onnx_header(source))

    other = onnx_file.OnnxNetwork(content, watched)
    found = compare(net, other, ((x, x, labels) for x, labels in source.batches), spiking)
    if spiking:
        print(found.table())
    told = f"{found.told('torch')}, logits differ by up to {found.difference:.1e}"
    if found.predictions < AGREED or math.isnan(found.difference):
        raise RunError(f"ONNX Runtime computes something else than torch: {told}; not written")
    onnx_file.save(path, content)
    return f"opset {source.opset}, {told}"


def write_nir(source, path):
    """Write the NIR graph of an SNN to `path`; returns the text of what was found.

    What was written computes every spike of the SNN in another simulator, or nothing is written:
    in float64, where no order of a sum moves a potential across a threshold.
    """
    statistics = {"mean": np.array(source.mean), "std": np.array(source.std)}
    with has_no("NIR graph", source):
        graph = nir_file.build(source.net, source=str(source.path), **statistics)

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


ELSEWHERE = ("sdt", "vggsnn")  # kinds whose data other scripts read
NO_NIR = {
    "ann": "NIR's neurons are spiking",
    "lq": "NIR's neurons are spiking",
    "sdt": "NIR has no product of two signals, which attention needs",
    "vggsnn": "its lanes share a potential over its steps, while each IF of NIR has its own",
}
TARGETS = {
    "integer": Target(write_integer, "_integer.npz", ("snn",)),
    "integer-onnx": Target(write_integer_onnx, "_integer.onnx", ("snn",)),
    "onnx": Target(write_onnx, ".onnx", ("ann", "lq", "snn", *ELSEWHERE)),
    "nir": Target(write_nir, ".nir", ("snn",), NO_NIR, images=1000),
}


@dataclass(frozen=True)
class ExportOptions:
    """export"""

    to: str = option("integer", "form that is written", choices=tuple(TARGETS))
    images: int | None = option(
        None,
        "images on which both are compared; default: the whole test set (nir: 1000 images), or, "
        f"where the data is missing, {RANDOM} random images",
        positive,
    )
    qat_epochs: int = option(
        0, "integer: epochs of fine-tuning with rounded weights on the training images", natural
    )
    opset: int = option(
        onnx_file.OPSET,
        "version of ONNX's operators that an ONNX file uses",
        number(int, low=min(onnx_file.OPSETS), high=max(onnx_file.OPSETS)),
    )


@dataclass(frozen=True)
class ExportSettings(Settings):
    """Options of export.py."""

    source: EnergyOptions = group(
        only=("checkpoint", "output"),
        checkpoint={"help": "checkpoint of snn_ddp.py, or a name of docs/zoo.md"},
        output={"help": "file or folder that is written to, else beside the checkpoint"},
    )
    export: ExportOptions = group()
    training: TrainingOptions = group(
        only=("learning_rate",),
        learning_rate={"default": 1e-4, "help": "initial learning rate of --qat_epochs"},
    )
    files: FileOptions = group()
    data: DataOptions = group()
    batches: BatchOptions = group(only=("batch_size", "workers"))


def get_parser():
    """Its command line."""
    return Parser("export.py", "Write a trained network in another form.", ExportSettings)


def rules(asked):
    """Options that do nothing for what is asked."""
    tuned = "give --qat_epochs"
    return [
        (["qat_epochs"], asked.export.to == "integer", "only --to integer rounds weights"),
        (["learning_rate"], asked.export.qat_epochs, tuned),
    ]


# ---- what is exported


def read(asked):
    """(path, content, network) of the checkpoint, which has the form that is asked for."""
    form = asked.export.to
    path = checkpoint.named(asked.source.checkpoint)
    content = checkpoint.load(path)
    kind, target = content["kind"], TARGETS[form]
    if content["format"] == checkpoint.PUBLISHED:
        raise UseError(
            f"{path} is a file of the published code: run absorb_bn.py or snn_ddp.py on it first"
        )
    if kind not in target.kinds:
        why = f" ({target.lacks[kind]})" if kind in target.lacks else ""
        raise UseError(
            f"{path} holds a network of kind {kind}, --to {form} takes "
            f"{', '.join(target.kinds)}{why}: give a checkpoint of snn_ddp.py"
        )
    if "training" in content:
        raise UseError(
            f"{path} is the state of a training, which may hold batch norm or output scales: give "
            "its run folder, or best.pth in it"
        )
    net = checkpoint.rebuild(content).eval()
    if not finite(net):
        raise UseError(f"{path} holds weights that are not finite numbers: give others")
    return path, content, net


def take(batches, count, size):
    """The first `count` images of (images, labels, ...) batches of `size`, as (images, labels).

    With a progress bar.
    """
    with progress(batches, total=-(-count // size), desc="compare") as bar:
        for images, labels, *_ in bar:
            yield images[:count], labels[:count]
            count -= len(images)
            if count <= 0:
                return


def wanted(asked, there):
    """On how many of the images that are there is compared."""
    return min(asked.export.images or TARGETS[asked.export.to].images or there, there)


def random_images(count, side, mean, std, batch_size):
    """Batches of normalised noise, the same each time, without labels."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=draw)
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    normalised = (pixels / 255 - mean) / std
    return [(images, None) for images in normalised.split(batch_size)]


def tuning(asked, data, loaders):
    """What fine-tunes a network as --qat_epochs asks for, or None."""
    if not asked.export.qat_epochs:
        return None
    options = replace(
        asked.training,
        epochs=asked.export.qat_epochs,
        optimizer="Adam",
        lr_schedule="cosine",
        weight_decay=0.0,
    )
    return partial(
        fine_tune,
        mean=data.mean,
        std=data.std,
        loaders=loaders,
        about=data.about,
        options=options,
    )


def image_shape(net):
    """Shape of one image (or of its frames) of a network."""
    built, first = net.built, next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    side = built.get("image_size") or built["img_size"]
    frames = (net.act.steps,) if net.act.encoding == "frames" else ()
    return *frames, first.in_channels, side, side


def random_source(path, content, net, asked):
    """The `Source` of a network whose data other scripts read: whole numbers, as of events."""
    idle = ["dataset", "data_root", "dataset_dir", "image_size"]
    refuse_idle(asked.given, [(idle, False, f"a {content['kind']} is compared on random images")])
    count = asked.export.images or RANDOM
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(-2, 3, (count, *image_shape(net)), generator=draw).float()
    batches = [(images, None) for images in noise.split(asked.batches.batch_size)]
    shown = f"{count} random images"
    return Source(path, net, content["data"], None, None, batches, shown, asked.export.opset)


def read_source(asked):
    """The `Source` that is asked for.

    Raises:
        UseError: the data is missing, and was named or is needed for the normalisation.
    """
    path, content, net = read(asked)
    if content["kind"] in ELSEWHERE:
        return random_source(path, content, net, asked)
    opset = asked.export.opset
    about, count, size = content["data"], asked.export.images, asked.batches.batch_size
    options = run.trained_data(content, asked.data, asked.given)
    entry = TABLE[options.dataset]
    try:
        data = load(options, World())
    except UseError as error:
        named = asked.given & {"dataset", "data_root", "dataset_dir"}
        if named or entry.mean is None or asked.export.qat_epochs:
            raise
        print(f"note: {error}; random images take their place")
        side = about["image_size"]
        count = count or (RANDOM if side <= 64 else LARGE_RANDOM)
        batches = random_images(count, side, entry.mean, entry.std, size)
        shown = f"{count} random images"
        return Source(path, net, about, entry.mean, entry.std, batches, shown, opset)

    run.check_shape(content, data.about, path)
    loaders = make_loaders(data, asked.batches, 0, World())
    *_, test = loaders
    count = wanted(asked, test.images)
    batches = Again(lambda: take(test.epoch(0), count, size))
    shown = f"{count} test images of {data.about['source']}"
    tune = tuning(asked, data, loaders)
    return Source(path, net, data.about, data.mean, data.std, batches, shown, opset, tune)


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    refuse_idle(asked.given, rules(asked))
    given, form = asked.source, asked.export.to
    if not given.checkpoint:
        raise UseError("give the checkpoint of the network that is to be exported")
    refuse_idle(asked.given, [(["opset"], form == "onnx", "give --to onnx")])
    target = TARGETS[form]
    path = Path(checkpoint.beside(given.checkpoint, target.suffix, given.output))
    if path.exists() and not asked.files.replace:
        raise UseError(f"{path} is there already: give --replace, or another --output")
    source = read_source(asked)
    found = target.write(source, path)
    print(f"{form} network, on {source.shown}: {found}; written to {path}")
    return {"output": str(path)}


if __name__ == "__main__":
    guard(main)
