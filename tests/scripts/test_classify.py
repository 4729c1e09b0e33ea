"""classify.py: a picture, its classes, and its energy."""

import re

import numpy as np
import pytest
from PIL import Image

import classify
from analysis import energy
from engine.errors import guard
from inputs.pretrained import from_pretrained
from tests.zoo import NAME


@pytest.fixture
def picture(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_five_classes_and_the_energy_of_this_picture(small_zoo, picture, capsys):
    guard(classify.main, [str(picture), "--network", NAME])
    lines = capsys.readouterr().out.splitlines()
    net = from_pretrained(NAME)
    image = net.transform(Image.open(picture))[None]
    shares, order = net(image).softmax(1)[0].sort(descending=True)
    for line, share, label in zip(lines[:5], shares, order):
        assert line == f"{label:<20}{share:>8.2%}"
    bill = energy.measure(net, [image])
    numbers = list(map(float, re.findall(r"[\d.]+(?= uJ)", lines[5])))
    assert numbers == [pytest.approx(bill.total_uj, rel=1e-3), pytest.approx(bill.ann_uj, rel=1e-3)]
    assert len(lines) == 6


def test_a_picture_is_seen_as_viewers_show_it(small_zoo, picture, tmp_path):
    """A camera that was held upright stores the picture on its side, and says so."""
    turned = Image.open(picture).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    found = [
        classify.main([str(path), "--network", NAME]) for path in (picture, tmp_path / "turned.png")
    ]
    assert found[0] == found[1]


def test_probabilities_are_those_of_all_classes(small_zoo, picture):
    found = classify.main([str(picture), "--network", NAME])
    assert len(found["classes"]) == 10
    assert sum(found["classes"].values()) == pytest.approx(1)


CASES = {
    "missing": ("absent.png", NAME, "no picture at absent.png"),
    "folder": (".", NAME, "no picture at ."),
    "no picture": ("text.png", NAME, "text.png cannot be read as an image"),
    "no network": ("picture.png", "resnet21", "no checkpoint at resnet21", NAME),
}


@pytest.mark.parametrize("file, name, words", [(*c[:2], c[2:]) for c in CASES.values()], ids=CASES)
def test_one_line(file, name, words, small_zoo, picture, fails, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    fails(classify.main, f"{file} --network {name}", *words)


def test_a_picture_is_needed(fails):
    fails(classify.main, "", "image")
