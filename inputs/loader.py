"""Batches. Order and augmentation depend on (seed, epoch, step) alone, for the whole batch of all processes, so a
resumed run and a run on another number of processes see the same images.
"""

import random

import numpy as np
import torch
from PIL import Image

from engine.errors import UseError


def seeded(*key):
    """Generator of a tuple of small integers."""
    value = 0x9E3779B97F4A7C15
    for part in key:
        value = (value ^ (part + 0x632BE59BD9B4E019)) * 0x100000001B3 % (1 << 63)
    return torch.Generator().manual_seed(value)


class Loader:
    """Iterates (images, labels, n): this process's share of each batch, and the size n of the whole batch.

    Images are float32 [b, 3, H, W], channels_last, on the device. Training batches are shuffled; a last batch with
    fewer images than processes is left out of training. Evaluation visits every image exactly once, in one fixed mixed
    order, so that a few batches are a sample of all classes; a process without a share of the last batch skips it.
    """

    def __init__(self, part, data, world, batch_size, training, limit, seed, workers):
        self.part, self.data, self.world, self.training, self.seed = (
            part,
            data,
            world,
            training,
            seed,
        )
        self.batch_size, self.workers, count = batch_size, workers, len(part.labels)
        self.batches = -(-count // batch_size)
        if (
            training
            and 0 < count % batch_size < (batch_size if data.drop_last else world.size)
            and self.batches > 1
        ):
            self.batches -= 1
        self.batches = min(self.batches, limit) if limit else self.batches
        self.images = min(self.batches * batch_size, count)

    def __len__(self):
        return self.batches

    def shares(self, epoch, start=0):
        """Yield (step, indices of this process, its positions in the batch, batch size)."""
        count = len(self.part.labels)
        order = torch.randperm(
            count, generator=seeded(self.seed, epoch) if self.training else seeded(0)
        )
        if (
            self.training and self.data.repeats > 1
        ):  # each image several times, augmented anew, and fewer images
            order = order[: -(-count // self.data.repeats)].repeat_interleave(self.data.repeats)
        for step in range(start, self.batches):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            at = torch.tensor_split(torch.arange(len(batch)), self.world.size)[self.world.rank]
            if len(at):
                yield step, batch[at], at, len(batch)


class MemoryLoader(Loader):
    """Loader of images in memory; crop and flip are one gather on the device, different for every image."""

    def __init__(self, *args):
        super().__init__(*args)
        device, pad = self.world.device, self.data.crop if self.training else 0
        self.store = torch.nn.functional.pad(self.part.images, (0, 0, pad, pad, pad, pad)).to(
            device
        )
        self.labels = self.part.labels.to(device)
        self.mean = torch.tensor(self.data.mean, device=device) * 255
        self.scale = 1 / (torch.tensor(self.data.std, device=device) * 255)
        self.side = torch.arange(self.part.images.shape[1], device=device)

    def pixels(self, index, top, left, flip):
        """Normalised crops [b, 3, H, W] (channels_last) of the stored images at `index`, each with its own offset."""
        rows = top[:, None] + self.side
        columns = left[:, None] + torch.where(flip[:, None], self.side.flip(0), self.side)
        images = self.store[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        return images.float().sub_(self.mean).mul_(self.scale).permute(0, 3, 1, 2)

    def epoch(self, epoch, start=0):
        for step, index, at, n in self.shares(epoch, start):
            if self.training:
                draw = seeded(self.seed, epoch, step, 1)
                offsets = torch.randint(0, 2 * self.data.crop + 1, (2, n), generator=draw)[:, at]
                flip = (torch.rand(n, generator=draw) < 0.5)[at] & self.data.flip
            else:
                offsets, flip = (
                    torch.zeros(2, len(at), dtype=torch.long),
                    torch.zeros(len(at), dtype=torch.bool),
                )
            index, (top, left), flip = map(self.world.send, (index, offsets, flip))
            yield self.pixels(index, top, left, flip), self.labels[index], n


class _Decoded(torch.utils.data.Dataset):
    """Images through transforms, drawn per image from (seed, epoch, index, copy)."""

    def __init__(self, loader):
        from torchvision.transforms import v2

        size, data = loader.data.about["image_size"], loader.data
        self.part, self.seed, self.data = loader.part, loader.seed, data
        if data.transforms:
            self.transform = data.transforms(loader.training)
            return
        shape = (
            [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
            if loader.training
            else [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)]
        )
        self.transform = v2.Compose(
            [*shape, v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)]
        )

    def __len__(self):
        return len(self.part.labels)

    def __getitem__(self, key):
        from .images import decode

        index, epoch, copy = key
        image = (
            self.part.images[index].numpy()
            if hasattr(self.part, "images")
            else decode(self.part.paths[index])
        )
        image = (
            Image.fromarray(image)
            if self.data.transforms
            else torch.from_numpy(image.copy()).permute(2, 0, 1)
        )
        seed = seeded(self.seed, epoch, index, 2, *[copy] * (copy > 0)).initial_seed()
        states = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # the GPU's stays
                return self.transform(image), self.part.labels[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class FileLoader(Loader):
    """Loader of image files, decoded by worker processes."""

    def epoch(self, epoch, start=0):
        shares = list(self.shares(epoch, start))
        device = self.world.device
        batches = torch.utils.data.DataLoader(
            _Decoded(self),
            batch_sampler=[
                [
                    (i, epoch, (step * self.batch_size + a) % self.data.repeats)
                    for i, a in zip(index.tolist(), at.tolist())
                ]
                for step, index, at, _ in shares
            ],
            num_workers=min(self.workers, len(shares)),
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),
        )  # without one it draws from the generator of the dropout masks
        try:
            for (images, labels), (_, _, _, n) in zip(batches, shares, strict=True):
                yield (
                    images.to(device, non_blocking=True, memory_format=torch.channels_last),
                    labels.to(device, non_blocking=True),
                    n,
                )
        except UseError as error:  # from a worker process it comes with the text of its traceback
            raise UseError(
                str(error).strip().splitlines()[-1].rpartition("UseError: ")[2]
            ) from None
