"""Recordings of a 128x128 event camera: reading and writing them, and frames of equal event counts.

Formats, told apart by their content, `.mat` and `.npz` by their suffix:
  AEDAT 2.0 (jAER)   text header, then big-endian pairs of 32-bit address and 32-bit timestamp
  AEDAT 1.0 (jAER)   the same with 16-bit addresses
  AEDAT 4.0 (DV)     through the package `aedat`, when it is installed
  .mat               `out1` of the MATLAB route (dat2mat.m), columns t, 0, -1, x, y, p (p = -1 or 1)
  .npz               SpikingJelly's events, keys t, x, y, p, turned back to the sensor's x and y

The sensor of DVS-CIFAR10 lay on its side: x runs down the picture, and y from right to left. Events
and frames keep the axes of the sensor                                (docs/method.md, section 6).
"""

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from engine.errors import UseError, reason
from engine.files import write_atomic
from engine.plain import RATIO, SMALL, check_archive, check_unpacked

from . import aedat4

# Where the public scripts keep DVS-CIFAR10: <class>/<recordings>, prepared/<split>.
DATA = Path(__file__).resolve().parents[2] / "neuromorphic_tasks" / "data" / "dvs-cifar10"
SIDE = 128  # of the sensor, pixels
NARROW = SIDE // 3  # fewer columns or rows with events than any scene before a DVS128 has
FRAMES = 80  # of a prepared recording
FORMAT = "mlif-dvs-1"  # of prepared data
PARTS = ("train", "test")  # of prepared data
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SUFFIXES = (".aedat", ".aedat4", ".mat", ".npz")

# An event of jAER, by the version of AEDAT.
EVENT = {
    "1.0": np.dtype([("address", ">u2"), ("t", ">u4")]),
    "2.0": np.dtype([("address", ">u4"), ("t", ">u4")]),
}
COMPRESSED = 15  # miCOMPRESSED, a data type of MATLAB 5 files
SPECIAL = 1 << 15  # addresses from here on have bits that no pixel has

# An event may begin with the byte '#', too: a line of the header is text.
HEADER = re.compile(rb"(?:#[^\x00-\x08\n]*\n)*")
CHIP = re.compile(rb"^# *AEChip: *[\w.$]*?(\w+)\s*$", re.MULTILINE)  # the last word: its class
TEXT = (
    "#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    "# Data format is int32 address, int32 timestamp (8 bytes total), repeated for each event\r\n"
    "# Timestamps tick is 1 us\r\n"
)
HINT = "download or convert it anew, or leave it out"


@dataclass(frozen=True)
class Events:
    """Events in the order of the recording, which is the order of time but for `steps_back` places.

    t: int64 [N], us, 32-bit timestamps unwrapped. x, y: int16 [N] in 0 .. 127. p: uint8 [N], 0 OFF,
    1 ON. dropped: how many were left out: `special` (the address has bits beyond the pixel's) and
    `outside` the sensor. chip: the sensor that the header names.
    """

    path: Path
    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    dropped: dict = field(default_factory=dict)
    steps_back: int = 0
    chip: str = ""

    def __len__(self):
        return len(self.t)


def decode(address):
    """(x, y, p) of DVS128 addresses.

    Bit 0 is the polarity (0 is ON), bits 1-7 are x, mirrored, bits 8-14 are y.
    """
    return 127 - (address >> 1 & 127), address >> 8 & 127, 1 - (address & 1)


def encode(x, y, p):
    """The address of DVS128 events, the inverse of `decode`; its 15 bits fit an int16."""
    return 1 - p | (127 - x) << 1 | y << 8


# ---- readers: path -> (t, x, y, p, number of special events, chip); columns as the file has them


def _unwrap(ticks):
    """int64 times of uint32 ticks: a step is taken modulo 2^32 and lies in [-2^31, 2^31)."""
    steps = np.diff(ticks).view(np.int32)
    return np.concatenate([ticks[:1], steps]).cumsum()


def _read_jaer(path, data, version):
    """AEDAT 1.0 or 2.0, whose bytes are `data`."""
    start = HEADER.match(data).end()
    event = EVENT[version]
    extra = (len(data) - start) % event.itemsize
    if extra:
        raise UseError(
            f"{path} is truncated at byte {len(data) - extra}: AEDAT {version} events are "
            f"{event.itemsize} bytes each, the last one has {extra}; {HINT}"
        )
    words = np.frombuffer(data, event, offset=start)
    pixels = words[words["address"] < SPECIAL]
    t, special = _unwrap(pixels["t"]), len(words) - len(pixels)
    named = CHIP.search(data, 0, start)
    return t, *decode(pixels["address"]), special, named[1].decode() if named else ""


