"""Run a chain of the public scripts and go on where it stopped.

Every stage has a folder of its own, with what it is made of in stage.json. A stage is done when its
summary is there, resumes at the epoch where it was interrupted, and is refused if its recipe, the
arithmetic of the code, the checkpoints that it starts from or the data have changed, so that
results never mix.
"""

import fcntl
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from engine.errors import RunError, UseError

from .arithmetic import sources

PARTS = ("train", "test")  # of the data


def same_data(found):
    """Refuse results of different data, {what: {"train": {"images", "sha256"}, "test": ...}}."""
    # all are compared with the first one
    first = next(iter(found))
    for name, data in found.items():
        for part in PARTS:
            here, there = data[part], found[first][part]
            if here != there:
                raise UseError(
                    f"{name} has {here['images']} {part} images, {first} had {there['images']} "
                    "others: results never mix, give the same --data_root to all"
                )


@contextmanager
def locked(folder):
    """Only one process works in `folder`.

    Yields the lock's descriptor, which a script that is started must inherit: the lock ends when
    the last of them does, however it ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UseError(
            f"{folder} cannot be a folder, there is a file in its way: give another --output_dir"
        ) from None

    # appended to, since whoever holds the lock has written into it
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "?"
            raise UseError(
                f"{folder} is in use by process {holder} or a script that it started: "
                "wait for it, or give another --output_dir"
            ) from None
        # whom the next one finds here
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file.fileno()


class Chain:
    """Stages below `folder`, in order; each may name the results of those before it.

    title: what the chain calls itself. launcher: words in the place of `python3` for the stages
    that train, such as those of torchrun.
    """

    def __init__(self, folder, stages, title, launcher=()):
        self.folder = Path(folder).resolve()
        self.title = title
        self.launcher = launcher
        self.stages = {stage.name: stage for stage in stages}
        for stage in stages:
            stage.chain = self

    @property
    def recipes(self):
        """{stage: its recipe}."""
        return {name: stage.recipe for name, stage in self.stages.items()}

    def say(self, text):
        print(f"[{self.title}] {text}", flush=True)

    def all(self):
        """{stage: summary} of the whole chain, all by one code and on one data set."""
        if self.launcher and not shutil.which(self.launcher[0]):
            raise UseError(f"--launcher: there is no program {self.launcher[0]!r} here")
        # a wrong option of the last stage ends the chain before the first one is trained
        for stage in self.stages.values():
            stage.parsed()
        done = {}
        data = {}
        with locked(self.folder) as lock:
            begun = sources()
            # a stage may take days, in which somebody edits the code
            for name, stage in self.stages.items():
                if sources() != begun:
                    raise RunError(
                        f"the code has changed since this chain began, before {name}: results "
                        "never mix, undo the change, or give another --output_dir"
                    )
                done[name] = stage.run(lock)
                if stage.trains:
                    data[name] = stage.data
                    same_data(data)
        return done
