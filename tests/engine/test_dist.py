"""Two gloo processes on a CPU against one: weights, accuracy, ranges, resume, launchers, errors."""

import json
import os
import re
import shlex
import shutil
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ann_ddp
from engine import checkpoint, dist
from engine.dist import DeviceOptions, World
from engine.errors import UseError
from engine.files import locked
from tests.helpers import LAUNCHERS, ROOT, cifar_copy, command, end, free_port, read, start

SMALL = (
    "--dataset DIGITS --architecture RESNET20 --width_mult 0.0625 --bias --epochs 1 "
    "--limit_train_batches 5"
)
SNN = (
    f"{SMALL} --multi_channel 1 --num_channels 3 --timesteps 2 --default_threshold 0.3 "
    "--optimizer SGD --learning_rate 0.0002 --weight_decay 0"
)
SNN_FILE = "snn/snn_resnet20_digits_w0.0625_MC_T_2_H_1_C_3_Z_0.pth"
TORCHRUN = "-m torch.distributed.run --nproc_per_node 2"
LAUNCH = "-m torch.distributed.launch --nproc_per_node 2"
OWN = {"PYTHONPATH": ROOT}  # so that a script of a test's own finds the project


def two(launcher, line, folder, **env):
    """Run two processes under a launcher."""
    done = command(
        f"{shlex.quote(sys.executable)} {launcher} --master_port {free_port()} {line}",
        folder,
        **env,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def pair(argv, folder, **env):
    """Two processes with a launcher's variables, but no launcher: [(status, output, errors)]."""
    env |= {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [start(argv, folder, RANK=rank, LOCAL_RANK=rank, **env) for rank in (0, 1)]
    return [end(rank) for rank in ranks]


def nodes(line, folder, other=None):
    """Two nodes of one CPU process each, the second in a folder of its own where there is one.

    Returns:
        [(status, output, errors)]
    """
    line += (
        f" --multiprocessing_distributed --world_size 2 --dist_url tcp://127.0.0.1:{free_port()}"
    )
    folders = folder, other or folder
    ranks = [start([*line.split(), "--rank", i], place) for i, place in enumerate(folders)]
    return [end(rank) for rank in ranks]


def succeeded(results):
    assert all(status == 0 for status, *_ in results), "".join(error for *_, error in results)
    return results


def distance(a, b):
    """Largest difference between the weights of two checkpoints."""
    a, b = checkpoint.load(a)["model"], checkpoint.load(b)["model"]
    assert a.keys() == b.keys()
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


def last_line(folder):
    return json.loads(next(folder.rglob("log.jsonl")).read_text().splitlines()[-1])


# ---- what several processes compute is what one computes


DOUBLES = """
    import sys, torch
    import snn_ddp
    from inputs.loader import MemoryLoader

    pixels = MemoryLoader.pixels
    MemoryLoader.pixels = lambda *which: pixels(*which).double()
    torch.set_default_dtype(torch.float64)
    snn_ddp.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "launcher, words, near",
    [
        (TORCHRUN, "--batch_size 13", 1e-12),
        # what the price counts are float32 sums
        pytest.param(LAUNCH, "--batch_size 13 --rate_penalty 1", 1e-6, marks=pytest.mark.long),
    ],
    ids=["torchrun", "launch-priced"],
)
def test_two_processes_give_the_weights_of_one(launcher, words, near, tmp_path):
    """Same global batch, 5 steps; the test images are counted once although 2 does not divide
    them. In double precision, where rounding flips no spike.
    """
    (tmp_path / "doubles.py").write_text(textwrap.dedent(DOUBLES))
    line = f"doubles.py {SNN} --dropout 0 --learning_rate 0.02 {words} --energy "
    line += "--limit_eval_batches 3 --output_dir "
    two(launcher, f"{line} two", tmp_path, **OWN)
    read([*line.split(), "one"], tmp_path, **OWN)
    assert distance(tmp_path / "two" / SNN_FILE, tmp_path / "one" / SNN_FILE) < near
    # which tells nothing of weights that did not move
    weights = checkpoint.load(tmp_path / "one" / SNN_FILE)["model"]
    thetas = [value for name, value in weights.items() if name.endswith("theta")]
    assert (torch.stack(thetas) - 0.3).abs().max() > 1e-3
    got, want = last_line(tmp_path / "two"), last_line(tmp_path / "one")
    for name in ("train_accuracy", "test_accuracy"):
        assert got[name] == want[name], name
    for name in {"train_loss", "test_loss", "batch_energy_uj"} & set(want):
        assert got[name] == pytest.approx(want[name], rel=1e-5), name

    summaries = []
    for name in ("two", "one"):
        (path,) = (tmp_path / name).rglob("summary.json")
        summaries.append(json.loads(path.read_text()))
    for name in ("energy_uj", "test_images", "lane_rates"):
        assert summaries[0][name] == pytest.approx(summaries[1][name], rel=1e-5), name


def test_two_nodes_evaluate_what_is_stored(scripts, tmp_path, monkeypatch):
    """Both evaluate with the running statistics that rank 0 stores, on a disk that the other node
    does not see; of 5 test images the last batch has one.
    """
    cifar_copy(scripts / "data", train=24, test=5)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("ann_ddp.py", "data"):
        (other / name).symlink_to(scripts / name)
    line = (
        "--dataset CIFAR10 --architecture RESNET20 --width_mult 0.0625 --bias --bn --batch_size 4"
    )
    training = f"ann_ddp.py {line} --epochs 1 --learning_rate 0.05"
    first, second = succeeded(nodes(training, scripts, other))
    assert {path.name for path in other.iterdir()} == {"ann_ddp.py", "data"}
    assert "best" in first[1]
    assert "best" not in second[1]
    assert len(list(scripts.rglob("log.jsonl"))) == 1

    path = "trained_models/ann/ann_resnet20_cifar10_w0.0625.pth"
    monkeypatch.chdir(scripts)
    again = ann_ddp.main([*line.split(), "--pretrained_ann", path, "--test_only"])
    logged = last_line(scripts / "trained_models")
    assert again["test_images"] == 5
    assert again["test_accuracy"] == logged["test_accuracy"]
    assert again["test_loss"] == pytest.approx(logged["test_loss"], rel=1e-5)


RANGES = """
    import sys, torch
    import ann_ddp
    from cli import run

    def train(net, recipe, *_):
        recipe.before_epoch(net, 1)
        ranges = [module.hi for module in net.modules() if hasattr(module, "hi")]
        torch.save(ranges, f"ranges{recipe.world.size}{recipe.world.rank}.pth")

    run.train = train
    ann_ddp.main(sys.argv[1:])
"""


def test_ranges_agree_and_srun_is_recognised(tmp_path):
    """LQ ranges on two processes that only SLURM's variables tell apart, and on one."""
    (tmp_path / "ranges.py").write_text(textwrap.dedent(RANGES))
    line = f"ranges.py {SMALL} --bn --quant_act --quant_num_batches 3 --batch_size 9"
    slurm = {
        "SLURM_STEP_NUM_TASKS": 2,
        "SLURM_STEP_NUM_NODES": 1,
        "SLURM_JOB_ID": os.getpid(),
        "MASTER_PORT": free_port(),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        **OWN,
    }
    ranks = [
        start(line.split(), tmp_path, SLURM_PROCID=rank, SLURM_LOCALID=rank, **slurm)
        for rank in (0, 1)
    ]
    succeeded([end(rank) for rank in ranks])
    read(line.split(), tmp_path, **OWN)
    first, second, alone = (
        torch.load(tmp_path / f"ranges{name}.pth") for name in ("20", "21", "10")
    )
    assert len(first) == 19
    assert all(bound > 0 for bound in first)
    assert first == second == alone


# one that frees a tensor while Python ends would abort the process (signal 6)
THREADS = """
    import atexit, sys
    from pathlib import Path

    def names():
        print("threads:", *[task.read_text() for task in Path("/proc/self/task").glob("*/comm")])

    atexit.register(names)
"""
FAILS = f"""{THREADS}
    import ann_ddp
    from engine.errors import UseError
    from engine.loop import Trainer

    def save_last(self):
        raise UseError("no space")

    Trainer.save_last = save_last
    ann_ddp.main(sys.argv[1:])
"""
LISTED = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists threads by /proc")


def left_alone(results):
    """No thread of the process group was left where the processes ended."""
    for _, output, _ in results:
        assert "threads:" in output
        assert "gloo" not in output


@LISTED
@pytest.mark.long
def test_no_thread_of_the_process_group_is_left_after_an_error(tmp_path):
    (tmp_path / "fails.py").write_text(textwrap.dedent(FAILS))
    results = pair(["fails.py", *f"{SMALL} --bn --batch_size 8".split()], tmp_path, **OWN)
    assert all(status > 0 for status, *_ in results)
    left_alone(results)


KEEP = f"""{THREADS}
    import shutil
    import snn_ddp
    from engine.loop import Trainer

    save = Trainer.save_last

    def save_last(self):
        save(self)
        if self.world.main and (self.epoch, self.step) == (2, 2):
            shutil.copytree(self.record.folder, "interrupted")

    Trainer.save_last = save_last
    snn_ddp.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """(last.pth of a run with dropout on two processes, folder of its twin that was taken up in the
    middle of its second epoch, what the processes of the first said).
    """
    folder = tmp_path_factory.mktemp("resumed")
    (folder / "keep.py").write_text(textwrap.dedent(KEEP))
    line = (
        f"{SNN} --dropout 0.3 --epochs 2 --batch_size 9 --limit_eval_batches 2 --save_freq 2 "
        "--optimizer Adam --limit_train_batches 3"
    )
    said = succeeded(pair(["keep.py", *line.split()], folder, **OWN))
    run = next(p.parent for p in folder.glob("trained_models/snn/*/last.pth"))
    whole = checkpoint.load(run / "last.pth")
    shutil.rmtree(run)
    succeeded(pair([ROOT / "snn_ddp.py", "--resume", "interrupted"], folder))
    return whole, folder / "interrupted", said


@LISTED
def test_no_thread_of_the_process_group_is_left(resumed):
    *_, said = resumed
    left_alone(said)


def test_resume_is_exact_on_two_processes(resumed):
    """The resumed run ends with the very same state as the uninterrupted one."""
    whole, folder, _ = resumed
    again = checkpoint.load(folder / "last.pth")
    assert all(torch.equal(v, again["model"][k]) for k, v in whole["model"].items())
    for a, b in zip(whole["training"]["rng"], again["training"]["rng"], strict=True):
        assert torch.equal(a["torch"], b["torch"])
    # each process draws dropout masks of its own
    first, second = whole["training"]["rng"]
    assert not torch.equal(first["torch"], second["torch"])
    moments, same = (run["training"]["optimizer"]["state"] for run in (whole, again))
    assert moments.keys() == same.keys()
    for index, state in moments.items():
        assert all(torch.equal(v, same[index][k]) for k, v in state.items())
    log = (folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1, 2]


@pytest.mark.long
def test_a_folder_in_use_ends_both_processes_with_one_line(resumed):
    _, folder, _ = resumed
    with locked(folder, "end it"):
        results = pair([ROOT / "snn_ddp.py", "--resume", folder], folder.parent)
    assert all(status for status, *_ in results)
    (error,) = "".join(error for *_, error in results).splitlines()
    assert f"{folder} is in use by process {os.getpid()}" in error


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
    assert len(errors) == 1, "\n".join(errors)
    assert errors[0].startswith("ann_ddp.py: error: ")


DIES = """
    import os, signal
    from pathlib import Path
    import snn_ddp
    from engine.errors import guard
    from engine.loop import Trainer

    step = Trainer._train_step

    def train_step(self, *batch):
        step(self, *batch)
        if (self.epoch, self.step, os.environ["RANK"]) == (2, 1, os.environ["DIES"]):
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer._train_step = train_step
    guard(snn_ddp.main)
"""


def test_a_failure_does_not_wait_for_others_on_gpus(monkeypatch):
    """NCCL's orderly end would, and they wait for this process."""
    ends = []
    core = torch.distributed
    monkeypatch.setattr(core, "is_initialized", lambda: True)
    monkeypatch.setattr(core, "get_backend", lambda: "nccl")
    monkeypatch.setattr(core, "destroy_process_group", lambda: ends.append("in order"))
    monkeypatch.setattr(
        core.distributed_c10d, "_abort_process_group", lambda: ends.append("at once")
    )
    World().close(failed=True)
    World().close()
    assert ends == ["at once", "in order"]


@pytest.mark.parametrize("dies", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_process_that_is_killed_ends_all_with_one_line(dies, tmp_path):
    """Nothing that was stored is lost, and another number of processes goes on."""
    (tmp_path / "dies.py").write_text(textwrap.dedent(DIES))
    line = f"{SNN} --dropout 0 --epochs 2 --batch_size 9 --limit_eval_batches 1"
    results = pair(["dies.py", *line.split()], tmp_path, DIES=dies, **OWN)
    assert time.time() - (tmp_path / "died").stat().st_mtime < 60
    assert [status for status, *_ in results] == [[-9, 1], [1, -9]][dies]
    lines = "\n".join(error for *_, error in results).splitlines()
    lines = [line for line in lines if line.strip() and "it/s]" not in line]
    assert len(lines) == 1, "\n".join(lines)
    error = lines[0]
    assert "error: another process of this run was lost (" in error and "--resume" in error
    (last,) = tmp_path.rglob("last.pth")
    assert checkpoint.load(last)["epoch"] == 1
    read([ROOT / "snn_ddp.py", "--resume", last.parent], tmp_path)
    assert last_line(tmp_path)["epoch"] == 2
    assert json.loads((last.parent / "summary.json").read_text())["processes"] == [1, 2]


def test_the_interface_is_that_which_leads_to_the_others():
    """Not that of this machine's own name, which on Debian is a loopback."""
    assert dist._interface("127.0.0.1") == "lo"
    assert dist._interface("no such host") is None


# ---- which processes there are


@pytest.fixture
def env(monkeypatch):
    """Sets launcher variables in an environment without any."""
    bare = {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHERS and not name.startswith("SLURM_")
    }
    monkeypatch.setattr(os, "environ", bare)
    return bare.update


def cpu(**given):
    return DeviceOptions(device="cpu", **given)


def test_without_a_gpu_it_is_one_cpu_process(env, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(
        torch.multiprocessing, "spawn", lambda *_, **__: pytest.fail("started processes")
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, why in (("cpu", "--device cpu"), ("auto", "no GPU here")):
        options = DeviceOptions(device=device, multiprocessing_distributed=True)
        world = dist.launch(lambda world: world, options)
        assert (world.rank, world.size, str(world.device)) == (0, 1, "cpu")
        assert f"{why}, one process per node" in capsys.readouterr().out


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


SLURM = {
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_NODEID": "1",
}
TASK_PER_NODE = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "1",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "x[1-2]",
}


def test_no_launcher(env):
    assert dist._launched() is None


def test_one_slurm_task_is_no_launcher(env):
    """One task, or an interactive allocation."""
    env({"SLURM_JOB_ID": "123", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    assert dist._launched() is None


def test_srun_is_recognised(env):
    env(SLURM)
    assert dist._launched() == (3, 4, 1)
    assert dist._launched(spawning=True) == (3, 4, 1)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu03", "10123")


def test_steps_of_a_slurm_job_do_not_meet(env):
    env(SLURM | {"SLURM_STEP_ID": "1"})
    dist._launched()
    assert os.environ["MASTER_PORT"] == "18042"


def test_torchrun_inside_a_slurm_step(env):
    env(SLURM | {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "2"})
    assert dist._launched() == (5, 8, 2)


def test_srun_with_a_task_per_node_starts_a_process_per_gpu(env, monkeypatch):
    env(TASK_PER_NODE)
    started = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(
        torch.multiprocessing,
        "spawn",
        lambda run, args, nprocs: started.append((args[:3], nprocs)),
    )
    dist.launch(None, DeviceOptions(multiprocessing_distributed=True))
    assert started == [((4, 1, 2), 4)]  # (per node, index of the node, nodes), started here
    assert os.environ["MASTER_ADDR"] == "x1"


def test_srun_with_a_task_per_node_is_a_process_per_task(env):
    """Without --multiprocessing_distributed."""
    env(TASK_PER_NODE)
    assert dist._launched() == (1, 2, 0)


def test_published_variables_count_nodes(env):
    env({"WORLD_SIZE": "3", "SLURM_NODEID": "2"})
    assert dist._launched() is None
    assert dist._node(cpu()) == (2, 3)


def test_options_count_nodes(env):
    env({"WORLD_SIZE": "3", "SLURM_NODEID": "2"})
    assert dist._node(cpu(rank=0, world_size=2)) == (0, 2)
    with pytest.raises(UseError, match="--rank 3 is not a node of --world_size 2"):
        dist._node(cpu(rank=3, world_size=2))


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
        dist.launch(lambda world: None, cpu(**given))


def test_a_killed_process_is_named(env, monkeypatch):
    def spawn(*_, **__):
        raise torch.multiprocessing.ProcessExitedException(
            "gone", error_index=1, error_pid=7, exit_code=-9
        )

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    with pytest.raises(UseError, match=r"process 1 was ended by signal 9 \(out of memory\?\)"):
        dist.launch(None, cpu(multiprocessing_distributed=True, world_size=2, rank=0))


@pytest.mark.parametrize(
    "capability, amp, noted",
    [("AVX2", "bf16", True), ("AVX512", "bf16", False), ("AVX2", "none", False)],
)
def test_emulated_bf16_is_told(capability, amp, noted, env, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    dist.launch(lambda world: None, cpu(), amp)
    assert ("no bf16 of its own" in capsys.readouterr().out) == noted


# ---- one process


def test_one_process_shares_with_nobody():
    world, tensor = World(), torch.tensor([1.0, 2.0])
    assert world.main
    assert world.sum(tensor) is tensor
    world.share([tensor])
    assert tensor.tolist() == [1.0, 2.0]


def test_an_error_of_rank_0_is_everyones():
    def refuse():
        raise UseError("no room")

    with pytest.raises(UseError, match="no room"):
        World().alone(refuse)


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch):
    """It is on a machine that was cut off: nobody else may tell of it."""
    cut_off = threading.Event()
    monkeypatch.setattr(dist, "ANSWER", 0.1)
    store = SimpleNamespace(add=lambda key, count: cut_off.wait(20))
    begun = time.monotonic()
    assert World(rank=1, size=2, store=store).fail()
    cut_off.set()
    assert time.monotonic() - begun < 5
