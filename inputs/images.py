"""Images from files and folders. Small ones are held in memory, large ones stay files that are
decoded when they are asked for.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.errors import UseError, reason

from .left_out import kind, note

IN_MEMORY = 64  # image sides up to this are held in memory, pixels
# larger ones are scaled to this multiple of their side in evaluation, before the middle is cut out
MARGIN = 256 / 224
PIXELS = 8192**2  # of a picture at most; ImageNet's largest has 61 million
# torchvision's
SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Memory:
    """Images uint8 [N, H, W, 3] and labels int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def subset(self, index):
        """The part's images at `index` [n]."""
        return Memory(self.images[index], self.labels[index])

    def content(self):
        """Bytes by which the images are told from others."""
        return self.images.numpy().tobytes()


@dataclass(frozen=True)
class Files:
    """Image files and labels int64 [N]; upright: see `decode`."""

    paths: list
    labels: torch.Tensor
    upright: bool = False

    def subset(self, index):
        """The part's files at `index` [n]."""
        paths = [self.paths[i] for i in index.tolist()]
        return Files(paths, self.labels[index], self.upright)

    def content(self):
        """Bytes by which the files are told from others: class and name of each, wherever the
        folder lies.
        """
        names = [str(Path(*Path(path).parts[-2:])) for path in self.paths]
        # a name need not be text
        return os.fsencode("\n".join(names))


@dataclass(frozen=True)
class Data:
    """A data set as training sees it.

    train, test: its parts. about: what it is, plain values. mean, std: per channel, of pixels in
    [0, 1]. crop: padding of the random crop, pixels; reflect: by the mirrored image, not by zeros.
    flip: mirror half of the training images; alternate: by turns, not by chance. cutout: side of a
    square that is blanked, pixels. transforms: training -> transform of a PIL image, in worker
    processes, in the place of crop, flip and normalisation. repeats: how often an epoch shows each
    of (correspondingly fewer) images. drop_last: train on whole batches alone.
    """

    train: Memory | Files
    test: Memory | Files
    about: dict
    mean: tuple
    std: tuple
    crop: int
    flip: bool
    transforms: Callable | None = None
    repeats: int = 1
    drop_last: bool = False
    reflect: bool = False
    alternate: bool = False
    cutout: int = 0


@dataclass(frozen=True)
class Found:
    """What a reader found: the parts; source, as results name it; where it lies; class names, if it
    has its own.
    """

    train: Memory | Files
    test: Memory | Files
    source: str
    where: str = ""
    classes: list | None = None


def describe_part(part):
    """{"images": how many, "sha256": digest of labels and images} of a part."""
    digest = hashlib.sha256(part.labels.numpy().tobytes())
    digest.update(part.content())
    return {"images": len(part.labels), "sha256": digest.hexdigest()[:16]}


def _known_white(image):
    """Whether the 16-bit numbers of an opened grey picture run from black to white at 65535."""
    if image.format == "TIFF":
        bits, black = image.tag_v2[258], image.tag_v2[262]  # BlackIsZero: 1
        return image.mode != "I" and bits == (16,) and black == 1
    return image.format in ("PNG", "PPM")


def to_rgb(image):
    """A PIL picture of any mode in 8-bit RGB, without its alpha channel.

    Raises:
        UseError: its numbers are neither of 8 nor of 16 bits, so that white is unknown.
    """
    from PIL import Image

    # Pillow scales the modes of 8 bits alone: it clips others at 255
    if image.mode != "F" and not image.mode.startswith("I"):
        return image.convert("RGB")
    if image.mode == "F" or not _known_white(image):
        name = getattr(image, "filename", "") or "the picture"
        raise UseError(
            f"{name} is of mode {image.mode} ({image.format}), whose white is unknown: "
            "save it in 8 bits, or as a 16-bit grey PNG"
        )
    high = np.asarray(image) >> 8
    found = Image.fromarray(high.astype(np.uint8)).convert("RGB")
    # how the camera was held
    found.info = image.info
    return found


def turn(image):
    """Turn a PIL image in place as the camera says, where that can be read."""
    from PIL import ImageOps

    # malformed pixels are told once, and would be taken for good ones afterwards
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        # Pillow raises anything on malformed EXIF data, which viewers pass over
        return


