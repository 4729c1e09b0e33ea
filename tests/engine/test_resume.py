"""A run that is cut off and resumed ends bit for bit where the uninterrupted one ends."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import absorb_bn
import ann_ddp
import snn_ddp
from engine import checkpoint
from engine.errors import guard
from engine.files import locked
from engine.generators import seed_all
from engine.loop import Trainer
from tests.helpers import PATIENCE, image_folder, run_folder, start

COMMON = "--batch_size 8 --epochs 3 --save_freq 1 --print_freq 1 --workers 0 --device cpu"
NARROW = "-a VGG16 --width_mult 0.0625 --bias"
RESNET = "-a RESNET20 --width_mult 0.125 --bias"
ANN = f"{COMMON} {NARROW} --bn --dropout 0.2 -lr 0.01 --lr_interval 0.4,0.7"
LQ = (
    f"{COMMON} {RESNET} --bn --dropout 0.2 -lr 0.001 --optimizer Adam --quant_act --act_bits 2 "
    "--quant_num_batches 2"
)
SNN = (
    f"{COMMON} {RESNET} --dropout 0.3 --optimizer Adam -lr 0.001 -thr_lr 0.01 --multi_channel 1 "
    "--num_channels 3 --timesteps 2 --conversion matched --warm_up --warm_up_epochs 2"
)
RATE = (
    f"{COMMON} {RESNET} --dropout 0.3 --timesteps 2 --input_encoding 0 --default_threshold 0.2 "
    "-lr 0.01"
)
PRICE = f"{SNN} --rate_target 0.5 --penalty_warm_up 3 --keep last"
LANES = (
    f"{COMMON} {RESNET} --bn --dropout 0 -lr 0.01 --multi_channel 1 --num_channels 2 "
    "--timesteps 1 --conversion matched --first_lanes 4,3 --lsq_gradient --keep last"
)
TIMES = {"images_per_s", "seconds"}  # of a line of the log


class Cut(Exception):
    """The run is cut off here."""


def train(main, argv, output):
    """Run to the end; returns the run folder."""
    main([*argv.split(), "--output_dir", str(output)])
    return run_folder(output)


@pytest.fixture(scope="module")
def fused(cifar, tmp_path_factory):
    """A trained ANN without batch norm."""
    root = tmp_path_factory.mktemp("fused")
    guard(ann_ddp.main, f"{COMMON} {RESNET} --bn --data_root {cifar} --output_dir {root}".split())
    guard(absorb_bn.main, ["--pretrained_ann", f"{root}/ann/ann_resnet20_cifar10_w0.125.pth"])
    return root / "ann/ann_resnet20_cifar10_w0.125_bn_fused.pth"


def unfused(fused):
    """The ANN that was fused."""
    return fused.with_stem(fused.stem.removesuffix("_bn_fused"))


@pytest.fixture(scope="module")
def commands(cifar, fused):
    """{kind: (script, its command line)}"""
    data = f"--data_root {cifar}"
    return {
        "ann": (ann_ddp.main, f"{ANN} {data}"),
        "lq": (ann_ddp.main, f"{LQ} {data}"),
        "snn": (snn_ddp.main, f"{SNN} {data} --pretrained_ann {fused}"),
        "price": (snn_ddp.main, f"{PRICE} {data} --pretrained_ann {fused}"),
        "lanes": (snn_ddp.main, f"{LANES} {data} --pretrained_ann {unfused(fused)}"),
        "rate": (snn_ddp.main, f"{RATE} {data}"),
    }


@pytest.fixture(scope="module")
def uninterrupted(commands, tmp_path_factory):
    """uninterrupted(kind): folder of the finished run, made once."""
    runs = {}

    def run(kind):
        if kind not in runs:
            runs[kind] = train(*commands[kind], tmp_path_factory.mktemp(kind))
        return runs[kind]

    return run


@pytest.fixture
def cut(monkeypatch, tmp_path):
    """cut(main, argv, steps): folder of a run that is cut off after so many optimizer steps."""

    def run(main, argv, steps):
        count, step = iter(range(1, steps + 1)), Trainer._train_step

        def stopping(self, *batch):
            step(self, *batch)
            if next(count) == steps:
                raise Cut

        with monkeypatch.context() as patch, pytest.raises(Cut):
            patch.setattr(Trainer, "_train_step", stopping)
            train(main, argv, tmp_path / "cut")
        return run_folder(tmp_path / "cut")

    return run


def flat(value, name=""):
    """{path: value} of nested dictionaries and lists."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, part in value.items() for k, v in flat(part, f"{name}.{key}").items()}


def states(folder):
    """Everything in last.pth and best.pth that a run determines."""
    last, best = checkpoint.load(folder / "last.pth"), checkpoint.load(folder / "best.pth")
    training = {k: v for k, v in last["training"].items() if k != "seconds"}
    of_last = [last["model"], training, last["accuracy"]]
    return flat([*of_last, best["model"], best["accuracy"], best["epoch"]])


def lines(folder):
    """The lines of log.jsonl, without what depends on the machine's speed."""
    read = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read]


