"""Two gloo processes on a CPU against one: weights, accuracy, ranges, resume, launchers, errors."""

import argparse
import json
import os
import re
import shutil
import socket
import sys
import textwrap

import pytest
import torch

import ann_ddp
import snn_ddp
from engine import checkpoint, dist
from engine.errors import UseError
from tests.helpers import ROOT, command, image_folder, read, start

SMALL = "--dataset DIGITS --architecture RESNET20 --width_mult 0.0625 --bias --epochs 1 --limit_train_batches 5"
SNN = (
    f"{SMALL} --multi_channel 1 --num_channels 3 --timesteps 2 --default_threshold 0.3 --optimizer SGD "
    "--learning_rate 0.0002 --weight_decay 0"
)
SNN_FILE = "snn/snn_resnet20_digits_w0.0625_MC_T_2_H_1_C_3_Z_0.pth"
TORCHRUN = "-m torch.distributed.run --nproc_per_node 2"
LAUNCH = "-m torch.distributed.launch --nproc_per_node 2"
ONE_THREAD = {"OMP_NUM_THREADS": 1}


def two(launcher, line, folder):
    """Run two processes under a launcher."""
    done = command(
        f"{sys.executable} {launcher} --master_port {free_port()} {line}", folder, **ONE_THREAD
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def ends(ranks):
    """[(status, output, errors)] of processes that were started."""
    texts = [rank.communicate(timeout=120) for rank in ranks]
    return [(rank.returncode, *text) for rank, text in zip(ranks, texts, strict=True)]


def pair(argv, folder):
    """Two processes with a launcher's variables, but no launcher: [(status, output, errors)]."""
    env = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **ONE_THREAD}
    return ends([start(argv, folder, RANK=rank, LOCAL_RANK=rank, **env) for rank in (0, 1)])


def nodes(argv, folder):
    """Two nodes of one CPU process each: [(status, output, errors)]."""
    port = free_port()
    return ends(
        [
            start(
                [
                    *argv,
                    "--multiprocessing_distributed",
                    "--world_size",
                    2,
                    "--rank",
                    rank,
                    "--dist_url",
                    f"tcp://127.0.0.1:{port}",
                ],
                folder,
                **ONE_THREAD,
            )
            for rank in (0, 1)
        ]
    )


def succeeded(results):
    assert all(status == 0 for status, *_ in results), "".join(error for *_, error in results)
    return results


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def distance(a, b):
    a, b = checkpoint.load(a)["model"], checkpoint.load(b)["model"]
    assert a.keys() == b.keys()
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


def last_line(folder):
    return json.loads(next(folder.rglob("log.jsonl")).read_text().splitlines()[-1])


@pytest.mark.parametrize(
    "launcher, batch", [(TORCHRUN, 12), (LAUNCH, 13)], ids=["torchrun-even", "launch-uneven"]
)
def test_two_processes_give_the_weights_of_one(launcher, batch, scripts, monkeypatch):
    """Same global batch, 5 steps; the test images are counted once although 2 does not divide them."""
    line = f"{SNN} --dropout 0 --batch_size {batch} --limit_eval_batches 3 --output_dir "
    two(launcher, f"snn_ddp.py {line} two", scripts)
    monkeypatch.chdir(scripts)
    one = snn_ddp.main([*line.split(), "one"])
    snn_ddp.main([*line.split(), "still", "--learning_rate", "0"])
    assert (
        distance(scripts / "still" / SNN_FILE, scripts / "one" / SNN_FILE) > 1e-4
    )  # they did learn
    assert distance(scripts / "two" / SNN_FILE, scripts / "one" / SNN_FILE) < 1e-6
    got, want = last_line(scripts / "two"), last_line(scripts / "one")
    for name in ("train_accuracy", "test_accuracy"):
        assert got[name] == want[name], name
    assert got["test_loss"] == pytest.approx(want["test_loss"], rel=1e-5) and one["best_epoch"] == 1


def test_two_nodes_evaluate_what_is_stored(scripts, monkeypatch):
    """Both evaluate with the running statistics that rank 0 stores; 5 test images, a last batch of 1."""
    for part, count in (("train", 24), ("test", 5)):
        image_folder(scripts / "data/cifar10-jpeg" / part, 10, count)
    line = (
        "--dataset CIFAR10 --architecture RESNET20 --width_mult 0.0625 --bias --bn --batch_size 4 "
    )
    first, second = succeeded(
        nodes(["ann_ddp.py", *line.split(), "--epochs", "1", "--learning_rate", "0.05"], scripts)
    )
    assert (
        "best" in first[1]
        and "best" not in second[1]
        and len(list(scripts.rglob("log.jsonl"))) == 1
    )
    path = "trained_models/ann/ann_resnet20_cifar10_w0.0625.pth"
    monkeypatch.chdir(scripts)
    again = ann_ddp.main([*line.split(), "--pretrained_ann", path, "--test_only"])
    logged = last_line(scripts / "trained_models")
    assert again["test_images"] == 5 and again["test_accuracy"] == logged["test_accuracy"]
    assert again["test_loss"] == pytest.approx(logged["test_loss"], rel=1e-5)


