"""Recordings of a 128x128 event camera: reading and writing them, and binary frames of equal event counts.

Formats, told apart by their content, `.mat` and `.npz` by their suffix:
  AEDAT 2.0 (jAER)   text header, then big-endian pairs of 32-bit address and 32-bit timestamp
  AEDAT 1.0 (jAER)   the same with 16-bit addresses
  AEDAT 4.0 (DV)     through the package `aedat`, when it is installed
  .mat               `out1` of the MATLAB route (dat2mat.m), columns t, 0, -1, x, y, p (p = -1 or 1)
  .npz               SpikingJelly's events, keys t, x, y, p, turned back to the sensor's x and y
"""

import importlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.errors import UseError
from engine.files import write_atomic

SIDE, FRAMES, FORMAT = 128, 80, "mlif-dvs-1"  # pixels; of a prepared recording; of prepared data
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SUFFIXES = (".aedat", ".aedat4", ".mat", ".npz")
WORDS = {
    "1.0": np.dtype([("address", ">u2"), ("t", ">u4")]),
    "2.0": np.dtype([("address", ">u4"), ("t", ">u4")]),
}
HEADER = re.compile(
    rb"(?:#[^\x00-\x08\n]*\n)*"
)  # an event may begin with the byte '#': a line of the header is text
TEXT = (
    "#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Data format is int32 address, int32 timestamp "
    "(8 bytes total), repeated for each event\r\n# Timestamps tick is 1 us\r\n"
)
HINT = "download or convert it anew, or leave it out"


@dataclass(frozen=True)
class Events:
    """Events in the order of the recording, which is the order of time but for `steps_back` places.

    t: int64 [N], us, 32-bit timestamps unwrapped; x, y: int16 [N] in 0 .. 127; p: uint8 [N], 0 OFF, 1 ON.
    dropped: how many were left out: `special` (the address has bits beyond the pixel's) and `outside` the sensor.
    """

    path: Path
    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    dropped: dict = field(default_factory=dict)
    steps_back: int = 0

    def __len__(self):
        return len(self.t)


def decode(address):
    """(x, y, p) of DVS128 addresses: bit 0 polarity (0 is ON), bits 1-7 x, mirrored, bits 8-14 y."""
    address = np.asarray(address)
    return (
        (127 - (address >> 1 & 127)).astype(np.int16),
        (address >> 8 & 127).astype(np.int16),
        (1 - (address & 1)).astype(np.uint8),
    )


def encode(x, y, p):
    """The address of DVS128 events, the inverse of `decode`."""
    return (
        1 - np.asarray(p, np.uint32)
        | (127 - np.asarray(x, np.uint32)) << 1
        | np.asarray(y, np.uint32) << 8
    )


def _unwrap(ticks):
    """int64 times of uint32 ticks: a step is taken modulo 2^32 and lies in [-2^31, 2^31)."""
    t = ticks.astype(np.int64)
    t[1:] = t[:1] + np.cumsum(np.diff(ticks).view(np.int32), dtype=np.int64)
    return t


def _jaer(path, data, version):
    """Columns of AEDAT 1.0 or 2.0, and the number of special events (any bit above the 15 of a pixel's address)."""
    start, kind = HEADER.match(data).end(), WORDS[version]
    extra = (len(data) - start) % kind.itemsize
    if extra:
        raise UseError(
            f"{path} is truncated at byte {len(data) - extra}: AEDAT {version} events are {kind.itemsize} bytes "
            f"each, the last one has {extra}; {HINT}"
        )
    words = np.frombuffer(data, kind, offset=start)
    address = words["address"].astype(np.uint32)
    pixel = address < 1 << 15
    return (
        _unwrap(words["t"][pixel].astype(np.uint32)),
        *decode(address[pixel]),
        int((~pixel).sum()),
    )


def _aedat4(path, data, version):
    try:
        aedat = importlib.import_module("aedat")
    except ImportError:
        raise UseError(
            f"{path} is AEDAT 4.0, which the package aedat reads: pip install aedat"
        ) from None
    try:
        packets = [packet["events"] for packet in aedat.Decoder(path) if "events" in packet]
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic of its Rust code, on a damaged file
        raise ValueError(str(error)) from None
    return *(
        np.concatenate([events[key] for events in packets] or [np.empty(0, int)])
        for key in ("t", "x", "y", "on")
    ), 0


READERS = {"1.0": _jaer, "2.0": _jaer, "4.0": _aedat4}


def _aedat(path):
    data = path.read_bytes()
    found = re.match(rb"#!AER-DAT(\d\.\d)", data)
    if not found:
        raise UseError(
            f"{path} is no AEDAT recording: expected '#!AER-DAT2.0' at byte 0, it holds {data[:12]!r}; {HINT}"
        )
    version = found[1].decode()
    if version not in READERS:
        raise UseError(f"{path} is AEDAT {version}, expected one of {', '.join(READERS)}; {HINT}")
    return READERS[version](path, data, version)


