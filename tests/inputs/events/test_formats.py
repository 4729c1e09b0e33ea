"""Recordings: every format gives the same events, a damaged file gives one line or what a slow, separate reader reads."""

import struct
import sys
import types
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from scipy.sparse import csc_matrix

from engine.errors import UseError
from inputs.events import simulate
from inputs.events.formats import Events, decode, encode, frames, pack, read, unpack, write
from tests.helpers import ROOT

GOLDEN = np.load(ROOT / "tests/golden/C_events_aedat.npz", allow_pickle=False)
TEXT = b"\r\n# a comment\r\n"
HEAD = b"#!AER-DAT2.0" + TEXT


def golden_events(path="golden"):
    t, _, _, x, y, p = GOLDEN["events"].T.astype(np.int64)
    return Events(path, t, x.astype(np.int16), y.astype(np.int16), (p > 0).astype(np.uint8))


def columns(events):
    return [column.tolist() for column in (events.t, events.x, events.y, events.p)]


def random_events(count, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 128, (2, count), np.int16)
    return Events(
        "random", np.cumsum(rng.integers(0, 50, count)), x, y, rng.integers(0, 2, count, np.uint8)
    )


def stored(path, data):
    path.write_bytes(data)
    return path


def test_golden_frames():
    for count in (80, 10):
        made = frames(golden_events(), count)
        assert made.dtype == np.uint8 and made.shape == (count, 2, 128, 128)
        published = made.swapaxes(2, 3).ravel()  # [t, p, x, y]
        assert np.array_equal(
            np.flatnonzero(published), np.sort(GOLDEN[f"frames_T{count}_nz_flat_index"])
        )
        assert set(np.unique(made)) == {0, 1}


def test_golden_addresses():
    x, y, p = decode(GOLDEN["aedat_addr_u32"])
    assert np.array_equal(np.stack([x, y, 2 * p.astype(int) - 1], axis=1), GOLDEN["aedat_xyp"])
    assert np.array_equal(encode(x, y, p), GOLDEN["aedat_addr_u32"] & 0x7FFF)


def test_aedat2_by_hand(tmp_path):
    words = [
        (0x00000000, 10),
        (0x00000001, 20),
        (0x000000FE, 30),
        (0x00007F00, 40),
        (0x00002345, 50),
    ]
    events = read(
        stored(tmp_path / "a.aedat", HEAD + b"".join(struct.pack(">II", *word) for word in words))
    )
    assert columns(events) == [
        [10, 20, 30, 40, 50],
        [127, 127, 0, 127, 127 - 0x22],
        [0, 0, 0, 127, 0x23],
        [1, 0, 1, 1, 0],
    ]
    assert (
        events.dropped == {"special": 0, "outside": 0}
        and events.steps_back == 0
        and len(events) == 5
    )
    assert [column.dtype for column in (events.t, events.x, events.y, events.p)] == [
        np.int64,
        np.int16,
        np.int16,
        np.uint8,
    ]


def test_aedat1_whose_first_event_looks_like_a_comment(tmp_path):
    words = [(0x2300, 7), (0x230A, 0x0A0A0A0A), (0x0101, 0x0A0A0A0B)]
    events = read(
        stored(
            tmp_path / "a.aedat",
            b"#!AER-DAT1.0\n# b\n" + b"".join(struct.pack(">HI", *w) for w in words),
        )
    )
    assert columns(events) == [
        [7, 0x0A0A0A0A, 0x0A0A0A0B],
        [127, 122, 127],
        [0x23, 0x23, 1],
        [1, 1, 0],
    ]


def test_special_events_are_left_out_and_counted(tmp_path):
    words = [(0x8000, 1), (2, 5), (0x00010002, 6), (4, 7), (6, 8)]
    events = read(
        stored(tmp_path / "a.aedat", HEAD + b"".join(struct.pack(">II", *word) for word in words))
    )
    assert (
        columns(events) == [[5, 7, 8], [126, 125, 124], [0, 0, 0], [1, 1, 1]]
        and events.dropped["special"] == 2
    )