def assert_same(folder, other):
    got, want = states(folder), states(other)
    assert got.keys() == want.keys()
    same = {
        k: torch.equal(v, got[k]) if torch.is_tensor(v) else v == got[k] for k, v in want.items()
    }
    assert [k for k, equal in same.items() if not equal] == []
    assert lines(folder) == lines(other)
    assert [line["epoch"] for line in lines(folder)] == [1, 2, 3]


def assert_same_weights(a, b):
    assert a["accuracy"] == b["accuracy"]
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())


@pytest.mark.parametrize(
    "kind, steps",
    [
        *(
            ("ann", 1),
            ("ann", 5),
            ("ann", 7),
            ("lq", 5),
            ("lq", 7),
            ("snn", 2),
            ("snn", 5),
            ("price", 5),
        ),
        *(("lanes", 2), ("lanes", 5), ("lanes", 7), ("rate", 5)),
    ],
)
def test_resumed_equals_uninterrupted(commands, uninterrupted, cut, kind, steps):
    main, argv = commands[kind]
    folder = cut(main, argv, steps)
    state = checkpoint.load(folder / "last.pth")["training"]
    assert (state["step"], state["batch_size"]) == ((steps - 1) % 3, 8)
    seed_all(12345)
    main(["--resume", str(folder)])
    assert_same(folder, uninterrupted(kind))
    assert run_folder(folder.parents[1]) == folder
    (stable,) = folder.parent.glob("*.pth")
    assert_same_weights(checkpoint.load(folder / "best.pth"), checkpoint.load(stable))


def test_cut_twice_between_log_and_checkpoint(commands, uninterrupted, monkeypatch, tmp_path):
    """After the log's line of an epoch, before last.pth knows of it."""
    main, argv = commands["ann"]
    save = Trainer.save_last

    def cut_before(epoch):
        def stopping(self):
            if (self.epoch, self.step) == (epoch, 0):
                raise Cut
            save(self)

        return stopping

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Trainer, "save_last", cut_before(2))
        train(main, argv, tmp_path)
    folder = run_folder(tmp_path)
    assert len((folder / "log.jsonl").read_text().splitlines()) == 1
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"epoch": 2, "train_lo')  # a line that was being written
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Trainer, "save_last", cut_before(4))
        main(["--resume", str(folder / "last.pth")])
    main(["--resume", str(folder)])
    assert_same(folder, uninterrupted("ann"))


@pytest.mark.parametrize("kind", ["ann", "price"])
def test_an_epoch_whose_evaluation_fails_is_not_trained_again(
    kind, commands, uninterrupted, monkeypatch, tmp_path
):
    main, argv = commands[kind]
    evaluate, step = Trainer._evaluate, Trainer._train_step
    trained = []

    def failing(self):
        if self.epoch == 2:
            raise Cut
        return evaluate(self)

    def noting(self, *batch):
        trained.append(self.epoch)
        step(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Trainer, "_evaluate", failing)
        train(main, argv, tmp_path)
    folder = run_folder(tmp_path)
    monkeypatch.setattr(Trainer, "_train_step", noting)
    main(["--resume", str(folder)])
    assert set(trained) == {3}
    assert_same(folder, uninterrupted(kind))


def test_image_files_and_held_back_images(cut, tmp_path):
    """Decoded by workers, augmented by torchvision: the same after a cut inside an epoch."""
    for part, count in (("train", 24), ("val", 6)):
        image_folder(tmp_path / "images" / part, 3, count, (90, 100), "jpg")
    common = COMMON.replace("--batch_size 8", "--batch_size 6")
    argv = (
        f"{common} {NARROW} --bn --dataset FOLDER --dataset_dir {tmp_path}/images --image_size 80 "
        "--val_fraction 0.25"
    )
    whole = train(ann_ddp.main, argv, tmp_path / "whole")
    folder = cut(ann_ddp.main, argv, 5)
    ann_ddp.main(["--resume", str(folder), "--workers", "1"])
    assert_same(folder, whole)


@pytest.mark.parametrize("wait", [0.0, 0.1])
def test_killed_process(commands, uninterrupted, tmp_path, wait):
    """SIGKILL at a moment that nobody chose."""
    main, argv = commands["ann"]
    script = Path(ann_ddp.__file__)
    process = start([script, *argv.split(), "--output_dir", tmp_path / "cut"], tmp_path)
    try:
        late = time.monotonic() + PATIENCE
        while not list((tmp_path / "cut").glob("ann/*/log.jsonl")) and process.poll() is None:
            assert time.monotonic() < late
            time.sleep(0.01)
        time.sleep(wait)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # else it had ended before
    assert process.returncode == -signal.SIGKILL
    folder = run_folder(tmp_path / "cut")
    main(["--resume", str(folder)])
    assert_same(folder, uninterrupted("ann"))


def test_a_run_that_goes_on_is_not_resumed_a_second_time(commands, cut, fails):
    main, argv = commands["ann"]
    folder = cut(main, argv, 5)
    with locked(folder, "end it"):
        words = (f"{folder} is in use by process", "wait for it, or end it")
        fails(main, f"--resume {folder}", *words, keep=folder)