def _mat(path):
    from scipy.io import loadmat

    try:
        out = loadmat(path, variable_names=["out1"], appendmat=False)["out1"]
    except NotImplementedError:  # MATLAB 7.3 writes HDF5, transposed
        try:
            import h5py
        except ImportError:
            raise UseError(
                f"{path} is a MATLAB 7.3 file: pip install h5py, or save it with -v7"
            ) from None
        with h5py.File(path) as file:
            out = file["out1"][()].T
    if not isinstance(out, np.ndarray):
        raise UseError(
            f"{path}: out1 is a {type(out).__name__}, expected a full matrix [N, 6]; {HINT}"
        )
    if out.ndim != 2 or out.shape[1] != 6:
        raise UseError(
            f"{path}: out1 is {list(out.shape)}, expected [N, 6] with columns t, 0, -1, x, y, p; {HINT}"
        )
    return *(out[:, column] for column in (0, 3, 4, 5)), 0


def _npz(path):
    with np.load(path, allow_pickle=False) as file:
        if (
            bad := file.zip.testzip()
        ):  # NumPy reads as far as an array's header says, so a checksum may stay unchecked
            raise ValueError(f"{bad} fails its checksum")
        columns = [file[key] for key in "txyp"]
    if any(column.ndim != 1 or len(column) != len(columns[0]) for column in columns):
        raise UseError(
            f"{path}: t, x, y, p are {[list(c.shape) for c in columns]}, expected four of one length; {HINT}"
        )
    return *columns, 0


def _integers(path, name, column):
    """A column as int64; MATLAB's and NumPy's floats are cast when they are whole."""
    if column.dtype.kind not in "biuf":
        raise UseError(f"{path}: {name} is of type {column.dtype}, expected numbers; {HINT}")
    if column.dtype.kind == "f":
        wrong = np.flatnonzero(~(np.abs(column) < 2.0**62) | (column != np.trunc(column)))
        if len(wrong):
            raise UseError(
                f"{path}: {name} of event {wrong[0]} is {column[wrong[0]]}, expected a whole number; {HINT}"
            )
    return column.astype(np.int64)


def read(path):
    """The events of a recording.

    Raises:
        UseError: missing, a folder, unreadable, truncated, another format, no events, or of another sensor (more than half
            of the events have no place on this one).
    """
    path = Path(path)
    if not path.is_file():
        raise UseError(
            f"{path} is a folder, expected a recording"
            if path.is_dir()
            else f"no recording at {path}"
        )
    try:
        *columns, special = {".mat": _mat, ".npz": _npz}.get(path.suffix.lower(), _aedat)(path)
    except UseError:
        raise
    except Exception as error:  # scipy, zipfile, h5py and aedat raise anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UseError(
            f"{path} is damaged or not a {path.suffix} recording ({reason[:120]}); {HINT}"
        ) from None
    t, x, y, p = (
        _integers(path, name, column) for name, column in zip("txyp", columns, strict=True)
    )
    if path.suffix.lower() == ".npz":
        x, y = y, SIDE - 1 - x  # SpikingJelly turned the picture upright
    wrong = np.flatnonzero((p < -1) | (p > 1))
    if len(wrong):
        raise UseError(
            f"{path}: p of event {wrong[0]} is {p[wrong[0]]}, expected 0 or -1 (OFF), or 1 (ON); {HINT}"
        )
    inside = (x >= 0) & (x < SIDE) & (y >= 0) & (y < SIDE)
    outside = len(inside) - int(inside.sum())
    if special + outside > (special + len(t)) / 2:
        raise UseError(
            f"{path}: {special + outside} of {special + len(t)} events have no place on a {SIDE}x{SIDE} sensor: "
            f"expected a recording of a DVS128; {HINT}"
        )
    if not len(t):
        raise UseError(f"{path} holds no events; {HINT}")
    if outside:
        t, x, y, p = t[inside], x[inside], y[inside], p[inside]
    return Events(
        path,
        t,
        x.astype(np.int16),
        y.astype(np.int16),
        (p > 0).astype(np.uint8),
        {"special": special, "outside": outside},
        int((np.diff(t) < 0).sum()),
    )


def write(path, events, *comments):
    """Write AEDAT 2.0 atomically; t modulo 2^32, comments are lines of the header."""
    words = np.empty(len(events), WORDS["2.0"])
    words["address"], words["t"] = encode(events.x, events.y, events.p), events.t & 0xFFFFFFFF
    text = TEXT + "".join(f"# {line}\r\n" for line in comments)
    write_atomic(path, lambda temporary: temporary.write_bytes(text.encode() + words.tobytes()))


def simulated(folder):
    """The settings with which simulate.py made the recordings in `folder`; None: they are not simulated."""
    path = Path(folder) / "simulated.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise UseError(
            f"{path} cannot be read ({error}): remove {folder} and simulate it anew"
        ) from None


def frames(events, count=FRAMES):
    """Binary frames uint8 [count, 2, 128, 128] = [frame, polarity, y, x] of N // count consecutive events each.

    The rest, fewer than `count` events at the end, is dropped.
    Raises:
        UseError: fewer than `count` events.
    """
    length = len(events) // count
    if not length:
        raise UseError(
            f"{events.path} holds {len(events)} events, expected at least {count}, one per frame; {HINT}"
        )
    x, y, p = (
        column[: length * count].reshape(count, length) for column in (events.x, events.y, events.p)
    )
    out = np.zeros((count, 2, SIDE, SIDE), np.uint8)
    out[np.arange(count)[:, None], p, y, x] = 1
    return out


def pack(frames):
    """Frames [..., 128] of 0 and 1 -> uint8 [..., 16], 8 pixels of a row per byte, the first in the highest bit."""
    return np.packbits(frames, axis=-1)


def unpack(packed):
    """The inverse of `pack`."""
    return np.unpackbits(packed, axis=-1)
