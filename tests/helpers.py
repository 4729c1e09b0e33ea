"""Run the scripts as a user does: through a shell, in a folder of its own; and stand-ins for image folders."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GROUP_WORLD_SIZE")


def environment(folder, **more):
    """This process's environment without launcher variables; `python3` is this interpreter."""
    env = {k: v for k, v in os.environ.items() if k not in LAUNCHERS and not k.startswith("SLURM_")}
    return (
        env
        | {
            "PATH": f"{folder / 'bin'}{os.pathsep}{env['PATH']}",
            "CUDA_VISIBLE_DEVICES": "",
            "TQDM_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
        }
        | {k: str(v) for k, v in more.items()}
    )


def command(line, folder, timeout=600, path=None, **env):
    """The finished process of a shell command line in `folder`; `path`: the folder whose bin/ holds python3."""
    return subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env=environment(path or folder, **env),
        text=True,
        timeout=timeout,
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


def read(argv, folder, status=0, timeout=120, **env):
    """Run a script to its end; its output, or, for a nonzero `status`, its one line of error."""
    done = subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=folder,
        env=environment(folder, **env),
        text=True,
        timeout=timeout,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == status, (
        f"exit status {done.returncode}, expected {status}\n{done.stdout}\n{done.stderr}"
    )
    if status == 0:
        return done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def image_folder(root, classes, count, size=(32, 32), suffix="png"):
    """`count` noise images spread over <root>/<class>/; every class has a folder."""
    rng = np.random.default_rng(count)
    for label in range(classes):
        (root / f"n{label:04}").mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"n{i % classes:04}" / f"{i}.{suffix}")
