"""Figures: both files are written, and on the axes is what the data says."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from analysis import figures
from analysis.pricing import Energy, Row
from engine.errors import RunError

save = figures.save


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(function, *arguments): the axes of the figure, whose two files are there."""
    caught = []

    def catch(figure, path):
        caught.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "save", catch)

    def run(function, *arguments):
        function(*arguments, tmp_path / "figure.png")
        (figure,) = caught
        assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "figure.svg").read_text().rstrip().endswith("</svg>")
        return figure, figure.axes

    return run


def heights(axis):
    """Height of every bar, one list for each call of `bar`."""
    return [[float(bar.get_height()) for bar in bars] for bars in axis.containers]


def tick_labels(axis):
    return [label.get_text() for label in axis.get_xticklabels()]


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def run_folder(folder, **accuracies):
    """A run folder whose log has these accuracies, a list per name."""
    folder.mkdir()
    lines = [dict(zip(accuracies, values)) for values in zip(*accuracies.values())]
    text = [json.dumps({"epoch": epoch, **line}) for epoch, line in enumerate(lines)]
    (folder / "log.jsonl").write_text("\n".join(text))
    return str(folder)


LANES = {"stages.0.act": [0.1, 0.2, 0.4], "stages.1.act": [0.3, 0.4, 0.1]}


def test_chain(drawn, tmp_path):
    ann = run_folder(tmp_path / "ann", test_accuracy=[0.5, 0.9])
    snn = run_folder(tmp_path / "snn", val_accuracy=[0.6, 0.8, 0.85], test_accuracy=[0, 0, 0])
    stages = [
        {"stage": "ANN", "accuracy": 0.9, "energy_uj": 1000.0, "run": ann},
        {"stage": "fused", "accuracy": 0.9, "energy_uj": 1000.0},
        {"stage": "SNN", "accuracy": 0.851, "energy_uj": 12.345, "run": snn},
    ]
    figure, (left, right, below, bottom) = drawn(figures.chain, "a chain", stages, LANES)
    assert figure.get_suptitle() == "a chain"

    assert heights(left) == [pytest.approx([90, 90, 85.1])]
    assert heights(right) == [[1000, 1000, 12.345]]
    assert [text.get_text() for text in left.texts] == ["90.0", "90.0", "85.1"]
    assert [text.get_text() for text in right.texts] == ["1e+03", "1e+03", "12.3"]
    for axis in (left, right):
        assert tick_labels(axis) == ["ANN", "fused", "SNN"]

    # The stage without a run has no curve, and the others keep their bars' colours.
    curves = [list(line.get_ydata()) for line in below.lines]
    assert curves == [pytest.approx([50, 90]), pytest.approx([60, 80, 85])]
    assert [line.get_color() for line in below.lines] == [figures.COLORS[0], figures.COLORS[2]]
    assert legend(below) == ["ANN", "SNN (held-back images)"]

    assert np.allclose(heights(bottom), [[0.1, 0.3], [0.2, 0.4], [0.4, 0.1]])
    floors = [[bar.get_y() for bar in bars] for bars in bottom.containers]
    assert np.allclose(floors, [[0, 0], [0.1, 0.3], [0.3, 0.7]])
    assert tick_labels(bottom) == ["1", "2"] and legend(bottom) == ["1", "2", "4"]
    # Of several networks that spike one is shown.
    assert bottom.get_xlabel() == "spiking layer (SNN)"


def test_firing(drawn):
    """Bars side by side for the steps above, and below the mean of a step, lane on lane."""
    rows = [
        Row("stages.0.synapse.map", 1, 1, step_rates=[0.2, 0.4]),
        Row("head", 1, 1, step_rates=[0.6, 0.8]),
    ]
    energy = Energy(1, 2, rows, lane_rates_per_layer=LANES)
    _, (above, below) = drawn(figures.firing, "firing", energy)
    assert heights(above) == [[0.2, 0.6], [0.4, 0.8]]
    centres = [[bar.get_x() + bar.get_width() / 2 for bar in bars] for bars in above.containers]
    assert centres == [pytest.approx([-0.2, 0.8]), pytest.approx([0.2, 1.2])]
    assert tick_labels(above) == ["0", "head"] and legend(above) == ["t = 0", "t = 1"]
    assert np.allclose(heights(below), [[0.05, 0.15], [0.1, 0.2], [0.2, 0.05]])
    assert tick_labels(below) == ["0", "1"] and legend(below) == ["1", "2", "4"]


def test_one_step_needs_no_legend(drawn):
    rows = [Row("head", 1, 1, step_rates=[0.5])]
    _, (above, _) = drawn(figures.firing, "", Energy(1, 1, rows, lane_rates_per_layer=LANES))
    assert above.get_legend() is None and heights(above) == [[0.5]]


def test_recording(drawn):
    """White where nothing happens, OFF events blue, ON events red; ten steps of 28."""
    images = torch.zeros(28, 2, 4, 4)
    images[0, 0, 0, 0] = 4  # OFF
    images[0, 1, 0, 1] = 1  # ON, a quarter as many
    _, axes = drawn(figures.recording, "a recording", [("sum", images), ("lane 0", images)])
    assert len(axes) == 20
    titles = [axis.get_title() for axis in axes]
    assert titles == [f"step {1 + 3 * i}" for i in range(10)] + [""] * 10
    assert [axis.get_ylabel() for axis in axes if axis.get_ylabel()] == ["sum", "lane 0"]
    picture = axes[0].images[0].get_array()
    assert to_hex(picture[0, 0]) == "#0000ff"
    assert to_hex(picture[0, 1]) == "#ff8080"
    assert to_hex(picture[1, 1]) == "#ffffff"
    assert not tick_labels(axes[0])


