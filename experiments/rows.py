"""The rows of the published tables, and the stages that make each of them by the public scripts."""

import difflib
import shlex
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UseError

from .chain import Stage, options, words

COMMANDS = Path(__file__).with_name("published_commands.txt")
SCHEDULES = ("published", "fast", "smoke")
DATA = "./data"  # default of --data_root; that of the recordings is their own script's
CONFS = "spike_driven_transformer/conf"
FAST = {"CIFAR10": (60, 40), "CIFAR100": (60, 40)}  # epochs of the ANN and of the SNN
SNN = {
    "multi_channel": 1,
    "hardware_opt": 1,
    "input_encoding": 1,
    "optimizer": "Adam",
    "weight_decay": 0,
    "learning_rate": 1e-3,
    "warm_up_epochs": 1,
    "conversion": "matched",
    "distill": "{ann}",
}  # see results/questions


@dataclass(frozen=True)
class Row:
    """A row of the published tables: accuracy in %, energy in uJ; steps: T, of DVS-CIFAR10 the packed frames Q_F."""

    name: str
    dataset: str
    network: str
    method: str
    levels: int | None
    steps: int
    accuracy: float
    energy: float
    macs: int = 0  # of one image and step
    frames: int = 0  # T_F, of DVS-CIFAR10

    @property
    def group(self):
        """Rows of a group share stages (the ANN), and so a folder."""
        return f"{self.dataset}-{self.network}".lower()

    @property
    def ann(self):
        """The row of the ANN that this row is compared with, or None."""
        return next(
            (r for r in ROWS if r.group == self.group and r.method == "ANN" and r is not self), None
        )

    @property
    def cnn(self):
        return self.network in ("ResNet20", "VGG16")


def _static():
    macs = {
        ("ResNet20", "CIFAR10"): 215_699_456,
        ("ResNet20", "CIFAR100"): 215_883_776,
        ("VGG16", "CIFAR10"): 338_403_328,
        ("VGG16", "CIFAR100"): 338_771_968,
        ("VGG16", "IMAGENET"): 15_470_264_320,
    }
    cnn = [
        ("CIFAR10", "ResNet20", 94.31, 997, 93.19, 55.5),
        ("CIFAR10", "VGG16", 94.43, 1560, 93.34, 52.4),
        ("CIFAR100", "ResNet20", 67.10, 997, 63.80, 71.0),
        ("CIFAR100", "VGG16", 74.50, 1560, 72.59, 66.0),
        ("IMAGENET", "VGG16", 72.56, 71200, 71.05, 3370),
    ]
    for dataset, network, *numbers in cnn:
        name, size = f"{dataset}-{network}".lower(), macs[network, dataset]
        yield Row(f"{name}-ann", dataset, network, "ANN", None, 1, *numbers[:2], size)
        yield Row(f"{name}-mlif", dataset, network, "M-LIF", 3, 1, *numbers[2:], size)
    for dataset, numbers in (
        ("CIFAR10", ((4, 95.9, 1470), (2, 95.5, 484), (1, 95.4, 259))),
        ("CIFAR100", ((4, 78.9, 1680), (2, 78.3, 820), (1, 78.2, 478))),
    ):
        for steps, accuracy, energy in numbers:
            yield Row(
                f"{dataset.lower()}-transformer-t{steps}",
                dataset,
                "Transformer-2-512",
                "M-LIF",
                3,
                steps,
                accuracy,
                energy,
                1_234_899_968,
            )
    yield Row(
        "imagenet-transformer-t1",
        "IMAGENET",
        "Transformer-8-512",
        "M-LIF",
        3,
        1,
        75.33,
        3640,
        8_256_671_744,
    )


def _dynamic():
    for levels, frames, steps, accuracy, energy in (
        (4, 80, 10, 84.7, 350),
        (3, 40, 10, 84.3, 340),
        (4, 40, 5, 83.3, 180),
        (3, 20, 5, 83.0, 170),
        (4, 20, 3, 82.5, 110),
        (3, 10, 3, 79.8, 90),
    ):
        yield Row(
            f"dvscifar10-vggsnn-s{levels}-q{steps}",
            "DVS-CIFAR10",
            "VGGSNN",
            "M-LIF",
            levels,
            steps,
            accuracy,
            energy,
            660_943_872,
            frames,
        )


ROWS = (*_static(), *_dynamic())


def published(script, dataset, architecture):
    """The options of a published CNN command, without those that CIFAR does not use and its input's name."""
    for line in COMMANDS.read_text().splitlines():
        _, file, *tokens = shlex.split(line)
        found = options(tokens)
        if (file, found["dataset"], found["architecture"]) == (
            f"{script}.py",
            dataset,
            architecture.upper(),
        ):
            break  # the first is no LQ-ANN
    found.pop("pretrained_ann", None)
    if dataset != "IMAGENET":
        found.pop("dataset_dir", None)
    if found.get("optimizer") == "Adam":
        found.pop("momentum")
    return found


