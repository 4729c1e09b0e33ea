"""Runs of several processes, of which one is lost; a port that is taken."""

import shutil
import signal
import socket
import time

from tests.engine.test_dist import free_port
from tests.soak.faults import HERE, epochs, judged
from tests.soak.workplace import SOON, Command, again, damaged

LINE = f"ann_ddp.py {HERE} --bn --dropout 0 -lr 0.01 --limit_eval_batches 1 --output_dir two"
LINE = LINE.replace("--epochs 3", "--epochs 8")
# (rank that is lost, signal, number of processes that go on)
LOST = ((0, "SIGKILL", 1), (1, "SIGKILL", 3), (1, "SIGTERM", 2), (0, "SIGTERM", 1))


def start(line, folder, size, port):
    """The processes of a run, by a launcher's variables."""
    env = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Command(line, folder, name=f"rank{rank}", RANK=rank, LOCAL_RANK=rank, **env)
        for rank in range(size)
    ]


def workshop(campaign):
    """A folder with images."""
    folder = campaign.folder("chain")
    shutil.copytree(campaign.base / "data", folder / "data")
    return folder


def lose(campaign, lost, name, size):
    """Kill a process of two in the middle of an epoch, and go on with `size`; the record."""
    folder = workshop(campaign)
    ranks = start(LINE, folder, 2, free_port())
    while not epochs(folder) and ranks[0].process.poll() is None:
        time.sleep(0.05)
    done = epochs(folder)
    ranks[lost].send(getattr(signal, name))
    begin = time.monotonic()
    ended = ranks[1 - lost].end(SOON)
    seconds = time.monotonic() - begin
    ranks[lost].end()
    broken = judged(ended) + damaged(folder)
    broken += ["it went on to its end"] * (ended.status == 0)
    epochs_lost = max(0, done - epochs(folder))
    for each in start(again(LINE, folder), folder, size, free_port()):
        on = each.end()
        broken += [f"does not go on: {on.told[-3:]}"] * bool(on.status)
    broken += [f"{epochs(folder)} epochs at the end"] * (epochs(folder) != 8)
    return {
        "kind": "one of several processes is killed",
        "name": f"rank {lost} of 2 by {name}, goes on as {size}, all gone in {seconds:.1f} s",
        "subject": "train",
        "real": True,
        "bytes_lost": 0,
        "epochs_lost": epochs_lost,
        "told": ended.told[-1],
        "broken": broken,
    }


def taken(campaign):
    """Start a process where another program listens at the port; the record."""
    folder = workshop(campaign)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        rank, *rest = start(LINE, folder, 2, other.getsockname()[1])
        ended = rank.end(SOON)
        for each in rest:
            each.send(signal.SIGKILL)
            each.end()
    return {
        "kind": "the port is taken",
        "name": "by a program that does not answer",
        "subject": "train",
        "real": True,
        "bytes_lost": 0,
        "epochs_lost": 0,
        "told": ended.told[-1],
        "broken": judged(ended) + ["it went on"] * (ended.status == 0),
    }
