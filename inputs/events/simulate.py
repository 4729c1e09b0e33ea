"""Recordings of a simulated event camera, as AEDAT 2.0 files in the folders of DVS-CIFAR10: for trials without the data set.

python3 simulate.py --dataset DIGITS --per_class 100 --output dvs-digits     # then: dvscifar_prepare.py --source dvs-digits

An image fills the 128x128 sensor and moves along a closed path, round and round, as it was done for DVS-CIFAR10. Each pixel
remembers the logarithm of the intensity at its last event, and fires ON or OFF whenever the present one is a threshold above or
below it. The ten digits take the folders of the ten classes of CIFAR-10, 0 that of the airplane.
The output says what it is: simulated.json, and a line in each file's header. An interrupted run goes on with the same command.
"""

import json
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cli import parser as cli
from engine.dist import World
from engine.errors import UseError, guard
from engine.log import progress, write_json
from inputs import images as data
from inputs.events.formats import CLASSES, SIDE, Events, simulated, write
from inputs.events.pool import cores, ordered

ROOT = Path(__file__).resolve().parents[2]
RADIUS, STEPS, LOOP = (
    4,
    48,
    200_000,
)  # of the path: half its diagonal, pixels; positions on it; duration, us
DARK = 0.05  # intensity of black; white is 1 + DARK


def path():
    """The closed path: float [STEPS, 2], (y, x) offsets in pixels, along the sides of a square that stands on a corner."""
    corners = RADIUS * np.array([(0, -1), (1, 0), (0, 1), (-1, 0), (0, -1)])
    at = np.arange(STEPS) * 4 / STEPS
    return np.stack([np.interp(at, range(5), corner) for corner in corners.T], axis=1)


def scenes(image):
    """Log intensities float32 [STEPS, 128, 128] of uint8 [H, W, 3] seen from each position, bilinear between pixels."""
    grey = torch.from_numpy(image).float() @ torch.tensor([0.299, 0.587, 0.114]) / 255
    large = torch.nn.functional.interpolate(
        grey[None, None], size=SIDE + 2 * RADIUS + 1, mode="bilinear"
    )[0, 0].numpy()
    seen = np.empty((STEPS, SIDE, SIDE), np.float32)
    for scene, offset in zip(seen, RADIUS + path(), strict=True):
        (y, x), (v, u) = offset.astype(int), offset % 1
        rows = (1 - v) * large[y : y + SIDE] + v * large[y + 1 : y + SIDE + 1]
        scene[:] = (1 - u) * rows[:, x : x + SIDE] + u * rows[:, x + 1 : x + SIDE + 1]
    return np.log(seen + DARK)


def record(image, count, threshold, noise, rng):
    """The first `count` events of a recording of `image` (uint8 [H, W, 3]), as columns (t, x, y, p).

    threshold: of the logarithm of the intensity, between two events; noise: events of no cause, per pixel and second.
    Raises:
        UseError: the image gives no events.
    """
    seen = scenes(image).reshape(STEPS, -1)
    before = seen[0]
    level = (
        before + rng.uniform(-0.5, 0.5, before.shape).astype(np.float32) * threshold
    )  # at each pixel's last event
    columns, total, step = [], 0, 0
    while total < count:
        now, step = seen[(step + 1) % STEPS], step + 1
        crossed = ((now - level) / threshold).astype(
            np.int32
        )  # thresholds crossed since, towards zero
        pixel = np.flatnonzero(crossed)
        times = np.abs(crossed[pixel])
        level[pixel] += crossed[pixel] * np.float32(threshold)
        pixel, on = np.repeat(pixel, times), np.repeat(crossed[pixel] > 0, times)
        back = np.arange(len(pixel)) - np.repeat(
            np.cumsum(times) - times, times
        )  # 0 is a pixel's last crossing of the step
        crossing = level[pixel] - np.where(on, threshold, -threshold) * back
        change = now[pixel] - before[pixel]
        share = np.clip(
            (crossing - before[pixel]) / np.where(change, change, 1), 0, 1
        )  # of the step, interpolated
        stray = rng.poisson(noise * before.size * LOOP / STEPS / 1e6)
        pixel = np.concatenate([pixel, rng.integers(0, before.size, stray)])
        on = np.concatenate([on, rng.integers(0, 2, stray, dtype=bool)])
        t = ((step - 1 + np.concatenate([share, rng.random(stray)])) * (LOOP / STEPS)).astype(
            np.int64
        )
        order = np.argsort(t, kind="stable")
        columns.append([column[order] for column in (t, pixel, on)])
        total, before = total + len(t), now
        if step == 2 * STEPS and not total:
            raise UseError(
                f"no events in two rounds at --threshold {threshold}: lower it, or give --noise"
            )
    t, pixel, on = (np.concatenate(parts)[:count] for parts in zip(*columns, strict=True))
    row, column = (
        pixel // SIDE,
        pixel % SIDE,
    )  # the sensor lies on its side, as in the data set: see events.py
    return t, row.astype(np.int16), (SIDE - 1 - column).astype(np.int16), on.astype(np.uint8)


