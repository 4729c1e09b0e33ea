"""A run that is cut off and resumed ends bit for bit where the uninterrupted one ends; files are written whole or not."""

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import absorb_bn
import ann_ddp
import snn_ddp
from engine import checkpoint, log
from engine.errors import RunError, guard
from engine.loop import Trainer, rng_state, seed_all, set_rng_state
from tests.helpers import image_folder, start

COMMON = "--batch_size 8 --epochs 3 --save_freq 1 --print_freq 1 --workers 0 --device cpu "
NARROW = "-a VGG16 --width_mult 0.0625 --bias "
RESNET = "-a RESNET20 --width_mult 0.125 --bias "
ANN = COMMON + NARROW + "--bn --dropout 0.2 -lr 0.01 --lr_interval 0.4,0.7 "
LQ = (
    COMMON
    + RESNET
    + "--bn --dropout 0.2 -lr 0.001 --optimizer Adam --quant_act --act_bits 2 --quant_num_batches 2 "
)
SNN = (
    COMMON
    + RESNET
    + (
        "--dropout 0.3 --optimizer Adam -lr 0.001 -thr_lr 0.01 --multi_channel 1 --num_channels 3 "
        "--timesteps 2 --conversion matched --warm_up --warm_up_epochs 2 "
    )
)
RATE = (
    COMMON
    + RESNET
    + "--dropout 0.3 --timesteps 2 --input_encoding 0 --default_threshold 0.2 -lr 0.01 "
)
TIMES = {"images_per_s", "seconds"}


class Cut(Exception):
    """The run is cut off here."""


@pytest.fixture(scope="module")
def fused(cifar, tmp_path_factory):
    root = tmp_path_factory.mktemp("fused")
    guard(ann_ddp.main, f"{COMMON} {RESNET} --bn --data_root {cifar} --output_dir {root}".split())
    guard(absorb_bn.main, ["--pretrained_ann", f"{root}/ann/ann_resnet20_cifar10_w0.125.pth"])
    return root / "ann/ann_resnet20_cifar10_w0.125_bn_fused.pth"


@pytest.fixture(scope="module")
def uninterrupted():
    """uninterrupted(main, argv, folder): the finished run, made once for each command."""
    runs = {}

    def run(main, argv, folder):
        if argv not in runs:
            main([*argv.split(), "--output_dir", str(folder)])
            runs[argv] = run_folder(folder)
        return runs[argv]

    return run


def run_folder(output):
    (folder,) = [p for p in output.glob("*/*") if p.is_dir()]
    return folder


def states(folder):
    """Everything in last.pth and best.pth that a run determines, as a flat list; and the lines of log.jsonl."""
    last, best = checkpoint.load(folder / "last.pth"), checkpoint.load(folder / "best.pth")
    training = {k: v for k, v in last["training"].items() if k not in ("seconds", "stable")}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    return flat(
        [last["model"], training, last["accuracy"], best["model"], best["accuracy"], best["epoch"]]
    ), lines


def flat(value, name=""):
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return flat(dict(enumerate(value)), name)
    return {name: value}


def assert_same(folder, other):
    (got, lines), (want, expected) = states(folder), states(other)
    assert got.keys() == want.keys()
    differing = [
        k
        for k, v in want.items()
        if not (torch.equal(v, got[k]) if torch.is_tensor(v) else v == got[k])
    ]
    assert differing == []
    assert lines == expected and [line["epoch"] for line in lines] == [1, 2, 3]


def cut_after(monkeypatch, steps):
    """Training is cut off after so many optimizer steps."""
    count, epoch = iter(range(1, steps + 1)), Trainer._train_epoch

    def train(self):
        hook = self.after_step

        def after_step():
            hook()
            if next(count) == steps:
                raise Cut

        self.after_step = after_step
        try:
            epoch(self)
        finally:
            self.after_step = hook

    monkeypatch.setattr(Trainer, "_train_epoch", train)