def test_times_that_wrap_or_step_back(tmp_path):
    ticks = [2**32 - 2, 2**32 - 1, 3, 1, 2, 2**31, 5]
    events = read(
        stored(tmp_path / "a.aedat", HEAD + b"".join(struct.pack(">II", 0, t) for t in ticks))
    )
    full = 2**32
    assert events.t.tolist() == [
        full - 2,
        full - 1,
        full + 3,
        full + 1,
        full + 2,
        full + 2**31,
        full + 5,
    ]
    assert events.steps_back == 2  # in the order of the file, which the frames follow


def test_every_format_gives_the_same_events(tmp_path):
    events = golden_events()
    write(tmp_path / "a.aedat", events, "a comment", "another")
    table = GOLDEN["events"]
    for name, dtype in (("int", np.int32), ("float", np.float64), ("small", np.float32)):
        savemat(
            tmp_path / f"{name}.mat",
            {"out1": table.astype(dtype), "other": np.zeros(3)},
            do_compression=name == "int",
        )
    np.savez(
        tmp_path / "a.npz", t=events.t, x=127 - events.y, y=events.x, p=events.p
    )  # as SpikingJelly turns it
    np.savez_compressed(
        tmp_path / "b.NPZ",
        t=events.t.astype(np.uint32),
        x=127 - events.y,
        y=events.x,
        p=events.p.astype(bool),
    )
    files = sorted(tmp_path.iterdir())
    assert len(files) == 6
    for path in files:
        assert columns(read(path)) == columns(events), path


