"""Recordings: every format gives the same events; a damaged file gives one line, or what a slow,
separate reader reads.
"""

import struct
import textwrap
import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from scipy.sparse import csc_matrix

from engine.errors import UseError
from inputs.events.formats import Events, decode, encode, frames, oddities, read, write
from tests.helpers import GOLDEN
from tests.inputs.events.made import columns, random_events

RECORDED = np.load(GOLDEN / "C_events_aedat.npz", allow_pickle=False)
TEXT = b"\r\n# a comment\r\n"
HEAD = b"#!AER-DAT2.0" + TEXT


def golden_events(path="golden"):
    t, _, _, x, y, p = RECORDED["events"].T.astype(np.int64)
    return Events(path, t, x.astype(np.int16), y.astype(np.int16), (p > 0).astype(np.uint8))


def stored(path, data):
    path.write_bytes(data)
    return path


def aedat2(folder, words):
    """The events of a file of (address, tick) pairs."""
    data = HEAD + b"".join(struct.pack(">II", *word) for word in words)
    return read(stored(folder / "a.aedat", data))


# ---- frames and addresses ----


@pytest.mark.parametrize("count", [80, 10])
def test_recorded_frames(count):
    made = frames(golden_events(), count)
    assert made.dtype == np.uint8 and made.shape == (count, 2, 128, 128)
    assert set(np.unique(made)) == {0, 1}
    published = made.swapaxes(2, 3).ravel()  # [t, p, x, y]
    wanted = np.sort(RECORDED[f"frames_T{count}_nz_flat_index"])
    assert np.array_equal(np.flatnonzero(published), wanted)


def test_recorded_addresses():
    x, y, p = decode(RECORDED["aedat_addr_u32"])
    decoded = np.stack([x, y, 2 * p.astype(int) - 1], axis=1)
    assert np.array_equal(decoded, RECORDED["aedat_xyp"])


def test_addresses_are_encoded_as_they_were():
    pixels = RECORDED["aedat_addr_u32"] & 0x7FFF
    x, y, p = (column.astype(np.int16) for column in decode(pixels))
    assert np.array_equal(encode(x, y, p), pixels)


