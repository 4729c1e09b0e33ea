"""Every data set's facts, one entry each, and the data set that the options name."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from engine.errors import UseError
from engine.settings import machine_option, natural, number, option

from .cifar import read_cifar
from .images import IN_MEMORY, Data, Memory, describe_part, read_digits, read_image_folder


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before its files are read.

    name: as --dataset has it. title: as people and results have it. read: the reader, see
    `images`. classes: how many, None: as many as it has folders. side: of its images in pixels,
    None: --image_size. mean, std: per channel, of pixels in [0, 1], None: those of its training
    images (of large images, which stay on disk, ImageNet's). crop: zero padding of the random crop
    in pixels, None: an eighth of the side. flip: mirror half of the training images. looks_in: the
    option that names its folder. files: folder of torchvision's files. images: of an epoch.
    labels: names of the classes, where they are known without the files.
    """

    name: str
    title: str
    read: Callable
    classes: int | None = None
    side: int | None = None
    mean: tuple | None = None
    std: tuple | None = None
    crop: int | None = None
    flip: bool = True
    looks_in: str | None = None
    files: str = ""
    images: int = 0
    labels: str = ""


# the published statistics, not measured anew: results depend on them
CIFAR10 = DataSet(
    "CIFAR10",
    "CIFAR-10",
    read_cifar,
    classes=10,
    side=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    crop=4,
    looks_in="data_root",
    files="cifar-10-batches-py",
    images=50_000,
    labels="airplane automobile bird cat deer dog frog horse ship truck",
)
CIFAR100 = DataSet(
    "CIFAR100",
    "CIFAR-100",
    read_cifar,
    classes=100,
    side=32,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    crop=4,
    looks_in="data_root",
    files="cifar-100-python",
    images=50_000,
    labels=(
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
        "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach "
        "couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster "
        "house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree "
        "motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear "
        "pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket "
        "rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
        "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip "
        "turtle wardrobe whale willow_tree wolf woman worm"
    ),
)
IMAGENET = DataSet(
    "IMAGENET",
    "ImageNet",
    read_image_folder,
    classes=1000,
    side=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    looks_in="dataset_dir",
    images=1_281_167,
)
# digits are told apart by which way they face, and fill their frame: no flip, a small crop
DIGITS = DataSet(
    "DIGITS", "scikit-learn digits", read_digits, classes=10, side=32, crop=2, flip=False
)
FOLDER = DataSet("FOLDER", "FOLDER", read_image_folder, looks_in="dataset_dir")
# those of the published tables, whose shape is known without reading them
PUBLISHED_DATA = (CIFAR10.name, CIFAR100.name, IMAGENET.name)

# a new data set is an entry here, and a reader if its files are of a new kind
TABLE = {entry.name: entry for entry in (CIFAR10, CIFAR100, IMAGENET, DIGITS, FOLDER)}


def data_set_name(text):
    """Type of --dataset: any case, and the published transformer's `torch/cifar10`."""
    return text.upper().removeprefix("TORCH/")


@dataclass(frozen=True)
class DataOptions:
    """data"""

    dataset: str = option(
        "CIFAR10",
        "data set; DIGITS comes with scikit-learn, FOLDER is your own image folder",
        data_set_name,
        choices=tuple(TABLE),
        spellings=("-d",),
    )
    data_root: str = machine_option(
        "./data",
        "folder of CIFAR10 or CIFAR100: torchvision files, official binary files, or "
        "cifar10-{png,jpeg}/{train,test}/<class>/*; downloaded to if none is there",
        spellings=("--data_dir",),
    )
    dataset_dir: str = machine_option(
        "./data", "IMAGENET, FOLDER: folder with train/ and val/ (or test/)"
    )
    image_size: int | None = option(
        None,
        "FOLDER: side of the square input",
        number(int, low=1, high=4096),
        unit="pixels",
        spellings=("--img_size",),
    )

    @property
    def side(self):
        """Side of the images in pixels, None: not known yet."""
        return TABLE[self.dataset].side or self.image_size


@dataclass(frozen=True)
class CropOptions:
    """augmentation"""

    flip: str = option(
        "random",
        "random: each image is mirrored or not by chance; alternating: in every other epoch, up to "
        "64 pixels; none: where left and right differ in meaning",
        choices=("random", "alternating", "none"),
    )
    padding: str = option(
        "zero",
        "what surrounds an image, up to 64 pixels, of which a random crop is taken: zeros, or the "
        "image mirrored",
        choices=("zero", "reflect"),
    )
    cutout: int = option(
        0,
        "side of a square at random in each image, up to 64 pixels, that is blanked with the mean "
        "pixel, 0: none",
        natural,
        unit="pixels",
    )


