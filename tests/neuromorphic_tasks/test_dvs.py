"""Drawing a prepared recording."""

import shlex

import torch
from PIL import Image

from inputs.events.coding import Coding, encode
from neuromorphic_tasks import dvs


def test_a_recording_is_drawn(prepared, tmp_path):
    options = f"--prepared {prepared} --part test --index 1 --num_channels 4"
    dvs.main(shlex.split(f"{options} --output {tmp_path}/x.png"))
    assert Image.open(tmp_path / "x.png").size[0] > 400
    assert "<svg" in (tmp_path / "x.svg").read_text()[:400]


def test_views_are_the_count_the_lanes_and_the_input():
    bits = torch.rand(1, 80, 2, 128, 16) * 256
    packed, coding = bits.to(torch.uint8), Coding(3, 20)
    labels, images = zip(*dvs.views(packed, coding))
    assert labels[0] == "sum of 4 frames" and labels[3] == "lane 2, worth 4"
    assert len(images) == 1 + 3 + 1
    assert all(len(image) == coding.steps for image in images)
    assert torch.equal(images[-1], encode(packed, coding)[0] / 255)


def test_a_recording_that_is_not_there(prepared, fails):
    fails(dvs.main, f"--prepared {prepared} --index 10", "recordings 0 to 9")


def test_a_picture_of_another_kind(prepared, tmp_path, fails):
    argv = f"--prepared {prepared} --output {tmp_path}/x.jpg"
    fails(dvs.main, argv, "x.jpg", "as .png and as .svg")
