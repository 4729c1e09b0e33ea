"""Prepare DVS-CIFAR10 for training: 80 binary frames of equal event counts per recording, bit-packed, without MATLAB.

python3 dvscifar_prepare.py     # dvs-cifar10/<class>/<recordings> beside this script -> dvs-cifar10/prepared/first900

The output folder holds train.npy and test.npy, uint8 [N, 80, 2, 128, 16] (`events.unpack` gives [N, 80, 2, 128, 128]), and
manifest.json, which describes their rows and is written last: a folder without it is not prepared data.
An interrupted run goes on when the same command is given again, up to the first recording that has changed since.
"""

import hashlib
import re
import shutil
import time
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from cli import parser as cli
from engine.errors import RunError, UseError, guard
from engine.log import progress
from inputs.events.formats import (
    CLASSES,
    FORMAT,
    FRAMES,
    SIDE,
    SUFFIXES,
    frames,
    pack,
    read,
    simulated,
)
from inputs.events.pool import cores, ordered
from inputs.events.store import BYTES, PARTS, Job, Store, fingerprint, is_finished

ROOT = Path(__file__).resolve().parents[2]


def split_name(text):
    """Argument type: the name of a split."""
    if not re.fullmatch(r"first900|last100|random-\d+", text):
        raise cli.argparse.ArgumentTypeError(
            f"expected first900, last100 or random-<seed>, got {text!r}"
        )
    return text


