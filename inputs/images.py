"""Data sets by name. Small images are held in memory and augmented in batches on the training device."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.errors import UseError

from .loader import FileLoader, MemoryLoader

STATISTICS = {  # per-channel mean and standard deviation of pixels in [0, 1]
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "IMAGENET": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
IN_MEMORY = 64  # image sides up to this are held in memory
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp"}


@dataclass(frozen=True)
class Memory:
    """Images uint8 [N, H, W, 3] and labels int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def subset(self, index):
        return Memory(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Files:
    """Image files and labels int64 [N]."""

    paths: list
    labels: torch.Tensor

    def subset(self, index):
        return Files([self.paths[i] for i in index.tolist()], self.labels[index])


@dataclass(frozen=True)
class Data:
    """A data set: training and test part, what it is (`about`, plain values), normalisation and augmentation.

    transforms: training -> transform of a PIL image, in worker processes, in the place of crop, flip and normalisation.
    repeats: how often an epoch shows each of (correspondingly fewer) images. drop_last: train on whole batches alone.
    """

    train: Memory | Files
    test: Memory | Files
    about: dict
    mean: tuple
    std: tuple
    crop: int  # zero padding of the random crop, pixels
    flip: bool
    transforms: Callable | None = None
    repeats: int = 1
    drop_last: bool = False


def describe_part(part):
    digest = hashlib.sha256(part.labels.numpy().tobytes())
    digest.update(
        part.images.numpy().tobytes()
        if isinstance(part, Memory)
        else "\n".join(str(Path(*Path(p).parts[-2:])) for p in part.paths).encode()
    )
    return {"images": len(part.labels), "sha256": digest.hexdigest()[:16]}


def decode(path, size=None):
    """One image file as uint8 [H, W, 3]; with `size`, shorter side resized to it and the centre cut out.

    Raises:
        UseError: the file is truncated or not an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UseError(
            f"{path} cannot be read as an image ({error}): replace it or remove it"
        ) from None
    if size:
        scale = size / min(image.size)
        image = image.resize(
            [max(size, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR
        )
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def find_files(folder, classes=None):
    """(paths, labels, class names) of <folder>/<class>/*.

    Raises:
        UseError: the folder is missing, empty, or its classes are not `classes`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UseError(
            f"expected an image folder {folder}/<class>/*.jpg, but {folder} is not a folder"
        )
    found = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    unknown = sorted(set(found) - set(classes or found))
    if unknown:
        raise UseError(
            f"{folder} holds the class {unknown[0]!r}, which is not in the training part (it has "
            f"{', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''}): rename or remove it"
        )
    classes = classes or found
    paths, labels = [], []
    for label, name in enumerate(classes):
        entries = sorted(e.path for e in os.scandir(folder / name)) if name in found else []
        entries = [p for p in entries if Path(p).suffix.lower() in SUFFIXES]
        paths += entries
        labels += [label] * len(entries)
    if not paths:
        raise UseError(f"{folder} holds no images: expected {folder}/<class>/*.jpg")
    return paths, torch.tensor(labels), classes


def read_folder(paths, labels, size, exact=False):
    """Decode image files into Memory; `exact` demands images of size x size instead of resizing."""

    def read(path):
        image = decode(path, None if exact else size)
        if image.shape[:2] != (size, size):
            raise UseError(
                f"{path} is {image.shape[1]}x{image.shape[0]} pixels, expected {size}x{size}"
            )
        return image

    images = np.empty((len(paths), size, size, 3), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, image in enumerate(pool.map(read, paths, chunksize=64)):
            images[i] = image
    return Memory(torch.from_numpy(images), labels)


def _cifar(name, root, world):
    """CIFAR from torchvision's files, an image-folder copy, or a download, in this order."""
    from torchvision import datasets

    cls, files = (
        getattr(datasets, name),
        {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}[name],
    )
    copy, count = Path(root) / f"{name.lower()}-jpeg", {"CIFAR10": 10, "CIFAR100": 100}[name]
    if not (Path(root) / files).exists() and copy.exists():
        paths, labels, classes = find_files(copy / "train")
        if len(classes) != count:
            raise UseError(f"{copy}/train holds {len(classes)} classes, {name} has {count}")
        test_paths, test_labels, _ = find_files(copy / "test", classes)
        source = f"{name.replace('CIFAR', 'CIFAR-')} (JPEG copy)"
        return (
            read_folder(paths, labels, 32, True),
            read_folder(test_paths, test_labels, 32, True),
            source,
            str(copy),
        )

    def download():
        if (Path(root) / files).exists():
            return
        world.say(
            f"{name}: neither {Path(root) / files} nor {copy} is there, downloading to {root}"
        )
        try:
            cls(root, download=True)
        except (OSError, RuntimeError) as error:
            raise UseError(
                f"no {name} under {root}: expected {files}/ or {copy.name}/ there, and the download failed "
                f"({error})"
            ) from None

    world.alone(download)
    try:
        train, test = cls(root, train=True), cls(root, train=False)
    except (OSError, RuntimeError) as error:
        raise UseError(
            f"{Path(root) / files} is not a complete {name} ({error}): delete it, then it is downloaded "
            "anew"
        ) from None
    parts = [
        Memory(torch.from_numpy(np.ascontiguousarray(part.data)), torch.tensor(part.targets))
        for part in (train, test)
    ]
    return *parts, f"{name.replace('CIFAR', 'CIFAR-')} (torchvision files)", str(Path(root) / files)


def _digits():
    """scikit-learn's scanned digits, 8x8 grey, enlarged to 32x32 RGB; a fixed stratified fifth is the test part."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = (
        torch.nn.functional.interpolate(images, size=32, mode="bilinear").round().to(torch.uint8)
    )
    images, labels = (
        images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous(),
        torch.from_numpy(digits.target),
    )
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=digits.target, random_state=0
    )
    return Memory(images[train], labels[train]), Memory(images[test], labels[test])


def load(args, world):
    """The data set that `args` (dataset, data_root, dataset_dir, image_size) names.

    Raises:
        UseError: data missing, incomplete or unreadable; the message says what was expected where.
    """
    name, size, crop, flip = args.dataset, 32, 4, True
    where, classes = "", None
    if name in ("CIFAR10", "CIFAR100"):
        train, test, source, where = _cifar(name, args.data_root, world)
        count = int(name[5:])
    elif name == "DIGITS":
        (train, test), source, count, crop, flip = _digits(), "scikit-learn digits", 10, 2, False
    else:
        root = Path(args.dataset_dir)
        size = 224 if name == "IMAGENET" else args.image_size
        if size is None:
            raise UseError(
                "--dataset FOLDER needs --image_size, the side of the square input in pixels"
            )
        paths, labels, classes = find_files(root / "train")
        if name == "IMAGENET" and len(classes) > 1000:
            raise UseError(
                f"{root}/train holds {len(classes)} classes, ImageNet has 1000: use --dataset FOLDER "
                "--image_size 224"
            )
        test_folder = next(
            (root / part for part in ("val", "test") if (root / part).is_dir()), root / "val"
        )
        test_paths, test_labels, _ = find_files(test_folder, classes)
        source, where, count = f"{name} ({root})", str(root), len(classes)
        if name == "IMAGENET" and count != 1000:
            world.say(
                f"warning: {root}/train holds {count} classes, ImageNet has 1000; the network keeps 1000 outputs"
            )
            source, count = f"IMAGENET stand-in of {count} classes ({root})", 1000
        if size <= IN_MEMORY:
            train, test = (
                read_folder(paths, labels, size),
                read_folder(test_paths, test_labels, size),
            )
            crop = size // 8
        else:
            train, test = Files(paths, labels), Files(test_paths, test_labels)
    mean, std = STATISTICS.get(name, STATISTICS["IMAGENET"])
    if name not in STATISTICS and isinstance(train, Memory):
        pixels = train.images.flatten(0, 2).double() / 255
        mean, std = tuple(pixels.mean(0).tolist()), tuple(pixels.std(0).clamp(min=1e-3).tolist())
    about = {
        "name": name,
        "source": source,
        "where": where,
        "num_classes": count,
        "image_size": size,
        "train": describe_part(train),
        "test": describe_part(test),
    }
    if name == "FOLDER":
        about["classes"] = classes
    return Data(train, test, about, mean, std, crop, flip)


def loaders(data, args, world, loader=None):
    """(training, choosing, test) loaders; the best epoch is chosen on the second, which is the test set itself when
    `val_fraction` is 0.

    loader: class of the loaders; default: what fits the part.
    Raises:
        UseError: a batch is smaller than the number of processes.
    """
    train, choose = data.train, data.test
    if args.val_fraction:
        order = torch.randperm(
            len(train.labels), generator=torch.Generator().manual_seed(args.seed)
        )
        held = round(args.val_fraction * len(order))
        if not 0 < held < len(order):
            raise UseError(
                f"--val_fraction {args.val_fraction} of {len(order)} training images holds back {held}: "
                "at least one image is needed on either side"
            )
        train, choose = data.train.subset(order[held:]), data.train.subset(order[:held])
    for name, count in (
        ("--batch_size", args.batch_size),
        ("the training part", len(train.labels)),
    ):
        if count < world.size:
            raise UseError(
                f"{name} is {count}, smaller than the {world.size} processes that share it: "
                f"at least {world.size} images are needed"
            )

    def make(part, training):
        limit = args.limit_train_batches if training else args.limit_eval_batches
        in_memory = isinstance(part, Memory) and not (training and data.transforms)
        cls = loader or (MemoryLoader if in_memory else FileLoader)
        batch = args.batch_size if training else getattr(args, "val_batch_size", args.batch_size)
        return cls(part, data, world, batch, training, limit, args.seed, args.workers)

    test = make(data.test, False)
    return make(train, True), make(choose, False) if args.val_fraction else test, test
