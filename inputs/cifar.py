"""CIFAR-10 and CIFAR-100 in every layout that they come in."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.errors import UseError
from engine.files import in_turn

from .images import Found, Memory, find_files, read_folder

COPIES = ("PNG", "JPEG")  # <name>-png, <name>-jpeg: image folders, the lossless one first


@dataclass(frozen=True)
class Binary:
    """The official binary layout: records of label bytes and the red, green and blue plane.

    folder: under --data_root. train, test: files of the parts. classes: of each label byte of a
    record, of which the last is learned.
    """

    folder: str
    train: tuple
    test: tuple
    classes: tuple


BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
BINARY = {
    "CIFAR10": Binary("cifar-10-batches-bin", BATCHES, ("test_batch.bin",), (10,)),
    # coarse and fine
    "CIFAR100": Binary("cifar-100-binary", ("train.bin",), ("test.bin",), (20, 100)),
}


def read_cifar(entry, options, side, world):
    """CIFAR from torchvision's files, the binary ones, an image folder, or a download, in this
    order; see `images` for readers.
    """
    # the originals go before copies, which may be lossy
    root, name = Path(options.data_root), entry.name.lower()
    files, binary = root / entry.files, root / BINARY[entry.name].folder
    copies = {kind: root / f"{name}-{kind.lower()}" for kind in COPIES}
    others = [binary, *copies.values()]
    # another process of this run may be downloading `files`: whoever finds none else waits for it
    if files.exists() or not any(other.exists() for other in others):
        return _read_torchvision(entry, root, files, others, world)
    if binary.exists():
        return _read_binary(entry, binary, side)
    kind = next(kind for kind, copy in copies.items() if copy.exists())
    return _read_copy(entry, copies[kind], side, world, f"{entry.title} ({kind} copy)")


def _read_torchvision(entry, root, files, others, world):
    """CIFAR from torchvision's files, downloaded by rank 0 if they are missing."""
    from torchvision import datasets

    kind = getattr(datasets, entry.name)

    def notice():
        world.say(f"another run is downloading to {root}: waiting for it")

    def download():
        wanted = ", ".join(f"{folder.name}/" for folder in (files, *others))
        try:
            # another run may be downloading, and have unpacked some of the files
            with in_turn(root, notice):
                if not files.exists():
                    world.say(f"{entry.name}: none of {wanted} is there, downloading to {root}")
                    kind(root, download=True)
        except (OSError, RuntimeError) as error:
            raise UseError(
                f"no {entry.name} under {root}: expected one of {wanted} there, and the download "
                f"failed ({error})"
            ) from None

    world.alone(download)
    # torchvision checks the files' sums when it reads them
    try:
        train, test = kind(root, train=True), kind(root, train=False)
    except (OSError, RuntimeError) as error:
        raise UseError(
            f"{files} is not a complete {entry.name} ({error}): delete it, then it is "
            "downloaded anew"
        ) from None
    parts = [
        Memory(torch.from_numpy(np.ascontiguousarray(part.data)), torch.tensor(part.targets))
        for part in (train, test)
    ]
    return Found(*parts, entry.title, str(files))


def _read_binary(entry, folder, side):
    """CIFAR from the official binary files."""
    layout = BINARY[entry.name]
    # both sets have a fifth as many test images
    counts = {layout.train: entry.images, layout.test: entry.images // 5}
    parts = []
    for files, count in counts.items():
        read = [_read_records(folder / f, count // len(files), layout, side) for f in files]
        images, labels = map(np.concatenate, zip(*read))
        parts.append(Memory(torch.from_numpy(images), torch.from_numpy(labels)))
    return Found(*parts, entry.title, str(folder))


def _read_records(path, count, layout, side):
    """(images uint8 [count, side, side, 3], labels int64 [count]) of a binary file.

    Raises:
        UseError: missing, unreadable, of another size, or a label is out of range.
    """
    way_out = f"unpack {layout.folder} anew"
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UseError(f"{path} cannot be read ({error.strerror}): {way_out}") from None
    heads = len(layout.classes)
    size = heads + 3 * side * side
    if len(content) != count * size:
        raise UseError(
            f"{path} holds {len(content)} bytes, expected {count * size}, {count} records of "
            f"{size}: {way_out}"
        )
    records = content.reshape(count, size)
    labels, pixels = records[:, :heads], records[:, heads:]
    wrong = np.argwhere(labels >= layout.classes)
    if len(wrong):
        record, head = wrong[0]
        raise UseError(
            f"{path}: a label of record {record} is {labels[record, head]}, expected 0 to "
            f"{layout.classes[head] - 1}: {way_out}"
        )
    planes = pixels.reshape(count, 3, side, side)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return images, labels[:, -1].astype(np.int64)


def _read_copy(entry, copy, side, world, source):
    """CIFAR from an image folder, {train,test}/<class>/*."""
    paths, labels, classes = find_files(copy / "train", world)
    if len(classes) != entry.classes:
        raise UseError(
            f"{copy}/train holds {len(classes)} classes, {entry.name} has {entry.classes}"
        )
    # a label is the place of a name in the alphabet, which other words for some classes would move
    known = entry.labels.split()
    if classes != known and set(classes) & set(known):
        raise UseError(
            f"{copy}/train has folders {', '.join(classes)}: name them as the classes of "
            f"{entry.name}, {', '.join(known)}"
        )
    if all(name.isdecimal() for name in classes) and classes != sorted(classes, key=int):
        raise UseError(
            f"{copy}/train numbers its classes without leading zeros, so that 10 comes before 2: "
            "name them 00, 01, ..."
        )
    train = read_folder(paths, labels, side, exact=True)
    paths, labels, _ = find_files(copy / "test", world, classes)
    test = read_folder(paths, labels, side, exact=True)
    return Found(train, test, source, str(copy))
