"""Recordings of a simulated event camera, as AEDAT 2.0 files in the folders of DVS-CIFAR10: for
trials without the data set.

An image fills the 128x128 sensor and moves along a closed path, round and round, as it was done for
DVS-CIFAR10. Each pixel remembers the logarithm of the intensity at its last event, and fires ON or
OFF whenever the present one is a threshold above or below it. The ten digits take the folders of
the ten classes of CIFAR-10, 0 that of the airplane.

The output says what it is: simulated.json, and a line in each file's header. An interrupted run
goes on with the same command.
"""

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from engine.errors import UseError
from engine.log import progress, write_json
from engine.settings import number, option, positive_int

from .formats import CLASSES, SIDE, Events, simulated, write
from .pool import ordered

RADIUS = 4  # of the path, half its diagonal, pixels
STEPS = 48  # positions on the path
LOOP = 200_000  # one round, us
STEP = LOOP / STEPS  # from one position to the next, us
PIXELS = SIDE * SIDE
DARK = 0.05  # intensity of black; white is 1 + DARK
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue


@dataclass(frozen=True)
class CameraOptions:
    """camera"""

    per_class: int = option(
        100, "recordings of each class, of the first images of the class", positive_int
    )
    events: int = option(
        100_000, "events of each recording (DVS-CIFAR10: about 200,000)", positive_int
    )
    threshold: float = option(
        0.2, "contrast between two events", number(float, low=0.01), unit="log units"
    )
    noise: float = option(
        0.1, "background events", number(float, low=0, high=1000), unit="per pixel and second"
    )


class Job(NamedTuple):
    """A recording to make: its file under the output, its label, its number in the class, and its
    image uint8 [H, W, 3].
    """

    file: str
    label: int
    number: int
    image: np.ndarray


# ---- what the camera sees ----


def path():
    """The closed path: float [STEPS, 2], (y, x) offsets in pixels.

    It runs along the sides of a square that stands on a corner.
    """
    at = np.arange(STEPS) * 4 / STEPS  # in sides
    corner = range(5)
    y = np.interp(at, corner, (0, 1, 0, -1, 0))
    x = np.interp(at, corner, (-1, 0, 1, 0, -1))
    return RADIUS * np.stack([y, x], axis=1)


def _rows(image, offset):
    """SIDE rows of [H, ...] from row `offset` on, linear between rows."""
    first, share = int(offset), offset % 1
    rows = image[first : first + SIDE + 1]
    return (1 - share) * rows[:-1] + share * rows[1:]


def scenes(image):
    """Log intensities float32 [STEPS, 128, 128] of uint8 [H, W, 3] seen from each position.

    They are bilinear between pixels.
    """
    colours = torch.from_numpy(image).float().unbind(-1)
    # no product of matrices: its last bit depends on the processor, and a seed names recordings
    shares = [weight * colour for weight, colour in zip(GREY, colours)]
    grey = sum(shares) / 255  # [H, W]
    side = SIDE + 2 * RADIUS + 1  # what is seen from all positions together
    large = F.interpolate(grey[None, None], size=side, mode="bilinear")
    large = large[0, 0].numpy()
    seen = []
    for y, x in RADIUS + path():
        high = _rows(large, y)
        seen.append(_rows(high.T, x).T)
    return np.log(np.array(seen, np.float32) + DARK)


# ---- what it records ----


def crossings(level, before, now, threshold):
    """Events of the thresholds that the log intensities [pixels] cross within a step.

    level: of each pixel's last event; it is moved to the last crossing. before, now: at the ends of
    the step, between which they are interpolated.
    Returns (share of the step, pixel, whether it is ON), [n] each.
    """
    crossed = ((now - level) / threshold).astype(np.int32)  # how many, rounded towards zero
    pixel = np.flatnonzero(crossed)
    times = np.abs(crossed[pixel])
    level[pixel] += crossed[pixel] * np.float32(threshold)

    # a pixel has an event for each of its crossings
    first = np.repeat(np.cumsum(times) - times, times)
    pixel = np.repeat(pixel, times)
    back = np.arange(len(pixel)) - first  # 0 is the pixel's last crossing
    on = crossed[pixel] > 0
    crossing = level[pixel] - np.where(on, threshold, -threshold) * back
    change = now[pixel] - before[pixel]
    share = (crossing - before[pixel]) / np.where(change, change, 1)
    return np.clip(share, 0, 1), pixel, on


