"""Prepare DVS-CIFAR10 for training: 80 binary frames of equal event counts per recording,
bit-packed, without MATLAB.

The output folder holds train.npy and test.npy, uint8 [N, 80, 2, 128, 16] (`coding.unpack` gives
[N, 80, 2, 128, 128]), and manifest.json, which describes their rows and is written last: a folder
without it is not prepared data. An interrupted run goes on when the same command is given again, up
to the first recording that has changed since.

Nothing here imports torch, whose memory every worker process would pay for.
"""

import hashlib
import re
import shutil
import time
import zlib
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from engine.errors import RunError, UseError
from engine.log import progress, read_json
from engine.settings import option
from inputs.left_out import kind, note

from .formats import (
    CLASSES,
    DATA,
    FORMAT,
    FRAMES,
    PARTS,
    SIDE,
    SUFFIXES,
    frames,
    oddities,
    read,
    simulated,
)
from .pool import ordered
from .store import BYTES, Job, Store, Task, fingerprint, is_finished, usable

FIRST_TESTED = 900  # of the numbers of a class, in the published split


def split_name(text):
    """Type of the name of a split."""
    if not re.fullmatch(r"first900|last100|random-\d+", text):
        raise ValueError(f"expected first900, last100 or random-<seed>, got {text!r}")
    return text


@dataclass(frozen=True)
class PrepareOptions:
    """recordings"""

    source: str = option(str(DATA), f"folder with <class>/<recordings> ({', '.join(SUFFIXES)})")
    skip_bad: bool = option(False, "list unusable recordings in the manifest and go on")


# ---- which recordings ----