CASES = {
    "ann": (ann_ddp.main, ANN),
    "lq": (ann_ddp.main, LQ),
    "snn": (snn_ddp.main, SNN),
    "rate": (snn_ddp.main, RATE),
}


@pytest.mark.parametrize(
    "kind, steps",
    [("ann", 1), ("ann", 5), ("ann", 7), ("lq", 5), ("lq", 7), ("snn", 2), ("snn", 5), ("rate", 5)],
)
def test_resumed_equals_uninterrupted(
    cifar, fused, uninterrupted, monkeypatch, tmp_path, kind, steps
):
    main, argv = CASES[kind]
    argv = f"{argv} --data_root {cifar}" + (f" --pretrained_ann {fused}" if kind == "snn" else "")
    whole = uninterrupted(main, argv, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, steps)
        main([*argv.split(), "--output_dir", str(tmp_path / "cut")])
    folder = run_folder(tmp_path / "cut")
    assert checkpoint.load(folder / "last.pth")["training"]["step"] == (steps - 1) % 3
    seed_all(12345)
    main(["--resume", str(folder)])
    assert_same(folder, whole)
    assert run_folder(tmp_path / "cut") == folder
    stable, best = (
        checkpoint.load(p) for p in (next((tmp_path / "cut").glob("*/*.pth")), folder / "best.pth")
    )
    assert stable["accuracy"] == best["accuracy"] and all(
        torch.equal(v, stable["model"][k]) for k, v in best["model"].items()
    )


def test_cut_twice_between_log_and_checkpoint(cifar, fused, uninterrupted, monkeypatch, tmp_path):
    argv = f"{ANN} --data_root {cifar}"
    whole = uninterrupted(ann_ddp.main, argv, tmp_path / "whole")
    save = Trainer.save_last

    def at(epoch):
        def cut(self):
            if (self.epoch, self.step) == (epoch, 0):
                raise Cut
            save(self)

        return cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Trainer, "save_last", at(2))
        ann_ddp.main([*argv.split(), "--output_dir", str(tmp_path / "cut")])
    folder = run_folder(tmp_path / "cut")
    assert len((folder / "log.jsonl").read_text().splitlines()) == 1
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"epoch": 2, "train_lo')  # a line that was being written
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Trainer, "save_last", at(4))
        ann_ddp.main(["--resume", str(folder / "last.pth")])
    ann_ddp.main(["--resume", str(folder)])
    assert_same(folder, whole)


def test_image_files_and_held_back_images(monkeypatch, tmp_path):
    """Decoded by workers, augmented by torchvision: the same after a cut inside an epoch."""
    for part, count in (("train", 24), ("val", 6)):
        image_folder(tmp_path / "images" / part, 3, count, (90, 100), "jpg")
    argv = f"{COMMON} {NARROW} --bn --dataset FOLDER --dataset_dir {tmp_path}/images --image_size 80 --val_fraction 0.25"
    argv = argv.replace("--batch_size 8", "--batch_size 6")
    ann_ddp.main([*argv.split(), "--output_dir", str(tmp_path / "whole")])
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, 5)
        ann_ddp.main([*argv.split(), "--output_dir", str(tmp_path / "cut")])
    ann_ddp.main(["--resume", str(run_folder(tmp_path / "cut")), "--workers", "1"])
    assert_same(run_folder(tmp_path / "cut"), run_folder(tmp_path / "whole"))


@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_killed_process(cifar, uninterrupted, tmp_path, wait):
    """SIGKILL at a moment that nobody chose."""
    argv = f"{ANN} --data_root {cifar}"
    whole = uninterrupted(ann_ddp.main, argv, tmp_path / "whole")
    script = Path(ann_ddp.__file__)
    process = start(
        [script, *argv.split(), "--output_dir", tmp_path / "cut"],
        tmp_path,
        OMP_NUM_THREADS=torch.get_num_threads(),
    )
    try:
        end = time.monotonic() + 60
        while (
            not list((tmp_path / "cut").glob("ann/*/log.jsonl"))
            and time.monotonic() < end
            and process.poll() is None
        ):
            time.sleep(0.01)
        time.sleep(wait)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    folder = run_folder(tmp_path / "cut")
    ann_ddp.main(["--resume", str(folder)])
    assert_same(folder, whole)


