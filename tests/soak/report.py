"""Write results/reliability.md from the records of a campaign.

python -m tests.soak.report
"""

from collections import Counter
from datetime import date
from platform import platform

from engine.files import write_text
from engine.log import processor, read_lines, versions
from experiments.arithmetic import commit
from tests.helpers import ROOT
from tests.soak.campaign import RECORDS

PAGE = ROOT / "results" / "reliability.md"
# what earlier campaigns broke, how it was mended, and the test that holds it
MENDED = (
    (
        "a kill inside a write left a temporary file for good; a hundred could fill a disk",
        "the next write of the same file removes those that no process holds a lock on",
        "tests/engine/test_files.py",
    ),
    (
        "a worker that decodes images was killed, or /dev/shm was full: a traceback",
        "one line with the ways out",
        "tests/engine/test_errors.py",
    ),
    (
        "too few file descriptors, a read-only folder, TensorBoard on a full disk: a traceback",
        "one line",
        "tests/engine/test_errors.py, tests/engine/test_log.py",
    ),
    (
        "one of several processes was killed: a traceback; if it was rank 0, nothing was told",
        "all end with one line, and any number of processes goes on",
        "tests/engine/test_dist.py",
    ),
    (
        "SIGINT in the middle of a fork was swallowed, or taken for a lost worker",
        "it ends the command all the same",
        "tests/engine/test_errors.py, tests/inputs/test_loader.py",
    ),
    (
        "the log's line of an epoch was not forced to the disk before its checkpoint",
        "it is",
        "tests/engine/test_log.py",
    ),
)


def records(name):
    """The records of a kind, of which there may be none."""
    path = RECORDS / f"{name}.jsonl"
    return read_lines(path) if path.exists() else []


def table(head, rows):
    """The lines of a table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def kills():
    """(sentence, table) of the kills."""
    done, ends = records("kills"), records("ends")
    killed = [each for each in done if each.get("signal")]
    rows = []
    for name in dict.fromkeys(each["chain"] for each in done):
        own = [each for each in killed if each["chain"] == name]
        signals = Counter(each["signal"] for each in own)
        moments = sum(":" in each["moment"] for each in own)
        last = [each for each in ends if each["chain"] == name]
        rows.append(
            (
                name,
                len(last),
                *(signals[key] for key in ("SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP")),
                moments,
                sum(len(each["broken"]) for each in done if each["chain"] == name),
                sum(len(each["differences"]) for each in last),
            )
        )
    head = ("chain", "runs", "SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP", "of these inside a call")
    seeds = sorted({each["seed"] for each in done})
    half = sum(len(each["broken"]) for each in done)
    different = sum(len(each["differences"]) for each in ends)
    left = sum(each["left"] for each in ends)
    text = (
        f"{len(killed)} kills in {len(ends)} runs of {len(rows)} chains (seeds "
        f"{', '.join(map(str, seeds))}): {half} files that were not whole or commands that did not "
        f"go on, {different} differences from the uninterrupted runs. At the ends {left} temporary "
        "files were left, which nobody reads, and which the next write of the same file removes."
    )
    return text, table((*head, "broken", "differences"), rows)


def faults():
    """(sentence, table) of the faults."""
    done = records("faults")
    rows = []
    for kind in dict.fromkeys(each["kind"] for each in done):
        own = [each for each in done if each["kind"] == kind]
        survived = sum(each["told"] == "survived" for each in own)
        names = Counter(f"{each['subject']}: {each['name']}" for each in own)
        rows.append(
            (
                kind,
                len(own),
                sum(each["real"] for each in own),
                survived,
                len(own) - survived,
                sum(each["bytes_lost"] for each in own),
                sum(each["epochs_lost"] for each in own),
                sum(bool(each["broken"]) for each in own),
                "; ".join(names),
            )
        )
    head = ("kind", "faults", "real", "survived", "told in one line", "bytes lost", "epochs lost")
    lost = [sum(each[key] for each in done) for key in ("bytes_lost", "epochs_lost")]
    broken = sum(bool(each["broken"]) for each in done)
    text = (
        f"{len(done)} faults of {len(rows)} kinds: {lost[0]} bytes and {lost[1]} checkpointed "
        f"epochs lost, {broken} broken. Real ones come from the system (a small file system, "
        "limits, signals, /proc), the others from a shim of the call."
    )
    return text, table((*head, "broken", "what"), rows)


def page():
    """The report."""
    killed, of_kills = kills()
    failed, of_faults = faults()
    broken = [
        each.get("chain", each.get("kind")) + ": " + "; ".join(each["broken"])[:300]
        for name in ("kills", "faults")
        for each in records(name)
        if each["broken"]
    ]
    found = versions()
    made = f"{date.today().isoformat()}, commit {commit()}, {processor()}, {platform()}"
    packages = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "numpy"))
    parts = [
        "# Reliability",
        f"Written by `make soak` ({made}; {packages}), from one record a kill and fault.",
        "## Kills",
        "Chains of the public scripts run as processes; each command is killed up to six times, "
        "at a moment of the clock or inside a call (a checkpoint half written, before or after a "
        "rename, an fsync, a fork, in the middle of a compilation), alone or with all that it "
        "started; after each kill every file is read, and the command goes on.",
        killed,
        of_kills,
        "## Faults",
        failed,
        of_faults,
        "## What is broken",
        "\n".join(f"- {each}" for each in broken) or "Nothing.",
        "## What was mended",
        table(("what broke", "now", "held by"), MENDED),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_text(PAGE, page())
    print(f"written to {PAGE}")
