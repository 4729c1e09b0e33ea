"""Images per second of the in-memory data path.

CIFAR-sized images, random crop and flip of each, normalised.

python -m benchmarks.data            (part of `make bench`)
"""

import statistics
import time

import torch

from engine.dist import World
from inputs.images import Data, Memory
from inputs.loader import BatchOptions, loaders
from inputs.table import CIFAR10

EPOCHS = 5


def main():
    images = torch.randint(0, 256, (50_000, 32, 32, 3), dtype=torch.uint8)
    part = Memory(images, torch.zeros(len(images), dtype=torch.long))
    test = Memory(images[:1000], part.labels[:1000])
    about = {"image_size": 32}
    data = Data(part, test, about, CIFAR10.mean, CIFAR10.std, crop=4, flip=True)
    for batch in (32, 128, 512):
        loader, *_ = loaders(data, BatchOptions(batch_size=batch), 0, World())
        rates = []
        for epoch in range(EPOCHS):
            start = time.perf_counter()
            for _ in loader.epoch(epoch):
                pass
            rates.append(loader.images / (time.perf_counter() - start))
        print(
            f"batch {batch:4d}: {statistics.median(rates):8,.0f} images/s, "
            f"median of {EPOCHS} epochs of 50,000 ({torch.get_num_threads()} threads)"
        )


if __name__ == "__main__":
    main()
