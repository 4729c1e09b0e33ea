"""Stages and chains: words and recipes, what never mixes, what makes a result one of today's."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import models
from engine import checkpoint
from engine.errors import RunError, UseError
from experiments import arithmetic, chain
from experiments.arithmetic import ARITHMETIC, LEGACY, version
from experiments.stage import (
    Stage,
    digest_weights,
    first_difference,
    from_words,
    machine_spellings,
    portable,
    to_words,
)
from tests.experiments.asked import chain_of
from tests.helpers import ROOT

RECORDED = sorted((ROOT / "results").glob("rows*/*.json"))


# ---- words ----


def test_words_and_options_are_inverse():
    given = {"bn": True, "epochs": 3, "lr_interval": "0.4 0.6", "weight_decay": 1e-4}
    assert to_words(given | {"seed": None}) == [
        *("--bn", "--epochs", "3", "--lr_interval", "0.4 0.6"),
        *("--weight_decay", "0.0001"),
    ]
    assert from_words(to_words(given)) == {
        name: v if v is True else str(v) for name, v in given.items()
    }


def test_words_as_they_are_printed():
    found = from_words(["-thr_lr", "0.01", "--dataset_dir=./x", "--warm_up", "-leak", "-1"])
    assert found == {"thr_lr": "0.01", "dataset_dir": "./x", "warm_up": True, "leak": "-1"}


def test_a_value_may_be_several_words():
    assert to_words({"scale": [1, 1]}) == ["--scale", "1", "1"]
    assert from_words(["--scale", "0.5", "1", "--bn"]) == {"scale": "0.5 1", "bn": True}


# ---- what belongs to a machine ----


@pytest.mark.parametrize("more, mode", [("", "none"), ("--compile default", "default")])
def test_a_resumed_stage_is_compiled_as_is_asked_now(more, mode):
    ann = chain_of("cifar10-resnet20-mlif", more).stages["ann"]
    assert from_words(ann.new_words)["compile"] == mode


def test_a_stage_that_trains_is_shown_with_its_launcher():
    stages = chain_of("cifar10-resnet20-mlif", "--launcher 'torchrun --nproc_per_node 2'").stages
    assert stages["ann"].command(["--bn"]) == "torchrun --nproc_per_node 2 ann_ddp.py --bn"
    assert stages["ann_fused"].command([]) == "python3 absorb_bn.py"


@pytest.mark.parametrize(
    "script, more",
    [
        ("ann_ddp", set()),
        ("snn_ddp", {"neuron_backend", "recompute"}),
        ("spike_driven_transformer.train", {"neuron_backend", "recompute", "data_dir"}),
        ("neuromorphic_tasks.main_training_parallel", {"prepared", "neuron_backend"}),
    ],
)
def test_the_parser_of_a_script_says_what_belongs_to_a_machine(script, more):
    machine = machine_spellings(script)
    assert {"device", "compile", "workers", "gpu", "dist_url"} | more <= machine
    assert not machine & {"epochs", "seed", "amp", "energy", "print_freq", "config"}


def test_stored_recipes_lose_what_has_become_a_machines():
    stored = {"epochs": "3", "workers": "4", "bn": True}
    assert portable("ann_ddp", stored) == {"epochs": "3", "bn": True}


# ---- what never mixes ----


def test_results_of_other_data_never_mix():
    data = {part: {"images": 3, "sha256": part} for part in ("train", "test")}
    chain.same_data({"ann": data, "snn": dict(data)})
    with pytest.raises(UseError, match="snn has 4 test images, ann had 3 others"):
        chain.same_data({"ann": data, "snn": data | {"test": {"images": 4, "sha256": "test"}}})


def test_the_first_difference_is_named():
    assert first_difference({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == "b 2 for 3"
    assert first_difference({"a": "x" * 64}, {"a": 1}) == "a"
    assert first_difference({}, {"a": 1}) == "a None for 1"


def test_the_digest_is_of_every_weight_and_its_name(tmp_path):
    net = models.build("vgg16", models.ReLU(), width_mult=1 / 16)
    content = checkpoint.content(net, "ann", {}, {})

    def digest(weights):
        torch.save({**content, "model": weights}, tmp_path / "a.pth")
        return digest_weights(tmp_path / "a.pth")

    one, other = torch.ones(2), torch.zeros(2)
    found = [{"a": one, "b": other}, {"a": other, "b": one}, {"a": one}, {"b": other, "c": one}]
    assert len({digest(weights) for weights in found}) == 4
    assert digest({"b": other, "a": one}) == digest(found[0])


def test_code_that_changes_on_the_way_stops_a_chain(tmp_path, monkeypatch):
    made = chain_of("cifar10-resnet20-mlif", f"--output_dir {tmp_path}")
    digests = iter("aab")
    monkeypatch.setattr(chain, "sources", lambda: next(digests))
    monkeypatch.setattr(Stage, "run", lambda stage, lock: {})
    monkeypatch.setattr(Stage, "data", {"train": {}, "test": {}})
    with pytest.raises(
        RunError, match="the code has changed since this chain began, before ann_fused"
    ):
        made.all()


def test_the_sources_are_those_that_stages_run(tmp_path, monkeypatch):
    monkeypatch.setattr(arithmetic, "ROOT", tmp_path)
    before = {arithmetic.sources()}
    counted = ["ann_ddp.py", "models/neuron/a.py", "models/a.cu", "spike_driven_transformer/c.yml"]
    for name in counted:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
        assert arithmetic.sources() not in before, name
        before.add(arithmetic.sources())
        path.write_text("2")
        assert arithmetic.sources() not in before, name
        before.add(arithmetic.sources())
    (tmp_path / "experiments").mkdir()
    for name in ("README.md", "finetune.py", "experiments/rows.py"):
        (tmp_path / name).write_text("1")
        assert arithmetic.sources() in before


def test_a_missing_launcher_is_told(tmp_path, fails):
    made = chain_of("cifar10-resnet20-ann", f"--output_dir {tmp_path} --launcher nosuch")
    fails(lambda _: made.all(), "", "--launcher", "no program 'nosuch'")


# ---- which code ----


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_results_are_of_a_known_version(path):
    assert version(json.loads(path.read_text())["code"]) in range(1, ARITHMETIC + 1)


def test_digests_of_before_count_as_version_1():
    # the last one before a version took the place of the digest
    assert version("cd7a7b142854f8f0") == 1
    assert set(LEGACY.values()) == {1}
    assert version(ARITHMETIC) == ARITHMETIC


def test_an_unknown_digest_is_no_version():
    assert version("0123456789abcdef") == "0123456789abcdef"


@pytest.mark.parametrize(
    "sent, error", [(signal.SIGTERM, RunError), (signal.SIGINT, KeyboardInterrupt)]
)
def test_who_ends_a_chain_ends_its_script(tmp_path, monkeypatch, interruptible, sent, error):
    """Else it would train on unseen."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        f"os.kill(os.getppid(), {int(sent)})\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(Stage, "file", str(script))
    stage = Stage("ann", "ann_ddp", {}, SimpleNamespace(launcher=()))
    former = signal.getsignal(signal.SIGTERM)
    with open(tmp_path / "lock", "w") as lock, pytest.raises(error):
        stage._start([], lock.fileno())
    assert signal.getsignal(signal.SIGTERM) is former
    process = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    # it may be dying, and be read by nobody
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, os.WNOHANG)
        time.sleep(0.05)
    assert not Path(f"/proc/{process}").exists()
