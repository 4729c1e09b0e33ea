"""Work shared out to processes, results in order."""

import multiprocessing
import os
import signal
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Thread

from engine.errors import RunError


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _start():
    """A worker leaves Ctrl-C to its parent, and ends when that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def ordered(function, items, workers):
    """function(item) for each item, a tuple whose first field names it, in order; at most 4 results per worker wait.

    Raises:
        RunError: a worker died.
    """
    workers, waiting = max(1, min(workers, len(items))), deque()
    with ProcessPoolExecutor(workers, initializer=_start) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) == 4 * workers:
                    yield waiting[0][1].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0][1].result()
                waiting.popleft()
        except BrokenProcessPool:
            near = ", ".join(str(item[0]) for item, _ in list(waiting)[:3])
            raise RunError(
                f"a worker process died (out of memory, or a package broke on a damaged file) near {near}: "
                "try fewer --workers, or leave the damaged one out"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
