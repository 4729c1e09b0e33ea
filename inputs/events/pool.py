"""Work shared out to processes, results in order."""

import multiprocessing
import os
import signal
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from threading import Thread

from engine.errors import RunError
from engine.settings import option, positive_int

AHEAD = 4  # results per worker that may wait: they hold memory


def cores():
    """How many cores this process may use."""
    # a container may have fewer than the machine; macOS does not tell
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


@dataclass(frozen=True)
class PoolOptions:
    """processes"""

    processes: int = option(cores(), "processes that share the work", positive_int)


def _end_with_parent():
    # a worker of a killed parent would wait for work for ever
    multiprocessing.parent_process().join()
    os._exit(1)


def _start():
    """What a worker does first: it leaves Ctrl-C to its parent, and ends when that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def ordered(function, items, workers):
    """Yield function(item) for each item, a tuple whose first field names it, in order.

    Raises:
        RunError: a worker died.
    """
    workers = max(1, min(workers, len(items)))
    left, waiting = iter(items), deque()  # waiting: (item, its future), the oldest first
    with ProcessPoolExecutor(workers, initializer=_start) as pool:

        def submit(count):
            for item in islice(left, count):
                waiting.append((item, pool.submit(function, item)))

        try:
            submit(AHEAD * workers)
            while waiting:
                # still in the queue, so that an error names it
                yield waiting[0][1].result()
                waiting.popleft()
                submit(1)
        except BrokenProcessPool:
            near = ", ".join(str(item[0]) for item, _ in islice(waiting, 3))
            raise RunError(
                "a worker process died (out of memory, or a package broke on a damaged file) near "
                f"{near}: try fewer --workers, or leave the damaged one out"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
