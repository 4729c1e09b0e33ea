"""A stage of a chain: a command of a public script, what it is made of, what there is of it."""

import contextlib
import importlib
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

from cli.parser import refuse_idle
from engine import checkpoint, settings
from engine.errors import RunError, UseError
from engine.log import read_json, read_lines, run_folders, write_json

from .arithmetic import ARITHMETIC, ROOT, commit, version

# What a stage must agree in with what was made before, and how a difference is told.
IDENTITY = {
    "recipe": "with other arguments",
    "code": "by other code",
    "inputs": "from another network",
}
SHORT = 64  # characters of a value that an error can show


def to_words(options):
    """Command-line words of {name: value}.

    True is a flag, a list several words; None leaves the option out.
    """
    found = []
    for name, value in options.items():
        if value is None:
            continue
        found.append(f"--{name}")
        if isinstance(value, list):
            found += map(str, value)
        elif value is not True:
            found.append(str(value))
    return found


def from_words(tokens):
    """{name: value} of command-line words; several words are one value, True is a flag."""
    found = {}
    name = None
    for token in tokens:
        # a negative number is a value
        if re.match(r"--?[A-Za-z]", token):
            name, _, value = token.lstrip("-").partition("=")
            found[name] = value or True
        elif found[name] is True:
            found[name] = token
        else:
            found[name] += f" {token}"
    return found


def slug(label):
    """Name of a file or folder for a label."""
    return re.sub(r"\W", "_", label.lower())


@cache
def machine_spellings(script):
    """Every spelling of the script's options that belong to a machine."""
    kind = importlib.import_module(script).get_parser().kind
    found = set()
    # recipes are written in any spelling
    for option in settings.options(kind).values():
        if option.governs == settings.MACHINE:
            found.update(option.keys)
    return found


def portable(script, given):
    """{option: value} of those of a script that do not belong to a machine."""
    machine = machine_spellings(script)
    return {name: given[name] for name in given if name not in machine}


def digest_weights(path):
    """Digest of a checkpoint's weights."""
    return checkpoint.digest(checkpoint.load(path)["model"])


def first_difference(old, new):
    """What two dictionaries differ in first, as text: `epochs 3 for 2`; of long values the key."""
    differing = [key for key in old | new if old.get(key) != new.get(key)]
    name = min(differing)
    before, after = old.get(name), new.get(name)
    if max(len(str(before)), len(str(after))) >= SHORT:
        return name
    return f"{name} {before} for {after}"


