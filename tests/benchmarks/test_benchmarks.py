"""The benchmarks run, at sizes that say nothing, and time nothing that is wrong."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import models
from benchmarks import common, convolution, inference, neuron, step
from engine import checkpoint
from models import layers
from models.neuron.backends import compiled, torch_fused


def run(module, words, monkeypatch):
    """Call a benchmark's main with a command line."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *words.split()])
    module.main()


def test_without_a_compiler_nothing_is_compiled(monkeypatch, capsys):
    monkeypatch.setattr(compiled, "why_not", lambda device, dtype: "no compiler here")
    args = SimpleNamespace(device="cpu", no_compile=False)
    assert common.begin(args) == torch.device("cpu")
    assert args.no_compile
    assert capsys.readouterr().out == "not measured compiled: no compiler here\n"


@pytest.mark.compiler
def test_neuron_table(tmp_path, monkeypatch, capsys):
    pytest.importorskip("spikingjelly")
    run(neuron, f"--elements 4000 --repeats 2 --no_compile --out {tmp_path}/n", monkeypatch)
    rows = json.loads((tmp_path / "n.json").read_text())["rows"]
    assert {
        "copy",
        "ours torch",
        "ours cpp",
        "SJ LIF sigmoid",
        "SJ ILIF (0..4)",
        "SJ FlexSN M-LIF",
    } <= {row["name"] for row in rows}
    assert {(row["S"], row["T"]) for row in rows} == {(1, 1), (1, 4), (3, 1), (3, 4)}
    assert (tmp_path / "n.png").stat().st_size > 1000
    assert "as fast as SpikingJelly's fastest LIF" in capsys.readouterr().out


def test_neuron_rows(tmp_path, monkeypatch):
    """What later readers of the JSON file expect of a row, in order."""
    words = f"--elements 4000 --levels 3 --steps 4 --backends torch --repeats 3 --out {tmp_path}/n"
    run(neuron, f"{words} --no_peers --no_compile", monkeypatch)
    content = json.loads((tmp_path / "n.json").read_text())
    assert list(content) == ["machine", "torch", "threads", "load", "rows"]
    copy, ours = content["rows"]
    assert list(ours) == [
        "name",
        "S",
        "T",
        "dtype",
        "elements",
        "ms",
        "low_ms",
        "high_ms",
        "moved_bytes",
        "of_copy",
        "seconds",
    ]
    assert (copy["name"], copy["moved_bytes"], copy["of_copy"]) == ("copy", 8, 1)
    assert (ours["name"], ours["moved_bytes"], ours["elements"]) == ("ours torch", 20, 4000)
    assert len(ours["seconds"]) == 3
    assert ours["ms"] == sorted(ours["seconds"])[1] * 1e3


def test_nothing_is_timed_after_a_red_parity_test(tmp_path, monkeypatch):
    good = torch_fused.backward

    def bad(*args):
        gx, *rest = good(*args)
        return gx * 1.001, *rest

    monkeypatch.setattr(torch_fused, "backward", bad)
    words = f"--elements 4000 --backends torch --no_peers --no_compile --out {tmp_path}/n"
    with pytest.raises(SystemExit, match=r"parity is red: torch.*nothing is timed"):
        run(neuron, words, monkeypatch)
    assert not (tmp_path / "n.json").exists()


def test_step_table(tmp_path, monkeypatch):
    # Memory is measured in a process for each network.
    monkeypatch.setattr(step, "peak", lambda settings: (2.0, 1.0))
    sizes = "--batch 2 --width 0.0625 --dim 16 --repeats 1"
    words = f"--networks resnet20 {sizes} --no_compile --amp none --out {tmp_path}/s"
    run(step, words, monkeypatch)
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    names = [row["name"] for row in rows]
    assert names[:3] == ["ANN", "SNN", "LQ-ANN"]
    assert names[3:5] == ["S=1", "S=4"]
    assert names[5:8] == ["T=1", "T=4", "T=4 --recompute"]
    assert names[8:] == ["LIF", "M-LIF", "LIF", "M-LIF"]
    assert all(row["ms"] > 0 for row in rows)
    assert rows[1]["peak_mib"] > 0
    snn = rows[1]
    assert (snn["kind"], snn["network"], snn["to"]) == ("snn", "resnet20", "ANN")


