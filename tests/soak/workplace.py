"""Folders and processes of the campaign: start, kill, see what is on the disk, compare."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine import checkpoint, integer_file
from engine.errors import UseError
from models.neuron.backends import cpp
from tests.engine.test_resume import flat
from tests.helpers import PATIENCE, ROOT, environment

INJECTED = Path(__file__).with_name("injected.py")
RESUMED = ("ann_ddp.py", "snn_ddp.py", "train.py", "main_training_parallel.py")
SOON = 60  # seconds after which nothing of a killed command may be at work
DATED = re.compile(r"_2\d{7}-\d{6}(-\d+)?")  # end of a run folder's name
# what depends on the machine's speed, on the moment, or on whether a run was resumed
VOLATILE = {
    *("seconds", "images_per_s", "chain_seconds", "resume", "mtime_ns", "date", "versions"),
    *("commit",),
}
UNCOMPARED = (".tmp", ".part", ".png", ".svg", ".so", ".cpp", ".o", ".s")


# ---- processes


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its status, what it said, how long it took in seconds."""

    status: int
    output: str
    errors: str
    seconds: float

    @property
    def told(self):
        """The lines of its errors."""
        lines = re.split(r"[\r\n]+", self.errors)
        return [line.strip() for line in lines if line.strip() and "it/s]" not in line]


class Command:
    """A command line of a public script, at work in `folder`, in a process group of its own.

    moment: see `injected`. wrapped: words before the command, such as those of a shell that lowers
    a limit. name: of the files beside the folder that hold what it says. env: further variables.
    """

    def __init__(self, line, folder, moment="", wrapped=(), name="said", **env):
        script, *words = line.split() if isinstance(line, str) else line
        injected = [str(INJECTED), moment] if moment else []
        self.argv = [*wrapped, sys.executable, *injected, str(ROOT / script), *words]
        self.begun = time.monotonic()
        # files, since whoever outlives the command would keep a pipe open
        self.paths = [folder.with_name(f"{name}.{end}") for end in ("out", "err")]
        with open(self.paths[0], "w") as out, open(self.paths[1], "w") as err:
            self.process = subprocess.Popen(
                self.argv,
                cwd=folder,
                env=environment(folder, **env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def send(self, number, group=True):
        """Send a signal to the command, or to its whole group, as a terminal and a queue do."""
        try:
            (os.killpg if group else os.kill)(self.process.pid, number)
        except ProcessLookupError:
            pass  # it had ended

    def end(self, patience=PATIENCE):
        """The `Ended`, once it has ended."""
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            raise
        seconds = time.monotonic() - self.begun
        return Ended(status, *(path.read_text() for path in self.paths), seconds)

    def living(self):
        """Numbers of the processes of the group that are at work."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue  # it has just ended
            if int(group) == self.process.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found

    def gone(self, patience):
        """Wait until nobody of the group is at work; returns whether that was in time."""
        late = time.monotonic() + patience
        while self.living():
            if time.monotonic() > late:
                self.send(signal.SIGKILL)
                return False
            time.sleep(0.05)
        return True


def again(line, folder):
    """The command that goes on in a folder: with --resume where there is a run, else the same."""
    script, *words = line.split()
    if Path(script).name not in RESUMED:
        return line
    output = words[words.index("--output_dir" if "--output_dir" in words else "--output") + 1]
    runs = sorted((folder / output).rglob("last.pth"))
    # without its first checkpoint a run has not begun
    if not runs:
        return line
    return [script, "--resume", str(runs[-1].parent.relative_to(folder))]


# ---- what is on the disk


def files(folder):
    """Every file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def left(folder):
    """Temporary files that a kill has left."""
    return [path for path in files(folder) if path.suffix == ".tmp"]


def read(path):
    """What a file holds, in a form that can be compared; raises where it is not whole."""
    if path.suffix == ".pth":
        return flat(checkpoint.load(path))
    if path.suffix == ".json":
        return flat(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines(keepends=True)
        # one that is being written is dropped by who goes on
        return flat([json.loads(line) for line in lines if line.endswith("\n")])
    if path.suffix == ".npz":
        whole, header = integer_file.load(path)
        return flat([whole.state_dict(), header])
    if path.suffix == ".npy":
        return {"rows": np.load(path).tobytes()}
    if path.suffix == ".so" and not cpp._whole(path):
        raise UseError(f"{path} is half a library")
    return {"bytes": path.read_bytes()}


def damaged(folder):
    """Files under their own names that are not whole."""
    found = []
    for path in files(folder):
        # g++ writes in a folder of its own, from which it is renamed
        if path.suffix in (".tmp", ".part") or path.parent.name.startswith("tmp"):
            continue
        try:
            read(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {error}")
    return found


def _plain(value):
    """A value without the date in the name of a run folder."""
    return DATED.sub("", value) if isinstance(value, str) else value


def state(folder):
    """{name without date: content} of everything that commands have made in a folder."""
    found = {}
    for path in files(folder):
        runs = [each for each in path.parents if DATED.search(each.name)]
        # a run that was killed before its first checkpoint was begun anew
        if any(not (run / "last.pth").is_file() for run in runs):
            continue
        skipped = path.suffix in UNCOMPARED or path.name.startswith("events.out")
        if skipped or path.name == "lock":
            continue
        name = _plain(str(path.relative_to(folder)))
        # of runs that were begun anew the last one counts
        found[name] = {
            key: _plain(value)
            for key, value in read(path).items()
            if VOLATILE.isdisjoint(key.split("."))
        }
    return found


def equal(one, other):
    """Whether two values are the same, bit for bit."""
    if hasattr(one, "numpy") and hasattr(other, "numpy"):
        one, other = one.numpy(), other.numpy()
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    return type(one) is type(other) and (one == other or (one != one and other != other))


def differences(got, want):
    """Names of what differs between two `state`s."""
    found = [f"{name}: only one has it" for name in sorted(got.keys() ^ want.keys())]
    for name in sorted(got.keys() & want.keys()):
        keys = got[name].keys() | want[name].keys()
        missing = object()
        different = [
            key
            for key in keys
            if not equal(got[name].get(key, missing), want[name].get(key, missing))
        ]
        found += [f"{name}: {key}" for key in sorted(different)]
    return found
