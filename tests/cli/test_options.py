"""Every option of every command: declared once, explained in full, accepted as it was published."""

import ast
import importlib
import inspect
import re
from dataclasses import fields, is_dataclass
from functools import cache

import pytest

from cli.parser import Parser
from engine import settings
from engine.settings import Settings
from tests.helpers import ROOT

ROOMS = (
    "analysis",
    "cli",
    "engine",
    "experiments",
    "inputs",
    "models",
    "neuromorphic_tasks",
    "spike_driven_transformer",
)


@cache
def sources():
    """{name of a module of the product: its file}"""
    files = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    return {name: path for name, path in sorted(names.items()) if not name.endswith("__main__")}


def defines(path, kind, name=None):
    """Whether a module defines a function or class, of that name."""
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, kind)]
    return any(name in (None, node.name) for node in nodes)


def classes():
    """Every dataclass of the product."""
    found = {}
    for name in [name for name, path in sources().items() if defines(path, ast.ClassDef)]:
        for value in vars(importlib.import_module(name)).values():
            if isinstance(value, type) and is_dataclass(value) and value.__module__ == name:
                found[f"{name}.{value.__name__}"] = value
    return found


@cache
def groups():
    """{name of a group: {option: how it is declared}} of the product, without inherited ones."""
    found = {}
    for name, kind in classes().items():
        own = inspect.get_annotations(kind)
        declared = {field.name: field.metadata for field in fields(kind) if field.name in own}
        found[name] = {key: how for key, how in declared.items() if "help" in how}
    return {name: declared for name, declared in found.items() if declared}


@cache
def commands():
    """{name: class of `Settings`} of the product."""
    return {
        name: kind
        for name, kind in classes().items()
        if issubclass(kind, Settings) and kind is not Settings
    }


def modules_with(function):
    return [name for name, path in sources().items() if defines(path, ast.FunctionDef, function)]


COMMANDS, PARSERS = modules_with("main"), modules_with("get_parser")


def parser_of(name):
    return importlib.import_module(name).get_parser()


def text_of(parser):
    return " ".join(parser.format_help().split())


def test_the_commands_are_all_here():
    scripts = {"ann_ddp", "snn_ddp", "absorb_bn", "energy", "reproduce", "demo"}
    rooms = {"spike_driven_transformer.train", "neuromorphic_tasks.main_training_parallel"}
    assert scripts | rooms <= set(COMMANDS)
    assert len(groups()) > 10
    assert len(commands()) > 5


# ---- declarations


def test_every_option_is_declared_once():
    """Its name and all its spellings, whatever their dashes, in exactly one group."""
    places = {}
    for group, declared in groups().items():
        for option, how in declared.items():
            for name in {option, *how.get("spellings", ())}:
                key = name.lstrip("-").replace("-", "_")
                places.setdefault(key, set()).add(f"{group}.{option}")
    twice = [f"{key}: {', '.join(sorted(at))}" for key, at in places.items() if len(at) > 1]
    assert not twice, "\n".join(twice)


def test_a_command_names_options_that_its_groups_have():
    """What it shows, hides and changes: a misspelled name would change nothing."""
    unknown = []
    for command, kind in commands().items():
        for own in fields(kind):
            if not own.metadata:
                continue
            only, hidden, changes = (own.metadata[key] for key in ("only", "hidden", "changes"))
            here = {field.name for field in fields(own.type)}
            named = {*(only or ()), *hidden, *changes}
            unknown += [f"{command}: {own.name} has no {name}" for name in sorted(named - here)]
            unseen = set(changes) - set(only or here) | set(changes) & set(hidden)
            unknown += [f"{command}: {name} is changed, not shown" for name in sorted(unseen)]
    assert not unknown, "\n".join(unknown)


def test_a_command_has_no_option_twice():
    for command, kind in commands().items():
        names = [option.name for _, shown in settings.groups(kind).values() for option in shown]
        assert len(names) == len(set(names)), command


def test_every_group_has_a_title():
    for command, kind in commands().items():
        for group, _ in settings.groups(kind).values():
            assert group.__doc__.splitlines()[0].strip(), (command, group)