def _read_aedat4(path):
    # without the script's folder among those of modules; BLAS would claim memory for each thread
    argv = [sys.executable, "-P", aedat4.__file__, str(path)]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, env=env)
    if done.returncode == aedat4.ABSENT:
        raise UseError(f"{path} is AEDAT 4.0, which the package aedat reads: pip install aedat")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        raise ValueError((lines or ["the package aedat was ended"])[-1])
    t, x, y, on = np.frombuffer(done.stdout, "<i8").reshape(4, -1)
    return t, x, y, on, 0, ""


def _read_aedat(path):
    data = path.read_bytes()
    found = re.match(rb"#!AER-DAT(\d\.\d)", data)
    if not found:
        raise UseError(
            f"{path} is no AEDAT recording: expected '#!AER-DAT2.0' at byte 0, "
            f"it holds {data[:12]!r}; {HINT}"
        )
    version = found[1].decode()
    if version in EVENT:
        return _read_jaer(path, data, version)
    if version == "4.0":
        return _read_aedat4(path)
    raise UseError(f"{path} is AEDAT {version}, expected one of {', '.join(EVENT)}, 4.0; {HINT}")


def _check_sums(path):
    """Unpack the compressed matrices of a MATLAB 5 file, which end with their checksums.

    Raises:
        zlib.error, ValueError: damaged, cut off, or far larger than it could be.
    """
    data, at, unpacked = path.read_bytes(), 128, 0
    order = {b"\0\1IM": "<II", b"\1\0MI": ">II"}.get(data[124:128])
    while order and at + 8 <= len(data):
        kind, size = struct.unpack_from(order, data, at)
        at += 8
        if kind == COMPRESSED:
            opened = zlib.decompressobj()
            room = max(SMALL, RATIO * len(data)) - unpacked
            unpacked += len(opened.decompress(data[at : at + size], room))
            # whole if its checksum was met
            if not opened.eof:
                check_unpacked(path, unpacked + bool(opened.unconsumed_tail))
                raise ValueError("a matrix is cut off")
        at += size


def _read_mat(path):
    from scipy.io import loadmat

    try:
        # SciPy reads as far as a matrix's header says, so a checksum may stay unchecked
        _check_sums(path)
        table = loadmat(path, variable_names=["out1"], appendmat=False)["out1"]
    except NotImplementedError:  # MATLAB 7.3 writes HDF5, transposed
        try:
            import h5py
        except ImportError:
            raise UseError(
                f"{path} is a MATLAB 7.3 file: pip install h5py, or save it with -v7"
            ) from None
        with h5py.File(path) as file:
            stored = file["out1"]
            check_unpacked(path, stored.size * stored.dtype.itemsize)
            table = stored[()].T
    if not isinstance(table, np.ndarray):
        kind = type(table).__name__
        raise UseError(f"{path}: out1 is a {kind}, expected a full matrix [N, 6]; {HINT}")
    if table.ndim != 2 or table.shape[1] != 6:
        raise UseError(
            f"{path}: out1 is {list(table.shape)}, expected [N, 6] with columns t, 0, -1, x, y, p; "
            f"{HINT}"
        )
    t, _, _, x, y, p = table.T
    return t, x, y, p, 0, ""


def _read_npz(path):
    check_archive(path)
    with np.load(path, allow_pickle=False) as file:
        # NumPy reads as far as an array's header says, so a checksum may stay unchecked
        damaged = file.zip.testzip()
        if damaged:
            raise ValueError(f"{damaged} fails its checksum")
        columns = [file[key] for key in "txyp"]
    shapes = [list(column.shape) for column in columns]
    if len(shapes[0]) != 1 or shapes.count(shapes[0]) != 4:
        raise UseError(f"{path}: t, x, y, p are {shapes}, expected four of one length; {HINT}")
    return *columns, 0, ""


READERS = {".mat": _read_mat, ".npz": _read_npz}  # the others are AEDAT


# ---- reading ----


def _check(path, name, column, fits, expected):
    """Refuse a column that does not fit everywhere."""
    wrong = np.flatnonzero(~fits)
    if len(wrong):
        first = wrong[0]
        raise UseError(
            f"{path}: {name} of event {first} is {column[first]}, expected {expected}; {HINT}"
        )