def _numbered(folder, left_out):
    """{number at the end of its name: recording} of a class, in the order of the numbers.

    What else lies there is counted by kind.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        # archives and editors leave files that begin with a dot
        if kind(path.name) not in SUFFIXES:
            left_out["folders in a class" if path.is_dir() else kind(path.name)] += 1
            continue
        digits = re.search(r"\d+$", path.stem)
        if not digits:
            raise UseError(
                f"{path} has no number at the end of its name, by which recordings are ordered: "
                "rename it"
            )
        number = int(digits[0])
        if number in found:
            raise UseError(
                f"{folder} holds recording {number} twice, {found[number]} and {path.name}: "
                "remove one"
            )
        found[number] = path.name
    # 10 comes after 9, whatever the alphabet says
    return {number: f"{folder.name}/{found[number]}" for number in sorted(found)}


def find(source):
    """{label: {number in its name: recording under `source`}}, in the order of the numbers.

    Says what is there beside them.
    Raises:
        UseError: no such folder, no recordings, a folder that is no class, a name without a number,
            a number twice.
    """
    if not source.is_dir():
        raise UseError(
            f"no recordings at {source}: expected {source}/<class>/*.aedat (or another --source)"
        )
    found, left_out = {}, Counter()
    for folder in sorted(source.iterdir()):
        # prepared data lie beside the classes, unless --output says otherwise
        if folder.name in ("prepared", "simulated.json") or folder.name.startswith("."):
            continue
        if not folder.is_dir():
            left_out["beside the class folders"] += 1
            continue
        if folder.name not in CLASSES:
            raise UseError(
                f"{folder} is no class of DVS-CIFAR10, expected {', '.join(CLASSES)}: "
                "rename or remove it"
            )
        found[CLASSES.index(folder.name)] = _numbered(folder, left_out)
    if not any(found.values()):
        others = ", ".join(SUFFIXES[1:])
        raise UseError(
            f"{source} holds no recordings: expected {source}/<class>/*.aedat (or {others})"
        )
    if left_out:
        count = sum(map(len, found.values()))
        print(note(source, f"{count} recordings", left_out))
    return found


def tested(numbers, split, label, small):
    """Which recordings of a class, by their numbers in rising order, are for testing: bool [n].

    small: no class of the set reaches number 900, so that the published split has nothing to test.
    """
    count = len(numbers)
    place = np.arange(count)
    tenth = count - count * 9 // 10  # at least one
    if split == "first900":
        return place >= count - tenth if small else np.asarray(numbers) >= FIRST_TESTED
    if split == "last100":
        if count <= 100:
            raise UseError(
                f"--split last100: {CLASSES[label]} has {count} recordings, more than 100 are "
                "needed; use first900"
            )
        return place >= count - 100
    # each class has a generator of its own, so that one more class changes no other
    seed = int(split.removeprefix("random-"))
    drawn = np.random.default_rng([seed, label]).permutation(count)
    return np.isin(place, drawn[:tenth])


def plan(source, split):
    """The jobs in the order of the rows.

    By part, then number, then class, so that any stretch of rows has all classes.
    """
    found = find(source)
    small = max(number for files in found.values() for number in files) < FIRST_TESTED
    jobs = []
    for label, files in found.items():
        test = tested(list(files), split, label, small)
        if files and test.all():
            name = CLASSES[label]
            raise UseError(
                f"--split {split} leaves no recording of {name} for the train part: a class needs "
                f"at least two, add some or remove {source / name}"
            )
        for place, file in enumerate(files.values()):
            part = int(test[place])
            jobs.append((part, place, Job(file, label, PARTS[part])))
    return [job for *_, job in sorted(jobs)]


# ---- one recording ----


def convert(source, job):
    """(entry of the journal and the manifest, packed frames) of a recording.

    If it is unusable, (entry with a reason, None).
    """
    path = source / job.file
    entry = job._asdict()
    try:
        # before it is read: what changes afterwards is noticed by the next run
        entry |= fingerprint(path)
        events = read(path)
        row = np.packbits(frames(events), axis=-1)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (UseError, OSError) as error:
        return entry | {"reason": str(error)}, None
    entry |= {
        "events": len(events),
        "sha256": digest,
        "dropped": events.dropped,
        "steps_back": events.steps_back,
        "crc32": zlib.crc32(row),
    }
    odd = oddities(events)
    return entry | ({"odd": odd} if odd else {}), row


# ---- all of them ----


def _task(source, split, skip_bad):
    """What is asked for."""
    head = {
        "format": FORMAT,
        "split": split,
        "source": str(source),
        "frames": FRAMES,
        "sensor": [SIDE, SIDE],
        "classes": list(CLASSES),
    }
    # whatever is made of simulated recordings says so
    made_with = simulated(source)
    if made_with:
        head["simulated"] = made_with
    return Task(source, plan(source, split), skip_bad, head)


def _fill(store, processes):
    """Convert what an interrupted run has not done; returns (all entries, how many are new).

    Raises:
        UseError: no recording can be used, or (unless they are to be skipped) one cannot.
        RunError: they do not fit on the disk.
    """
    task = store.task
    entries = store.resume()
    left = task.jobs[len(entries) :]
    # better now than after an hour of work
    needed, free = len(left) * BYTES, shutil.disk_usage(store.output).free
    if needed > free:
        raise RunError(
            f"{len(left)} recordings need {needed / 1e9:.2f} GB in {store.output}, "
            f"{free / 1e9:.2f} GB are free: make room or give --output on another disk"
        )
    if entries:
        print(f"going on after {len(entries)} of {len(task.jobs)} recordings")

    # the workers, who share the lock of the store, end before it is given back
    with closing(ordered(partial(convert, task.source), left, processes)) as converted:
        for entry, row in progress(converted, total=len(left)):
            if row is None and not task.skip_bad:
                hint = "--skip_bad lists it in the manifest and goes on"
                raise UseError(f"{entry['reason']} ({hint})")
            store.add(entry, row)
            entries.append(entry)
    if not any(map(usable, entries)):
        raise UseError(
            f"none of the {len(entries)} recordings can be used, the first: {entries[0]['reason']}"
        )
    return entries, len(left)


def _say_result(manifest):
    """Tell what was prepared, of odd recordings, and of classes that are not split 900 / 100 as
    published.
    """
    train, test = (manifest[part] for part in PARTS)
    whole = train + test
    rejected = sum(sum(entry["dropped"].values()) for entry in whole)
    print(
        f"prepared {len(train)} training and {len(test)} test recordings, "
        f"{len(manifest['skipped'])} skipped, of {sum(entry['events'] for entry in whole)} events "
        f"({rejected} left out, {sum(entry['steps_back'] for entry in whole)} steps back in time)"
    )
    odd = [entry for entry in whole if "odd" in entry]
    if odd:
        first = f"{odd[0]['file']} ({'; '.join(odd[0]['odd'])})"
        print(
            f"warning: {len(odd)} recordings are odd for a DVS128, the first: {first}; the "
            "manifest lists them"
        )
    if manifest["split"] != "first900":
        return

    labels = [[entry["label"] for entry in part] for part in (train, test)]
    split = {}  # (training, test recordings): names of the classes that have so many
    for label, name in enumerate(CLASSES):
        counts = tuple(part.count(label) for part in labels)
        split.setdefault(counts, []).append(name)
    # as published, and classes that are not there
    for expected in ((900, 100), (0, 0)):
        split.pop(expected, None)
    if split:
        said = [f"{a} / {b} of {', '.join(names)}" for (a, b), names in split.items()]
        print(f"training / test recordings where they are not 900 / 100: {'; '.join(said)}")


def prepare(options: PrepareOptions, target, processes):
    """Prepare the recordings that the options name.

    target: its `prepared` and `split` say where to and how.
    Returns the manifest, or None if that was done before.
    Raises:
        UseError: no recordings, or (unless `skip_bad`) an unusable one.
        RunError: the disk is full; what is done is kept.
    """
    source, split = Path(options.source).resolve(), target.split
    prepared = source / "prepared"
    output = Path(target.prepared).resolve() if target.prepared else prepared / split
    if output.is_relative_to(source) and not output.is_relative_to(prepared):
        raise UseError(
            f"--output {output} lies among the recordings: give a folder outside {source}"
        )
    task = _task(source, split, options.skip_bad)
    # a command that was given twice must not take hours again
    if is_finished(output, task):
        skipped = len(read_json(output / "manifest.json")["skipped"])
        more = f"; {skipped} were skipped: remove it to try them again" if skipped else ""
        print(f"{output} is prepared already, from these recordings{more}")
        return None

    start = time.monotonic()
    absent = set(CLASSES) - {CLASSES[job.label] for job in task.jobs}
    if absent:
        print(f"note: {source} holds no recordings of {', '.join(sorted(absent))}")
    try:
        with Store(output, task) as store:
            entries, new = _fill(store, processes)
            manifest = store.finish(entries)
    except OSError as error:
        raise RunError(
            f"cannot write to {output} ({error}): check the disk's space and the folder's "
            "permissions; what is done is kept, the same command goes on with it"
        ) from error
    seconds = time.monotonic() - start
    _say_result(manifest)
    size = sum(len(manifest[part]) for part in PARTS) * BYTES
    print(f"{size / 1e9:.2f} GB in {output}, {seconds:.0f} s, {new / seconds:.1f} recordings/s")
    return manifest
