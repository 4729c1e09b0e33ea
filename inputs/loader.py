"""Batches of images.

Order and augmentation depend on (seed, epoch, step) alone, for the whole batch of all processes, so
a resumed run and a run on another number of processes see the same images.
"""

import random
import signal
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from engine.errors import UseError
from engine.settings import machine_option, natural, number, option, positive_int, run_option

from .images import MARGIN, Memory, decode

# which of the generators of a (seed, ...) is meant
AUGMENTATION, DECODING, FLIPS, SQUARES = 1, 2, 3, 4


@dataclass(frozen=True)
class BatchOptions:
    """batches"""

    batch_size: int = option(
        64, "images per step, all processes together", positive_int, spellings=("-b",)
    )
    val_batch_size: int | None = run_option(
        None,
        "images per step in evaluation; default: --batch_size",
        positive_int,
        spellings=("-vb",),
    )
    workers: int = machine_option(
        4,
        "image-decoding processes per training process (sets up to 64 pixels are held in memory "
        "and need none, unless timm augments images)",
        natural,
        spellings=("-j",),
    )
    val_fraction: float = option(
        0.0,
        "share of the training images held back to choose the best epoch on; 0 chooses on the "
        "test set, as published",
        number(float, low=0, high=0.9),
    )
    limit_train_batches: int = option(0, "training batches per epoch, 0: all", natural)
    limit_eval_batches: int = option(0, "evaluation batches, 0: all", natural)


def seeded(*key):
    """Generator of a tuple of small integers: an FNV-like hash of them is the seed."""
    value = 0x9E3779B97F4A7C15
    for part in key:
        mixed = value ^ (part + 0x632BE59BD9B4E019)
        value = mixed * 0x100000001B3 % (1 << 63)
    return torch.Generator().manual_seed(value)