def test_matlab_7_3(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["out1"] = GOLDEN["events"].T
    head = b"MATLAB 7.3 MAT-file, by hand".ljust(124) + struct.pack("<H", 0x0200) + b"IM"
    with open(tmp_path / "a.mat", "r+b") as file:
        file.write(head)
    assert columns(read(tmp_path / "a.mat")) == columns(golden_events())


@pytest.mark.parametrize("real", [True, False])
def test_aedat4(monkeypatch, real):
    if real:
        pytest.importorskip("aedat")
    else:
        parts = [
            np.array(
                [(1000, 5, 7, True), (1500, 127, 0, False)],
                [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")],
            ),
            np.array(
                [(2000, 0, 127, True)], [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")]
            ),
        ]
        packets = [{"events": parts[0]}, {"frame": None}, {"events": parts[1]}]
        monkeypatch.setitem(
            sys.modules, "aedat", types.SimpleNamespace(Decoder=lambda path: iter(packets))
        )
    events = read(ROOT / "tests/golden/three_events.aedat4")
    assert columns(events) == [[1000, 1500, 2000], [5, 127, 0], [7, 0, 127], [1, 0, 1]]


def test_frames_drop_the_tail_and_follow_the_order_of_events():
    events = random_events(80 * 3 + 79)
    made = frames(events)
    slow = np.zeros_like(made)
    for i in range(240):
        slow[i // 3, events.p[i], events.y[i], events.x[i]] = 1
    assert np.array_equal(made, slow)
    assert np.array_equal(unpack(pack(made)), made) and pack(made).shape == (80, 2, 128, 16)
    assert (
        pack(np.eye(1, 128, 1, dtype=np.uint8))[0, 0] == 0b01000000
    )  # the first pixel is the highest bit
    with pytest.raises(UseError, match="random holds 79 events, expected at least 80"):
        frames(random_events(79))


ROW = struct.pack(">II", 0, 0)
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
        HEAD + struct.pack(">II", 1 << 31, 0) * 3 + ROW,
        "3 of 4 events have no place on a 128x128",
        "DVS128",
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
def test_bad_files_give_one_line(monkeypatch, tmp_path, name):
    make, *words = BAD[name]
    monkeypatch.setitem(sys.modules, "aedat", None)
    make(tmp_path / name) if callable(make) else (tmp_path / name).write_bytes(make)
    with pytest.raises(UseError) as raised:
        read(tmp_path / name)
    assert all(word in str(raised.value) for word in (str(tmp_path / name), *words)), raised.value
    assert name == "a.aedat4" or "leave it out" in str(raised.value)


def test_what_is_no_file(tmp_path):
    (tmp_path / "a.aedat").mkdir()
    for path, word in (
        (tmp_path / "a.aedat", "is a folder, expected a recording"),
        (tmp_path / "b", "no recording at"),
    ):
        with pytest.raises(UseError, match=word):
            read(path)


def test_events_outside_the_sensor_are_counted(tmp_path):
    x = np.arange(100) + 60  # 60 .. 159
    np.savez(tmp_path / "a.npz", t=np.arange(100), x=x, y=x * 0, p=x * 0)
    events = read(tmp_path / "a.npz")
    assert events.dropped == {"special": 0, "outside": 32} and events.y.tolist() == list(
        range(67, -1, -1)
    )


def slowly(data):
    """Columns and counts of AEDAT 1.0 or 2.0, event by event from the format's description; None: a line of error."""
    if data[:12] not in (b"#!AER-DAT1.0", b"#!AER-DAT2.0"):
        return None
    size, at = (6, 0) if data[9:10] == b"1" else (8, 0)
    while data[at : at + 1] == b"#" and b"\n" in data[at:]:
        line = data[at : data.index(b"\n", at) + 1]
        if any(byte < 9 for byte in line):
            break
        at += len(line)
    if (len(data) - at) % size:
        return None
    out, special, shift = [], 0, 0
    for i in range(at, len(data), size):
        address, tick = (
            int.from_bytes(data[i : i + size - 4], "big"),
            int.from_bytes(data[i + size - 4 : i + size], "big"),
        )
        if address >= 32768:
            special += 1
            continue
        if out:
            last = out[-1][0]
            shift = min(
                (shift - 2**32, shift, shift + 2**32), key=lambda s: (abs(tick + s - last), s)
            )
        out.append((tick + shift, 127 - address // 2 % 128, address // 256, 1 - address % 2))
    if not out or special > len(out):
        return None
    return (
        [list(column) for column in zip(*out, strict=True)],
        special,
        sum(b[0] < a[0] for a, b in pairwise(out)),
    )


@st.composite
def damaged(draw, whole):
    """A file with some bytes changed, removed, repeated or put in."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 4))):
        at, how = len(data) - draw(st.integers(0, len(data))), draw(st.integers(0, 3))
        if how == 0:
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == 1:
            del data[
                at : at + draw(st.sampled_from((1, 24, 24, 24, 1000)))
            ]  # 24 bytes: whole events
        elif how == 2:
            data[at:at] = draw(
                st.one_of(
                    st.binary(min_size=24, max_size=25),
                    st.sampled_from((b"#", b"#\n", b"#\n" * 12)),
                )
            )
        else:
            data[at:at] = data[at : at + draw(st.sampled_from((8, 24, 24)))]
    if draw(st.booleans()):  # whole events again, if the header is
        del data[len(data) - (len(data) - len(TEXT) - 12) % 24 :]
    return bytes(data)


def jaer_file(version, kind, count):
    events = random_events(count, count)
    words = np.empty(count, kind)
    words["a"], words["t"] = (
        encode(events.x, events.y, events.p),
        events.t + 2**32 - 500 & 0xFFFFFFFF,
    )
    return b"#!AER-DAT" + version + TEXT + words.tobytes()


JAER = [jaer_file(b"2.0", [("a", ">u4"), ("t", ">u4")], n) for n in (1, 4, 100)] + [
    jaer_file(b"1.0", [("a", ">u2"), ("t", ">u4")], n) for n in (1, 4, 100)
]


@given(damaged(JAER))
@settings(max_examples=2000, deadline=None, database=None)
@example(HEAD + struct.pack(">II", 0, 0) + struct.pack(">II", 0, 2**31) * 2)
def test_damaged_aedat_is_refused_or_read_as_it_is(tmp_path_factory, data):
    path = stored(tmp_path_factory.getbasetemp() / "damaged.aedat", data)
    expected = slowly(data)
    try:
        events = read(path)
    except UseError as error:
        assert expected is None and str(path) in str(error) and "\n" not in str(error)
        return
    assert (columns(events), events.dropped["special"], events.steps_back) == expected
    assert max(map(max, columns(events)[1:3])) < 128 and min(map(min, columns(events)[1:])) >= 0


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Small .npz and .mat files, and the events in them."""
    root, events = tmp_path_factory.mktemp("small"), random_events(100)
    np.savez(root / "a.npz", t=events.t, x=127 - events.y, y=events.x, p=events.p)
    np.savez_compressed(root / "b.npz", t=events.t, x=127 - events.y, y=events.x, p=events.p)
    table = np.stack(
        [events.t, events.t * 0, events.t * 0 - 1, events.x, events.y, events.p * 2.0 - 1], axis=1
    )
    savemat(root / "a.mat", {"out1": table.astype(np.int32)}, do_compression=True)
    savemat(root / "b.mat", {"out1": table})
    return {path.name: path.read_bytes() for path in root.iterdir()}, events


@given(st.data())
@settings(max_examples=800, deadline=None, database=None)
def test_damaged_archives_are_refused_or_whole(small, tmp_path_factory, data):
    """npz and compressed mat have checksums; in a plain mat only a changed number passes, as it stands in the file."""
    name = data.draw(st.sampled_from(sorted(small[0])))
    content = data.draw(damaged([small[0][name]]))
    path = stored(tmp_path_factory.getbasetemp() / f"damaged_{name}", content)
    try:
        events = read(path)
    except UseError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert (
        min(events.x.min(), events.y.min()) >= 0
        and max(events.x.max(), events.y.max()) < 128
        and events.p.max() <= 1
    )
    if name != "b.mat":
        assert columns(events) == columns(small[1])


def test_an_array_that_is_read_in_part_is_checked_whole(tmp_path):
    events = random_events(100)
    np.savez(tmp_path / "a.npz", t=events.t, x=127 - events.y, y=events.x, p=events.p)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes().replace(b"<i8", b"<i4", 1))
    with pytest.raises(UseError, match="fails its checksum"):
        read(tmp_path / "b.npz")


# the simulated camera


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)


def test_simulated_recordings_are_read_back_exactly(tmp_path):
    made = Events(
        tmp_path / "a.aedat", *simulate.record(image(), 5000, 0.2, 1.0, np.random.default_rng(3))
    )
    write(made.path, made)
    events = read(made.path)
    assert columns(events) == columns(made) and len(events) == 5000 and events.steps_back == 0
    again = simulate.record(image(), 5000, 0.2, 1.0, np.random.default_rng(3))
    other = simulate.record(image(), 5000, 0.2, 1.0, np.random.default_rng(4))
    assert columns(Events("", *again)) == columns(made) != columns(Events("", *other))


def test_the_camera_follows_the_intensity():
    """At every pixel the events add up to the change of the log intensity, to within a threshold, at any time."""
    threshold, seen = 0.15, simulate.scenes(image(1))
    t, x, y, p = simulate.record(image(1), 400_000, threshold, 0, np.random.default_rng(0))
    for step in (1, 7, 24, 47):
        until = t < step * simulate.LOOP // simulate.STEPS
        assert until.sum() > 100 and not until.all()
        total = np.zeros((128, 128))
        np.add.at(total, (x[until], 127 - y[until]), threshold * (2.0 * p[until] - 1))
        assert (
            np.abs(total - (seen[step] - seen[0])).max() < 1.5 * threshold + 1e-4
        )  # the first level is random by one half


def test_crossing_times_are_interpolated(monkeypatch):
    ramp = np.zeros((simulate.STEPS, 128, 128), np.float32)
    ramp[1:, 3, 5] = 1  # one pixel: 0 -> 1 within the first step
    monkeypatch.setattr(simulate, "scenes", lambda _: ramp)
    t, x, y, p = simulate.record(None, 4, 0.25, 0, np.random.default_rng(0))
    assert set(x) == {3} and set(y) == {127 - 5} and p.tolist()[:3] == [1, 1, 1]
    width = simulate.LOOP / simulate.STEPS
    assert np.abs(np.diff(t[:3]) - width / 4).max() <= 1 and 0 < t[0] < 1.5 / 4 * width


def test_a_blank_image_gives_noise_alone():
    blank = np.full((8, 8, 3), 90, np.uint8)
    with pytest.raises(UseError, match="no events in two rounds"):
        simulate.record(blank, 100, 0.2, 0, np.random.default_rng(0))
    t, x, _, p = simulate.record(blank, 20_000, 0.2, 2.0, np.random.default_rng(0))
    assert (
        abs(t[-1] / 1e6 * 2.0 * 128**2 / 20_000 - 1) < 0.05
        and abs(p.mean() - 0.5) < 0.02
        and len(set(x)) == 128
    )
