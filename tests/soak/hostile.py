"""Hostile input for every reader, in bounded time and memory: counts by outcome, as a JSON file.

python -m tests.soak.hostile --inputs 10000 --out results/reliability/hostile.json

Each reader works in a process of its own, which an input may end: that is counted, and the next
process goes on behind it. An input that is refused is refused in one line; one that is read is
what it was, or what is left out is counted (see the readers). A new form of file gets its reader
in READERS.
"""

import argparse
import importlib.util
import json
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import pytest

from engine.log import read_json, write_json
from experiments.arithmetic import commit
from tests.cli import test_damaged_configurations as words
from tests.engine import test_damaged_checkpoints as weights
from tests.engine import test_damaged_integer_files as exported
from tests.experiments import test_damaged_declarations as declared
from tests.inputs import test_mutated as data
from tests.mutated import measured, outcome, resident
from tests.soak import lies

SECONDS = 30  # that an input may take, of a process that computes
WAITING = 300  # s, of one that waits
BYTES = lies.GIB  # that the resident memory may grow by
ADDRESSES = 4 * lies.GIB  # that may be asked for beside what the process has, bytes

# {name: function of (folder, monkeypatch) that returns attempt(generator) -> outcome}
READERS = {
    reader.__name__: reader
    for reader in (
        *data.READERS,
        *weights.READERS,
        *words.READERS,
        declared.declarations,
        exported.integer_files,  # exported files: further forms here
    )
}
ENDED = (-signal.SIGALRM, -signal.SIGPROF)
NEEDS = {"aedat4_recordings": "aedat"}  # {reader: package that reads such files}


def small_lies(folder, monkeypatch):
    """The files of `tests.soak.lies`, one after the other."""
    monkeypatch.setattr(lies, "large", lies.GIB)
    left = iter(lies.LIES)

    def attempt(rng):
        own = folder / next(left).__name__
        own.mkdir()
        lies.BY_NAME[own.name](own)()
        raise AssertionError(f"{own.name} was read")

    return attempt


def tell(number, found, seconds=0.0, grown=0):
    """A line for the campaign: what became of an input."""
    print(json.dumps([number, found, seconds, grown]), flush=True)


def work(name, first, count, seed):
    """Try the inputs from `first` on, in this process, and tell of each."""
    warnings.filterwarnings("ignore")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        attempt = READERS[name](Path(folder), patch)
        most = resident("VmSize") + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        for number in range(first, count):
            # both end the process; what computes is timed by its own seconds
            signal.setitimer(signal.ITIMER_PROF, SECONDS + 1)
            signal.alarm(WAITING)
            try:
                tell(number, *measured(lambda n=number: outcome(name, n, attempt, seed)))
            except AssertionError as error:
                tell(number, f"failed: {error}")
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)


def campaign(name, count, seed):
    """[[number, outcome, seconds, bytes]] of all inputs of a reader."""
    found = []
    while len(found) < count:
        argv = ["-m", "tests.soak.hostile", "--work", name, str(len(found)), str(count)]
        argv += ["--seed", str(seed)]
        child = subprocess.run(
            [sys.executable, *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        lines = [line for line in child.stdout.splitlines() if line.startswith("[")]
        found += map(json.loads, lines)
        if len(found) < count:
            how = "took too long" if child.returncode in ENDED else "ended the process"
            found.append([len(found), f"failed: it {how} ({child.returncode})", 0.0, 0])
    return found


def summary(found):
    """What results say of the inputs of one reader."""
    counts = Counter(outcome for _, outcome, *_ in found if not outcome.startswith("failed"))
    failed = {str(number): outcome for number, outcome, *_ in found if outcome[:6] == "failed"}
    for number, _, seconds, grown in found:
        if seconds > SECONDS or grown > BYTES:
            failed[str(number)] = f"failed: {seconds:.1f} s, {grown >> 20} MiB"
    return {
        "inputs": len(found),
        "outcomes": dict(counts.most_common()),
        "failed": failed,
        "most_seconds": round(max(seconds for _, _, seconds, _ in found), 3),
        "most_mebibytes": max(grown for *_, grown in found) >> 20,
    }


def main(argv=None):
    """Run the command line; exit status 1 if an input did what none may do."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.hostile", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs of the readers together")
    parser.add_argument("--seed", type=int, default=0)
    known = [*READERS, "small_lies"]
    parser.add_argument(
        "--readers", nargs="+", choices=known, help="these alone, beside what --out has of others"
    )
    parser.add_argument("--out", type=Path, default=Path("results/reliability/hostile.json"))
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    READERS["small_lies"] = small_lies
    if asked.work:
        name, first, count = asked.work
        work(name, int(first), int(count), asked.seed)
        return 0

    absent = {reader: name for reader, name in NEEDS.items() if not importlib.util.find_spec(name)}
    names = [name for name in asked.readers or READERS if name not in absent]
    drawn = [name for name in names if name != "small_lies"]
    readers = {}
    for name in names:
        count = -(-asked.inputs // len(drawn)) if name in drawn else len(lies.LIES)
        own = summary(campaign(name, count, asked.seed))
        readers[name] = own = {"seed": asked.seed, "commit": commit(), **own}
        said = ", ".join(f"{number} {what}" for what, number in own["outcomes"].items())
        print(
            f"{name}: {own['inputs']} inputs: {said}; {len(own['failed'])} failed; at most "
            f"{own['most_seconds']} s, {own['most_mebibytes']} MiB",
            flush=True,
        )
    if asked.readers and asked.out.exists():
        readers = read_json(asked.out)["readers"] | readers
    failed = sum(len(own["failed"]) for own in readers.values())
    content = {
        "inputs": sum(own["inputs"] for own in readers.values()),
        "failed": failed,
        "limits": {"seconds": SECONDS, "mebibytes": BYTES >> 20},
        "readers": readers,
        "skipped": {
            reader: f"without the package {name}"
            for reader, name in absent.items()
            if reader not in readers
        },
    }
    write_json(asked.out, content)
    print(f"{content['inputs']} inputs, {failed} failed; written to {asked.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
