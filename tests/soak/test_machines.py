"""Several machines: hosts with addresses of their own, what stands between them, and what ends.

Run by `make machines`; each test's figures go to results/reliability/machines.json.
"""

import json
import os
import signal
import textwrap
import time
from pathlib import Path

import pytest
import torch

from engine import checkpoint
from engine.log import write_json
from tests.helpers import PATIENCE, ROOT
from tests.soak.hosts import Hosts, end_all, started_by, why_not

pytestmark = pytest.mark.machines
FIGURES = ROOT / "results" / "reliability" / "machines.json"
SMALL = (
    "--dataset DIGITS --architecture RESNET20 --width_mult 0.0625 --bias --bn --epochs 2 "
    "--limit_train_batches 3 --limit_eval_batches 2 --batch_size 9 --save_freq 1"
)
MASTER = "10.9.0.1"
# the constants of the waiting are minutes; here they are seconds
SHORT = """
    import time
    from datetime import timedelta
    from engine import dist

    dist.MEETING, dist.PATIENCE = timedelta(seconds=8), timedelta(seconds=12)
    join = dist._join

    def timed(*given):
        begun = time.monotonic()
        try:
            return join(*given)
        finally:
            print("waited", time.monotonic() - begun, flush=True)

    dist._join = timed

    if __name__ == "__main__":
        import ann_ddp
        from engine.errors import guard
        guard(ann_ddp.main)
"""


@pytest.fixture(scope="module", autouse=True)
def permitted():
    if why_not():
        pytest.skip(why_not())


@pytest.fixture
def hosts():
    with Hosts(3) as three:
        yield three


@pytest.fixture(scope="module")
def figures():
    """{what was done: figures}, written at the end."""
    done = {}
    yield done
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    write_json(FIGURES, known | done)


def spawned(n, nodes=2, address=MASTER):
    """A node's launch line."""
    return [
        *SMALL.split(),
        *f"--multiprocessing_distributed --world_size {nodes} --rank {n - 1}".split(),
        *f"--dist_url tcp://{address}:29500".split(),
    ]


def torchrun(n, line):
    """A node's launch line under torchrun."""
    nodes = f"--nnodes 2 --node_rank {n - 1} --master_addr {MASTER} --master_port 29500"
    return f"-m torch.distributed.run {nodes} --nproc_per_node 1 {line}".split()


def elastic(n, line):
    """The same where a failed or lost process has all of them start again.

    torchrun does not know the first machine by its address alone, so it is told.
    """
    meeting = f"--rdzv_backend c10d --rdzv_endpoint {MASTER}:29400 --rdzv_id 1"
    own = f"--local_addr 10.9.0.{n} --rdzv_conf is_host={n == 1:d}"
    nodes = "--nnodes 2 --nproc_per_node 1 --max_restarts 3"
    return f"-m torch.distributed.run {nodes} {meeting} {own} {line}".split()


def results(processes, begun):
    """[(exit status, seconds, output, errors)] of all, once they have ended."""
    found = []
    for process in processes:
        output, errors = process.communicate(timeout=PATIENCE)
        found.append((process.returncode, time.monotonic() - begun, output, errors))
    return found


def lines(errors):
    """The lines of the program itself; torch's own log beside them."""
    return [line for line in errors.splitlines() if ": error: " in line]


def same(first, second):
    """Whether two last.pth hold the same run, bit for bit."""
    first, second = checkpoint.load(first), checkpoint.load(second)
    weights = all(torch.equal(v, second["model"][k]) for k, v in first["model"].items())
    sums = torch.equal(first["training"]["sums"], second["training"]["sums"])
    return weights and sums and first["training"]["best"] == second["training"]["best"]


def trained(folder):
    """The one last.pth under a folder."""
    (path,) = folder.rglob("last.pth")
    return path


def short(folder):
    """A script in `folder` that trains with little patience."""
    path = folder / "short.py"
    path.write_text(textwrap.dedent(SHORT))
    return path


# ---- both nodes' launch lines


@pytest.mark.parametrize("launcher", ["spawned", "torchrun"])
def test_two_machines_train(launcher, hosts, tmp_path, figures):
    """Whose own names lead to a loopback, as on Debian; every node writes or reads one folder."""
    begun, path = time.monotonic(), ROOT / "ann_ddp.py"
    nodes = []
    for n in (1, 2):
        argv = [path, *spawned(n)] if launcher == "spawned" else torchrun(n, f"{path} {SMALL}")
        nodes.append(hosts.start(n, argv, tmp_path))
    done = results(nodes, begun)
    assert [status for status, *_ in done] == [0, 0], done
    log = next(tmp_path.rglob("log.jsonl")).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1, 2]
    figures[f"two machines, {launcher}"] = {"seconds": round(done[0][1], 1)}