def fit(image, size):
    """A PIL image with the shorter side resized to `size` and the centre cut out: size x size."""
    from PIL import Image

    scale = size / min(image.size)
    sides = [max(size, round(side * scale)) for side in image.size]
    image = image.resize(sides, Image.Resampling.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def decode(path, size=None, upright=False):
    """One image file as uint8 [H, W, 3]; with `size`, shorter side resized to it and the centre cut
    out.

    upright: turned as the camera says (EXIF), as viewers show it.

    Raises:
        UseError: the file is truncated, huge or not an image, or its white is unknown.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.width * image.height > PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, at most {PIXELS}")
            # PostScript is a program that Pillow has another program run
            if image.format == "EPS":
                raise ValueError("it is PostScript")
            if upright:
                turn(image)
            image = to_rgb(image)
    except UseError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on a damaged file, or a huge one
        raise UseError(
            f"{path} cannot be read as an image ({reason(error)}): replace it, or remove it "
            "and begin anew"
        ) from None
    return np.asarray(fit(image, size) if size else image)


def _class_folders(folder):
    """({class name in NFC: its folders}, how many files lie beside them)."""
    found, beside = {}, 0
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        # hidden folders are no classes
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            # a Mac writes names in NFD, which look the same
            found.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry.path)
        else:
            beside += 1
    return found, beside


def _images_under(folder, left_out):
    """Paths of the images in a folder and those in it; what else lies there is counted by kind."""

    def refuse(error):
        raise UseError(f"{error.filename} cannot be read ({error.strerror}): check its permissions")

    paths = []
    for at, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if kind(name) in SUFFIXES:
                paths.append(os.path.join(at, name))
            else:
                left_out[kind(name)] += 1
    return sorted(paths)


def find_files(folder, world, classes=None):
    """(paths, labels [N], class names) of <folder>/<class>/**; says what is there beside images.

    Raises:
        UseError: the folder is missing, empty, or its classes are not `classes`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UseError(
            f"expected an image folder {folder}/<class>/*.jpg, but {folder} is not a folder"
        )
    found, beside = _class_folders(folder)
    classes = classes or sorted(found)
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise UseError(
            f"{folder} holds the class {unknown[0]!r}, which is not in the training part "
            f"(it has {_few(classes)}): rename or remove it"
        )

    left_out = Counter({"beside the class folders": beside})
    # a class of the training part may be absent from the test part
    parts = [
        [path for each in found.get(name, []) for path in _images_under(each, left_out)]
        for name in classes
    ]
    paths = [path for part in parts for path in part]
    if not paths:
        raise UseError(f"{folder} holds no images: expected {folder}/<class>/*.jpg")
    if left_out.total():
        world.say(note(folder, f"{len(paths)} images", left_out))
    empty = [name for name, part in zip(classes, parts) if not part]
    if empty:
        world.say(
            f"warning: {folder} holds no images of {_few(empty)}; the network has outputs for "
            "them all the same"
        )
    counts = torch.tensor([len(part) for part in parts])
    return paths, torch.arange(len(classes)).repeat_interleave(counts), classes


def _few(names):
    """The first names of a list, as text."""
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def read_folder(paths, labels, size, exact=False, upright=False):
    """Decode image files into `Memory`; `exact`: demand size x size pixels instead of resizing;
    upright: see `decode`.
    """

    def read(path):
        image = decode(path, None if exact else size, upright)
        height, width = image.shape[:2]
        if (height, width) != (size, size):
            raise UseError(f"{path} is {width}x{height} pixels, expected {size}x{size}")
        return image

    images = np.empty((len(paths), size, size, 3), np.uint8)
    # decoding releases the interpreter's lock, so threads do
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, image in enumerate(pool.map(read, paths, chunksize=64)):
            images[i] = image
    return Memory(torch.from_numpy(images), labels)


def read_parts(train, test, size, upright=False):
    """Both parts from (paths, labels), in memory up to `IN_MEMORY` pixels.

    upright: see `decode`.
    """
    parts = train, test
    if size <= IN_MEMORY:
        return [read_folder(*part, size, upright=upright) for part in parts]
    return [Files(*part, upright) for part in parts]


# ---- readers: (entry of the table, `DataOptions`, side in pixels, world) -> `Found` ----
#
# Every process calls them; what writes to a disk is `world.alone`'s. Missing data is a UseError.


def read_digits(entry, options, side, world):
    """scikit-learn's scanned digits, 8x8 grey, enlarged; a fixed fifth of each is for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)  # 0 .. 16 -> 0 .. 255
    large = torch.nn.functional.interpolate(grey, size=side, mode="bilinear")
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1)  # [N, 3, H, W]
    images = images.permute(0, 2, 3, 1).contiguous()
    whole = Memory(images, torch.from_numpy(digits.target))
    train, test = train_test_split(
        np.arange(len(whole.labels)), test_size=0.2, stratify=digits.target, random_state=0
    )
    return Found(whole.subset(train), whole.subset(test), entry.title)


def read_image_folder(entry, options, side, world):
    """<dataset_dir>/train/<class>/* and val/ or test/."""
    root = Path(options.dataset_dir)
    paths, labels, classes = find_files(root / "train", world)
    if len(classes) < 2:
        raise UseError(
            f"{root}/train holds a single class, {classes[0]!r}, and there is nothing to tell it "
            f"from: expected a folder for each class, {root}/train/<class>/*.jpg"
        )
    if entry.classes and len(classes) > entry.classes:
        raise UseError(
            f"{root}/train holds {len(classes)} classes, {entry.title} has {entry.classes}: "
            f"use --dataset FOLDER --image_size {side}"
        )
    # without either folder the error names val/
    held = [root / part for part in ("val", "test") if (root / part).is_dir()]
    if len(held) > 1:
        world.say(f"note: {held[0]} is the test part, {held[1]} is left out")
    test_paths, test_labels, _ = find_files([*held, root / "val"][0], world, classes)
    # the published code takes ImageNet's pictures as they are stored
    upright = not entry.classes
    train, test = read_parts((paths, labels), (test_paths, test_labels), side, upright)
    source = f"{entry.name} ({root})"
    # a part of ImageNet is good for a trial of its commands
    if entry.classes and len(classes) != entry.classes:
        world.say(
            f"warning: {root}/train holds {len(classes)} classes, {entry.title} has "
            f"{entry.classes}; the network keeps {entry.classes} outputs, of which these are the "
            "first: a network that was trained on other folders cannot be measured here"
        )
        source = f"{entry.name} stand-in of {len(classes)} classes ({root})"
    return Found(train, test, source, str(root), classes)
