"""Prepared recordings on disk: bit-packed rows that grow, a journal to go on from, and a manifest that is written last."""

import fcntl
import io
import json
import math
import os
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.errors import UseError
from engine.log import versions, write_json

from .formats import FRAMES, SIDE

PARTS = ("train", "test")
ROW = (FRAMES, 2, SIDE, SIDE // 8)
BYTES = math.prod(ROW)


class Job(NamedTuple):
    """A recording to prepare: its path under the source folder, its label, and the part it belongs to."""

    file: str
    label: int
    part: str


def fingerprint(path):
    """By what a changed file is noticed.

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


def holds(entry, job, source, skip_bad):
    """Whether an entry of an earlier run is what the job would give now."""
    path = Path(source, job.file)
    try:
        now = fingerprint(path)
    except UseError as error:
        now = {"reason": str(error)}
    return (entry.items() >= (job._asdict() | now).items()) and (skip_bad or "reason" not in entry)


def header(count):
    """The header of a .npy file of `count` rows; its length does not depend on `count`."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (count, *ROW)}
    )
    return file.getvalue()


def _line(content):
    return json.dumps(content).encode() + b"\n"


def _entry(line):
    """The entry of a line of the journal; of one that is not whole, {}."""
    try:
        return json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return {}


def is_finished(output, head, jobs, source, skip_bad):
    """Whether `output` holds finished data, of `head`, and what the jobs would give now."""
    try:
        content = json.loads((output / "manifest.json").read_text())
        entries = {e["file"]: e | {"part": part} for part in PARTS for e in content[part]}
        entries |= {e["file"]: e for e in content["skipped"]}
        sizes = [(output / f"{part}.npy").stat().st_size - len(header(0)) for part in PARTS]
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged
        return False
    return (
        head.items() <= content.items()
        and sizes == [len(content[part]) * BYTES for part in PARTS]
        and len(entries) == len(jobs)
        and all(
            job.file in entries and holds(entries[job.file], job, source, skip_bad) for job in jobs
        )
    )


class Store:
    """The growing output: <part>.npy.part, row after row, and the journal: `head`, then a line per recording, after its row.

    One at a time may be open on a folder. Rows are checked against the journal when it is opened again, so that neither a
    kill nor a power cut leaves a row that is not whole.
    """

    def __init__(self, output, head):
        self.output, self.head, self.stack, self.rows = output, head, ExitStack(), {}
        self.manifest, self.journal_path = output / "manifest.json", output / "journal.jsonl"

    def __enter__(self):
        self.output.mkdir(parents=True, exist_ok=True)
        self.journal = self._open(self.journal_path)
        try:
            fcntl.flock(self.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.stack.close()
            raise UseError(
                f"another preparation is at work in {self.output}: wait for it, or give another --output"
            ) from None
        for part in PARTS:
            growing, final = self.output / f"{part}.npy.part", self.output / f"{part}.npy"
            if (
                final.exists() and not growing.exists() and not self.manifest.exists()
            ):  # cut off inside `finish`
                final.rename(growing)
            self.rows[part] = self._open(growing)
        return self

    def _open(self, path):
        path.touch()
        return self.stack.enter_context(open(path, "r+b"))

    def __exit__(self, *_):
        self.stack.close()

    def resume(self, jobs, source, skip_bad):
        """Entries of the leading jobs that an interrupted run has done; what it left after them is cut off."""
        for file in self.rows.values():
            file.write(header(0))
        lines, end, done = self.journal.readlines(), 0, []
        if lines[:1] == [_line(self.head)]:
            end = len(lines[0])
            for line, job in zip(lines[1:], jobs, strict=False):
                entry = _entry(line)
                if not holds(entry, job, source, skip_bad):
                    break
                if (
                    "reason" not in entry
                    and zlib.crc32(self.rows[job.part].read(BYTES)) != entry["crc32"]
                ):
                    break
                done.append(entry)
                end += len(line)
        for part, file in self.rows.items():
            file.seek(
                len(header(0)) + sum(e["part"] == part and "reason" not in e for e in done) * BYTES
            )
        self.journal.seek(end)
        for file in (self.journal, *self.rows.values()):
            file.truncate()
        if not end:
            self.journal.write(_line(self.head))
        return done

    def add(self, entry, row):
        """Append a recording: first its row, then its line."""
        if row is not None:
            self.rows[entry["part"]].write(row)
            self.rows[entry["part"]].flush()
        self.journal.write(_line(entry))
        self.journal.flush()

    def finish(self, entries):
        """Put the finished files in the place of earlier ones, the manifest last; returns it."""
        listed = {
            part: [
                {k: v for k, v in e.items() if k != "part"}
                for e in entries
                if e["part"] == part and "reason" not in e
            ]
            for part in PARTS
        }
        for part, file in self.rows.items():
            file.seek(0)
            file.write(header(len(listed[part])))
            file.flush()
            os.fsync(file.fileno())
        self.manifest.unlink(missing_ok=True)
        for part in PARTS:
            os.replace(self.output / f"{part}.npy.part", self.output / f"{part}.npy")
        manifest = {
            **self.head,
            "versions": versions(),
            **listed,
            "skipped": [e for e in entries if "reason" in e],
        }
        write_json(self.manifest, manifest)
        self.journal_path.unlink()
        return manifest