def test_frames_drop_the_tail_and_follow_the_order_of_events():
    events = random_events(80 * 3 + 79)
    made = frames(events)
    slow = np.zeros_like(made)
    for i in range(240):
        slow[i // 3, events.p[i], events.y[i], events.x[i]] = 1
    assert np.array_equal(made, slow)


def test_fewer_events_than_frames():
    with pytest.raises(UseError, match="random holds 79 events, expected at least 80"):
        frames(random_events(79))


# ---- jAER by hand ----


def test_aedat2_by_hand(tmp_path):
    words = [(0x0000, 10), (0x0001, 20), (0x00FE, 30), (0x7F00, 40), (0x2345, 50)]
    events = aedat2(tmp_path, words)
    assert columns(events) == [
        [10, 20, 30, 40, 50],
        [127, 127, 0, 127, 127 - 0x22],
        [0, 0, 0, 127, 0x23],
        [1, 0, 1, 1, 0],
    ]
    assert len(events) == 5
    assert events.dropped == {"special": 0, "outside": 0}
    assert events.steps_back == 0


def test_types_of_the_columns(tmp_path):
    events = aedat2(tmp_path, [(0, 10)])
    types_of = [column.dtype for column in (events.t, events.x, events.y, events.p)]
    assert types_of == [np.int64, np.int16, np.int16, np.uint8]


def test_aedat1_whose_first_event_looks_like_a_comment(tmp_path):
    words = [(0x2300, 7), (0x230A, 0x0A0A0A0A), (0x0101, 0x0A0A0A0B)]
    data = b"#!AER-DAT1.0\n# b\n" + b"".join(struct.pack(">HI", *word) for word in words)
    assert columns(read(stored(tmp_path / "a.aedat", data))) == [
        [7, 0x0A0A0A0A, 0x0A0A0A0B],
        [127, 122, 127],
        [0x23, 0x23, 1],
        [1, 1, 0],
    ]


def test_special_events_are_left_out_and_counted(tmp_path):
    events = aedat2(tmp_path, [(0x8000, 1), (2, 5), (0x00010002, 6), (4, 7), (6, 8)])
    assert columns(events) == [[5, 7, 8], [126, 125, 124], [0, 0, 0], [1, 1, 1]]
    assert events.dropped["special"] == 2


def test_times_that_wrap_or_step_back(tmp_path):
    full = 2**32
    ticks = [full - 2, full - 1, 3, 1, 2, 2**31, 5]
    events = aedat2(tmp_path, [(0, tick) for tick in ticks])
    later = [full + tick for tick in (3, 1, 2, 2**31, 5)]
    assert events.t.tolist() == [full - 2, full - 1, *later]
    assert events.steps_back == 2  # in the order of the file, which the frames follow


# ---- recordings of another sensor ----


def test_nothing_is_odd_about_a_genuine_recording():
    assert oddities(golden_events()) == []
    assert oddities(random_events(80)) == []


def test_a_sensor_that_fits_the_addresses_is_odd(tmp_path):
    """A cochlea's ten bits: channels and ears, where the DVS128 has x, y and polarity."""
    rng = np.random.default_rng(0)
    words = [(int(address) | 1, tick) for tick, address in enumerate(rng.integers(0, 1024, 500))]
    assert oddities(aedat2(tmp_path, words)) == ["all events are OFF", "4 of 128 values of y"]


@pytest.mark.parametrize("side, names", [(34, ["x", "y"]), (64, [])])
def test_events_in_a_corner_are_odd(side, names):
    """34 pixels: N-MNIST."""
    events = random_events(2000)
    corner = replace(events, x=events.x % side, y=events.y % side)
    assert oddities(corner) == [f"{side} of 128 values of {name}" for name in names]


@pytest.mark.parametrize("chip", ["DVS128", "DAVIS240C"])
def test_the_chip_that_a_header_names(tmp_path, chip):
    events = random_events(200)
    write(tmp_path / "a.aedat", events, f"AEChip: eu.seebetter.chips.{chip}")
    known = [] if chip == "DVS128" else ["the header names a DAVIS240C"]
    assert oddities(read(tmp_path / "a.aedat")) == known


# ---- the same events from every format ----


def test_what_is_written_is_read(tmp_path):
    events = golden_events()
    write(tmp_path / "a.aedat", events, "a comment", "another")
    assert columns(read(tmp_path / "a.aedat")) == columns(events)


@pytest.mark.parametrize("kind", [np.int32, np.float64, np.float32])
@pytest.mark.parametrize("compress", [False, True])
def test_mat(tmp_path, kind, compress):
    content = {"out1": RECORDED["events"].astype(kind), "other": np.zeros(3)}
    savemat(tmp_path / "a.mat", content, do_compression=compress)
    assert columns(read(tmp_path / "a.mat")) == columns(golden_events())


def turned(events):
    """Columns as SpikingJelly stores them, which turns the picture upright."""
    return {"t": events.t, "x": 127 - events.y, "y": events.x, "p": events.p}


def test_npz(tmp_path):
    events = golden_events()
    np.savez(tmp_path / "a.npz", **turned(events))
    assert columns(read(tmp_path / "a.npz")) == columns(events)


def test_npz_of_other_types_and_in_capitals(tmp_path):
    events = golden_events()
    stored_as = turned(events) | {"t": events.t.astype(np.uint32), "p": events.p.astype(bool)}
    np.savez_compressed(tmp_path / "b.NPZ", **stored_as)
    (path,) = tmp_path.iterdir()
    assert columns(read(path)) == columns(events)


def test_matlab_7_3(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["out1"] = RECORDED["events"].T
    head = b"MATLAB 7.3 MAT-file, by hand".ljust(124) + struct.pack("<H", 0x0200) + b"IM"
    with open(tmp_path / "a.mat", "r+b") as file:
        file.write(head)
    assert columns(read(tmp_path / "a.mat")) == columns(golden_events())


STAND_IN = """
    import numpy as np

    def Decoder(path):
        kind = [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")]
        first = np.array([(1000, 5, 7, True), (1500, 127, 0, False)], kind)
        second = np.array([(2000, 0, 127, True)], kind)
        return iter([{"events": first}, {"frame": None}, {"events": second}])
"""
ENDING = """
    import os

    def Decoder(path):
        os.abort()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """stand_in(text): a module in the place of the package aedat."""

    def write(text):
        (tmp_path / "aedat.py").write_text(textwrap.dedent(text))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


@pytest.mark.parametrize("real", [True, False])
def test_aedat4(stand_in, real):
    if real:
        pytest.importorskip("aedat")
    else:
        stand_in(STAND_IN)
    events = read(GOLDEN / "three_events.aedat4")
    assert columns(events) == [[1000, 1500, 2000], [5, 127, 0], [7, 0, 127], [1, 0, 1]]


def test_a_recording_that_ends_the_package_is_refused(stand_in):
    """The package aborts on some damaged files."""
    stand_in(ENDING)
    with pytest.raises(UseError, match=r"three_events\.aedat4 is damaged or not a \.aedat4"):
        read(GOLDEN / "three_events.aedat4")


# ---- what cannot be read ----

ROW = struct.pack(">II", 0, 0)
FAR = struct.pack(">II", 1 << 31, 0)  # of another sensor
BAD = {  # file: (content, words of the line)
    "empty.aedat": (b"", "no AEDAT recording", "'#!AER-DAT2.0' at byte 0"),
    "text.aedat": (b"accuracy 93.5 %\n", "no AEDAT recording", "b'accuracy 93."),
    "comment.aedat": (b"# comment\r\n" + ROW, "no AEDAT recording"),
    "new.aedat": (b"#!AER-DAT3.1\r\n" + ROW, "is AEDAT 3.1, expected one of 1.0, 2.0, 4.0"),
    "none.aedat": (HEAD, "holds no events"),
    "cut.aedat": (
        HEAD + ROW * 3 + ROW[:5],
        f"is truncated at byte {len(HEAD) + 24}",
        "8 bytes each, the last one has 5",
    ),
    "one.aedat": (
        b"#!AER-DAT1.0\r\n" + ROW,
        "is truncated at byte 20",
        "6 bytes each, the last one has 2",
    ),
    "davis.aedat": (
        HEAD + FAR * 3 + ROW,
        "3 of 4 events have no place on a 128x128",
        "DVS128",
    ),
    "named.aedat": (
        HEAD + b"# AEChip: eu.seebetter.ini.chips.davis.DAVIS240C\r\n" + ROW + FAR * 3,
        "3 of 4 events have no place on a 128x128 sensor",
        "expected a recording of a DVS128, its header names a DAVIS240C",
    ),
    "only.aedat": (HEAD + struct.pack(">II", 1 << 15, 0) * 3, "3 of 3 events have no place"),
    "a.aedat4": (b"#!AER-DAT4.0\r\n", "pip install aedat"),
    "text.mat": (b"t x y p\n" * 40, "is damaged or not a .mat recording"),
    "text.npz": (b"t x y p\n" * 40, "is damaged or not a .npz recording"),
    "empty.npz": (b"", "is damaged or not a .npz recording"),
}


def npz(**arrays):
    return lambda path: np.savez(path, **arrays)


def mat(**arrays):
    return lambda path: savemat(path, arrays)


ONES = dict.fromkeys("txyp", np.ones(90, int))
TABLE = np.ones((90, 6))
BAD |= {
    "object.npz": (
        npz(**ONES | {"t": np.array([object()] * 90)}),
        "object.npz is damaged",
        "allow_pickle=False",
    ),
    "key.npz": (npz(t=np.ones(3)), "key.npz is damaged", "x is not a file"),
    "ragged.npz": (npz(**ONES | {"x": np.ones(9)}), "expected four of one length", "[90], [9]"),
    "table.npz": (npz(**dict.fromkeys("txyp", np.ones((3, 3)))), "expected four of one length"),
    "number.npz": (npz(**dict.fromkeys("txyp", np.ones(()))), "expected four of one length"),
    "text_x.npz": (npz(**ONES | {"x": np.array(["a"] * 90)}), "x is of type <U1, expected numbers"),
    "half.npz": (
        npz(**ONES | {"y": np.full(90, 0.5)}),
        "y of event 0 is 0.5, expected a whole number",
    ),
    "nan.npz": (npz(**ONES | {"t": np.array([0.0] * 89 + [np.nan])}), "t of event 89 is nan"),
    "huge.npz": (npz(**ONES | {"t": np.full(90, 1e300)}), "t of event 0 is 1e+300"),
    "polarity.npz": (
        npz(**ONES | {"p": np.arange(90)}),
        "p of event 2 is 2, expected 0 or -1 (OFF), or 1 (ON)",
    ),
    "lowest.npz": (npz(**ONES | {"p": np.full(90, -(2**63))}), "p of event 0 is -9223372036854775"),
    "wide.npz": (
        npz(**ONES | {"x": np.full(90, 200)}),
        "90 of 90 events have no place on a 128x128 sensor",
    ),
    "none.npz": (npz(**dict.fromkeys("txyp", np.ones(0))), "none.npz holds no events"),
    "key.mat": (mat(out=TABLE), "key.mat is damaged", "out1"),
    "shape.mat": (mat(out1=TABLE[:, :5]), "out1 is [90, 5], expected [N, 6]"),
    "sparse.mat": (mat(out1=csc_matrix(TABLE)), "out1 is a cs", "expected a full matrix"),
    "cell.mat": (mat(out1=np.array([["a"] * 6], object)), "t is of type object, expected numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_line(stand_in, tmp_path, name):
    make, *words = BAD[name]
    path = tmp_path / name
    if name == "a.aedat4":
        stand_in("raise ImportError")
    if callable(make):
        make(path)
    else:
        path.write_bytes(make)
    with pytest.raises(UseError) as raised:
        read(path)
    for word in (str(path), *words):
        assert word in str(raised.value)
    assert name == "a.aedat4" or "leave it out" in str(raised.value)


def test_a_folder_is_no_recording(tmp_path):
    (tmp_path / "a.aedat").mkdir()
    with pytest.raises(UseError, match="is a folder, expected a recording"):
        read(tmp_path / "a.aedat")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UseError, match="no recording at"):
        read(tmp_path / "b")


def test_events_outside_the_sensor_are_counted(tmp_path):
    x = np.arange(100) + 60  # 60 .. 159
    np.savez(tmp_path / "a.npz", t=np.arange(100), x=x, y=x * 0, p=x * 0)
    events = read(tmp_path / "a.npz")
    assert events.dropped == {"special": 0, "outside": 32}
    assert events.y.tolist() == list(range(67, -1, -1))


def test_an_array_that_is_read_in_part_is_checked_whole(tmp_path):
    np.savez(tmp_path / "a.npz", **turned(random_events(100)))
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes().replace(b"<i8", b"<i4", 1))
    with pytest.raises(UseError, match="fails its checksum"):
        read(tmp_path / "b.npz")


def test_a_matrix_whose_checksum_is_cut_off_is_refused(tmp_path):
    savemat(tmp_path / "a.mat", {"out1": RECORDED["events"]}, do_compression=True)
    whole = (tmp_path / "a.mat").read_bytes()
    head, body = whole[:128], zlib.decompress(whole[136:])
    packed = zlib.compress(body)[:-1]
    (tmp_path / "b.mat").write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(UseError, match=r"b\.mat is damaged"):
        read(tmp_path / "b.mat")


# ---- damaged files, drawn at random ----


def header_of(data):
    """Length of the text before the events, line by line."""
    at = 0
    while data[at : at + 1] == b"#" and b"\n" in data[at:]:
        line = data[at : data.index(b"\n", at) + 1]
        if any(byte < 9 for byte in line):
            break
        at += len(line)
    return at


def unwrapped(tick, last):
    """The time nearest to `last` of those that a tick may stand for."""
    turn = (last - tick) // 2**32
    candidates = [tick + (turn + more) * 2**32 for more in (-1, 0, 1, 2)]
    return min(candidates, key=lambda t: (abs(t - last), t))


def slowly(data):
    """(columns, special events, steps back) of AEDAT 1.0 or 2.0, event by event from the format's
    description; None: a line of error.
    """
    if data[:12] not in (b"#!AER-DAT1.0", b"#!AER-DAT2.0"):
        return None
    size = 6 if data[9:10] == b"1" else 8
    start = header_of(data)
    if (len(data) - start) % size:
        return None
    out, special = [], 0
    for i in range(start, len(data), size):
        middle = i + size - 4
        address = int.from_bytes(data[i:middle], "big")
        tick = int.from_bytes(data[middle : i + size], "big")
        if address >= 32768:
            special += 1
            continue
        t = unwrapped(tick, out[-1][0]) if out else tick
        out.append((t, 127 - address // 2 % 128, address // 256, 1 - address % 2))
    if not out or special > len(out):
        return None
    back = sum(later[0] < earlier[0] for earlier, later in pairwise(out))
    return [list(column) for column in zip(*out)], special, back


@st.composite
def damaged(draw, whole):
    """A file with some bytes changed, removed, repeated or put in."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 4))):
        at, how = len(data) - draw(st.integers(0, len(data))), draw(st.integers(0, 3))
        if how == 0:
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == 1:
            # 24 bytes: whole events
            del data[at : at + draw(st.sampled_from((1, 24, 24, 24, 1000)))]
        elif how == 2:
            noise = st.binary(min_size=24, max_size=25)
            comments = st.sampled_from((b"#", b"#\n", b"#\n" * 12))
            data[at:at] = draw(st.one_of(noise, comments))
        else:
            data[at:at] = data[at : at + draw(st.sampled_from((8, 24, 24)))]
    if draw(st.booleans()):  # whole events again, if the header is
        del data[len(data) - (len(data) - len(TEXT) - 12) % 24 :]
    return bytes(data)


def jaer_file(version, address, count):
    events = random_events(count, count)
    words = np.empty(count, [("a", address), ("t", ">u4")])
    words["a"] = encode(events.x, events.y, events.p)
    words["t"] = events.t + 2**32 - 500 & 0xFFFFFFFF
    return b"#!AER-DAT" + version + TEXT + words.tobytes()


VERSIONS = ((b"2.0", ">u4"), (b"1.0", ">u2"))
JAER = [jaer_file(*version, count) for version in VERSIONS for count in (1, 4, 100)]


@given(damaged(JAER))
@settings(max_examples=300, deadline=None, database=None)
@example(HEAD + struct.pack(">II", 0, 0) + struct.pack(">II", 0, 2**31) * 2)
def test_damaged_aedat_is_refused_or_read_as_it_is(tmp_path_factory, data):
    path = stored(tmp_path_factory.getbasetemp() / "damaged.aedat", data)
    expected = slowly(data)
    try:
        events = read(path)
    except UseError as error:
        assert expected is None
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert (columns(events), events.dropped["special"], events.steps_back) == expected
    assert max(map(max, columns(events)[1:3])) < 128
    assert min(map(min, columns(events)[1:])) >= 0


def write_archives(folder):
    """Small .npz and .mat files, packed and not; the events in them."""
    events = random_events(100)
    np.savez(folder / "a.npz", **turned(events))
    np.savez_compressed(folder / "b.npz", **turned(events))
    none = events.t * 0
    table = np.stack([events.t, none, none - 1, events.x, events.y, events.p * 2.0 - 1], axis=1)
    savemat(folder / "a.mat", {"out1": table.astype(np.int32)}, do_compression=True)
    savemat(folder / "b.mat", {"out1": table})
    return events


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """({name: bytes} of small archives, the events in them)."""
    root = tmp_path_factory.mktemp("small")
    events = write_archives(root)
    return {path.name: path.read_bytes() for path in root.iterdir()}, events


@given(st.data())
@settings(max_examples=800, deadline=None, database=None)
def test_damaged_archives_are_refused_or_whole(small, tmp_path_factory, data):
    """npz and compressed mat have checksums; in a plain mat only a changed number passes, as it
    stands in the file.
    """
    files, original = small
    name = data.draw(st.sampled_from(sorted(files)))
    content = data.draw(damaged([files[name]]))
    path = stored(tmp_path_factory.getbasetemp() / f"damaged_{name}", content)
    try:
        events = read(path)
    except UseError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert min(events.x.min(), events.y.min()) >= 0
    assert max(events.x.max(), events.y.max()) < 128
    assert events.p.max() <= 1
    if name != "b.mat":
        assert columns(events) == columns(original)
