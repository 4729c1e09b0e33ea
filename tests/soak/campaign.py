"""The campaign: its clock, its records, and the loop that kills the chains."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from experiments.arithmetic import commit
from tests.helpers import ROOT, cifar_copy, image_folder
from tests.soak.chains import CHAINS
from tests.soak.workplace import SOON, Command, again, damaged, differences, left, state

# what the report is written from
RECORDS = Path(os.environ.get("MLIF_SOAK_RECORDS", ROOT / "runs" / "soak"))
MINUTES = float(os.environ.get("MLIF_SOAK_MINUTES", "45"))
SEED = int(os.environ.get("MLIF_SOAK_SEED", "0"))
# one that is stopped goes on to its end, so that is drawn seldom
SIGNALS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGTERM", "SIGINT", "SIGINT", "SIGSTOP")
KILLS = 12  # at most, of one command
# how a call may end in a kill, see `injected`
HOWS = {
    "save": ("half", "after"),
    "replace": ("before", "after"),
    "fsync": ("before", "after"),
    "fork": ("before", "after"),
    "run": ("before", "within", "after"),
}
BUSY = ("is in use by process", "another preparation is at work")


@dataclass(frozen=True)
class Measured:
    """An undisturbed command: seconds to its first file and to its end, {call: how often}."""

    first: float
    seconds: float
    calls: dict

    def moment(self, rng, share):
        """A moment of `injected` that occurs in the first `share` of it."""
        name = rng.choice(sorted(HOWS.keys() & self.calls.keys()))
        most = math.ceil(share * self.calls[name])
        return f"{name}:{rng.randint(1, most)}:{rng.choice(HOWS[name])}"

    def wait(self, rng, share):
        """Seconds, before or in the first `share` of its work."""
        return rng.uniform(0.8 * self.first, self.first + share * (self.seconds - self.first))


class Campaign:
    """A folder with data, and the records of what is done in it.

    minutes: of all of it. seed: of everything that is drawn.
    """

    def __init__(self, base, minutes=MINUTES, seed=SEED):
        self.base, self.seed = base, seed
        self.about = {"seed": seed, "commit": commit()}
        # what a shell starts in the background ignores SIGINT, and would hand that on
        signal.signal(signal.SIGINT, signal.default_int_handler)
        now = time.monotonic()
        # half of the time is for kills, the rest for faults
        self.kills_end, self.end = now + 30 * minutes, now + 60 * minutes
        self.ends = {}  # {name of a chain: what `undisturbed` returns}
        cifar_copy(base / "data")
        for part, count in (("train", 24), ("val", 6)):
            image_folder(base / "images" / part, 3, count, (90, 100), "jpg")

    def folder(self, name):
        """A new folder below the campaign's."""
        found = self.base / name
        shutil.rmtree(found, ignore_errors=True)
        found.mkdir()
        return found

    def note(self, name, /, **record):
        """Append a line to the records of a kind."""
        RECORDS.mkdir(parents=True, exist_ok=True)
        with open(RECORDS / f"{name}.jsonl", "a") as file:
            file.write(json.dumps(self.about | record) + "\n")

    def run(self, line, folder, **more):
        """Run a command to its end, undisturbed."""
        return self.start(line, folder, **more).end()

    def start(self, line, folder, **more):
        more["XDG_CACHE_HOME"] = more.pop("cache", self.base / "cache")
        return Command(line, folder, **more)

    # ---- kills ----

    def undisturbed(self, chain):
        """(`state` at the end, `Measured` of each command) of a chain that nobody kills."""
        if chain.name not in self.ends:
            folder = self.folder("chain")
            cache = self.base / "cache" if chain.cache else self.folder("new_cache")
            found = [self._measured(line, folder, cache) for line in chain.commands]
            self.ends[chain.name] = state(folder), found
        return self.ends[chain.name]

    def _measured(self, line, folder, cache):
        before = set(folder.rglob("*"))
        calls = self.base / "calls.json"
        command = self.start(line, folder, cache=cache, moment="count", MLIF_SOAK_CALLS=calls)
        while set(folder.rglob("*")) == before and command.process.poll() is None:
            time.sleep(0.02)
        first = time.monotonic() - command.begun
        ended = command.end()
        assert ended.status == 0, ended.errors
        return Measured(first, ended.seconds, json.loads(calls.read_text()))

    def kill_chains(self, chains=CHAINS):
        """Kill the chains in turn until the time is over; returns the records of what broke."""
        broken = []
        # a short campaign does not reach all of them, and another seed's reaches others
        drawn = random.Random(self.seed).sample(chains, len(chains))
        for number, chain in enumerate(cycle(drawn)):
            if number and time.monotonic() > self.kills_end:
                return broken
            broken += Turn(self, chain, number).records()


