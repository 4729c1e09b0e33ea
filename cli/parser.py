"""Command lines: one declaration per option, shared groups, strict checks.

Every option is accepted with one dash or two and with `_` or `-` inside, since the published scripts mix them.
"""

import argparse
import copy
import difflib
import math
import re
import sys

from engine.errors import UseError

ARCHITECTURES = ("VGG16", "RESNET20")
COMPILE = ("none", "default", "reduce-overhead", "max-autotune")
DATASETS = ("CIFAR10", "CIFAR100", "IMAGENET", "DIGITS", "FOLDER")


def _key(option):
    return option.lstrip("-").replace("-", "_")


class Parser(argparse.ArgumentParser):
    """ArgumentParser with both dash spellings, no abbreviations, one-line errors that name the nearest option."""

    def __init__(self, **kwargs):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs
        )

    def error(self, message):
        unknown = re.match(r"unrecognized arguments: (-\S*)", message)
        if unknown:
            known = {_key(o): o for o in self._option_string_actions}
            near = difflib.get_close_matches(_key(unknown[1].split("=")[0]), known, 1, 0.6)
            message += f"; did you mean {known[near[0]]}?" if near else "; --help lists the options"
        raise UseError(message)

    def spelled(self, argv):
        """The words of argv (None: of the command line) with every option as it is declared, whatever its dashes."""
        known = {_key(o): o for o in self._option_string_actions}
        for token in sys.argv[1:] if argv is None else argv:
            name, eq, value = token.partition("=")
            option = re.fullmatch(r"--?[A-Za-z][\w-]*", name)
            yield known.get(_key(name), name) + eq + value if option else token

    def parse(self, argv):
        """Parse argv; the namespace also holds `given`, the names of the options that argv really names."""
        argv = list(self.spelled(argv))
        args = self.parse_args(argv)
        bare = copy.copy(self)
        bare._actions = [copy.copy(a) for a in self._actions]
        for action in bare._actions:
            action.default = argparse.SUPPRESS
        bare._option_string_actions = {o: a for a in bare._actions for o in a.option_strings}
        args.given = set(vars(bare.parse_args(argv)))
        return args


def read_conf(parser, path, gone=None):
    """The options that a YAML file of `key: value` gives, as command-line words for `parser`.

    Keys are option names, with `_` or `-`; true switches a flag on, false leaves it off. gone: {key: why it is refused}.
    Raises:
        UseError: the file is missing or no such mapping, or a key is unknown (the nearest is named), with file and key.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(
                file, Loader=yaml.BaseLoader
            )  # all values stay text: the option's own type reads them
    except FileNotFoundError:
        raise UseError(f"no configuration at {path}: check -c") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UseError(
            f"{path} is not a readable YAML file: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(content, dict):
        raise UseError(
            f"{path} must hold lines of `key: value`, it holds a {type(content).__name__}"
        )
    options = {_key(o): a for o, a in parser._option_string_actions.items() if o.startswith("--")}
    words = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        action = options.get(name)
        if action is None:
            near = difflib.get_close_matches(name, options, 1, 0.6)
            reason = (gone or {}).get(name) or (
                f"did you mean {near[0]}?" if near else "--help lists the options"
            )
            raise UseError(f"{path}: unknown key {key!r}; {reason}")
        option = action.option_strings[-1]
        if action.nargs == 0:
            if str(value).lower() not in ("true", "false"):
                raise UseError(f"{path}: {key} must be true or false, got {value!r}")
            words += [option] if value.lower() == "true" else []
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        elif isinstance(value, dict):
            raise UseError(f"{path}: {key} must be a value or a list, got a mapping")
        elif value not in ("null", "~", "None", ""):
            words.append(f"{option}={value}")
    return words


def number(kind, low=None, high=None, above=None):
    """Argument type: a number of `kind` within [low, high] and > above."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {kind.__name__}, got {text!r}") from None
        inside = (
            (low is None or value >= low)
            and (high is None or value <= high)
            and (above is None or value > above)
        )
        if not inside or (kind is float and not math.isfinite(value)):
            limits = [
                f">= {low}" if low is not None else "",
                f"> {above}" if above is not None else "",
                f"<= {high}" if high is not None else "",
            ]
            expected = " and ".join(filter(None, limits)) or "that is finite"
            raise argparse.ArgumentTypeError(f"expected a number {expected}, got {text}")
        return value

    return parse