def augmented(data: Data, options: CropOptions):
    """`Data` that is augmented as `CropOptions` say."""
    return replace(
        data,
        flip=data.flip and options.flip != "none",
        alternate=options.flip == "alternating",
        reflect=options.padding == "reflect",
        cutout=options.cutout,
    )


def data_rules(options: DataOptions, crop: CropOptions = CropOptions()):
    """Options that do nothing with this data set (see `cli.parser.refuse_idle`).

    crop: of commands that train.
    """
    entry = TABLE[options.dataset]
    name, looks_in = entry.name, entry.looks_in
    in_memory = (options.side or 0) <= IN_MEMORY
    fixed = f"{name} has a fixed size, only --dataset FOLDER takes one"
    mirrored = entry.flip and (in_memory or crop.flip != "alternating")
    elsewhere = f"{name} is not looked for under --data_root"
    return [
        (["image_size"], entry.side is None, fixed),
        (["data_root"], looks_in == "data_root", elsewhere),
        # published commands give --dataset_dir with every data set: CIFAR's may, too
        (["dataset_dir"], looks_in, f"{name} needs no folder"),
        (["padding"], in_memory, f"images over {IN_MEMORY} pixels are resized to random crops"),
        (["cutout"], in_memory, f"images over {IN_MEMORY} pixels are not blanked"),
        (["flip"], mirrored, "these images are not mirrored, or all by chance"),
    ]


def check_found(entry: DataSet, found, side, classes):
    """Refuse parts that a reader must not return.

    Raises:
        ValueError: images in memory are not of that side, or labels not one for each, of the
            classes.
    """
    for part in found.train, found.test:
        labels = part.labels
        images = part.images if isinstance(part, Memory) else part.paths
        if not 0 < len(images) == len(labels):
            raise ValueError(
                f"{entry.name}: expected a label for each image, its reader returned {len(images)} "
                f"images and {len(labels)} labels"
            )
        if isinstance(part, Memory):
            shape, kind = list(part.images.shape[1:]), part.images.dtype
            if (shape, kind) != ([side, side, 3], torch.uint8):
                raise ValueError(
                    f"{entry.name}: expected images uint8 [N, {side}, {side}, 3], its reader "
                    f"returned {kind} {shape}"
                )
        if labels.dtype != torch.int64 or not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(
                f"{entry.name}: expected labels int64 in [0, {classes}), its reader returned "
                f"{labels.dtype} in [{labels.min()}, {labels.max()}]"
            )


def load(options: DataOptions, world):
    """The `Data` that `DataOptions` name.

    Raises:
        UseError: data missing, incomplete or unreadable; the message says what was expected where.
        ValueError: a mistake of the reader, see `check_found`.
    """
    entry = TABLE[options.dataset]
    side = options.side
    if side is None:
        raise UseError(
            f"--dataset {entry.name} needs --image_size, the side of the square input in pixels"
        )
    found = entry.read(entry, options, side, world)
    classes = entry.classes or len(found.classes)
    check_found(entry, found, side, classes)
    mean, std = _statistics(entry, found.train)
    about = {
        "name": entry.name,
        "source": found.source,
        "where": found.where,
        "num_classes": classes,
        "image_size": side,
        "train": describe_part(found.train),
        "test": describe_part(found.test),
        "mean": list(mean),
        "std": list(std),
    }
    # of an own folder nothing else says what the outputs mean
    if entry.classes is None:
        about["classes"] = found.classes
    crop = side // 8 if entry.crop is None else entry.crop
    return Data(found.train, found.test, about, mean, std, crop, entry.flip)


def _statistics(entry: DataSet, train):
    """Mean and standard deviation per channel, of pixels in [0, 1]."""
    if entry.mean is not None:
        return entry.mean, entry.std
    if not isinstance(train, Memory):
        return IMAGENET.mean, IMAGENET.std
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    # counted, since the pixels as numbers would take sixteen times their memory
    for channel in train.images.unbind(3):
        counts = torch.bincount(channel.flatten(), minlength=256)
        pixels = counts.sum()
        mean = (counts * values).sum() / pixels
        variance = (counts * (values - mean) ** 2).sum() / (pixels - 1)
        means.append(mean.item())
        # a constant channel must not be divided by zero
        deviations.append(max(variance.sqrt().item(), 1e-3))
    return tuple(means), tuple(deviations)