def test_a_run_that_begins_is_not_resumed_on_the_way(commands, fails, monkeypatch, tmp_path):
    main, argv = commands["ann"]

    def resume(self):
        folder = run_folder(tmp_path)
        fails(main, f"--resume {folder}", "is in use by process", keep=folder)
        raise Cut

    monkeypatch.setattr(Trainer, "_train_epoch", resume)
    with pytest.raises(Cut):
        train(main, argv, tmp_path)


@pytest.fixture
def finished(uninterrupted):
    """Folder of a finished run."""
    return uninterrupted("ann")


def test_a_finished_run_says_again_what_it_reached(finished, capsys):
    summary = json.loads((finished / "summary.json").read_text())
    ann_ddp.main(["--resume", str(finished)])
    reached = f"best {summary['best_accuracy']:.2%} at epoch {summary['best_epoch']}"
    assert reached in capsys.readouterr().out
    assert json.loads((finished / "summary.json").read_text()) == summary
    assert summary["last_accuracy"] is not None


def test_a_finished_run_is_left_as_it_is(finished):
    files = [*finished.glob("*.pth"), *finished.parent.glob("*.pth"), finished / "log.jsonl"]
    before = {path: path.read_bytes() for path in files}
    ann_ddp.main(["--resume", str(finished)])
    assert {path: path.read_bytes() for path in files} == before


def test_a_moved_run_writes_where_it_lies_now(commands, uninterrupted, cut, tmp_path):
    main, argv = commands["ann"]
    cut(main, argv, 5)
    shutil.move(tmp_path / "cut", tmp_path / "moved")
    folder = run_folder(tmp_path / "moved")
    summary = main(["--resume", str(folder)])
    (stable,) = folder.parent.glob("*.pth")
    assert summary["checkpoint"] == str(stable)
    assert not (tmp_path / "cut").exists()
    assert_same(folder, uninterrupted("ann"))


def test_a_run_that_is_named_by_a_link_or_from_here(commands, cut, tmp_path, monkeypatch):
    """The file beside the run is written, by the name that the whole run would have said."""
    main, argv = commands["ann"]
    folder = cut(main, argv.replace("--epochs 3", "--epochs 1"), 2)
    (tmp_path / "latest").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    summary = main(["--resume", "latest"])
    (stable,) = folder.parent.glob("*.pth")
    assert summary["checkpoint"] == f"cut/ann/{stable.name}"


def test_a_teacher_may_have_moved_but_not_changed(commands, cut, fused, tmp_path, fails):
    main, argv = commands["snn"]
    teacher = shutil.copy(unfused(fused), tmp_path / "teacher.pth")
    folder = cut(main, f"{argv.replace('--epochs 3', '--epochs 1')} --distill {teacher}", 2)
    moved = shutil.move(teacher, tmp_path / "moved.pth")
    fails(main, f"--resume {folder} --distill {fused}", "names another network than the one")
    assert main(["--resume", str(folder), "--distill", str(moved)])["epochs"] == 1


def test_a_run_folder_that_moved_alone_names_its_own_best_network(finished, tmp_path, capsys):
    """The file that lay beside it stayed behind."""
    folder = shutil.copytree(finished, tmp_path / "alone")
    summary = ann_ddp.main(["--resume", str(folder)])
    assert (summary["checkpoint"], summary["run"]) == (str(folder / "best.pth"), str(folder))
    assert f"weights {folder}/best.pth, run {folder}" in capsys.readouterr().out


def test_a_run_is_resumed_from_inside_its_folder(commands, cut, monkeypatch):
    main, argv = commands["ann"]
    folder = cut(main, argv.replace("--epochs 3", "--epochs 1"), 2)
    monkeypatch.chdir(folder)
    summary = main(["--resume", "."])
    assert Path(summary["checkpoint"]).resolve().parent == folder.parent.resolve()
    assert Path(summary["checkpoint"]).is_file()


def test_resume_takes_free_options_and_repeated_ones(commands, cut):
    main, argv = commands["ann"]
    folder = cut(main, argv.replace("--epochs 3", "--epochs 1"), 2)
    words = "--epochs 1 -lr 0.01 --print_freq 7 --save_freq 0 --val_batch_size 5"
    main(f"--resume {folder} {words}".split())
    assert (folder / "summary.json").exists()


def test_a_failed_write_ends_the_run_in_one_line(
    commands, uninterrupted, monkeypatch, fails, tmp_path
):
    """And the run goes on from the file before."""
    main, argv = commands["ann"]
    save, calls = torch.save, iter(range(100))

    def failing(content, path):
        save(content, path)
        if next(calls) == 4:
            path.write_bytes(path.read_bytes()[:1000])
            raise RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", failing)
        fails(main, f"{argv} --output_dir {tmp_path}", "cannot write", "disk", status=1)
    folder = run_folder(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    main(["--resume", str(folder)])
    assert_same(folder, uninterrupted("ann"))