def fractions(text):
    """Argument type: fractions of the epochs in (0, 1], separated by spaces or commas."""
    parse = number(float, above=0, high=1)
    return [parse(part) for part in text.replace(",", " ").split()]


def boolean(text):
    """Argument type: true or false."""
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() in ("true", "1")


def pair(text):
    """Argument type: two comma-separated numbers in [0, 1)."""
    values = [number(float, low=0, high=1)(part) for part in text.split(",")]
    if len(values) != 2:
        raise argparse.ArgumentTypeError(f"expected two numbers such as 0.9,0.999, got {text!r}")
    return values


positive, natural = number(int, low=1), number(int, low=0)
rate = number(float, low=0)
strictly_positive = number(float, above=0)
finite = number(float)
seed = number(int, low=0, high=2**31 - 1)
width = number(float, above=0, high=16)


def add_network(parser, dropout, dropout_help):
    group = parser.add_argument_group("network")
    group.add_argument(
        "-a",
        "--architecture",
        type=str.upper,
        default="VGG16",
        choices=ARCHITECTURES,
        help="network",
    )
    group.add_argument(
        "--width_mult", type=width, default=1.0, help="factor of every layer's width"
    )
    group.add_argument(
        "--dropout", type=number(float, low=0, high=0.99), default=dropout, help=dropout_help
    )
    group.add_argument(
        "--kernel_size",
        type=positive,
        default=3,
        help="convolution size in pixels, odd; VGG16 only",
    )
    group.add_argument(
        "--bias",
        action="store_true",
        help="biases in the convolutions (the linear layers have none)",
    )
    return group


def add_data(parser):
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        type=str.upper,
        default="CIFAR10",
        choices=DATASETS,
        help="data set; DIGITS comes with scikit-learn, FOLDER is your own image folder",
    )
    group.add_argument(
        "--data_root",
        default="./data",
        help="folder of CIFAR10 / CIFAR100 (torchvision files or "
        "cifar10-jpeg/{train,test}/<class>/*); downloaded to if neither is there",
    )
    group.add_argument(
        "--dataset_dir",
        default="./data",
        help="IMAGENET, FOLDER: folder with train/ and val/ (or test/)",
    )
    group.add_argument(
        "--image_size",
        type=positive,
        default=None,
        help="FOLDER: side of the square input in pixels",
    )
    group.add_argument(
        "--batch_size", type=positive, default=64, help="images per step, all processes together"
    )
    group.add_argument(
        "--workers",
        type=natural,
        default=4,
        help="image-decoding processes per training process "
        "(sets up to 64 pixels are held in memory and need none)",
    )
    return add_limits(group)


def add_limits(group):
    """Options of every data set: what is held back, and how many batches are used."""
    group.add_argument(
        "--val_fraction",
        type=number(float, low=0, high=0.9),
        default=0.0,
        help="share of the training "
        "images held back to choose the best epoch on; 0 chooses on the test set, as published",
    )
    group.add_argument(
        "--limit_train_batches", type=natural, default=0, help="training batches per epoch, 0: all"
    )
    group.add_argument(
        "--limit_eval_batches", type=natural, default=0, help="evaluation batches, 0: all"
    )
    return group


def add_compile(group):
    group.add_argument(
        "--compile",
        nargs="?",
        const="default",
        default="none",
        choices=COMPILE,
        help="compile the training step (torch.compile); reduce-overhead adds CUDA graphs",
    )