class Loader:
    """Its `epoch` yields (images, labels, n): this process's share of each batch, and the size n
    of the batch.

    Images are float32 [b, 3, H, W], channels_last, on the device. Training batches are shuffled; a
    last batch with fewer images than processes is left out of training. Evaluation visits every
    image exactly once, in one fixed mixed order, so that a few batches are a sample of all classes;
    a process without a share of the last batch skips it.

    Args:
        part: `Memory` or `Files`. data: the `Data` it is of. seed: of order and
            augmentation. world: `engine.dist.World`. training: shuffle and augment.
    Raises:
        UseError: a batch is smaller than the number of processes.
    """

    def __init__(self, part, data, options: BatchOptions, seed, world, training):
        self.part, self.data, self.world = part, data, world
        self.seed, self.workers, self.training = seed, options.workers, training
        name, limit = "batch_size", options.limit_train_batches
        if not training:
            name = "val_batch_size" if options.val_batch_size else "batch_size"
            limit = options.limit_eval_batches
        self.batch_size = getattr(options, name)

        count = len(part.labels)
        kind = "trained on" if training else "evaluated"
        # every process has a share of the first batch: what is counted in it has shapes
        for what, size in ((f"--{name}", self.batch_size), (f"the part that is {kind}", count)):
            if size < world.size:
                raise UseError(
                    f"{what} is {size}, smaller than the {world.size} processes that share it: "
                    f"at least {world.size} images are needed"
                )
        self.batches = -(-count // self.batch_size)  # rounded up
        # every process must get an image of a training batch
        smallest = self.batch_size if data.drop_last else world.size
        rest = count % self.batch_size
        if training and 0 < rest < smallest and self.batches > 1:
            self.batches -= 1
        if limit:
            self.batches = min(self.batches, limit)
        self.images = min(self.batches * self.batch_size, count)

    def __len__(self):
        return self.batches

    def shares(self, epoch, start=0):
        """Yield (step, indices of this process [b], their places in the batch [b], batch size)."""
        count = len(self.part.labels)
        # evaluation has one order for all seeds
        key = (self.seed, epoch) if self.training else (0,)
        order = torch.randperm(count, generator=seeded(*key))
        if self.training and self.data.repeats > 1:
            # each image several times, augmented anew, and correspondingly fewer images
            order = order[: -(-count // self.data.repeats)].repeat_interleave(self.data.repeats)
        for step in range(start, self.batches):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            places = torch.arange(len(batch)).tensor_split(self.world.size)[self.world.rank]
            if len(places):
                yield step, batch[places], places, len(batch)

    def share_sizes(self):
        """How many images a process may get of a training batch: all numbers that occur."""
        whole = {n for *_, n in self.shares(epoch=1)}
        size = self.world.size
        return {n // size for n in whole} | {-(-n // size) for n in whole}


def blanked(images, row, column, size):
    """Images [b, C, H, W], changed in place: 0 in a square of `size` pixels around (row, column)
    [b], as far as it lies in the image (Cutout, arXiv:1708.04552).
    """

    def covered(centre, side):
        first = centre - size // 2
        places = torch.arange(side, device=images.device)
        after = places - first[:, None]  # [b, side]
        return (after >= 0) & (after < size)

    rows = covered(row, images.shape[2])
    columns = covered(column, images.shape[3])
    square = rows[:, :, None] & columns[:, None, :]
    return images.masked_fill_(square[:, None], 0)


def padded(images, pad, reflect=False):
    """uint8 [N, H + 2 * pad, W + 2 * pad, 3] of [N, H, W, 3], with zeros or mirrored around."""
    widths = (0, 0), (pad, pad), (pad, pad), (0, 0)
    return torch.from_numpy(np.pad(images.numpy(), widths, "reflect" if reflect else "constant"))


class MemoryLoader(Loader):
    """Loader of images in memory; crop and flip are one gather on the device, different for every
    image.
    """

    def __init__(self, *args):
        super().__init__(*args)
        device = self.world.device
        # the whole padded set lies on the device: 0.2 GB for CIFAR
        pad = self.data.crop if self.training else 0
        self.store = padded(self.part.images, pad, self.data.reflect).to(device)
        self.labels = self.part.labels.to(device)
        self.mean = torch.tensor(self.data.mean, device=device) * 255
        self.scale = 1 / (torch.tensor(self.data.std, device=device) * 255)
        self.side = torch.arange(self.part.images.shape[1], device=device)
        # of alternating flips: whether an image is mirrored in the epochs of even number
        draw = seeded(self.seed, 0, 0, FLIPS)
        self.mirrored = torch.rand(len(self.labels), generator=draw) < 0.5

    def pixels(self, index, top, left, flip):
        """Normalised crops [b, 3, H, W] (channels_last) of the stored images at `index` [b].

        top, left, flip [b]: where each crop begins, and whether it is mirrored.
        """
        rows = top[:, None] + self.side  # [b, H]
        side = torch.where(flip[:, None], self.side.flip(0), self.side)
        columns = left[:, None] + side  # [b, W]
        images = self.store[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        images = images.float().sub_(self.mean).mul_(self.scale)
        return images.permute(0, 3, 1, 2)

    def _draw(self, epoch, step, index, places, whole_batch):
        """(top, left, flip) of this process's images, out of those of the whole batch."""
        if not self.training:
            offsets = torch.zeros(2, len(places), dtype=torch.long)
            return *offsets, torch.zeros(len(places), dtype=torch.bool)
        # drawn for the whole batch, so that the number of processes changes nothing
        draw = seeded(self.seed, epoch, step, AUGMENTATION)
        offsets = torch.randint(0, 2 * self.data.crop + 1, (2, whole_batch), generator=draw)
        flip = (torch.rand(whole_batch, generator=draw) < 0.5)[places]
        if self.data.alternate:
            flip = self.mirrored[index] ^ bool(epoch % 2)
        return *offsets[:, places], flip & self.data.flip

    def epoch(self, epoch, start=0):
        """Iterate over the epoch from step `start` on."""
        for step, index, places, whole_batch in self.shares(epoch, start):
            draws = self._draw(epoch, step, index, places, whole_batch)
            index, top, left, flip = map(self.world.send, (index, *draws))
            images = self.pixels(index, top, left, flip)
            if self.training and self.data.cutout:
                draw = seeded(self.seed, epoch, step, SQUARES)
                shape = (2, whole_batch)
                centres = torch.randint(len(self.side), shape, generator=draw)
                row, column = self.world.send(centres[:, places])
                blanked(images, row, column, self.data.cutout)
            yield images, self.labels[index], whole_batch


@contextmanager
def drawn_from(seed):
    """Seed the generators that transforms draw from, and leave them as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the GPU's stays
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class _Decoded(torch.utils.data.Dataset):
    """Images through transforms, drawn per image from (seed, epoch, index, copy of it).

    Its keys are (index, epoch, place in the epoch's order).
    """

    def __init__(self, loader):
        self.part, self.seed, self.data = loader.part, loader.seed, loader.data
        if self.data.transforms:
            self.transform = self.data.transforms(loader.training)
        else:
            self.transform = published_transform(self.data, loader.training)

    def __len__(self):
        return len(self.part.labels)

    def _image(self, index):
        """uint8 [H, W, 3]"""
        if isinstance(self.part, Memory):
            return self.part.images[index].numpy()
        return decode(self.part.paths[index], upright=self.part.upright)

    def __getitem__(self, key):
        index, epoch, place = key
        image = self._image(index)
        if self.data.transforms:
            image = Image.fromarray(image)
        else:
            image = torch.from_numpy(image.copy()).permute(2, 0, 1)
        # copies of an image follow one another; the first has the key of one that is shown once
        copy = place % self.data.repeats
        copies = [copy] if copy else []
        draw = seeded(self.seed, epoch, index, DECODING, *copies)
        with drawn_from(draw.initial_seed()):
            return self.transform(image), self.part.labels[index]


def published_transform(data, training):
    """ImageNet's published augmentation: random resized crop and flip; in evaluation resize and
    centre crop.
    """
    from torchvision.transforms import v2

    size = data.about["image_size"]
    if training:
        chance = 0.5 if data.flip else 0.0
        shape = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(chance)]
    else:
        shape = [v2.Resize(round(size * MARGIN), antialias=True), v2.CenterCrop(size)]
    scaled = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([*shape, scaled, v2.Normalize(data.mean, data.std)])


def _leave_interrupts(worker):
    """What a worker does first: it leaves Ctrl-C to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class FileLoader(Loader):
    """Loader of image files, decoded by worker processes."""

    def epoch(self, epoch, start=0):
        """Iterate over the epoch from step `start` on."""
        shares = list(self.shares(epoch, start))
        keys = []
        for step, index, places, _ in shares:
            places = places + step * self.batch_size  # in the epoch's order
            pairs = zip(index.tolist(), places.tolist())
            keys.append([(i, epoch, place) for i, place in pairs])
        device = self.world.device
        batches = torch.utils.data.DataLoader(
            _Decoded(self),
            batch_sampler=keys,
            num_workers=min(self.workers, len(shares)),
            pin_memory=device.type == "cuda",
            worker_init_fn=_leave_interrupts,
            # without one it draws from the generator of the dropout masks
            generator=torch.Generator(),
        )
        try:
            for (images, labels), (*_, whole_batch) in zip(batches, shares, strict=True):
                images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
                yield images, labels.to(device, non_blocking=True), whole_batch
        except UseError as error:
            # from a worker process it comes with the text of its traceback
            last = str(error).strip().splitlines()[-1]
            raise UseError(last.rpartition("UseError: ")[2]) from None


def _hold_back(part, fraction, seed):
    """(what is left, what is held back) of the training part."""
    order = torch.randperm(len(part.labels), generator=torch.Generator().manual_seed(seed))
    held = round(fraction * len(order))
    if not 0 < held < len(order):
        raise UseError(
            f"--val_fraction {fraction} of {len(order)} training images holds back {held}: "
            "at least one image is needed on either side"
        )
    return part.subset(order[held:]), part.subset(order[:held])


def make_loader(part, data, options: BatchOptions, seed, world, training, kind=None):
    """The loader of one part of `Data`; see `Loader` and `loaders`."""
    # further augmentation than crop and flip runs in worker processes
    in_memory = isinstance(part, Memory) and not (training and data.transforms)
    kind = kind or (MemoryLoader if in_memory else FileLoader)
    return kind(part, data, options, seed, world, training)


def loaders(data, options: BatchOptions, seed, world, kind=None):
    """(training, choosing, test) loaders.

    The best epoch is chosen on the second, which is the test loader itself without --val_fraction.

    Args:
        seed: of order and augmentation.
        kind: class of the loaders; default: what fits the part.
    Raises:
        UseError: a batch is smaller than the number of processes.
    """
    train, held = data.train, None
    if options.val_fraction:
        train, held = _hold_back(train, options.val_fraction, seed)
    common = {"data": data, "options": options, "seed": seed, "world": world, "kind": kind}
    training = make_loader(train, training=True, **common)
    test = make_loader(data.test, training=False, **common)
    choosing = make_loader(held, training=False, **common) if held else test
    return training, choosing, test