def _integers(path, name, column):
    """A column as int64; the floats of MATLAB and NumPy are cast when they are whole."""
    kind = column.dtype.kind
    if kind not in "biuf":
        raise UseError(f"{path}: {name} is of type {column.dtype}, expected numbers; {HINT}")
    if kind == "f":
        # beyond 2^62 a float may have no int64
        whole = (np.abs(column) < 2.0**62) & (column == np.trunc(column))
        _check(path, name, column, whole, "a whole number")
    return column.astype(np.int64)


def read(path):
    """The `Events` of a recording.

    Raises:
        UseError: missing, a folder, unreadable, truncated, another format, no events, or of another
            sensor (more than half of the events have no place on this one).
    """
    path = Path(path)
    if path.is_dir():
        raise UseError(f"{path} is a folder, expected a recording")
    if not path.is_file():
        raise UseError(f"no recording at {path}")
    suffix = path.suffix.lower()
    try:
        *columns, special, chip = READERS.get(suffix, _read_aedat)(path)
    except UseError:
        raise
    except Exception as error:  # scipy, zipfile, h5py and aedat raise anything on a damaged file
        raise UseError(
            f"{path} is damaged or not a {path.suffix} recording ({reason(error)}); {HINT}"
        ) from None
    t, x, y, p = map(partial(_integers, path), "txyp", columns)
    if suffix == ".npz":
        # SpikingJelly turned the picture upright
        x, y = y, SIDE - 1 - x
    _check(path, "p", p, (p >= -1) & (p <= 1), "0 or -1 (OFF), or 1 (ON)")
    return _on_sensor(path, t, x, y, p, special, chip)


def _on_sensor(path, t, x, y, p, special, chip):
    """The `Events` of columns of whole numbers, without those outside the sensor."""
    inside = (np.minimum(x, y) >= 0) & (np.maximum(x, y) < SIDE)
    dropped = {"special": special, "outside": int((~inside).sum())}
    lost, total = sum(dropped.values()), special + len(t)
    if lost > total / 2:
        named = f", its header names a {chip}" if chip else ""
        raise UseError(
            f"{path}: {lost} of {total} events have no place on a {SIDE}x{SIDE} sensor: "
            f"expected a recording of a DVS128{named}; {HINT}"
        )
    if not len(t):
        raise UseError(f"{path} holds no events; {HINT}")
    t, on = t[inside], p[inside] > 0
    x, y = (column[inside].astype(np.int16) for column in (x, y))
    steps_back = int((np.diff(t) < 0).sum())
    return Events(path, t, x, y, on.astype(np.uint8), dropped, steps_back, chip)


def oddities(events):
    """What is odd about events of a DVS128, as texts: another sensor's may fit its addresses."""
    found = []
    if events.chip not in ("", "DVS128"):
        found.append(f"the header names a {events.chip}")
    if events.p.min() == events.p.max():
        found.append(f"all events are {'ON' if events.p[0] else 'OFF'}")
    for name in "xy":
        values = len(np.unique(getattr(events, name)))
        if values < NARROW:
            found.append(f"{values} of {SIDE} values of {name}")
    return found


# ---- writing ----


def write(path, events, *comments):
    """Write AEDAT 2.0 atomically; t modulo 2^32, comments are lines of the header."""
    words = np.empty(len(events), EVENT["2.0"])
    words["address"] = encode(events.x, events.y, events.p)
    words["t"] = events.t & 0xFFFFFFFF
    text = TEXT + "".join(f"# {line}\r\n" for line in comments)
    content = text.encode() + words.tobytes()
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def simulated(folder):
    """The settings with which simulate.py made the recordings in `folder`.

    None: they are not simulated.
    """
    path = Path(folder) / "simulated.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError, RecursionError) as error:
        raise UseError(
            f"{path} cannot be read ({reason(error)}): remove {folder} and simulate it anew"
        ) from None


# ---- frames ----


def frames(events, count=FRAMES):
    """Binary frames uint8 [count, 2, 128, 128] = [frame, polarity, y, x] of N // count events each.

    The rest, fewer than `count` events at the end, is dropped.
    Raises:
        UseError: fewer than `count` events.
    """
    length = len(events) // count
    if not length:
        raise UseError(
            f"{events.path} holds {len(events)} events, expected at least {count}, one per frame; "
            f"{HINT}"
        )
    used = length * count
    frame = np.repeat(np.arange(count), length)
    out = np.zeros((count, 2, SIDE, SIDE), np.uint8)
    pixel = events.p[:used], events.y[:used], events.x[:used]
    out[frame, *pixel] = 1
    return out
