"""Run a chain of the public scripts and go on where it stopped.

Every stage has a folder of its own, with what it is made of in stage.json. A stage is done when its summary is there, resumes
at the epoch where it was interrupted, and is refused if its recipe, the code, the checkpoints that it starts from or the data
have changed, so that results never mix.
"""

import fcntl
import hashlib
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cli.parser import refuse_idle
from engine import checkpoint
from engine.errors import RunError, UseError
from engine.log import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
CODE = (
    "ann_ddp.py",
    "snn_ddp.py",
    "absorb_bn.py",
    "models/**/*.py",
    "models/**/*.cu",
    "models/**/*.h",
    "engine/**/*.py",
    "inputs/**/*.py",
    "cli/*.py",
    "analysis/energy.py",
    "analysis/pricing.py",
    "spike_driven_transformer/*.py",
    "spike_driven_transformer/conf/**/*.yml",
    "neuromorphic_tasks/*.py",
)

MACHINE = ("data_root", "data_dir", "dataset_dir", "prepared", "device", "compile")
LOCAL = ("run", "checkpoint", "converted")  # parts of a summary that tell of files here


def code():
    """Digest of the code that results depend on; a commit of documents does not change it."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in CODE for path in ROOT.glob(pattern)}):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def commit():
    """Commit of the working tree, with `+` if it was changed; '' outside git."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def _weights(path):
    """Digest of a checkpoint's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.load(path)["model"].items()):
        digest.update(
            name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def _differing(old, new):
    """The first key in which two dictionaries differ, and both values; '' of other things."""
    if not isinstance(old, dict):
        return ""
    name = min(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return (
        f", {name} {old.get(name)} for {new.get(name)}"
        if len(str(old.get(name))) < 64
        else f", {name}"
    )


def same_data(found):
    """Refuse results of different data. found: {what: {"train": {"images", "sha256"}, "test": ...}}."""
    (first, expected), *others = found.items()
    for name, data in others:
        for part in data:
            if data[part] != expected[part]:
                raise UseError(
                    f"{name} has {data[part]['images']} {part} images, {first} had {expected[part]['images']} "
                    "others: results never mix, give the same --data_root to all"
                )


def words(options):
    """Command-line words of {name: value}; True is a flag, None leaves the option out."""
    return tuple(
        word
        for name, value in options.items()
        if value is not None
        for word in ((f"--{name}",) if value is True else (f"--{name}", str(value)))
    )


def options(tokens):
    """{name: value} of command-line words, the inverse of `words`."""
    found, name = {}, None
    for token in tokens:
        if re.match(r"--?[A-Za-z]", token):
            name, _, value = token.lstrip("-").partition("=")
            found[name] = value or True
        else:
            found[name] = token
    return found


@dataclass(frozen=True)
class Stage:
    """A command: script without .py ('snn_ddp', 'spike_driven_transformer.train'), its words; `{ann}` in a word stands
    for the checkpoint of the stage 'ann'."""

    name: str
    script: str
    words: tuple

    @property
    def module(self):
        return importlib.import_module(self.script)

    @property
    def trains(self):
        return self.script != "absorb_bn"

    @property
    def recipe(self):
        """Its options but for what depends on the machine."""
        return {name: value for name, value in options(self.words).items() if name not in MACHINE}

    @property
    def machine(self):
        """Words of the other options."""
        return words(
            {name: value for name, value in options(self.words).items() if name in MACHINE}
        )


@contextmanager
def locked(folder):
    """Only one process works in `folder`; yields the lock's descriptor, which a script that is started must inherit: the
    lock ends when the last of them does, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UseError(
            f"{folder} cannot be a folder, there is a file in its way: give another --output_dir"
        ) from None
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UseError(
                f"{folder} is in use by process {file.read().strip() or '?'} or a script that it started: wait for "
                "it, or give another --output_dir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file.fileno()


class Chain:
    """Stages below `folder`, in order; each may name the results of those before it. launcher: words in the place of
    `python3` for the stages that train, such as those of torchrun."""

    def __init__(self, folder, stages, launcher=()):
        self.folder, self.stages = Path(folder).resolve(), {stage.name: stage for stage in stages}
        self.launcher = list(launcher)

    def inputs(self, stage):
        """{word: checkpoint} of the stages whose results the stage starts from."""
        return {
            f"{{{name}}}": self.checkpoint(other)
            for name, other in self.stages.items()
            if f"{{{name}}}" in stage.words
        }

    def words(self, stage):
        """The stage's command line, with file names in the place of `{stage}`."""
        files = self.inputs(stage)
        words = [str(files.get(word, word)) for word in stage.words]
        return [*words, "--output_dir", str(self.folder / stage.name)] if stage.trains else words

    def parsed(self, stage):
        """The stage's options as its own script reads and checks them."""
        module, words = stage.module, self.words(stage)
        parser = module.get_parser()
        args = parser.parse(
            module.with_config(parser, words) if hasattr(module, "with_config") else words
        )
        refuse_idle(args, module.rules(args))
        return args

    def checkpoint(self, stage):
        """File of the stage's result."""
        return Path(stage.module.result(self.parsed(stage)))

    def command(self, stage):
        return shlex.join(["python3", stage.script.replace(".", "/") + ".py", *self.words(stage)])

    def _run_folder(self, stage):
        """Newest run folder of the stage that can be resumed, or None."""
        base = self.checkpoint(stage).with_suffix("")
        found = [path.parent for path in base.parent.glob(f"{base.name}_2*/last.pth")]
        return max(found, default=None)

    def summary(self, stage):
        """The finished stage's summary, or None."""
        if not stage.trains:
            return (
                {"checkpoint": str(self.checkpoint(stage))}
                if self.checkpoint(stage).is_file()
                else None
            )
        run = self._run_folder(stage)
        return read_json(run / "summary.json") if run and (run / "summary.json").is_file() else None

    def data(self, stage):
        """{part: {"images", "sha256"}} of the data that a finished stage was trained and tested on."""
        about = read_json(self._run_folder(stage) / "config.json")["data"]
        return {part: about[part] for part in ("train", "test")}

    def record(self, stage):
        """What was noted when the stage was begun: {"recipe", "inputs", "code", "commit"}; None: it was not."""
        path = self.folder / stage.name / "stage.json"
        return read_json(path) if path.is_file() else None

    def check(self, stage, now):
        """Refuse a stage that was made otherwise than by `now`, {"recipe", ...}, as far as that is known."""
        old, what = (
            self.record(stage) or {},
            {
                "recipe": "with other arguments",
                "code": "by other code",
                "inputs": "from another network",
            },
        )
        for key in [key for key in what if key in now and key in old]:
            if old[key] != now[key]:
                raise UseError(
                    f"{self.folder / stage.name} was made {what[key]}{_differing(old[key], now[key])} (commit "
                    f"{old['commit']}): results never mix, give another --output_dir or remove that folder"
                )

    def run(self, stage, lock, say=print):
        """Run or resume one stage under the folder's lock; returns its summary.

        Raises:
            UseError: the stage was begun with another recipe, code or input. RunError: its script failed.
        """
        run, summary = self._run_folder(stage) if stage.trains else None, self.summary(stage)
        if self.record(stage) is None:  # what is there is of unknown making
            run = summary = None
        now = {
            "recipe": stage.recipe,
            "code": code(),
            "inputs": {word: _weights(p) for word, p in self.inputs(stage).items()},
        }
        if run or summary:
            self.check(stage, now)
        if summary is not None:
            say(f"{stage.name}: done before")
            return summary
        if not run:
            write_json(
                self.folder / stage.name / "stage.json",
                {**now, "command": self.command(stage), "commit": commit()},
            )
        words = ["--resume", str(run), *stage.machine] if run else self.words(stage)
        say(f"{stage.name}: {'resumed: ' if run else ''}{self.command(stage)}")
        script = ROOT / (stage.script.replace(".", "/") + ".py")
        python = self.launcher if self.launcher and stage.trains else [sys.executable]
        done = subprocess.run(
            [*python, str(script), *words], cwd=ROOT, check=False, pass_fds=(lock,)
        )
        if done.returncode:
            raise RunError(
                f"{stage.name} ended with status {done.returncode}: mend what it says and run this again, "
                "it goes on where it stopped"
            )
        return self.summary(stage)

    def all(self, say=print):
        """{stage: summary} of the whole chain, all by one code and on one data set."""
        if self.launcher and not shutil.which(self.launcher[0]):
            raise UseError(f"--launcher: there is no program {self.launcher[0]!r} here")
        with locked(self.folder) as lock:
            begun, done, data = code(), {}, {}
            for name, stage in self.stages.items():
                if code() != begun:
                    raise RunError(
                        f"the code has changed since this chain began, before {name}: results never mix, undo the "
                        "change, or give another --output_dir"
                    )
                done[name] = self.run(stage, lock, say)
                if stage.trains:
                    data[name] = self.data(stage)
                    same_data(data)
            return done