RANGES = """
    import sys, torch
    import ann_ddp
    from cli import run

    def train(net, kind, stable, loaders, about, args, world, saved, before_epoch, **_):
        before_epoch(1)
        torch.save([m.hi for m in net.modules() if hasattr(m, "hi")], f"ranges{world.size}{world.rank}.pth")

    run.train = train
    ann_ddp.main(sys.argv[1:])
"""


def test_ranges_agree_and_srun_is_recognised(scripts):
    """LQ ranges on two processes that only SLURM's variables tell apart, and on one."""
    (scripts / "ranges.py").write_text(textwrap.dedent(RANGES))
    for package in ("analysis", "cli", "engine", "inputs", "models"):
        (scripts / package).symlink_to(ROOT / package)
    argv = [
        "ranges.py",
        *SMALL.split(),
        "--bn",
        "--quant_act",
        "--quant_num_batches",
        "3",
        "--batch_size",
        "9",
    ]
    slurm = {
        "SLURM_STEP_NUM_TASKS": 2,
        "SLURM_STEP_NUM_NODES": 1,
        "SLURM_JOB_ID": os.getpid(),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        **ONE_THREAD,
    }
    ranks = [
        start(argv, scripts, SLURM_PROCID=rank, SLURM_LOCALID=rank, **slurm) for rank in (0, 1)
    ]
    succeeded(ends(ranks))
    read(argv, scripts, **ONE_THREAD)
    first, second, alone = (
        torch.load(scripts / f"ranges{name}.pth") for name in ("20", "21", "10")
    )
    assert len(first) == 19 and all(a > 0 for a in first)
    assert first == second == alone


KEEP = """
    import shutil, sys
    import snn_ddp
    from engine.loop import Trainer

    save = Trainer.save_last

    def save_last(self):
        save(self)
        if self.world.main and (self.epoch, self.step) == (2, 2):
            shutil.copytree(self.folder, "interrupted")

    Trainer.save_last = save_last
    snn_ddp.main(sys.argv[1:])
"""


def test_resume_is_exact_on_two_processes(scripts):
    """A run with dropout, taken up in the middle of its second epoch, ends with the very same state."""
    (scripts / "keep.py").write_text(textwrap.dedent(KEEP))
    for package in ("analysis", "cli", "engine", "inputs", "models"):
        (scripts / package).symlink_to(ROOT / package)
    line = (
        f"{SNN} --dropout 0.3 --epochs 2 --batch_size 9 --limit_eval_batches 2 --save_freq 2 --optimizer Adam "
        "--limit_train_batches 3"
    )
    succeeded(pair(["keep.py", *line.split()], scripts))
    run = next(p.parent for p in scripts.glob("trained_models/snn/*/last.pth"))
    whole = checkpoint.load(run / "last.pth")
    shutil.rmtree(run)
    succeeded(pair(["snn_ddp.py", "--resume", "interrupted"], scripts))
    resumed = checkpoint.load(scripts / "interrupted/last.pth")
    assert all(torch.equal(v, resumed["model"][k]) for k, v in whole["model"].items())
    for a, b in zip(whole["training"]["rng"], resumed["training"]["rng"], strict=True):
        assert torch.equal(a["torch"], b["torch"])
    moments = [s["optimizer"]["state"] for s in (whole["training"], resumed["training"])]
    assert all(
        torch.equal(v, moments[1][i][k])
        for i, state in moments[0].items()
        for k, v in state.items()
    )
    log = [
        json.loads(line) for line in (scripts / "interrupted/log.jsonl").read_text().splitlines()
    ]
    assert [entry["epoch"] for entry in log] == [1, 2]


@pytest.mark.parametrize(
    "data",
    ["--dataset FOLDER --image_size 32 --dataset_dir absent", "--dataset CIFAR10 --data_root bad"],
    ids=["all-fail", "rank-0-fails"],
)
def test_an_error_ends_the_run_with_one_line(data, scripts):
    """The error of one process, or of both, is one line on one of them, and nothing hangs."""
    (scripts / "bad").write_text("a file where a folder is expected")
    results = pair(["ann_ddp.py", *data.split(), "--epochs", "1"], scripts)
    assert all(status for status, *_ in results)
    errors = "".join(error for *_, error in results).splitlines()
    assert len(errors) == 1 and errors[0].startswith("ann_ddp.py: error: "), "\n".join(errors)


