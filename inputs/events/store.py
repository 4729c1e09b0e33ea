"""Prepared recordings on disk: bit-packed rows that grow, a journal to go on from, and a manifest
that is written last.
"""

import io
import json
import math
import os
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.errors import UseError
from engine.files import lock
from engine.log import versions, write_json

from .formats import FRAMES, PARTS, SIDE

ROW = (FRAMES, 2, SIDE, SIDE // 8)  # of a recording: frame, polarity, y, 8 pixels along x
BYTES = math.prod(ROW)
FACTS = {"events": int, "sha256": str, "dropped": dict, "steps_back": int, "crc32": int}


class Job(NamedTuple):
    """A recording to prepare: its path under the source folder, its label, its part."""

    file: str
    label: int
    part: str


def fingerprint(path):
    """What tells a changed file from the one before.

    Raises:
        UseError: it cannot be read, as a link whose target is gone.
    """
    try:
        stat = path.stat()
    except OSError as error:
        link = f"it is a link to {path.readlink()}, " if path.is_symlink() else ""
        raise UseError(
            f"{path} cannot be read ({error.strerror}): {link}restore it, or leave it out"
        ) from None
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


@dataclass(frozen=True)
class Task:
    """What is to be prepared.

    source: folder of the recordings. jobs: `Job`s in the order of the rows. skip_bad: list unusable
    recordings and go on. head: what the manifest says of the data as a whole.
    """

    source: Path
    jobs: list
    skip_bad: bool
    head: dict

    def holds(self, entry, job):
        """Whether an entry of an earlier run is what the job would give now."""
        try:
            now = fingerprint(self.source / job.file)
        except UseError as error:
            now = {"reason": str(error)}  # it is skipped for the same reason, or anew
        same = entry.items() >= (job._asdict() | now).items()
        return same and (self.skip_bad or usable(entry))


def usable(entry):
    """Whether a recording has a row; if not, its entry has a `reason`."""
    return "reason" not in entry


def header(count):
    """The header of a .npy file of `count` rows; its length does not depend on `count`."""
    about = {"descr": "|u1", "fortran_order": False, "shape": (count, *ROW)}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


HEADER = len(header(0))


def _line(content):
    """A line of the journal."""
    return json.dumps(content).encode() + b"\n"


def _entry(line):
    """The entry of a line of the journal; of one that is not whole, {}."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else {}
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def is_finished(output, task):
    """Whether `output` holds finished data, and what the task would give now."""
    try:
        content = json.loads((output / "manifest.json").read_text())
        entries = {}
        for part in PARTS:
            entries |= {e["file"]: e | {"part": part} for e in content[part]}
            size = (output / f"{part}.npy").stat().st_size
            # a file that was cut short, or that belongs to another manifest
            if size != HEADER + len(content[part]) * BYTES:
                return False
        entries |= {e["file"]: e for e in content["skipped"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or damaged
        return False
    same = task.head.items() <= content.items() and len(entries) == len(task.jobs)
    found = (entries.get(job.file, {}) for job in task.jobs)
    return same and all(map(task.holds, found, task.jobs))


class Store(ExitStack):
    """The growing output: <part>.npy.part, row after row, and the journal.

    The journal begins with the task's `head`; a line per recording follows, written after its row.
    Rows are checked against it when it is opened again, so that neither a kill nor a power cut
    leaves a row that is not whole. One store at a time may be open on a folder.
    """

    def __init__(self, output, task):
        super().__init__()
        self.output, self.task = output, task
        self.manifest = output / "manifest.json"
        self.journal_path = output / "journal.jsonl"
        self.rows = {}  # part: its growing file

    def __enter__(self):
        self.output.mkdir(parents=True, exist_ok=True)
        self.journal = self._open(self.journal_path)
        try:
            lock(self.journal, self.output)
        except BlockingIOError:
            self.close()
            raise UseError(
                f"another preparation is at work in {self.output}: wait for it, "
                "or give another --output"
            ) from None
        for part in PARTS:
            growing, final = self.output / f"{part}.npy.part", self.output / f"{part}.npy"
            # a run that was cut off inside `finish` has renamed it already
            if final.exists() and not growing.exists() and not self.manifest.exists():
                final.rename(growing)
            self.rows[part] = self._open(growing)
        return self

    def _open(self, path):
        path.touch()
        return self.enter_context(open(path, "r+b"))

    def resume(self):
        """Entries of the leading jobs that an interrupted run has done.

        What it left after them is cut off.
        """
        for file in self.rows.values():
            file.write(header(0))
        done, end = self._done()
        for part, file in self.rows.items():
            count = sum(entry["part"] == part and usable(entry) for entry in done)
            file.seek(HEADER + count * BYTES)
        self.journal.seek(end)
        # what follows may be half a row, or half a line
        for file in (self.journal, *self.rows.values()):
            file.truncate()
        if not end:
            self.journal.write(_line(self.task.head))
        return done

    def _done(self):
        """(entries of the leading jobs that hold, bytes of the journal up to the last of them)."""
        lines = self.journal.readlines()
        # the journal of another source or split holds nothing for this one
        if lines[:1] != [_line(self.task.head)]:
            return [], 0
        done, end = [], len(lines[0])
        for line, job in zip(lines[1:], self.task.jobs):
            entry = _entry(line)
            if not self.task.holds(entry, job):
                break
            if usable(entry):
                # a damaged line does not hold, nor does one whose row is lost or damaged
                if not all(isinstance(entry.get(name), kind) for name, kind in FACTS.items()):
                    break
                row = self.rows[job.part].read(BYTES)
                if zlib.crc32(row) != entry["crc32"]:
                    break
            done.append(entry)
            end += len(line)
        return done, end

    def add(self, entry, row):
        """Append a recording: first its row (None: it has none), then its line."""
        if row is not None:
            file = self.rows[entry["part"]]
            file.write(row)
            file.flush()
        self.journal.write(_line(entry))
        self.journal.flush()

    def finish(self, entries):
        """Put the finished files in the place of earlier ones, the manifest last; returns it."""
        listed = {part: [] for part in PARTS}
        for entry in filter(usable, entries):
            about = dict(entry)
            listed[about.pop("part")].append(about)

        # the old files stay until the new ones are on the disk
        for part, file in self.rows.items():
            file.seek(0)
            file.write(header(len(listed[part])))
            file.flush()
            os.fsync(file.fileno())
        # without a manifest no mixture of old and new files looks finished
        self.manifest.unlink(missing_ok=True)
        for part in PARTS:
            os.replace(self.output / f"{part}.npy.part", self.output / f"{part}.npy")
        skipped = [entry for entry in entries if not usable(entry)]
        manifest = {**self.task.head, "versions": versions(), **listed, "skipped": skipped}
        write_json(self.manifest, manifest)
        self.journal_path.unlink()
        return manifest
