"""Images per second of the in-memory data path.

CIFAR-sized images, random crop and flip of each, normalised.

python -m benchmarks.data            (part of `make bench`)
"""

import statistics
import time
from argparse import Namespace

import torch

from engine.dist import World
from inputs import images as data

EPOCHS = 5


def main():
    images = torch.randint(0, 256, (50_000, 32, 32, 3), dtype=torch.uint8)
    part = data.Memory(images, torch.zeros(len(images), dtype=torch.long))
    test = data.Memory(images[:1000], part.labels[:1000])
    mean, std = data.STATISTICS["CIFAR10"]
    content = data.Data(part, test, {"image_size": 32}, mean, std, 4, True)
    for batch in (32, 128, 512):
        args = Namespace(
            batch_size=batch,
            val_fraction=0.0,
            limit_train_batches=0,
            limit_eval_batches=0,
            seed=0,
            workers=0,
        )
        loader = data.loaders(content, args, World())[0]
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
