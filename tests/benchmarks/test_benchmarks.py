"""The benchmarks run, at sizes that say nothing, and time nothing that is wrong."""

import json
import sys

import pytest
import torch

from benchmarks import neuron, step
from models.neuron.backends import torch_fused


def run(module, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module.__name__, *words.split()])
    module.main()


def test_neuron_table(tmp_path, monkeypatch, capsys):
    pytest.importorskip("spikingjelly")
    run(neuron, f"--elements 4000 --repeats 2 --no_compile --out {tmp_path}/n", monkeypatch)
    content, said = json.loads((tmp_path / "n.json").read_text()), capsys.readouterr().out
    names = {r["name"] for r in content["rows"]}
    assert {
        "copy",
        "ours torch",
        "ours cpp",
        "SJ LIF sigmoid",
        "SJ ILIF (0..4)",
        "SJ FlexSN M-LIF",
    } <= names
    assert {(r["S"], r["T"]) for r in content["rows"]} == {(1, 1), (1, 4), (3, 1), (3, 4)}
    assert (
        tmp_path / "n.png"
    ).stat().st_size > 1000 and "as fast as SpikingJelly's fastest LIF" in said


def test_nothing_is_timed_after_a_red_parity_test(tmp_path, monkeypatch):
    good = torch_fused.backward

    def bad(*args):
        gx, *rest = good(*args)
        return gx * 1.001, *rest

    monkeypatch.setattr(torch_fused, "backward", bad)
    with pytest.raises(SystemExit, match=r"parity is red: torch.*nothing is timed"):
        run(
            neuron,
            f"--elements 4000 --backends torch --no_peers --no_compile --out {tmp_path}/n",
            monkeypatch,
        )
    assert not (tmp_path / "n.json").exists()


def test_step_table(tmp_path, monkeypatch):
    monkeypatch.setattr(
        step, "peak", lambda settings: (2.0, 1.0)
    )  # it starts a process for each network
    run(
        step,
        f"--networks resnet20 --batch 2 --width 0.0625 --dim 16 --repeats 1 --no_compile --amp none --out {tmp_path}/s",
        monkeypatch,
    )
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [r["name"] for r in rows] == [
        "ANN",
        "SNN",
        "LQ-ANN",
        "S=1",
        "S=4",
        "T=1",
        "T=4",
        "T=4 --recompute",
        "LIF",
        "M-LIF",
        "LIF",
        "M-LIF",
    ]
    assert all(r["ms"] > 0 for r in rows) and rows[1]["peak_mib"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [neuron, step])
def test_without_a_gpu_they_say_so_and_nothing_else(module, monkeypatch, capsys):
    run(module, "--device cuda", monkeypatch)
    assert capsys.readouterr().out == "not measured: no CUDA GPU here\n"
