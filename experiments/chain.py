"""Run a chain of the public scripts and go on where it stopped.

Every stage has a folder of its own, with what it is made of in stage.json. A stage is done when its
summary is there, resumes at the epoch where it was interrupted, and is refused if its recipe, the
arithmetic of the code, the checkpoints that it starts from or the data have changed, so that
results never mix.
"""

import shutil
from pathlib import Path

from engine.errors import RunError, UseError
from engine.files import locked

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
        with locked(self.folder, "give another --output_dir") as lock:
            begun = sources()
            # a stage may take days, in which somebody edits the code
            for name, stage in self.stages.items():
                if sources() != begun:
                    raise RunError(
                        f"the code has changed since this chain began, before {name}: results "
                        "never mix, undo the change, give another --output_dir, or run this again "
                        "if nothing that is computed has changed"
                    )
                done[name] = stage.run(lock)
                if stage.trains:
                    data[name] = stage.data
                    try:
                        same_data(data)
                    except UseError as error:
                        raise UseError(f"{error}, and remove {stage.folder}") from None
        return done
