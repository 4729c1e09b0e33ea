"""Options of the commands that run chains of the public scripts."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from cli.options import FileOptions, NetworkOptions
from engine.dist import DeviceOptions
from engine.errors import UseError
from engine.loop import ComputeOptions, RunOptions
from engine.machine import fast_amp
from engine.recipes.cnn import TrainingOptions
from engine.settings import Settings, group, option, positive_int, seed
from inputs.loader import BatchOptions
from inputs.table import DataOptions

SCHEDULES = ("published", "fast", "smoke")  # from the most telling to the least


def seed_list(text):
    """Type of comma-separated seeds."""
    return tuple(map(seed, text.split(",")))


def command_line(text):
    """Type of a command line, with its quotes balanced."""
    shlex.split(text)
    return text


def output(default):
    """The group of a command that writes below one folder."""
    return group(
        only=("output_dir",),
        output_dir={"default": default, "help": "folder of everything that is run"},
    )


# of commands that compare recipes: of three seeds a paired difference can say something
THREE_SEEDS = {"default": (0, 1, 2), "type": seed, "nargs": "+", "help": "seeds of the runs"}
# the group of the network that they compare them on
NARROW = group(only=("architecture", "width_mult"), architecture="RESNET20", width_mult=0.25)


@dataclass(frozen=True)
class ExperimentOptions:
    """experiment"""

    list: bool = option(False, "show what there is to run")
    report: bool = option(False, "write the tables and figures of what is finished, run nothing")
    seeds: tuple = option((0,), "comma-separated; several give mean and spread", seed_list)
    results: str = option("", "folder of the results; default: a folder of results/")


@dataclass(frozen=True)
class RowOptions:
    """row"""

    row: str = option("", "name of the row", positional=True, nargs="?")
    schedule: str = option(
        "published",
        "published: as printed; fast: fewer epochs, cosine, matched conversion (CIFAR CNNs); "
        "smoke: minutes, to see the chain work",
        choices=SCHEDULES,
    )
    dry_run: bool = option(False, "show the commands of the row (without a row: of all)")
    launcher: str = option(
        "",
        "what starts the training scripts instead of python, such as 'torchrun --nproc_per_node=4'",
        command_line,
    )


@dataclass(frozen=True)
class ExperimentSettings(Settings):
    """What every command that runs chains has."""

    experiment: ExperimentOptions = group()
    network: NetworkOptions = group(only=("width_mult",))
    data: DataOptions = group(
        only=("data_root",),
        data_root={
            "help": "folder of the data set, of DVS-CIFAR10 of the prepared recordings; default: "
            "where the scripts look"
        },
    )
    compute: ComputeOptions = group(
        only=("amp", "compile"),
        # None: `settled` chooses
        amp={"default": None, "help": "autocast type; default: bf16 where that is faster"},
    )
    device: DeviceOptions = group(only=("device",))
    run: RunOptions = output("runs")


@dataclass(frozen=True)
class RowSettings(ExperimentSettings):
    """Options of reproduce.py."""

    row: RowOptions = group()
    files: FileOptions = group(
        only=("replace",),
        replace={"help": "replace a result of other trainings, code or arguments"},
    )
    # the row and the schedule choose, see `reproduce.of_row`
    network: NetworkOptions = group(
        only=("width_mult",),
        width_mult={"default": None, "help": "factor of every width; default: 1, of smoke 0.25"},
    )
    run: RunOptions = output("runs/reproduce")


@dataclass(frozen=True)
class QuestionOptions:
    """questions"""

    questions: tuple = option((), "names of questions, or all", positional=True, nargs="*")
    ann_epochs: int = option(8, "epochs of the ANN", positive_int)


@dataclass(frozen=True)
class QuestionSettings(ExperimentSettings):
    """Options of questions.py."""

    question: QuestionOptions = group()
    experiment: ExperimentOptions = group(seeds=THREE_SEEDS, results="results/questions")
    network: NetworkOptions = NARROW
    training: TrainingOptions = group(
        only=("epochs", "learning_rate"),
        epochs={"default": 3, "help": "epochs of the LQ-ANN and of every SNN"},
        learning_rate={"help": "learning rate of the LQ-ANN and of every SNN"},
    )
    batches: BatchOptions = group(only=("limit_train_batches", "limit_eval_batches"))
    run: RunOptions = output("runs/questions")


def settled(asked: ExperimentSettings, amp=None):
    """The settings with the autocast type chosen, and with a folder of data that holds anywhere.

    amp: the type where none is asked for; default: the faster one of the device.
    Raises:
        UseError: a seed is named twice.
    """
    data = asked.data
    compute = asked.compute
    seeds = asked.experiment.seeds
    # a seed that counts twice would make the spread too small
    if len(set(seeds)) < len(seeds):
        raise UseError("--seeds names a seed twice")
    # stages run in the project's folder, where the default means what it means to the scripts
    if "data_root" in asked.given:
        folder = Path(data.data_root).resolve()
        data = replace(data, data_root=str(folder))
    # the scripts would not choose, and recipes name it
    chosen = compute.amp or amp or fast_amp(asked.device.device)
    compute = replace(compute, amp=chosen)
    return replace(asked, data=data, compute=compute)