def get_parser():
    parser = cli.Parser(prog="simulate.py", description="Recordings of a simulated event camera.")
    parser.add_argument(
        "--dataset",
        type=str.upper,
        default="DIGITS",
        choices=("DIGITS", "CIFAR10"),
        help="images to record",
    )
    parser.add_argument(
        "--data_root", default=str(ROOT / "data"), help="folder of CIFAR10, as for ann_ddp.py"
    )
    parser.add_argument(
        "--output", required=True, help="folder to write <class>/cifar10_<class>_<n>.aedat to"
    )
    parser.add_argument(
        "--per_class",
        type=cli.positive,
        default=100,
        help="recordings of each class, of its first images",
    )
    parser.add_argument(
        "--events",
        type=cli.positive,
        default=100_000,
        help="events of each (DVS-CIFAR10: about 200,000)",
    )
    parser.add_argument(
        "--threshold",
        type=cli.number(float, low=0.01),
        default=0.2,
        help="contrast between two events, log units",
    )
    parser.add_argument(
        "--noise",
        type=cli.number(float, low=0, high=1000),
        default=0.1,
        help="background events, per pixel and second",
    )
    parser.add_argument("-s", "--seed", type=cli.seed, default=0, help="of everything random")
    parser.add_argument("--workers", type=cli.positive, default=cores(), help="processes")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def make(output, settings, job):
    """Write the recording of `job`: (file, label, number in the class, image); returns its size in bytes."""
    file, label, number, image = job
    if not (output / file).exists():
        rng = np.random.default_rng([settings["seed"], label, number])
        try:
            columns = record(
                image, settings["events"], settings["threshold"], settings["noise"], rng
            )
        except UseError as error:
            raise UseError(f"{file}: {error}") from None
        write(output / file, Events(output / file, *columns), "simulated", json.dumps(settings))
    return (output / file).stat().st_size


def plan(content, per_class):
    """The jobs: the first `per_class` images of each class, of training and test part together.

    Raises:
        UseError: a class has fewer images.
    """
    images, labels = (
        torch.cat([getattr(part, name) for part in (content.train, content.test)]).numpy()
        for name in ("images", "labels")
    )
    jobs = []
    for label, name in enumerate(CLASSES):
        chosen = np.flatnonzero(labels == label)
        if len(chosen) < per_class:
            raise UseError(
                f"--per_class {per_class}: {content.about['source']} has {len(chosen)} images of class {label}"
            )
        jobs += [
            (f"{name}/cifar10_{name}_{n}.aedat", label, n, images[i])
            for n, i in enumerate(chosen[:per_class])
        ]
    return jobs


def main(argv=None):
    args, world = get_parser().parse(argv), World()
    cli.refuse_idle(
        args, [(["data_root"], args.dataset == "CIFAR10", "DIGITS comes with scikit-learn")]
    )
    content = data.load(
        Namespace(dataset=args.dataset, data_root=args.data_root, dataset_dir="", image_size=None),
        world,
    )
    jobs, output, start = (
        plan(content, args.per_class),
        Path(args.output).resolve(),
        time.monotonic(),
    )
    settings = {"images": content.about["source"], "sha256": content.about["train"]["sha256"]}
    settings |= {
        name: getattr(args, name) for name in ("per_class", "events", "threshold", "noise", "seed")
    }
    made = simulated(output)
    if made != settings and (made or any((output / name).exists() for name in CLASSES)):
        raise UseError(
            f"{output} holds recordings that were not made with these settings: give another --output, or remove it"
        )
    write_json(output / "simulated.json", settings)
    sizes = list(
        progress(
            ordered(partial(make, output, settings), jobs, args.workers), world, total=len(jobs)
        )
    )
    seconds = time.monotonic() - start
    world.say(
        f"{len(sizes)} recordings of {args.events} events, {sum(sizes) / 1e6:.1f} MB, of {content.about['source']} in "
        f"{output}, {seconds:.0f} s, {len(sizes) / seconds:.1f} recordings/s"
    )


if __name__ == "__main__":
    guard(main)