@dataclass
class Stage:
    """A command of a chain.

    name: of the stage, and of its folder. script: module of the public script, such as 'snn_ddp' or
    'spike_driven_transformer.train'. given: {option: value}; the value `{ann}` stands for the
    checkpoint of the stage 'ann'. chain: the `Chain` that it belongs to.
    """

    name: str
    script: str
    given: dict
    chain: object = None

    # ---- what it is ----

    @property
    def module(self):
        return importlib.import_module(self.script)

    @property
    def file(self):
        """The script's file, from the project's folder."""
        return self.script.replace(".", "/") + ".py"

    @property
    def trains(self):
        # fusing has neither epochs nor a run folder
        return self.script != "absorb_bn"

    @property
    def folder(self):
        return self.chain.folder / self.name

    @property
    def recipe(self):
        """{option: value} as text, but for what belongs to a machine."""
        return portable(self.script, from_words(to_words(self.given)))

    @property
    def inputs(self):
        """{word: checkpoint} of the stages whose results the stage starts from."""
        found = {}
        for stage in self.chain.stages.values():
            word = f"{{{stage.name}}}"
            if word in self.given.values():
                found[word] = stage.checkpoint
        return found

    @property
    def words(self):
        """The stage's command line, with file names in the place of `{stage}`."""
        files = self.inputs
        found = [str(files.get(word, word)) for word in to_words(self.given)]
        # what does not train writes beside its input
        if self.trains:
            found += ["--output_dir", str(self.folder)]
        return found

    def parsed(self):
        """The stage's settings as its own script reads and checks them."""
        parser = self.module.get_parser()
        # a configuration is named from the project's folder, in which the script is run
        with contextlib.chdir(ROOT):
            asked = parser.parse(self.words)
        refuse_idle(parser.named(self.words), self.module.rules(asked))
        return asked

    @property
    def checkpoint(self):
        """File of the stage's result."""
        return Path(self.module.result(self.parsed()))

    def command(self, words):
        """The script with these words as a user types it."""
        return shlex.join([*(self.launcher or ["python3"]), self.file, *words])

    @property
    def launcher(self):
        """Words of the chain's launcher, by which the stages that train are started."""
        return self.chain.launcher if self.trains else ()

    # ---- what there is of it ----

    @property
    def run_folder(self):
        """Newest run folder of the stage that can be resumed, or None."""
        found = run_folders(self.checkpoint.with_suffix(""), "last.pth")
        return found[-1] if found else None

    @property
    def summary(self):
        """The finished stage's summary, or None."""
        if not self.trains:
            path = self.checkpoint
            return {"checkpoint": str(path)} if path.is_file() else None
        run = self.run_folder
        # a run writes its summary when it ends
        if run and (run / "summary.json").is_file():
            return read_json(run / "summary.json")
        return None

    @property
    def log(self):
        """The lines of a finished stage's log, one an epoch."""
        return read_lines(self.run_folder / "log.jsonl")

    @property
    def data(self):
        """What the data of a finished stage are: {"train": {"images", "sha256"}, "test", ...}."""
        return read_json(self.run_folder / "config.json")["data"]

    @property
    def versions(self):
        """Versions of the packages by which a finished stage began."""
        return read_json(self.run_folder / "config.json")["versions"]

    @property
    def ended(self):
        """Day on which a finished stage ended, as "2026-11-26"."""
        written = (self.run_folder / "summary.json").stat().st_mtime
        return date.fromtimestamp(written).isoformat()

    @property
    def record(self):
        """What was noted when the stage was begun, or None.

        {"recipe", "inputs", "code", "commit", "command"}, as the code of today would note it.
        """
        path = self.folder / "stage.json"
        if not path.is_file():
            return None
        content = read_json(path)
        content["recipe"] = portable(self.script, content["recipe"])
        content["code"] = version(content["code"])
        return content

    def check(self, **now):
        """Refuse a stage that was made otherwise than by `now`, of the keys of `IDENTITY`."""
        old = self.record
        for key, value in now.items():
            if old[key] == value:
                continue
            told = IDENTITY[key]
            if isinstance(value, dict):
                told += f", {first_difference(old[key], value)}"
            ways = "give another --output_dir or remove that folder"
            if key == "recipe":
                ways = f"give the same as then, or {ways}"
            raise UseError(
                f"{self.folder} was made {told} (commit {old['commit']}): results never mix, {ways}"
            )

    # ---- running ----

    def run(self, lock):
        """Run or resume the stage under its chain's lock; returns its summary.

        Raises:
            UseError: the stage was begun with another recipe, code or input.
            RunError: its script failed.
        """
        weights = {word: digest_weights(path) for word, path in self.inputs.items()}
        now = {"recipe": self.recipe, "code": ARITHMETIC, "inputs": weights}
        summary = None
        run = None
        # without a record, what lies there is of unknown making
        if self.record:
            summary = self.summary
            run = self.run_folder if self.trains else None
        if run or summary:
            self.check(**now)
        if summary:
            self.chain.say(f"{self.name}: done before")
            return summary

        if run:
            words = ["--resume", str(run), *self.new_words]
            self.chain.say(f"{self.name}: resumed: {self.command(words)}")
        else:
            words = self.words
            command = self.command(words)
            self.chain.say(f"{self.name}: {command}")
            # noted before it starts, so that a stage that is killed is known, too
            about = {**now, "command": command, "commit": commit()}
            write_json(self.folder / "stage.json", about)
        self._start(words, lock)
        return self.summary

    @property
    def new_words(self):
        """Words of the options that a resumed run may change."""
        recipe = self.recipe
        given = {name: self.given[name] for name in self.given if name not in recipe}
        # the run may have been compiled before
        if "compile" in given:
            given["compile"] = given["compile"] or "none"
        # the folder of the stages may have been moved meanwhile
        if self.given.get("distill") in self.inputs:
            given["distill"] = str(self.inputs[self.given["distill"]])
        return to_words(given)

    def _start(self, words, lock):
        """Run the script to its end."""
        program = self.launcher or [sys.executable]
        command = [*program, str(ROOT / self.file), *words]
        with subprocess.Popen(command, cwd=ROOT, pass_fds=(lock,)) as script:
            ended = []

            # who ends this process means the training, too
            def end(*_):
                ended.append(True)
                script.terminate()

            former = signal.signal(signal.SIGTERM, end)
            try:
                status = script.wait()
            except KeyboardInterrupt:
                # a terminal's Ctrl-C has reached both, any other one this process alone
                script.terminate()
                raise
            finally:
                signal.signal(signal.SIGTERM, former)
        if ended or status < 0:
            raise RunError(f"{self.name} was ended: run this again, it goes on where it stopped")
        # the script has said what is wrong
        if status:
            raise RunError(
                f"{self.name} ended with status {status}: mend what it says and run "
                "this again, it goes on where it stopped"
            )
