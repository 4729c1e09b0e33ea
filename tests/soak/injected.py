"""Run a script in which one call goes wrong.

python injected.py <call>:<n>:<how> <script> <its arguments>

The n-th <call> of `CALLS` ends as <how> says: `before`, `after` and `within` kill the process with
SIGKILL before it, after it or shortly after it began, `half` when half of a checkpoint is written;
the name of an error of the system (EIO, ENOSPC, ...) makes the call raise it, `back` makes the
clock step back by a day. With `count` in the place of all three nothing goes wrong, and the file
that $MLIF_SOAK_CALLS names tells afterwards how often each was called: {call: times}.
"""

import atexit
import errno
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import torch

CALLS = {
    "save": (torch, "save"),
    "replace": (os, "replace"),
    "fsync": (os, "fsync"),
    "fork": (os, "fork"),
    "run": (subprocess, "run"),  # of a program, such as a compiler
    "clock": (time, "time"),
    "date": (time, "strftime"),
}
COUNTS = {}  # {call: how often}
SOON = 0.3  # seconds
DAY = 86400  # seconds


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def before(call, *args, **more):
    die()


def after(call, *args, **more):
    call(*args, **more)
    die()


def within(call, *args, **more):
    threading.Timer(SOON, die).start()
    return call(*args, **more)


def half(call, content, path):
    whole = io.BytesIO()
    call(content, whole)
    Path(path).write_bytes(whole.getvalue()[: whole.tell() // 2])
    die()


def back(call, *args):
    # of a date the second argument is the time that it is of
    return call(*args, time.localtime(time.time() - DAY)) if args else call() - DAY


def fail(name, call, *args, **more):
    code = getattr(errno, name)
    names = [str(each) for each in args if isinstance(each, (str, Path))]
    raise OSError(code, os.strerror(code), *names[:1])


def watched(name, call, number=0, wrong=None, lasting=False):
    """`call`, of which the `number`-th is `wrong`, and those after it if that is `lasting`."""

    def counted(*args, **more):
        # the compiler is also asked for its version
        if name != "run" or "-shared" in args[0]:
            COUNTS[name] = COUNTS.get(name, 0) + 1
            if COUNTS[name] == number or (lasting and COUNTS[name] > number):
                return wrong(call, *args, **more)
        return call(*args, **more)

    return counted


def inject(moment):
    """Have the call that `moment` names go wrong; `count`: count all of them."""
    if moment == "count":
        for name, (place, attribute) in CALLS.items():
            setattr(place, attribute, watched(name, getattr(place, attribute)))
        atexit.register(lambda: Path(os.environ["MLIF_SOAK_CALLS"]).write_text(json.dumps(COUNTS)))
        return
    name, number, how = moment.split(":")
    place, attribute = CALLS[name]
    wrong = globals().get(how) or partial(fail, how)
    call = watched(name, getattr(place, attribute), int(number), wrong, how == "back")
    setattr(place, attribute, call)


if __name__ == "__main__":
    _, moment, script, *words = sys.argv
    inject(moment)
    sys.argv = [script, *words]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")