def test_without_a_gpu_it_is_one_cpu_process(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(
        torch.multiprocessing, "spawn", lambda *_, **__: pytest.fail("started processes")
    )
    summary = ann_ddp.main(
        [
            *SMALL.split(),
            "--device",
            "cpu",
            "--multiprocessing_distributed",
            "--limit_train_batches",
            "1",
            "--limit_eval_batches",
            "1",
            "--batch_size",
            "4",
            "--dont_save",
        ]
    )
    assert (
        "no GPU here, one CPU process per node" in capsys.readouterr().out
        and summary["epochs"] == 1
    )


# ---- which processes there are ----


@pytest.fixture
def env(monkeypatch):
    """Sets launcher variables in an environment without any."""
    for name in [
        k
        for k in os.environ
        if k.startswith("SLURM_")
        or k
        in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GROUP_WORLD_SIZE")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return os.environ.update


def options(**given):
    return argparse.Namespace(**snn_ddp.get_parser().parse(["--device", "cpu"]).__dict__ | given)


@pytest.mark.parametrize(
    "hosts, first",
    [
        ("gpu[03-05,9],x1", "gpu03"),
        ("gpu[7],x", "gpu7"),
        ("a-b12,c", "a-b12"),
        ("n1.site[2-3]", "n1.site2"),
        ("alone", "alone"),
    ],
)
def test_first_host(hosts, first):
    assert dist._first_host(hosts) == first


def test_launchers_are_recognised(env):
    assert dist._launched() is None
    env({"SLURM_JOB_ID": "123", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    assert dist._launched() is None  # one task, or an interactive allocation
    env(
        {
            "SLURM_STEP_NUM_TASKS": "4",
            "SLURM_STEP_NUM_NODES": "2",
            "SLURM_PROCID": "3",
            "SLURM_LOCALID": "1",
            "SLURM_STEP_NODELIST": "gpu[03-04]",
            "SLURM_NODEID": "1",
        }
    )
    assert dist._launched() == (3, 4, 1) == dist._launched(spawning=True)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu03", "10123")
    env({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "2"})  # torchrun inside a SLURM step
    assert dist._launched() == (5, 8, 2)


def test_srun_with_a_task_per_node_starts_a_process_per_gpu(env, monkeypatch):
    env(
        {
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_NUM_NODES": "2",
            "SLURM_PROCID": "1",
            "SLURM_NODEID": "1",
            "SLURM_LOCALID": "0",
            "SLURM_STEP_NODELIST": "x[1-2]",
        }
    )
    started = []
    monkeypatch.setattr(dist.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(
        dist.torch.multiprocessing,
        "spawn",
        lambda run, args, nprocs: started.append((args[:3], nprocs)),
    )
    dist.launch(None, options(multiprocessing_distributed=True, device="auto"))
    assert started == [((4, 1, 2), 4)] and os.environ["MASTER_ADDR"] == "x1"
    assert dist._launched() == (1, 2, 0)  # without the option: a process per task


def test_published_variables_count_nodes(env):
    env({"WORLD_SIZE": "3", "SLURM_NODEID": "2"})
    assert dist._launched() is None and dist._node(options()) == (2, 3)
    assert dist._node(options(rank=0, world_size=2)) == (0, 2)
    with pytest.raises(UseError, match="--rank 3 is not a node of --world_size 2"):
        dist._node(options(rank=3, world_size=2))


@pytest.mark.parametrize(
    "given, variables, words",
    [
        ({"world_size": 2, "rank": 0}, {}, "count the nodes of --multiprocessing_distributed"),
        (
            {"world_size": 3},
            {"RANK": "0", "WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "1"},
            "the launcher started 1",
        ),
        ({"dist_backend": "nccl"}, {}, "--dist_backend nccl needs GPUs"),
        (
            {"dist_url": "ftp://nowhere"},
            {"RANK": "0", "WORLD_SIZE": "2"},
            "cannot meet the other 1 at ftp://nowhere",
        ),
        ({}, {"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
    ],
)
def test_misfits_are_refused(given, variables, words, env):
    env(variables)
    with pytest.raises(UseError, match=re.escape(words)):
        dist.launch(lambda *_: None, options(**given))


def test_a_killed_process_is_named(env, monkeypatch):
    def spawn(*_, **__):
        raise torch.multiprocessing.ProcessExitedException(
            "gone", error_index=1, error_pid=7, exit_code=-9
        )

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    with pytest.raises(UseError, match=r"process 1 was ended by signal 9 \(out of memory\?\)"):
        dist.launch(None, options(multiprocessing_distributed=True, world_size=2, rank=0))


@pytest.mark.parametrize(
    "capability, amp, noted",
    [("AVX2", "bf16", True), ("AVX512", "bf16", False), ("AVX2", "none", False)],
)
def test_emulated_bf16_is_told(capability, amp, noted, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert dist.fast_amp("cpu") == {"AVX2": "none", "AVX512": "bf16"}[capability]
    args = argparse.Namespace(amp=amp, debug=False)
    dist._carry_out(lambda args, world: None, args, dist.World())
    assert ("no bf16 of its own" in capsys.readouterr().out) == noted
