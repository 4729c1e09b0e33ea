"""Write a trained network in another form, once it was compared with what it is made of.

python export.py trained_models/snn/snn_resnet20_cifar10_MC_T_1_H_1_C_3_Z_0.pth --to integer
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from cli import provenance, run
from cli.forms import OTHER_DATA, TARGETS, Source, image_shape
from cli.options import EnergyOptions, FileOptions
from cli.parser import Parser, refuse_idle
from engine import checkpoint, onnx_file
from engine.dist import World
from engine.errors import UseError, guard
from engine.evaluation import finite
from engine.log import progress
from engine.qat import fine_tune
from engine.recipes.cnn import TrainingOptions
from engine.settings import Settings, group, natural, number, option, positive_int
from inputs.loader import BatchOptions, make_loader
from inputs.loader import loaders as make_loaders
from inputs.pretrained import class_names, normalisation, resizing
from inputs.table import DataOptions, load


@dataclass(frozen=True)
class Again:
    """Batches that can be gone through again: `make` returns an iterator of them."""

    make: Callable

    def __iter__(self):
        return self.make()


@dataclass(frozen=True)
class ExportOptions:
    """export"""

    to: str = option("integer", "form that is written", choices=tuple(TARGETS))
    images: int | None = option(
        None,
        "images on which both are compared; default: the whole test set (nir: 1000 images), or, "
        f"where the data is missing, {run.RANDOM} random images",
        positive_int,
    )
    qat_epochs: int = option(
        0,
        "integer forms: epochs of fine-tuning with rounded weights on the training images",
        natural,
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
        only=("checkpoint",),
        checkpoint={
            "help": "checkpoint of snn_ddp.py (--to onnx: of any script), or a name of docs/zoo.md"
        },
    )
    export: ExportOptions = group()
    training: TrainingOptions = group(
        only=("learning_rate",),
        learning_rate={"default": 1e-4, "help": "initial learning rate of --qat_epochs"},
    )
    files: FileOptions = group(
        output={"help": "file or folder that is written to, else beside the checkpoint"}
    )
    data: DataOptions = group()
    batches: BatchOptions = group(only=("batch_size", "workers"))


def get_parser():
    """Its command line."""
    return Parser("export.py", "Write a trained network in another form.", ExportSettings)


def rules(asked: ExportSettings):
    """Options that do nothing for what is asked."""
    form = asked.export.to
    rounded = form in ("integer", "integer-onnx")
    return [
        (["qat_epochs"], rounded, "only --to integer and integer-onnx round weights"),
        (["learning_rate"], asked.export.qat_epochs, "give --qat_epochs"),
        (["opset"], form == "onnx", "give --to onnx"),
    ]


# ---- what is exported


def read(asked: ExportSettings):
    """(path, content, network) of the checkpoint, which has the form that is asked for."""
    form = asked.export.to
    path = checkpoint.named(asked.source.checkpoint)
    content = checkpoint.load(path)
    kind, target = content["kind"], TARGETS[form]
    checkpoint.check_own(content, path)
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
    net = checkpoint.rebuild(content, path).eval()
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


def wanted(asked: ExportSettings, there):
    """On how many of the images that are there is compared."""
    return min(asked.export.images or TARGETS[asked.export.to].images or there, there)


def random_images(count, side, mean, std, batch_size):
    """Batches of normalised noise, the same each time, without labels."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=draw)
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    normalised = (pixels / 255 - mean) / std
    return [(images, None) for images in normalised.split(batch_size)]


def tuning(asked: ExportSettings, data):
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
        loaders=make_loaders(data, asked.batches, 0, World()),
        about=data.about,
        options=options,
    )


def tuned(asked: ExportSettings):
    """How `tuning` does it, as files have it."""
    epochs = asked.export.qat_epochs
    rate = asked.training.learning_rate
    return {"qat_epochs": epochs, "learning_rate": rate} if epochs else None


# ---- what it is compared on: the fields of a `Source` that depend on it


def on_numbers(path, content, net, asked: ExportSettings):
    """Whole numbers, as of events: of a network whose data other scripts read."""
    idle = ["dataset", "data_root", "dataset_dir", "image_size"]
    refuse_idle(asked.given, [(idle, False, f"a {content['kind']} is compared on random images")])
    count = asked.export.images or run.random_count(image_shape(net)[-1])
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(-2, 3, (count, *image_shape(net)), generator=draw).float()
    # events have no normalisation
    mean, std = normalisation(content, path) if content["kind"] == "sdt" else (None, None)
    return {
        "mean": mean,
        "std": std,
        "batches": [(images, None) for images in noise.split(asked.batches.batch_size)],
        "shown": f"{count} random images",
    }


def on_noise(content, mean, std, asked: ExportSettings):
    """Noise, normalised as the images of the network's data set, which are missing."""
    side = content["data"]["image_size"]
    count = asked.export.images or run.random_count(side)
    return {
        "mean": mean,
        "std": std,
        "batches": random_images(count, side, mean, std, asked.batches.batch_size),
        "shown": f"{count} random images",
    }


def on_test_images(data, asked: ExportSettings):
    """The test images of `Data`, gone through anew for each comparison."""
    test = make_loader(data.test, data, asked.batches, 0, World(), training=False)
    count = wanted(asked, test.images)
    return {
        "mean": data.mean,
        "std": data.std,
        "batches": Again(lambda: take(test.epoch(0), count, asked.batches.batch_size)),
        "shown": f"{count} test images of {data.about['source']}",
        "tune": tuning(asked, data),
        "tuned": tuned(asked),
    }


def read_source(asked: ExportSettings):
    """The `Source` that is asked for.

    Raises:
        UseError: the data is missing, and was named or is needed for the normalisation.
    """
    path, content, net = read(asked)
    about = dict(content["data"])
    # who has the file alone wants to know what its outputs mean
    names = class_names(about)
    if names is not None:
        about["classes"] = names or [str(number) for number in range(about["num_classes"])]
    if content["kind"] != "vggsnn":
        about |= resizing(content, path)
    source = partial(Source, path=path, net=net, about=about, opset=asked.export.opset)
    if content["kind"] in OTHER_DATA:
        return source(**on_numbers(path, content, net, asked))
    options = provenance.trained_data(content, asked.data, asked.given, path)
    mean, std = normalisation(content, path)
    try:
        data = load(options, World())
    except UseError as error:
        named = asked.given & {"dataset", "data_root", "dataset_dir"}
        if named or mean is None or asked.export.qat_epochs:
            raise
        print(f"note: {error}; random images take their place")
        return source(**on_noise(content, mean, std, asked))
    provenance.check_shape(content, data.about, path)
    # fine-tuning mirrors no image that the training did not
    if content["settings"].get("flip") == "none":
        data = replace(data, flip=False)
    return source(**on_test_images(provenance.as_trained(data, content, path), asked))


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    refuse_idle(asked.given, rules(asked))
    given, form = asked.source, asked.export.to
    if not given.checkpoint:
        raise UseError("give the checkpoint of the network that is to be exported")
    target = TARGETS[form]
    path = Path(checkpoint.beside(given.checkpoint, target.suffix, asked.files.output))
    if path.exists() and not asked.files.replace:
        raise UseError(f"{path} is there already: give --replace, or another --output")
    source = read_source(asked)
    found = target.write(source, path)
    print(f"{form} network, on {source.shown}: {found}; written to {path}")
    return {"output": str(path)}


if __name__ == "__main__":
    guard(main)