def test_a_short_recording_is_drawn_whole(drawn):
    _, axes = drawn(figures.recording, "", [("sum", torch.zeros(3, 2, 4, 4))])
    assert [axis.get_title() for axis in axes] == ["step 1", "step 2", "step 3"]


def row(dataset, network, method, accuracy, energy):
    return SimpleNamespace(
        dataset=dataset, network=network, method=method, accuracy=accuracy, energy=energy
    )


def test_rows(drawn):
    """A panel per data set: what is published hollow, what is measured with its deviation."""
    table = [
        row("CIFAR10", "ResNet20", "ANN", 94.3, 997),
        row("CIFAR10", "ResNet20", "M-LIF", 93.2, 55.5),
        row("CIFAR10", "VGG16", "M-LIF", 93.3, 52.4),
        row("DVS", "VGGSNN", "M-LIF", 84.7, 350),
        row("DVS", "VGGSNN", "M-LIF", 83.0, 170),
    ]
    measured = [
        (table[1], {"accuracy": (92.0, 0.5), "energy": (60.0, 1.0)}, "two seeds"),
        (table[3], {"accuracy": (80.0, None), "energy": (300.0, None)}, "simulated"),
    ]
    lines = {
        ("DVS", "VGGSNN", "price"): [(100, 82), (50, 81)],
        ("CIFAR10, narrow", "VGG16", "price"): [(6, 80), (5, 79)],
    }
    _, axes = drawn(figures.rows, table, measured, lines)
    assert [axis.get_title() for axis in axes] == ["CIFAR10", "DVS", "CIFAR10, narrow"]
    cifar, dvs, narrow = axes
    assert legend(narrow) == ["VGG16, price"]
    assert cifar.get_xscale() == "log"
    assert cifar.get_xlabel() == "compute energy per image (uJ)"
    assert cifar.get_ylabel() == "test accuracy (%)"

    points, offsets = cifar.collections[:3], [[997, 94.3], [55.5, 93.2], [52.4, 93.3]]
    assert [point.get_offsets().tolist()[0] for point in points] == offsets
    assert [point.get_facecolors().size for point in points] == [0, 0, 0]
    colours = [to_hex(point.get_edgecolors()[0]) for point in points]
    assert colours == [figures.COLORS[0], figures.COLORS[0], figures.COLORS[1]]
    (bar,) = cifar.containers
    assert bar.lines[0].get_xydata().tolist() == [[60, 92]]
    assert bar.lines[2][0].get_segments()[0].tolist() == [[60, 91.5], [60, 92.5]]
    assert legend(cifar) == [
        "ResNet20, ANN, published",
        "ResNet20, M-LIF, published",
        "VGG16, M-LIF, published",
        "ResNet20, M-LIF, measured: two seeds",
    ]
    # Two published points of one network and method share an entry.
    assert set(legend(dvs)) == {
        "VGGSNN, M-LIF, published",
        "VGGSNN, M-LIF, measured: simulated",
        "VGGSNN, price",
    }
    (line,) = [line for line in dvs.lines if line.get_label() == "VGGSNN, price"]
    assert line.get_xydata().tolist() == [[50, 81], [100, 82]]
    assert not dvs.containers[0].lines[2], "one seed has no deviation"


def test_tradeoff(drawn):
    """A curve over T for each S through the seeds' means, with the sample's deviation."""
    points = {
        (3, 2): [(91.0, 40.0), (93.0, 44.0)],
        (3, 1): [(90.0, 20.0)],
        (1, 1): [(80.0, 10.0), (80.0, 12.0), (83.0, 14.0)],
    }
    _, (axis,) = drawn(figures.tradeoff, "S and T", points, (95.0, 400.0))
    assert axis.get_title() == "S and T" and axis.get_xscale() == "log"
    assert legend(axis) == ["ANN", "S = 1 (LIF)", "S = 3"]
    one, three = axis.containers
    assert one.lines[0].get_xydata() == pytest.approx(np.array([[12, 81]]))
    assert three.lines[0].get_xydata() == pytest.approx(np.array([[20, 90], [42, 92]]))
    ((_, low), (_, high)) = one.lines[2][0].get_segments()[0]
    assert (high - low) / 2 == pytest.approx(3**0.5)
    spans = [high - low for (_, low), (_, high) in three.lines[2][0].get_segments()]
    assert spans == pytest.approx([0, 2 * 2**0.5])  # one seed, two seeds
    assert [text.get_text() for text in axis.texts] == ["T=1", "T=1", "T=2"]
    (ann,) = (c for c in axis.collections if c.get_label() == "ANN")
    assert ann.get_offsets().tolist() == [[400, 95]]


def test_the_same_figure_gives_the_same_files(tmp_path):
    """Whichever of the two the path names."""
    for name in ("a.png", "b.svg"):
        figure, axes = figures.canvas(1, 1, 3, 2)
        figures.labelled_bars(axes[0, 0], ["one"], [1.0], "{:.1f}", "value")
        save(figure, tmp_path / name)
    for kind in ("png", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    # both could be of one second
    assert b"dc:date" not in (tmp_path / "a.svg").read_bytes()


def test_a_figure_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    figure, _ = figures.canvas(1, 1, 3, 2)
    with pytest.raises(RunError, match=r"cannot write .*file/figure\.png"):
        save(figure, tmp_path / "file" / "figure.png")