class Turn:
    """One run of a chain through kills.

    number: of the turn, which with the seed says when who is killed.
    """

    def __init__(self, campaign, chain, number):
        self.campaign, self.chain, self.number = campaign, chain, number
        self.rng = random.Random(f"{campaign.seed}/{number}/{chain.name}")
        self.want, self.measured = campaign.undisturbed(chain)
        self.folder = campaign.folder("chain")
        self.cache = campaign.base / "cache" if chain.cache else campaign.folder("new_cache")
        self.about = {"chain": chain.name, "turn": number}

    def records(self):
        """Run the chain; returns the records in which something broke."""
        found = []
        for line, measured in zip(self.chain.commands, self.measured):
            found += self._command(line, measured)
        different = differences(state(self.folder), self.want)
        end = {**self.about, "differences": different, "left": len(left(self.folder))}
        self.campaign.note("ends", **end)
        broken = [each for each in found if each["broken"]]
        return broken + [end] * bool(different)

    def _command(self, line, measured):
        """Kill a command some times, then let it end; returns the records of the kills."""
        found = []
        count = self.rng.randint(1, KILLS)
        # later kills find work that is not yet done
        share = min(1, 2 / count)
        for _ in range(count):
            record, ended = self._kill(line, measured, share)
            found.append(record)
            self.campaign.note("kills", **self.about, **record)
            if ended:
                return found
        ended = self._start(again(line, self.folder)).end()
        if ended.status:
            record = {"broken": [f"does not go on: {ended.told[-3:]}"], "command": line}
            self.campaign.note("kills", **self.about, **record)
            found.append(record)
        return found

    def _start(self, line, **more):
        return self.campaign.start(line, self.folder, cache=self.cache, **more)

    def _kill(self, line, measured, share):
        """Start or go on with a command and kill it; returns (record, whether it had ended)."""
        rng = self.rng
        moment, name, group, over = "", "SIGKILL", True, False
        if rng.random() < 0.5:
            moment, group = measured.moment(rng, share), False
        else:
            name, group = rng.choice(SIGNALS), rng.random() < 0.7
        wait = measured.wait(rng, share)
        command = self._start(again(line, self.folder), moment=moment)
        record = {"command": line.split()[0], "moment": moment or f"{wait:.2f} s", "broken": []}
        broken = record["broken"]
        if not moment:
            with suppress(subprocess.TimeoutExpired):
                command.process.wait(wait)
            command.send(getattr(signal, name), group)
        if name == "SIGSTOP":
            broken += damaged(self.folder)
            command.send(signal.SIGCONT, group)
        ended = command.end()
        killed = ended.status != 0 or name == "SIGSTOP"
        record |= {"signal": name if killed else None, "group": group, "status": ended.status}
        if not killed or name == "SIGSTOP":
            broken += [f"ended with {ended.told[-3:]}"] * bool(ended.status)
            return record, ended.status == 0
        # before the script's imports are done, Python itself shows where it was
        if "Traceback" in ended.errors and "in guard" in ended.errors:
            broken.append(f"a traceback: {ended.told[-1]}")
        if command.living():
            # what it had started is at work for a while: nobody may come in its way
            soon = self._start(again(line, self.folder)).end()
            refused = any(word in soon.errors for word in BUSY) and soon.status == 2
            record["refused"] = refused
            if soon.status and not refused:
                broken.append(f"does not go on: {soon.told[-3:]}")
            over = soon.status == 0
        if not command.gone(SOON):
            broken.append(f"something of it is at work after {SOON} s")
        broken += damaged(self.folder)
        record["left"] = len(left(self.folder))
        return record, over