def get_parser():
    parser = cli.Parser(prog="dvscifar_prepare.py", description="Prepare DVS-CIFAR10 for training.")
    parser.add_argument(
        "--source",
        default=str(ROOT / "neuromorphic_tasks" / "data" / "dvs-cifar10"),
        help=f"folder with <class>/<recordings> ({', '.join(SUFFIXES)})",
    )
    parser.add_argument(
        "--output", default="", help="folder to write to; default: <source>/prepared/<split>"
    )
    parser.add_argument(
        "--split",
        type=split_name,
        default="first900",
        help="first900: of each class the numbers below 900 "
        "train, as published (in a set that has no more, the first nine tenths); last100: all but the last "
        "100; random-<seed>: a random nine tenths",
    )
    parser.add_argument("--workers", type=cli.positive, default=cores(), help="processes")
    parser.add_argument(
        "--skip_bad", action="store_true", help="list unusable recordings in the manifest and go on"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def find(source):
    """{label: {number in its name: recording under `source`}}, in the order of the numbers.

    Raises:
        UseError: no such folder, no recordings, a folder that is no class, a name without a number, a number twice.
    """
    if not source.is_dir():
        raise UseError(
            f"no recordings at {source}: expected {source}/<class>/*.aedat (or another --source)"
        )
    folders = [
        p
        for p in sorted(source.iterdir())
        if p.is_dir() and p.name != "prepared" and not p.name.startswith(".")
    ]
    found = {}
    for folder in folders:
        if folder.name not in CLASSES:
            raise UseError(
                f"{folder} is no class of DVS-CIFAR10, expected {', '.join(CLASSES)}: rename or remove it"
            )
        numbered = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                continue
            number = re.search(r"\d+$", path.stem)
            if not number:
                raise UseError(
                    f"{path} has no number at the end of its name, by which recordings are ordered: rename it"
                )
            other = numbered.setdefault(int(number[0]), path)
            if other != path:
                raise UseError(
                    f"{folder} holds recording {int(number[0])} twice, {other.name} and {path.name}: remove one"
                )
        found[CLASSES.index(folder.name)] = {
            n: f"{folder.name}/{numbered[n].name}" for n in sorted(numbered)
        }
    if not any(found.values()):
        raise UseError(
            f"{source} holds no recordings: expected {source}/<class>/*.aedat (or {', '.join(SUFFIXES[1:])})"
        )
    return found


def tested(numbers, split, label, small):
    """Which recordings of a class, by their numbers in rising order, are for testing: bool [n].

    small: no class of the set reaches number 900, so that the published split has nothing to test.
    """
    count = len(numbers)
    test, tenth = np.zeros(count, bool), count - count * 9 // 10
    if split == "first900" and not small:
        test[:] = np.asarray(numbers) >= 900
    elif split == "first900":
        test[count - tenth :] = True
    elif split == "last100":
        if count <= 100:
            raise UseError(
                f"--split last100: {CLASSES[label]} has {count} recordings, more than 100 are needed; use first900"
            )
        test[-100:] = True
    else:
        test[
            np.random.default_rng([int(split.split("-")[1]), label]).permutation(count)[:tenth]
        ] = True
    return test


def plan(source, split):
    """The jobs in the order of the rows: part, then number, then class, so that any stretch of rows has all classes."""
    jobs, found = [], find(source)
    small = max(number for files in found.values() for number in files) < 900
    for label, files in found.items():
        test = tested(list(files), split, label, small)
        if files and test.all():
            raise UseError(
                f"--split {split} leaves no recording of {CLASSES[label]} for the train part: a class needs at "
                f"least two, add some or remove {source / CLASSES[label]}"
            )
        jobs += [
            (test[i], i, Job(file, label, PARTS[int(test[i])]))
            for i, file in enumerate(files.values())
        ]
    jobs = [job for *_, job in sorted(jobs)]
    for part in PARTS:
        if part not in {job.part for job in jobs}:
            raise UseError(
                f"--split {split} leaves no recording for the {part} part: a class needs at least two"
            )
    return jobs


def convert(source, job):
    """(entry of the journal and the manifest, packed frames); for an unusable recording (entry with a reason, None)."""
    path = Path(source, job.file)
    entry = job._asdict()
    try:
        entry |= fingerprint(path)
        events = read(path)
        row = pack(frames(events))
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (UseError, OSError) as error:
        return entry | {
            "reason": str(error)
            if isinstance(error, UseError)
            else f"{path} cannot be read ({error})"
        }, None
    return entry | {
        "events": len(events),
        "sha256": digest,
        "dropped": events.dropped,
        "steps_back": events.steps_back,
        "crc32": zlib.crc32(row),
    }, row


def say_counts(manifest):
    """Tell of classes that are not split 900 / 100 as published."""
    counts = [Counter(entry["label"] for entry in manifest[part]) for part in PARTS]
    classes = {}
    for label in sorted(counts[0] | counts[1]):
        classes.setdefault((counts[0][label], counts[1][label]), []).append(CLASSES[label])
    classes.pop((900, 100), None)
    if classes:
        said = "; ".join(
            f"{train} / {test} of {', '.join(names)}" for (train, test), names in classes.items()
        )
        print(f"training / test recordings where they are not 900 / 100: {said}")


def check_space(output, count):
    """Refuse to begin what does not fit on the disk."""
    needed, free = count * BYTES, shutil.disk_usage(output).free
    if needed > free:
        raise RunError(
            f"{count} recordings need {needed / 1e9:.2f} GB in {output}, {free / 1e9:.2f} GB are free: make room or "
            "give --output on another disk"
        )


def prepare(source, output, split, workers, skip_bad):
    """Prepare the recordings under `source`; returns the manifest, or None if that was done before.

    Raises:
        UseError: no recordings, or (unless skip_bad) an unusable one. RunError: the disk is full; what is done is kept.
    """
    jobs, start = plan(source, split), time.monotonic()
    head = {
        "format": FORMAT,
        "split": split,
        "source": str(source),
        "frames": FRAMES,
        "sensor": [SIDE, SIDE],
        "classes": list(CLASSES),
    }
    if made := simulated(source):
        head["simulated"] = made
    if is_finished(output, head, jobs, source, skip_bad):
        return None
    absent = [
        name for label, name in enumerate(CLASSES) if label not in {job.label for job in jobs}
    ]
    if absent:
        print(f"note: {source} holds no recordings of {', '.join(absent)}")
    try:
        with Store(output, head) as store:
            entries = store.resume(jobs, source, skip_bad)
            left = jobs[len(entries) :]
            check_space(output, len(left))
            if entries:
                print(f"going on after {len(entries)} of {len(jobs)} recordings")
            for entry, row in progress(
                ordered(partial(convert, source), left, workers), total=len(left)
            ):
                if row is None and not skip_bad:
                    raise UseError(
                        f"{entry['reason']} (--skip_bad lists it in the manifest and goes on)"
                    )
                store.add(entry, row)
                entries.append(entry)
            if not any("reason" not in e for e in entries):
                raise UseError(
                    f"none of the {len(entries)} recordings can be used, the first: {entries[0]['reason']}"
                )
            manifest = store.finish(entries)
    except OSError as error:
        raise RunError(
            f"cannot write to {output} ({error}): check the disk's space and the folder's permissions; what is done "
            "is kept, the same command goes on with it"
        ) from error
    seconds = time.monotonic() - start
    entries = [e for part in PARTS for e in manifest[part]]
    rejected = sum(sum(e["dropped"].values()) for e in entries)
    print(
        f"prepared {len(manifest['train'])} training and {len(manifest['test'])} test recordings, "
        f"{len(manifest['skipped'])} skipped, of {sum(e['events'] for e in entries)} events ({rejected} left out, "
        f"{sum(e['steps_back'] for e in entries)} steps back in time)"
    )
    if split == "first900":
        say_counts(manifest)
    print(
        f"{len(entries) * BYTES / 1e9:.2f} GB in {output}, {seconds:.0f} s, {len(left) / seconds:.1f} recordings/s"
    )
    return manifest


def main(argv=None):
    args = get_parser().parse(argv)
    source = Path(args.source).resolve()
    output = Path(args.output).resolve() if args.output else source / "prepared" / args.split
    if output.is_relative_to(source) and not output.is_relative_to(source / "prepared"):
        raise UseError(
            f"--output {output} lies among the recordings: give a folder outside {source}"
        )
    if prepare(source, output, args.split, args.workers, args.skip_bad) is None:
        print(f"{output} is prepared already, from these recordings")


if __name__ == "__main__":
    guard(main)
