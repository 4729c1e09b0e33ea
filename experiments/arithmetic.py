"""Which code made a result: a version of what it computes, and the state of the sources."""

import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The version of what the code computes. It is raised by hand when numbers change; results of
# different versions never mix. tests/experiments/test_arithmetic.py tells when that is due.
# Not raised, since no recorded result moves: --conversion published at full width balances on 512
# images of CIFAR now, and on 11 of ImageNet, where it was 457 and 9.
ARITHMETIC = 1

# Results of before name their code by a digest of its files. All of it computes version 1.
LEGACY = {
    "59256b1b420f4418": 1,
    "d2e481ac22c62c47": 1,
    "46954b9b42cd3335": 1,
    "cd7a7b142854f8f0": 1,
}

# What the stages of a chain run. Other files may change while a chain goes on.
SCRIPTS = ("ann_ddp.py", "absorb_bn.py", "snn_ddp.py")
ROOMS = (
    "models",
    "engine",
    "inputs",
    "analysis",
    "cli",
    "spike_driven_transformer",
    "neuromorphic_tasks",
)
KINDS = (".py", ".cu", ".h", ".yml")


def version(stored):
    """The version of the arithmetic that a result names; a digest that is unknown stays itself."""
    return LEGACY.get(stored, stored)


def sources():
    """Digest of the sources, by which a running chain notices that they have changed."""
    files = [path for path in map(ROOT.joinpath, SCRIPTS) if path.is_file()]
    for room in ROOMS:
        # recordings may lie in a room, too
        files += [path for path in (ROOT / room).rglob("*") if path.suffix in KINDS]
    digest = hashlib.sha256()
    # a folder lists its files in any order
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def commit():
    """Commit of the working tree, with `+` if it was changed; '' outside git."""
    # of this project alone: an archive of it may lie inside another one's tree
    command = "git --git-dir=.git describe --always --dirty=+ --abbrev=10 --exclude=*"
    # a project that was unpacked from an archive has no commit, and some machines have no git
    try:
        done = subprocess.run(
            command.split(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip()
