"""Work shared out to processes."""

import os
from multiprocessing import get_start_method

import pytest

from inputs.events import pool, prepare
from neuromorphic_tasks.data import dvscifar_prepare


def test_results_come_in_order():
    assert list(pool.ordered(str, [(1,), (2,), (3,)], 2)) == ["(1,)", "(2,)", "(3,)"]


def test_no_more_processes_than_items(monkeypatch):
    started, original = [], pool.ProcessPoolExecutor

    def executor(count, **more):
        started.append(count)
        return original(count, **more)

    monkeypatch.setattr(pool, "ProcessPoolExecutor", executor)
    assert list(pool.ordered(str, [(1,), (2,)], 1000)) == ["(1,)", "(2,)"]
    assert started == [2]


def test_the_cores_of_this_process():
    assert pool.cores() == len(os.sched_getaffinity(0))


# a process that is not forked knows nothing of a replaced function
@pytest.mark.skipif(get_start_method() != "fork", reason="its workers are not forked")
def test_a_worker_that_dies(recordings, fails, monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "read", lambda path: os._exit(3))
    argv = f"--source {recordings} --output {tmp_path} --workers 1"
    words = ("a worker process died", "airplane/cifar10")
    fails(dvscifar_prepare.main, argv, *words, status=1)