def test_finished_run(cifar, uninterrupted, tmp_path, capsys):
    """Trains nothing, says again what the run reached, and leaves weights and summary as they are."""
    folder = uninterrupted(ann_ddp.main, f"{ANN} --data_root {cifar}", tmp_path / "whole")
    before = {p: p.read_bytes() for p in folder.glob("*.pth")} | {
        p: p.read_bytes() for p in folder.parent.glob("*.pth")
    }
    summary, lines = (
        json.loads((folder / "summary.json").read_text()),
        (folder / "log.jsonl").read_text(),
    )
    capsys.readouterr()
    ann_ddp.main(["--resume", str(folder)])
    assert (
        f"best {summary['best_accuracy']:.2%} at epoch {summary['best_epoch']}"
        in capsys.readouterr().out
    )
    again = json.loads((folder / "summary.json").read_text())
    assert again == summary and again["last_accuracy"] is not None
    assert {p: p.read_bytes() for p in before} == before and (
        folder / "log.jsonl"
    ).read_text() == lines


def test_resume_takes_free_options_and_repeated_ones(cifar, monkeypatch, tmp_path):
    argv = f"{ANN} --data_root {cifar}".replace("--epochs 3", "--epochs 1")
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, 2)
        ann_ddp.main([*argv.split(), "--output_dir", str(tmp_path)])
    folder = run_folder(tmp_path)
    ann_ddp.main(
        [
            "--resume",
            str(folder),
            "--epochs",
            "1",
            "-lr",
            "0.01",
            "--print_freq",
            "7",
            "--save_freq",
            "0",
        ]
    )
    assert (folder / "summary.json").exists()


def draws():
    return (
        torch.rand(3).tolist(),
        np.random.rand(3).tolist(),
        np.random.randn(1).tolist(),
        [random.random(), random.gauss()],
    )


def test_every_generator_is_restored(tmp_path):
    seed_all(3)
    draws()  # numpy and python now hold the second half of a pair of normal numbers
    checkpoint.save(
        tmp_path / "rng.pth",
        {
            "format": checkpoint.FORMAT,
            **dict.fromkeys(checkpoint.FIELDS),
            "rng": rng_state(torch.device("cpu")),
        },
    )
    expected = draws()
    seed_all(4)
    assert all(a != b for a, b in zip(draws(), expected, strict=True))
    set_rng_state(checkpoint.load(tmp_path / "rng.pth")["rng"], torch.device("cpu"))
    assert draws() == expected


def test_a_failed_write_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "last.pth"
    torch.save({"old": torch.ones(3)}, path)
    old = path.read_bytes()

    def half(error, file):
        Path(file).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", half)
    for error, raised in (
        (RuntimeError("disk full"), RunError),
        (OSError("disk full"), RunError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with pytest.raises(raised):
            checkpoint.save(path, error)
        assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError):
        circular = {}
        circular["itself"] = circular
        log.write_json(tmp_path / "summary.json", circular)
    assert (tmp_path / "summary.json").read_text() == "{}" and len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_ends_the_run_in_one_line(
    cifar, uninterrupted, monkeypatch, fails, tmp_path
):
    argv = f"{ANN} --data_root {cifar}"
    whole = uninterrupted(ann_ddp.main, argv, tmp_path / "whole")
    save, calls = torch.save, iter(range(100))

    def failing(content, path):
        save(content, path)
        if next(calls) == 4:
            path.write_bytes(path.read_bytes()[:1000])
            raise RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", failing)
        fails(ann_ddp.main, f"{argv} --output_dir {tmp_path}/cut", "cannot write", "disk", status=1)
    folder = run_folder(tmp_path / "cut")
    assert not list(tmp_path.rglob("*.tmp"))
    ann_ddp.main(["--resume", str(folder)])
    assert_same(folder, whole)
