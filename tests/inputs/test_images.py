"""Reading: image files, folders, the digits."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from engine.dist import World
from engine.errors import UseError
from inputs.images import (
    Files,
    Memory,
    decode,
    describe_part,
    find_files,
    read_folder,
    read_parts,
)
from inputs.table import DataOptions, load
from tests.helpers import image_folder
from tests.inputs.noise import files

# ---- files


@pytest.mark.parametrize("size, expected", [(None, (40, 60)), (20, (20, 20)), (64, (64, 64))])
def test_an_image_is_resized_and_its_centre_cut_out(tmp_path, size, expected):
    Image.new("RGB", (60, 40), (10, 200, 30)).save(tmp_path / "a.png")
    image = decode(tmp_path / "a.png", size)
    assert image.shape == (*expected, 3)
    assert image.dtype == np.uint8
    assert (image == [10, 200, 30]).all()


def test_the_centre_is_that_of_the_longer_side(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 20) == 255).all()


def test_a_grey_image_has_three_channels(tmp_path):
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    assert (decode(tmp_path / "grey.png") == np.full((8, 8, 3), 77)).all()


def bomb(path):
    """A picture of 20,000 x 20,000 pixels, which Pillow refuses to decode."""
    path.write_bytes(b"P5 20000 20000 255\n")
    return path


def test_a_huge_picture_is_named(tmp_path):
    path = bomb(tmp_path / "huge.pgm")
    with pytest.raises(UseError) as error:
        decode(path)
    assert f"{path} cannot be read as an image (Image size (400000000 pixels)" in str(error.value)


@pytest.mark.parametrize("raised", [MemoryError(), struct.error("short"), zlib.error("-3")])
def test_whatever_a_decoder_raises_is_one_line(tmp_path, monkeypatch, raised):
    def fail(self, mode):
        raise raised

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", fail)
    words = rf"a\.png cannot be read as an image \({str(raised) or 'MemoryError'}\)"
    with pytest.raises(UseError, match=words):
        decode(tmp_path / "a.png")


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = RAMP.astype(np.uint16) * 257  # the same in 16 bits
LITTLE = Image.fromarray(DEEP)


def coloured(mode):
    return Image.fromarray(RAMP).convert("RGB").convert(mode)


def png_header(kind, bits, rows):
    """A PNG whose rows hold what Pillow does not write: 16-bit colour, 16-bit grey with alpha."""
    head = struct.pack(">IIBBBBB", 16, 16, bits, kind, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    out = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", head), (b"IDAT", packed), (b"IEND", b"")):
        checksum = zlib.crc32(name + content)
        out += struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    return out


def channels(count):
    """Rows of 16-bit big-endian pixels that repeat the grey of DEEP in `count` channels."""
    return np.repeat(DEEP[:, :, None], count, 2).astype(">u2")


PICTURES = {  # file: what writes it, or its bytes
    "L.pgm": Image.fromarray(RAMP),
    "L.tiff": Image.fromarray(RAMP),
    "LA.png": coloured("LA"),
    "P.png": Image.fromarray(RAMP).convert("P"),
    "PA.tif": Image.fromarray(RAMP).convert("PA"),
    "RGBA.png": coloured("RGBA"),
    "CMYK.tif": coloured("CMYK"),
    "YCbCr.tif": coloured("YCbCr"),
    "LAB.tif": coloured("LAB"),
    "I;16.png": LITTLE,
    "I;16.tif": LITTLE,
    "I;16B.tif": Image.frombytes("I;16B", (16, 16), DEEP.astype(">u2").tobytes()),
    "I.pgm": b"P5 16 16 65535\n" + DEEP.astype(">u2").tobytes(),
    "I, plain.pgm": b"P2 16 16 510\n" + " ".join(map(str, 2 * RAMP.ravel().astype(int))).encode(),
    "RGB, 16 bits.png": png_header(2, 16, channels(3)),
    "LA, 16 bits.png": png_header(4, 16, channels(2)),
    "RGB, 16 bits.ppm": b"P6 16 16 65535\n" + channels(3).tobytes(),
}


def write_picture(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)
    return path


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("name", PICTURES)
def test_the_grey_of_every_mode_is_that_of_8_bits(tmp_path, name, upright):
    image = decode(write_picture(tmp_path / name, PICTURES[name]), upright=upright)
    expected = np.repeat(RAMP[:, :, None], 3, 2)
    # the way to other colours and back is rounded
    allowed = 2 if name in ("LAB.tif", "YCbCr.tif") else 0
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - expected).max() <= allowed


def tagged(tag, value):
    """A 16-bit grey TIFF with one of its tags changed."""
    file = io.BytesIO()
    LITTLE.save(file, "TIFF")
    old = {258: 16, 262: 1}[tag]
    before, after = (struct.pack("<HHIHH", tag, 3, 1, number, 0) for number in (old, value))
    assert before in file.getvalue()
    return file.getvalue().replace(before, after)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
def test_malformed_camera_data_is_passed_over(tmp_path, name):
    picture = Image.linear_gradient("L").convert("RGB")
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / name, exif=b"Exif\0\0no header", lossless=True, dpi=(72, 72))
    found = decode(tmp_path / name, upright=True)
    apart = found.astype(int) - decode(tmp_path / "plain.png")
    assert np.abs(apart).max() <= 2


@pytest.mark.parametrize("upright", [False, True])
def test_damaged_pixels_are_told(tmp_path, upright):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    content[3000:3010] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(UseError, match="cannot be read as an image"):
        decode(path, upright=upright)


UNKNOWN = {  # file: (what writes it, its mode)
    "float.tif": (Image.fromarray(RAMP / np.float32(255)), "F"),
    "float.ppm": (Image.fromarray(RAMP / np.float32(255)), "F"),
    "32 bits.tif": (Image.fromarray(RAMP.astype(np.int32) << 16), "I"),
    "white is zero.tif": (tagged(262, 0), "I;16"),
    "12 bits.tif": (tagged(258, 12), "I;16"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_picture_whose_white_is_unknown_is_refused(tmp_path, name):
    content, mode = UNKNOWN[name]
    path = write_picture(tmp_path / name, content)
    with pytest.raises(UseError) as error:
        decode(path)
    assert f"{path} is of mode {mode} (" in str(error.value)
    assert "save it in 8 bits" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"accuracy 93.5 %", None], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "a.jpg"
    Image.linear_gradient("L").convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    with pytest.raises(UseError) as error:
        decode(path)
    assert f"{path} cannot be read as an image (" in str(error.value)
    assert "replace it, or remove it and begin anew" in str(error.value)


def test_the_digest_tells_images_and_labels_apart():
    images, labels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.tensor([0, 1])
    about = describe_part(Memory(images, labels))
    assert about == describe_part(Memory(images.clone(), labels.clone()))
    assert about["images"] == 2
    assert about != describe_part(Memory(images + 1, labels))
    assert about != describe_part(Memory(images, labels.flip(0)))


def test_the_digest_of_files_does_not_depend_on_where_they_lie():
    labels = torch.tensor([0])
    here, there = (describe_part(Files([f"{at}/train/n0/1.jpg"], labels)) for at in ("a", "b/c"))
    assert here == there
    assert here != describe_part(Files(["a/train/n1/1.jpg"], labels))
    # as a name in Latin-1 is read
    describe_part(Files([os.fsdecode(b"a/train/n1/caf\xe9.jpg")], labels))


# ---- folders


def test_classes_are_the_sorted_folders(tmp_path):
    image_folder(tmp_path, 3, 4)
    (tmp_path / "n0001" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    paths, labels, classes = find_files(tmp_path, World())
    assert classes == ["n0000", "n0001", "n0002"]
    assert labels.tolist() == [0, 0, 1, 2]
    names = [path.removeprefix(f"{tmp_path}/") for path in paths]
    assert names == ["n0000/0.png", "n0000/3.png", "n0001/1.png", "n0002/2.png"]


def test_every_suffix_of_torchvision_is_read(tmp_path):
    from torchvision.datasets.folder import IMG_EXTENSIONS

    (tmp_path / "a").mkdir()
    for suffix in IMG_EXTENSIONS:
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / f"0{suffix}")
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / f"1{suffix.upper()}")
    paths, *_ = find_files(tmp_path, World())
    assert len(paths) == 2 * len(IMG_EXTENSIONS)
    assert read_folder(paths, torch.zeros(len(paths)), 8).images.shape[0] == len(paths)


def test_images_in_deeper_folders_are_read(tmp_path):
    image_folder(tmp_path, 2, 2)
    image_folder(tmp_path / "n0001" / "2024" / "may", 1, 3)
    paths, labels, _ = find_files(tmp_path, World())
    assert labels.tolist() == [0, 1, 1, 1, 1]
    assert paths[-1] == f"{tmp_path}/n0001/2024/may/n0000/2.png"


def test_what_is_left_out_is_counted(tmp_path, capsys):
    image_folder(tmp_path, 2, 4)
    for name in ("n0000/notes.txt", "n0001/deep/b.TXT", "n0001/raw.nef", "n0001/Makefile"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    for name in ("n0000/._0.png", "n0001/.DS_Store"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")  # as a Mac leaves them
    Image.new("L", (8, 8)).save(tmp_path / "loose.png")
    paths, *_ = find_files(tmp_path, World())
    assert len(paths) == 4
    assert capsys.readouterr().out == (
        f"note: {tmp_path}: 4 images read; files that are left out: 1 .nef, 2 .txt, "
        "1 beside the class folders, 2 hidden, 1 without a suffix\n"
    )


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, capsys):
    image_folder(tmp_path, 2, 4)
    find_files(tmp_path, World())
    assert capsys.readouterr().out == ""


def test_a_class_without_images_is_named(tmp_path, capsys):
    image_folder(tmp_path, 9, 2)
    *_, classes = find_files(tmp_path, World())
    assert len(classes) == 9
    said = capsys.readouterr().out
    assert f"warning: {tmp_path} holds no images of n0002, n0003, n0004, n0005, n0006 ...;" in said


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    image_folder(tmp_path, 2, 2)
    original = os.scandir

    def refuse(path):
        if str(path) == str(tmp_path / "n0001"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UseError, match=r"n0001 cannot be read \(Permission denied\)"):
        find_files(tmp_path, World())


COMPOSED, SEPARATE = "fa\u00e7ade", "fac\u0327ade"  # the same word in NFC and NFD


@pytest.mark.parametrize("trained", [COMPOSED, SEPARATE], ids=["NFC", "NFD"])
def test_class_names_are_compared_in_one_unicode_form(tmp_path, trained):
    """A copy by way of a Mac may spell them with separate accents, in part or all of them."""
    for name in ("facade", trained, "faz"):
        image_folder(tmp_path / "train" / name, 1, 1)
    for name in (COMPOSED, SEPARATE):
        image_folder(tmp_path / "val" / name, 1, 1)
    *_, classes = find_files(tmp_path / "train", World())
    assert classes == ["facade", "faz", COMPOSED]
    paths, labels, _ = find_files(tmp_path / "val", World(), classes)
    assert len(paths) == 2
    assert labels.tolist() == [2, 2]


def test_a_part_beside_the_test_part_is_named(tmp_path, capsys):
    for part in ("train", "val", "test"):
        image_folder(tmp_path / part, 2, 2)
    files(tmp_path, 32)
    assert (
        f"{tmp_path}/val is the test part, {tmp_path}/test is left out" in capsys.readouterr().out
    )


def test_a_part_may_lack_a_class(tmp_path):
    image_folder(tmp_path, 2, 2)
    _, labels, _ = find_files(tmp_path, World(), ["a", "n0000", "n0001"])
    assert labels.tolist() == [1, 2]


def test_small_images_are_held_in_memory(tmp_path):
    image_folder(tmp_path, 2, 3, size=(90, 100))
    paths, labels, _ = find_files(tmp_path, World())
    train, test = read_parts((paths, labels), (paths[:1], labels[:1]), 32)
    assert isinstance(train, Memory)
    assert train.images.shape == (3, 32, 32, 3)
    assert train.labels.tolist() == [0, 0, 1]
    assert np.array_equal(test.images[0].numpy(), decode(paths[0], 32))


def test_large_images_stay_files(tmp_path):
    image_folder(tmp_path, 2, 3)
    paths, labels, _ = find_files(tmp_path, World())
    train, _ = read_parts((paths, labels), (paths, labels), 65)
    assert train == Files(paths, labels)


def test_another_size_is_refused_where_it_must_be_exact(tmp_path):
    image_folder(tmp_path, 1, 1, size=(32, 40))
    paths, labels, _ = find_files(tmp_path, World())
    with pytest.raises(UseError, match=r"0\.png is 40x32 pixels, expected 32x32"):
        read_folder(paths, labels, 32, exact=True)


# ---- digits


def test_digits_are_shared_out_by_class():
    data = load(DataOptions(dataset="DIGITS"), World())
    train, test = (torch.bincount(part.labels, minlength=10) for part in (data.train, data.test))
    assert (train.sum() + test.sum()) == 1797
    assert ((test / (train + test) - 0.2).abs() < 0.01).all()