def test_a_number_has_a_type():
    """Without one the command line would hand on its text."""
    plain = []
    for name, kind in classes().items():
        for field in fields(kind):
            # of `int | None`, too
            kinds = {field.type, *getattr(field.type, "__args__", ())}
            if "help" in field.metadata and kinds & {int, float} and not field.metadata["type"]:
                plain.append(f"{name}.{field.name}")
    assert not plain


def test_what_an_option_governs_is_one_of_three():
    kinds = {settings.RESULT, settings.RUN, settings.MACHINE}
    for group, declared in groups().items():
        for option, how in declared.items():
            assert how.get("governs", settings.RESULT) in kinds, (group, option)


# ---- texts

# what the reader of one line of --help cannot look up
POINTERS = re.compile(r"\b(it|its|the same|them|their)\b", re.IGNORECASE)


@cache
def options():
    """[(command, option)] of the product, as the commands have them."""
    return [
        (command, option)
        for command, kind in commands().items()
        for option in settings.options(kind).values()
    ]


@cache
def texts():
    """{help text: where it is declared} of everything that is shown."""
    found = {option.help: f"{command} --{option.name}" for command, option in options()}
    for group, declared in groups().items():
        found |= {how["help"]: f"{group}.{name}" for name, how in declared.items()}
    # an option without a help text is not shown
    return {text: where for text, where in found.items() if text is not None}


def test_every_help_text_stands_alone():
    pointing = [f"{where}: {text}" for text, where in texts().items() if POINTERS.search(text)]
    assert not pointing, "\n".join(pointing)


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    """Help is wrapped as in a terminal of this width, whatever this one has."""
    monkeypatch.setenv("COLUMNS", "120")


def test_no_help_text_is_empty():
    assert [where for text, where in texts().items() if not text.strip()] == []


@pytest.mark.parametrize("name", PARSERS)
def test_a_unit_is_shown(name):
    parser = parser_of(name)
    text = text_of(parser)
    for option in settings.options(parser.kind).values():
        if option.unit and option.help:
            shown = " ".join(f"{option.help} ({option.unit})".split())
            assert shown in text, option.name


@pytest.mark.parametrize("name", PARSERS)
def test_the_default_is_a_value_of_the_option(name):
    """Its text form is what the type reads, and one of the choices."""
    for option in settings.options(parser_of(name).kind).values():
        if option.choices and option.default is not None:
            assert option.default in option.choices, option.name
        if option.type and isinstance(option.default, int | float | str) and option.default != "":
            assert option.type(str(option.default)) == option.default, option.name


@pytest.mark.parametrize("name", PARSERS)
def test_a_whole_number_is_bounded(name):
    for option in settings.options(parser_of(name).kind).values():
        if option.type and not option.choices and isinstance(read(option, "1"), int):
            assert read(option, "9" * 30) is None, option.name


def read(option, text):
    """The value that an option reads, or None."""
    try:
        return option.type(text)
    except ValueError:
        return None


# sizes far beyond use, which would overflow or fill the memory
@pytest.mark.parametrize(
    ("name", "option", "most"),
    [
        ("ann_ddp", "act_bits", 24),
        ("ann_ddp", "kernel_size", 31),
        ("ann_ddp", "image_size", 4096),
        ("spike_driven_transformer.train", "pad_crop", 64),
        ("spike_driven_transformer.train", "aug_repeats", 100),
        ("spike_driven_transformer.train", "recount", 100),
        ("spike_driven_transformer.train", "mlp_ratio", 16),
    ],
)
def test_the_largest_size(name, option, most):
    kind = settings.options(parser_of(name).kind)[option].type
    assert kind(str(most)) == most
    with pytest.raises(ValueError, match=f"<= {most}, got {most + 1}"):
        kind(str(most + 1))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name, capsys, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert said.startswith("usage: ")
    assert "--debug" in said
    assert max(map(len, said.splitlines())) <= 200


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_is_built_from_groups(name):
    parser = parser_of(name)
    assert isinstance(parser, Parser)
    asked = settings.make(parser.kind, {})
    assert settings.make(parser.kind, settings.flat(asked)) == asked