def stray_events(noise, rng):
    """Events of no cause within a step, as `crossings` returns them.

    noise: how many per pixel and second.
    """
    count = rng.poisson(noise * PIXELS * STEP / 1e6)
    pixel = rng.integers(0, PIXELS, count)
    on = rng.integers(0, 2, count, dtype=bool)
    return rng.random(count), pixel, on


def record(image, options: CameraOptions, rng):
    """The first events of a recording of `image` (uint8 [H, W, 3]), as columns (t, x, y, p).

    options: `events` says how many.
    Raises:
        UseError: the image gives no events.
    """
    threshold = options.threshold
    seen = scenes(image).reshape(STEPS, PIXELS)
    # no two pixels are equally far from their first event
    start = rng.uniform(-0.5, 0.5, PIXELS).astype(np.float32) * threshold
    level = seen[0] + start
    parts, total, step = [], 0, 0
    before_round = 0  # events
    while total < options.events:
        before, now = seen[step % STEPS], seen[(step + 1) % STEPS]
        caused = crossings(level, before, now, threshold)
        for share, pixel, on in (caused, stray_events(options.noise, rng)):
            parts.append((step + share, pixel, on))
            total += len(pixel)
        step += 1
        if step % STEPS:
            continue
        # in the first round pixels may fire by where they started, and never again
        if step > STEPS and total == before_round:
            raise UseError(
                f"{total} events, and no more by further rounds, at --threshold {threshold}: lower "
                "it, or give more --noise"
            )
        before_round = total

    at, pixel, on = map(np.concatenate, zip(*parts))
    t = (at * STEP).astype(np.int64)
    first = np.argsort(t, kind="stable")[: options.events]
    # the sensor lies on its side, as in the data set: see `formats`
    x, column = np.divmod(pixel[first].astype(np.int16), SIDE)
    return t[first], x, SIDE - 1 - column, on[first].astype(np.uint8)


# ---- a data set of recordings ----


def plan(data, per_class):
    """The jobs: the first `per_class` images of each class, of both parts of `Data` together.

    Raises:
        UseError: a class has fewer images.
    """
    parts = (data.train, data.test)
    images = torch.cat([part.images for part in parts]).numpy()
    labels = torch.cat([part.labels for part in parts]).numpy()
    jobs = []
    for label, name in enumerate(CLASSES):
        chosen = images[labels == label][:per_class]
        if len(chosen) < per_class:
            raise UseError(
                f"--per_class {per_class}: {data.about['source']} has {len(chosen)} images of "
                f"class {label}"
            )
        for n, image in enumerate(chosen):
            jobs.append(Job(f"{name}/cifar10_{name}_{n}.aedat", label, n, image))
    return jobs


def make(output, options: CameraOptions, about, job):
    """Write the recording of a job, unless it is there; returns its size in bytes.

    about: what it was made with, for its header.
    """
    path = output / job.file
    if not path.exists():
        rng = np.random.default_rng([about["seed"], job.label, job.number])
        try:
            columns = record(job.image, options, rng)
        except UseError as error:
            raise UseError(f"{job.file}: {error}") from None
        write(path, Events(path, *columns), "simulated", json.dumps(about))
    return path.stat().st_size


def simulate(data, options: CameraOptions, seed, output, processes, world):
    """Record the images of `Data` into the folder `output`, as `CameraOptions` say.

    Raises:
        UseError: the output holds other recordings, or a class has too few images.
    """
    jobs = plan(data, options.per_class)
    start = time.monotonic()
    source = data.about["source"]
    about = {"images": source, "sha256": data.about["train"]["sha256"]}
    about |= asdict(options) | {"seed": seed}
    made_with = simulated(output)
    begun = made_with or any((output / name).exists() for name in CLASSES)
    if begun and made_with != about:
        raise UseError(
            f"{output} holds recordings that were not made with these settings: "
            "give another --output, or remove it"
        )
    write_json(output / "simulated.json", about)
    made = ordered(partial(make, output, options, about), jobs, processes)
    sizes = list(progress(made, world, total=len(jobs)))
    seconds = time.monotonic() - start
    world.say(
        f"{len(sizes)} recordings of {options.events} events, {sum(sizes) / 1e6:.1f} MB, of "
        f"{source} in {output}, {seconds:.0f} s, {len(sizes) / seconds:.1f} recordings/s"
    )
