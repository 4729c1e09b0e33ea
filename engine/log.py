"""The run folder: configuration, one JSON line per epoch, TensorBoard; and the progress bar."""

import glob
import json
import os
import platform
import sys
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from .errors import RunError, UseError
from .files import write_text

PACKAGES = ("torch", "torchvision", "numpy", "timm", "spikingjelly", "tensorboard")


def versions():
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        # some are loaded only by what uses them
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def write_json(path, content):
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def read_json(path):
    """The content of a JSON file that this project wrote.

    Raises:
        UseError: it is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UseError(
            f"{path} is missing or damaged ({error}): remove it, and what made it writes it anew"
        ) from None


def read_lines(path):
    """The contents of a JSON Lines file, as `read_json`."""
    try:
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UseError(
            f"{path} is missing or damaged ({error}): remove the run it belongs to, and train it "
            "anew"
        ) from None


def progress(iterable, world=None, **options):
    """tqdm bar on rank 0, or without a `world`; options: tqdm's."""
    from tqdm import tqdm

    options |= {"file": sys.stderr, "dynamic_ncols": True, "leave": False}
    hidden = world is not None and not world.main
    # a log file is no place for two lines a second
    interval = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(iterable, disable=hidden, mininterval=interval, **options)


def _epoch(line):
    """Epoch of a line of log.jsonl; a line that was cut off counts as one to be done again."""
    try:
        return float(json.loads(line)["epoch"])
    except (LookupError, RecursionError, TypeError, ValueError):
        return float("inf")


class RunLog:
    """Writes into a run folder; on other ranks than 0 (`folder` None) it writes nothing.

    config: content of config.json, of a run that begins. resume_epoch: last whole epoch of a run
    that goes on; what was logged after it is dropped, since it is about to be done again.
    """

    def __init__(self, folder, config=None, resume_epoch=None):
        self.folder = folder and Path(folder)
        self.board = None
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines = self.folder / "log.jsonl"
        if config is not None:
            write_json(self.folder / "config.json", {**config, "versions": versions()})
        # what a kill left of an unfinished epoch goes
        if resume_epoch is not None and self.lines.exists():
            lines = self.lines.read_text().splitlines()
            kept = [f"{line}\n" for line in lines if _epoch(line) <= resume_epoch]
            write_text(self.lines, "".join(kept))

        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print(
                "tensorboard is not installed, no curves are written (pip install tensorboard)",
                flush=True,
            )
            return
        # TensorBoard drops the points of epochs that are done again
        purge = None if resume_epoch is None else resume_epoch + 1
        self.board = SummaryWriter(self.folder, purge_step=purge)

    def epoch(self, epoch, values, curves=None):
        """One JSON line and the curves of an epoch; `curves` go to TensorBoard alone."""
        if self.folder is None:
            return
        with self._writing():
            # a line is appended, so that a reader of a running training sees whole epochs
            with open(self.lines, "a") as file:
                file.write(json.dumps({"epoch": epoch, **values}) + "\n")
                file.flush()
                # the checkpoint that counts on it comes next
                os.fsync(file.fileno())
            # text, such as a folder's name, is no curve
            if self.board:
                for name, value in {**values, **(curves or {})}.items():
                    if isinstance(value, (int, float)):
                        self.board.add_scalar(name, value, epoch)
                self.board.flush()

    @contextmanager
    def _writing(self):
        """Tells how to go on where the disk is full."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"cannot write the log in {self.folder} ({error}): make room, then go on with "
                f"--resume {self.folder}"
            ) from error

    def close(self):
        """Close what is open."""
        if self.board:
            with self._writing():
                self.board.close()


def new_folder(base):
    """A new run folder <base>_<date>_<time>[-n] beside `base`, a path without suffix.

    Raises:
        UseError: it cannot be made.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        again = f"-{attempt}" if attempt else ""
        folder = Path(f"{base}_{stamp}{again}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue  # another run began in this second
        except OSError as error:
            raise UseError(
                f"cannot create the run folder {folder} ({error}): check --output_dir"
            ) from None
    raise UseError(f"no free run folder beside {base}")


def run_folders(base, file):
    """The run folders of `new_folder(base)` that hold `file`, oldest first."""
    # the date begins with the millennium
    found = base.parent.glob(f"{glob.escape(base.name)}_2*/{file}")
    return sorted(path.parent for path in found)