# ---- published command lines

# every option of the published scripts, by the name that the published code gives it, and a value
COMMON = {
    "batch_size": "8",
    "workers": "2",
    "epochs": "3",
    "weight_decay": "0.1",
}
DISTRIBUTED = {
    "world_size": "1",
    "rank": "0",
    "dist_url": "env://",
    "dist_backend": "nccl",
    "gpu": "0",
    "multiprocessing_distributed": None,
}
NETWORK = {
    "dropout": "0.2",
    "kernel_size": "3",
    "pretrained_ann": "a.pth",
    "a": "VGG16",
    "architecture": "RESNET20",
    "bias": None,
    "dataset": "CIFAR100",
    "s": "3",
    "seed": "3",
}
TRAINING = {
    "print_freq": "5",
    "lr": "0.1",
    "learning_rate": "0.1",
    "lr_interval": "0.4 0.6",
    "lr_reduce": "5",
    "optimizer": "Adam",
    "momentum": "0.95",
    "dataset_dir": "./data",
    "dont_save": None,
}
PUBLISHED = {
    "ann_ddp": COMMON
    | DISTRIBUTED
    | NETWORK
    | TRAINING
    | {
        "bn": None,
        "test_only": None,
        "quant_act": None,
        "act_bits": "2",
        "quant_scale_max": "99.7",
        "quant_num_batches": "16",
        "quant_id": "log",
    },
    "snn_ddp": COMMON
    | DISTRIBUTED
    | NETWORK
    | TRAINING
    | {
        "thr_lr": "0.01",
        "warm_up": None,
        "warm_up_epochs": "5",
        "warm_up_lr": "1e-6",
        "amsgrad": "True",
        "betas": "0.9,0.999",
        "timesteps": "2",
        "leak": "0.9",
        "scaling_factor": "0.3",
        "default_threshold": "0.6",
        "activation": "Linear",
        "pretrained_snn": "s.pth",
        "multi_channel": "1",
        "num_channels": "3",
        "hardware_opt": "2",
        "reset_to_zero": "1",
        "input_encoding": "1",
    },
    "absorb_bn": NETWORK | {"bn": None},
    "neuromorphic_tasks.main_training_parallel": COMMON
    | {
        "j": "2",
        "b": "8",
        "start_epoch": "3",
        "lr": "0.1",
        "learning_rate": "0.1",
        "seed": "1000",
        "means": "1.0",
        "TET": "True",
        "lamb": "0.001",
        "multi_channel": "1",
        "num_channels": "3",
        "T_prime": "10",
        "pretrained_snn": "s.pth",
    },
    "neuromorphic_tasks.main_test": {
        "j": "2",
        "workers": "2",
        "b": "8",
        "batch_size": "8",
        "seed": "1000",
        "multi_channel": "1",
        "num_channels": "2",
        "T_prime": "5",
    },
}
SPELLED = [
    (script, name, value) for script, names in PUBLISHED.items() for name, value in names.items()
]


@pytest.mark.parametrize(
    "script, name, value", SPELLED, ids=[f"{script}-{name}" for script, name, _ in SPELLED]
)
def test_a_published_option_is_accepted_in_every_spelling(script, name, value):
    """With one dash and two, with _ and -; as one word and as two."""
    parser = parser_of(script)
    read = set()
    for dashes in ("-", "--"):
        for word in {dashes + name, dashes + name.replace("_", "-")}:
            ways = [[word]] if value is None else [[word, value], [f"{word}={value}"]]
            for argv in ways:
                asked = parser.parse(argv)
                assert len(asked.given) == 1
                read.add((*asked.given, str(settings.flat(asked)[min(asked.given)])))
    ((option, _),) = read
    assert settings.stored_name(parser.kind)[name] == option


def test_published_launchers_pass_their_local_rank():
    for argv in (["--local-rank=1"], ["--local_rank", "1"]):
        assert parser_of("ann_ddp").parse(argv).device.local_rank == 1