# ---- what stands between them


@pytest.mark.parametrize("what", ["wrong address", "no machine", "firewall", "cut off"])
def test_machines_that_cannot_meet_say_so(what, hosts, tmp_path, figures):
    script, address = short(tmp_path), {"no machine": "10.9.0.99", "wrong address": "10.9.0.3"}
    if what == "firewall":
        hosts.firewall(1)
    if what == "cut off":
        hosts.cut(2)
    begun = time.monotonic()
    argv = [[script, *spawned(n, address=address.get(what, MASTER))] for n in (1, 2)]
    nodes = [hosts.start(n, argv[n - 1], tmp_path, PYTHONPATH=ROOT) for n in (1, 2)]
    done = results(nodes, begun)
    for status, _, output, errors in done:
        assert status == 2, output + errors
        (line,) = lines(errors)
        assert "cannot meet the other 1 at tcp://10.9.0." in line
        assert "Traceback" not in errors
    slowest = max(float(output.split("waited")[1]) for *_, output, _ in done)
    figures[what] = {"seconds that were allowed": 8, "seconds waited": round(slowest, 1)}
    assert not list(tmp_path.rglob("last.pth"))
    # the store has its time, then the group has
    assert slowest < 30


def after_epochs(folder, count):
    """Wait until a run has trained `count` epochs."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = list(folder.rglob("log.jsonl"))
        if found and found[0].read_text().count("\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError("nothing was trained")


LONG = SMALL.replace("--epochs 2", "--epochs 200").replace("--save_freq 1", "--save_freq 0")


def test_a_machine_that_is_cut_off_in_mid_training(hosts, tmp_path, figures):
    """Both end with what they have, at the latest after the patience of a collective."""
    script = short(tmp_path)
    argv = [[script, *LONG.split(), *spawned(n)[len(SMALL.split()) :]] for n in (1, 2)]
    nodes = [hosts.start(n, argv[n - 1], tmp_path, PYTHONPATH=ROOT) for n in (1, 2)]
    after_epochs(tmp_path, 2)
    hosts.cut(2)
    begun = time.monotonic()
    done = results(nodes, begun)
    slowest = max(seconds for _, seconds, *_ in done)
    figures["cut off in mid-training"] = {
        "seconds that were allowed": 12,
        "seconds until all had ended": round(slowest, 1),
    }
    assert all(status for status, *_ in done)
    assert slowest < 120
    assert sum(len(lines(errors)) for *_, errors in done) >= 1
    saved = checkpoint.load(trained(tmp_path))
    assert saved["training"]["epoch"] >= 2


# ---- elastic restart


def is_worker(pid):
    """Whether a process is one that trains."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return b"torch.distributed.run" not in words and b"--output_dir" in words


# the store that torchrun's agents share is not told of to one that comes anew: it would end all
APART = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": 1}
ELASTIC = LONG.replace("--epochs 200", "--epochs 8")


@pytest.mark.parametrize("what", ["process", "node"])
def test_what_is_killed_is_started_again_and_goes_on(what, hosts, tmp_path, figures):
    """torchrun starts all processes anew, and they go on with the run that they had; its end is
    that of a run that nothing interrupted.
    """
    line = f"{ROOT / 'ann_ddp.py'} {ELASTIC} --output_dir"
    whole = [hosts.start(n, torchrun(n, f"{line} whole"), tmp_path) for n in (1, 2)]
    assert [status for status, *_ in results(whole, 0)] == [0, 0]

    def begin(n):
        return hosts.start(n, elastic(n, f"{line} killed"), tmp_path, **APART)

    nodes = {n: begin(n) for n in (1, 2)}
    after_epochs(tmp_path / "killed", 1)
    begun = time.monotonic()
    if what == "process":
        (one,) = [one for one in started_by(nodes[2].pid) if is_worker(one)]
        os.kill(one, signal.SIGKILL)
    else:
        end_all(nodes[2])
        # in which torchrun's agents notice that it has gone
        time.sleep(20)
        nodes[2] = begin(2)
    done = results(nodes.values(), begun)
    assert [status for status, *_ in done] == [0, 0], done
    assert same(trained(tmp_path / "whole"), trained(tmp_path / "killed"))
    figures[f"a {what} killed under torchrun"] = {
        "seconds until the run had ended": round(done[0][1], 1),
        "differences": 0,
    }
