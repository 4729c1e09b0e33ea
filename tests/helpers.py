"""Run the scripts as a user does, in a folder of its own; and stand-ins for image folders."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GROUP_WORLD_SIZE")

# Seconds that any child process may take. Generous: it ends what hangs, and a busy machine is no
# fault of the program. MLIF_TEST_PATIENCE is a factor for slower machines.
PATIENCE = 600 * float(os.environ.get("MLIF_TEST_PATIENCE", "1"))


def environment(folder, **more):
    """This process's environment without launcher variables; `python3` is this interpreter."""
    env = {k: v for k, v in os.environ.items() if k not in LAUNCHERS and not k.startswith("SLURM_")}
    env["PATH"] = f"{folder / 'bin'}{os.pathsep}{env['PATH']}"
    env["CUDA_VISIBLE_DEVICES"] = ""
    env["TQDM_DISABLE"] = "1"
    env["OMP_NUM_THREADS"] = "1"
    return env | {name: str(value) for name, value in more.items()}


def listed(pattern="*"):
    """The repository's files whose names match, and none that a user or a run put there."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", pattern]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        names = done.stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        names = []
    if not names:
        # no git, or an unpacked archive, which may lie where another repository ignores it
        found = [path.relative_to(ROOT) for path in ROOT.rglob(pattern)]
        names = [path for path in found if not path.parts[0].startswith((".", "runs"))]
    paths = [ROOT / name for name in names]
    return [path for path in paths if path.is_file()]


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def command(line, folder, path=None, **env):
    """The finished process of a shell command line in `folder`.

    path: the folder whose bin/ holds python3.
    """
    return subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env=environment(path or folder, **env),
        text=True,
        timeout=PATIENCE,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )


def start(argv, folder, **env):
    """A script started in the background: argv[0] is its name."""
    return subprocess.Popen(
        [sys.executable, *map(str, argv)],
        cwd=folder,
        env=environment(folder, **env),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def end(process):
    """(exit status, output, errors) of a process of `start`, once it has ended."""
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, output, errors


def read(argv, folder, status=0, **env):
    """Run a script to its end; its output, or, for a nonzero `status`, its one line of error."""
    got, output, errors = end(start(argv, folder, **env))
    assert got == status, f"exit status {got}, expected {status}\n{output}\n{errors}"
    if status == 0:
        return output
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    return lines[0]


def image_folder(root, classes, count, size=(32, 32), suffix="png"):
    """`count` noise images spread over <root>/<class>/; every class has a folder."""
    rng = np.random.default_rng(count)
    for label in range(classes):
        (root / f"n{label:04}").mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"n{i % classes:04}" / f"{i}.{suffix}")


def cifar_copy(root, name="cifar10", classes=10, train=24, test=12, kind="jpeg"):
    """A stand-in for a CIFAR image copy: noise images under <root>/<name>-<kind>."""
    for part, count in (("train", train), ("test", test)):
        image_folder(root / f"{name}-{kind}" / part, classes, count)


def run_folder(output):
    """The one run folder under an output folder, such as <output>/ann/ann_..._<date>_<time>."""
    (folder,) = [path for path in output.glob("*/*") if path.is_dir()]
    return folder