def test_inference_table(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    words = "--networks vgg16 --width 0.0625 --batches 1 3 --threads 1 --repeats 2"
    inference.main(f"{words} --out {tmp_path}/i".split())
    content = json.loads((tmp_path / "i.json").read_text())
    assert content["weights"] == "noise"
    runtimes = {"onnxruntime": inference.GRAPHS, "torch": inference.MODULES}
    assert [(row["batch"], row["runtime"], row["name"]) for row in content["rows"]] == [
        (batch, runtime, name)
        for batch in (1, 3)
        for runtime in runtimes
        for name in runtimes[runtime]
    ]
    for row in content["rows"]:
        assert row["name"] != "ann" or row["ratio"] == [1, 1, 1]
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / row["ms"])
        assert len(row["seconds"]) == 2
    assert "vgg16, width x0.0625, batch 3, threads 1" in capsys.readouterr().out


def test_no_graph_is_timed_that_computes_something_else():
    pytest.importorskip("onnxruntime")
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 10)).eval().requires_grad_(False)
    images = torch.randn(8, 3, 2, 2)
    graphs = {"ann": inference.graph(module, images)}
    inference.check(graphs, {"ann": module}, images)
    with pytest.raises(SystemExit, match=r"ann: \d+% of the predictions .* nothing is timed"):
        inference.check(graphs, {"ann": lambda x: -module(x)}, images)


def stored(path, width, act=None):
    net = models.build("resnet20", act or models.ReLU(), width_mult=width, bn=act is None)
    about = {"num_classes": 10, "image_size": 32}
    checkpoint.save(path, checkpoint.content(net, "snn" if act else "ann", about, {}))
    return path


def test_inference_of_checkpoints(tmp_path, fails):
    snn = stored(
        tmp_path / "snn.pth", 1 / 16, models.Spiking(models.NeuronConfig.vgg(3), theta=2.0)
    )
    ann = stored(tmp_path / "ann.pth", 1 / 16)
    first, second = inference.trained(ann, snn)
    assert not first.built["bn"] and second.stages[0].act.theta == 2

    other = stored(tmp_path / "other.pth", 1 / 8)
    fails(inference.main, f"--ann {other} --snn {snn}", "--ann is", "'width_mult': 0.125")
    fails(inference.main, f"--ann {ann}", "give both --ann and --snn")


def test_peak_memory_is_that_of_a_process_of_its_own():
    small = {"kind": "snn", "name": "resnet20", "batch": 2, "width": 0.0625, "device": "cpu"}
    whole, own = step.peak(small)
    assert whole > 100  # MiB, what torch alone takes
    assert 1 < own < whole / 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], [3, 3, 3]), ([4.0, 1.0, 2.0, 3.0], [2.5, 1.75, 3.25])],
)
def test_summary(values, expected):
    assert common.summary(values) == expected


def test_rounds_alternate():
    """Each round runs all contenders once; the first rounds are not timed."""
    seen = []
    runs = {name: lambda name=name: seen.append(name) for name in "ab"}
    seconds = common.alternate(runs, 3, torch.device("cpu"), warmup=2)
    assert seen == ["a", "b"] * 5
    assert [len(taken) for taken in seconds.values()] == [3, 3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [neuron, step])
def test_without_a_gpu_they_say_so_and_nothing_else(module, monkeypatch, capsys):
    run(module, "--device cuda", monkeypatch)
    assert capsys.readouterr().out == "not measured: no CUDA GPU here\n"


def test_convolutions(tmp_path, monkeypatch, capsys):
    """Both ways of each layer and of a whole step, in which the product is taken."""
    monkeypatch.setattr(layers, "AMX", True)
    words = f"--width 0.05 --batch 2 --repeats 2 --out {tmp_path}/c"
    run(convolution, words, monkeypatch)
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    shown = [row["what"] for row in rows]
    assert shown[2:4] == ["13 to 13 channels, 8x8, stride 1", "13 to 26 channels, 2x2, stride 2"]
    assert shown[6:] == ["training step of VGG16's ANN", "training step of ResNet20's ANN"]
    assert all(row["ratio"][0] > 0 for row in rows)
    assert "AMX: yes" in capsys.readouterr().out