def add_training(parser, epochs, lr, lr_interval, momentum):
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=positive, default=epochs, help="epochs to train")
    group.add_argument(
        "-lr", "--learning_rate", type=rate, default=lr, help="initial learning rate"
    )
    group.add_argument(
        "--lr_schedule",
        default="step",
        choices=("step", "cosine"),
        help="step: drops at --lr_interval, as published; cosine: to 0 over the epochs, in every step",
    )
    group.add_argument(
        "--lr_interval",
        type=fractions,
        default=lr_interval,
        help="fractions of the epochs, in (0, 1], at which the rate drops",
    )
    group.add_argument(
        "--lr_reduce",
        type=strictly_positive,
        default=10,
        help="divisor of the rate at each of them",
    )
    group.add_argument(
        "--optimizer", default="SGD", choices=("SGD", "Adam"), help="SGD with momentum, or Adam"
    )
    group.add_argument(
        "--weight_decay", type=rate, default=5e-4, help="L2 penalty, on every parameter"
    )
    group.add_argument(
        "--momentum", type=rate, default=momentum, help="of SGD; Adam does not use it"
    )
    group.add_argument(
        "--warm_up", action="store_true", help="raise the rate linearly at the start"
    )
    group.add_argument("--warm_up_epochs", type=positive, default=5, help="epochs of it")
    group.add_argument("--warm_up_lr", type=rate, default=1e-6, help="rate it starts from")
    group.add_argument(
        "--label_smoothing", type=number(float, low=0, high=0.9), default=0.0, help="of the loss"
    )
    group.add_argument(
        "--distill",
        default="",
        help="checkpoint of a teacher whose softened outputs the loss follows, too",
    )
    group.add_argument(
        "--distill_weight",
        type=number(float, low=0, high=1),
        default=0.5,
        help="share of that in the loss",
    )
    group.add_argument(
        "--distill_temperature",
        type=strictly_positive,
        default=4.0,
        help="what softens both outputs",
    )
    group.add_argument("-s", "--seed", type=seed, default=0, help="of everything random")
    group.add_argument(
        "--amp",
        default="none",
        choices=("none", "bf16", "fp16"),
        help="autocast type; the membrane stays float32",
    )
    add_compile(group)
    return group


def add_output(parser, folder="./trained_models", *names):
    """names: further spellings of --output_dir, whose default is `folder`."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output_dir", *names, default=folder, help="folder of the checkpoints and run folders"
    )
    group.add_argument(
        "--print_freq",
        type=positive,
        default=10,
        help="batches between two readings of the metrics",
    )
    group.add_argument(
        "--save_freq",
        type=natural,
        default=0,
        help="batches between two checkpoints inside an epoch, 0: none",
    )
    group.add_argument(
        "--resume",
        default="",
        help="run folder (or its last.pth) of an interrupted run to go on with; "
        "its own settings hold",
    )
    group.add_argument(
        "--test_only", action="store_true", help="evaluate --pretrained weights once, train nothing"
    )
    group.add_argument(
        "--energy",
        action="store_true",
        help="measure rates and energy over the whole test set at the end",
    )
    group.add_argument("--dont_save", action="store_true", help="write no checkpoint")
    group.add_argument("--debug", action="store_true", help="show tracebacks")
    return group


def add_distributed(parser):
    group = parser.add_argument_group(
        "device and processes", "torchrun and SLURM are recognised by their variables"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument(
        "--gpu", type=natural, default=None, help="index of the one GPU to use, as --device cuda:N"
    )
    group.add_argument(
        "--multiprocessing_distributed",
        action="store_true",
        help="start a process per visible GPU (without a GPU: one CPU process)",
    )
    group.add_argument(
        "--world_size",
        type=int,
        default=-1,
        help="number of nodes of --multiprocessing_distributed; -1: from the environment, else 1",
    )
    group.add_argument(
        "--rank", type=int, default=-1, help="index of this node, -1: from the environment, else 0"
    )
    group.add_argument("--dist_url", default="env://", help="rendezvous address")
    group.add_argument(
        "--dist_backend",
        default="auto",
        choices=("auto", "nccl", "gloo"),
        help="auto: nccl on GPUs, else gloo",
    )
    group.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    return group


def refuse_idle(args, rules):
    """Refuse options that were given but do nothing here.

    rules: [(names, holds, reason)]; the options in `names` need `holds`.
    Raises:
        UseError: one of them was given while its condition does not hold.
    """
    for names, holds, reason in rules:
        idle = sorted(args.given & set(names))
        if idle and not holds:
            raise UseError(f"--{idle[0]} does nothing here: {reason}")
