"""Write results/reliability.md from the records of campaigns.

python -m tests.soak.report [<folder of records> ...]
"""

import sys
from collections import Counter
from datetime import date
from pathlib import Path
from platform import platform

from engine.files import write_text
from engine.log import read_json, read_lines, versions
from engine.machine import processor
from tests.helpers import ROOT
from tests.mutated import REFUSED, SAME
from tests.soak.campaign import RECORDS

PAGE = ROOT / "results" / "reliability.md"
FIGURES = ROOT / "results" / "reliability"
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
    (
        "checkpoints and settings whose structure or sizes lie: a traceback, minutes, gigabytes",
        "parts are checked, and a network is built without memory first",
        "tests/soak/test_lies.py, tests/engine/test_damaged_checkpoints.py",
    ),
    (
        "packed recordings and pictures of a megabyte took gigabytes; AEDAT 4.0 ended the process",
        "what they unpack to is bounded; AEDAT 4.0 is read in a process of its own",
        "tests/soak/test_lies.py, tests/inputs/test_mutated.py",
    ),
    (
        "damaged declarations of chains: a traceback",
        "one line",
        "tests/experiments/test_damaged_declarations.py",
    ),
    (
        "two machines whose own names lead to a loopback, as on Debian, could not meet",
        "they meet over the interface that leads to the others, or say so within minutes",
        "tests/soak/test_machines.py",
    ),
    (
        "a process whose first machine was cut off waited for minutes before it said so",
        "it waits for ten seconds",
        "tests/engine/test_dist.py",
    ),
    (
        "a machine that was started again under torchrun ended all the others (torch)",
        "a variable that docs/cnn.md names",
        "tests/soak/test_machines.py",
    ),
    (
        "a last.pth whose generators or optimizer have a state of another form: 4 GB, a traceback",
        "one line; an optimizer's state is tried by a step of a copy",
        "tests/engine/test_loop.py",
    ),
    (
        "a checkpoint whose LIF neuron cannot be: a traceback",
        "one line",
        "tests/models/test_activations.py",
    ),
    (
        "a refused setting did not name its file; classify.py believed what a file says of images",
        "it does; what is said of images must fit the network",
        "tests/cli/test_provenance.py, tests/inputs/test_pretrained.py",
    ),
)


def records(name, folders):
    """The records of a kind in all folders, which may hold none."""
    paths = [folder / f"{name}.jsonl" for folder in folders]
    return [line for path in paths if path.exists() for line in read_lines(path)]


def made(done):
    """On which seeds, of which commits, records were made."""
    seeds = ", ".join(map(str, sorted({each["seed"] for each in done})))
    commits = ", ".join(sorted({each["commit"] for each in done}))
    return f"seeds {seeds}; commits {commits}"


def table(head, rows):
    """The lines of a table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def turn(record):
    """Which run of a chain a record is of."""
    return record["seed"], record["commit"], record["turn"]


def kills(done, ends):
    """(sentence, table) of the kills."""
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
    half = sum(len(each["broken"]) for each in done)
    different = sum(len(each["differences"]) for each in ends)
    left = sum(each["left"] for each in ends)
    # of a campaign that was stopped, the last run has no end
    ended = {turn(each) for each in ends}
    compared = sum(turn(each) in ended for each in killed)
    text = (
        f"{len(killed)} kills ({made(done)}): {half} files that were not whole or commands that "
        f"did not go on. {compared} of them lie in {len(ends)} runs of {len(rows)} chains that "
        f"reached their ends: {different} differences from the uninterrupted runs. There {left} "
        "temporary files were left, which nobody reads, and which the next write of the same file "
        "removes."
    )
    return text, table((*head, "broken", "differences"), rows)


def faults(done):
    """(sentence, table) of the faults."""
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
        f"{len(done)} faults of {len(rows)} kinds ({made(done)}): {lost[0]} bytes and {lost[1]} "
        f"checkpointed epochs lost, {broken} broken. Real ones come from the system (a small file "
        "system, limits, signals, /proc), the others from a shim of the call."
    )
    return text, table((*head, "broken", "what"), rows)


def hostile(found):
    """(sentence, table) of the hostile input."""
    rows = []
    for name, own in found["readers"].items():
        outcomes = Counter(own["outcomes"])
        refused, same = outcomes.pop(REFUSED, 0), outcomes.pop(SAME, 0)
        others = "; ".join(f"{count} {what}" for what, count in outcomes.items())
        took = own["most_seconds"], own["most_mebibytes"]
        counts = own["inputs"], refused, same, others, len(own["failed"])
        rows.append((name.replace("_", " "), *counts, *took))
    head = ("reader", "inputs", REFUSED, SAME, "else", "failed", "at most, s", "at most, MiB")
    skipped = "".join(f" {name}: skipped, {why}." for name, why in found["skipped"].items())
    text = (
        f"{found['inputs']} inputs ({made(found['readers'].values())}), "
        f"{found['failed']} failed, by a traceback, the end of the process, a wrong result, more "
        f"than {found['limits']['seconds']} s or {found['limits']['mebibytes']} MiB.{skipped}"
    )
    return text, table(head, rows)


def machines(found):
    """The table of several machines."""
    rows = [
        (what, "; ".join(f"{name}: {value}" for name, value in figures.items()))
        for what, figures in found.items()
    ]
    return table(("what", "figures"), rows)


def page(folders):
    """The report of the records in some folders."""
    done, ends, failed = (records(name, folders) for name in ("kills", "ends", "faults"))
    wrong = [
        (each.get("chain") or each["kind"], each.get("differences") or each.get("broken"))
        for each in done + ends + failed
    ]
    broken = [f"{name}: {'; '.join(what)[:300]}" for name, what in wrong if what]
    found = versions()
    packages = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "numpy"))
    parts = [
        "# Reliability",
        "Written by `make soak`, with what `make hostile` and `make machines` wrote "
        f"({date.today().isoformat()}, {processor()}, {platform()}; {packages}).",
        "## Kills",
        "Chains of the public scripts run as processes; each command is killed up to twelve times, "
        "at a moment of the clock or inside a call (a checkpoint half written, before or after a "
        "rename, an fsync, a fork, in the middle of a compilation), alone or with all that it "
        "started; after each kill every file is read, and the command goes on.",
        *kills(done, ends),
        "## Faults",
        *faults(failed),
        "## Hostile input",
        "Damaged bytes and structures, sizes that lie, archives and texts that unfold, pickles "
        "that would leave a mark: each is refused in one line, or read as what it is.",
        *hostile(read_json(FIGURES / "hostile.json")),
        "## Several machines",
        "Hosts in network namespaces, each with an address of its own.",
        machines(read_json(FIGURES / "machines.json")),
        "## What is broken",
        "\n".join(f"- {each}" for each in broken) or "Nothing.",
        "## What was mended",
        table(("what broke", "now", "held by"), MENDED),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_text(PAGE, page([Path(word) for word in sys.argv[1:]] or [RECORDS]))
    print(f"written to {PAGE}")