def faster(args):
    """The options for speed that are not their scripts' defaults."""
    return {
        name: getattr(args, name) for name in ("amp", "compile") if getattr(args, name) != "none"
    }


def _cnn(row, args, seed):
    architecture = row.network.upper()
    data = {"dataset_dir" if row.dataset == "IMAGENET" else "data_root": args.data_root}
    common = {
        **data,
        "width_mult": args.width_mult,
        "seed": seed,
        "device": args.device,
        "energy": True,
        **faster(args),
    }
    ann, fuse, snn = (
        published(script, row.dataset, architecture)
        for script in ("ann_ddp", "absorb_bn", "snn_ddp")
    )
    if args.schedule != "published":
        shared = {
            "dataset": row.dataset,
            "architecture": architecture,
            "bias": True,
            "batch_size": 128,
            "dropout": 0,
            "lr_schedule": "cosine",
            "warm_up": True,
        }
        epochs = FAST[row.dataset] if args.schedule == "fast" else (3, 2)
        ann = {
            **shared,
            "bn": True,
            "epochs": epochs[0],
            "learning_rate": 0.05,
            "warm_up_epochs": 2,
            "label_smoothing": 0.1,
        }
        snn = {**shared, **SNN, "epochs": epochs[1]}
    stages = [Stage("ann", "ann_ddp", words({**ann, **common}))]
    if row.method == "ANN":
        return stages
    stages.append(
        Stage(
            "ann_fused",
            "absorb_bn",
            words({**fuse, "width_mult": args.width_mult, "pretrained_ann": "{ann}"}),
        )
    )
    printed = {**snn, **common, "pretrained_ann": "{ann_fused}"}
    wanted = {**printed, "num_channels": str(row.levels), "timesteps": str(row.steps)}
    if (
        args.schedule == "published" and wanted != printed
    ):  # the recipe's neuron is not the table's: both run
        stages.append(Stage("snn_as_printed", "snn_ddp", words(printed)))
    return [*stages, Stage("snn", "snn_ddp", words(wanted))]


def _transformer(row, args, seed):
    size = "8_512_300E" if row.dataset == "IMAGENET" else "2_512_300E"
    found = {
        "config": f"{CONFS}/{row.dataset.lower()}/{size}_t{row.steps}_c{row.levels}.yml",
        "model": "sdt",
        "spike_mode": "fast_mlif" if row.dataset == "IMAGENET" else "mlif",
        "data_dir": args.data_root,
        "seed": seed,
        "device": args.device,
        "energy": True,
        **faster(args),
    }
    if args.schedule == "smoke":
        found |= {
            "epochs": 1,
            "cooldown_epochs": 0,
            "warmup_epochs": 0,
            "limit_train_batches": 2,
            "limit_eval_batches": 2,
        }
    return [Stage(f"t{row.steps}", "spike_driven_transformer.train", words(found))]


def _vggsnn(row, args, seed):
    found = {
        "multi_channel": 1,
        "num_channels": row.levels,
        "T_prime": row.frames,
        "seed": seed,
        "device": args.device,
        "energy": True,
        "width_mult": args.width_mult,
        **faster(args),
    }
    if args.data_root != DATA:
        found["prepared"] = args.data_root
    if args.schedule == "smoke":
        found |= {"epochs": 1, "limit_train_batches": 2, "limit_eval_batches": 2}
    return [
        Stage(
            f"s{row.levels}_q{row.steps}", "neuromorphic_tasks.main_training_parallel", words(found)
        )
    ]


def stages(row, args, seed):
    """The stages of a row; the last one is the row's network.

    args: schedule, width_mult, data_root, amp, compile, device.
    Raises:
        UseError: the row has no such schedule, or no such width.
    """
    if args.schedule == "fast" and not (row.cnn and row.dataset in FAST):
        raise UseError(
            f"{row.name} has no fast schedule, only VGG16 and ResNet20 on CIFAR10 and CIFAR100 have one: "
            "--schedule published or smoke"
        )
    if row.network.startswith("Transformer"):
        if args.width_mult != 1:
            raise UseError(f"--width_mult: {row.name} has one width")
        return _transformer(row, args, seed)
    return _cnn(row, args, seed) if row.cnn else _vggsnn(row, args, seed)


def find(name):
    """The row of that name.

    Raises:
        UseError: there is none; the nearest is named.
    """
    names = [row.name for row in ROWS]
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, 1, 0)
        raise UseError(f"there is no row {name!r}: did you mean {near[0]}? (--list shows all)")
    return ROWS[names.index(name)]
