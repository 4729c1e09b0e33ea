"""Every command line that a document shows is one that its script, module or Makefile takes."""

import argparse
import importlib
import re
import sys

import pytest

from cli.parser import refuse_idle
from tests.docs.commands import commands, started
from tests.docs.test_links import documents, prose
from tests.helpers import ROOT

PRINTED = [(path, folder, words) for path in documents() for folder, words in commands(path)]


def title(printed):
    path, _, words = printed
    return f"{path.relative_to(ROOT)}: {' '.join(words)}"


class Parsed(Exception):
    """The words of a command have been parsed."""


def check(name, words, monkeypatch):
    """Parse the words of a command by the parser and the rules of its module `name`."""
    folder = (ROOT / name.replace(".", "/")).parent
    monkeypatch.syspath_prepend(str(folder))  # as python does for a script
    module = importlib.import_module(name)
    module = sys.modules[module.main.__module__]  # a script may only hand on another's main
    if not hasattr(module, "get_parser"):
        return check_main(module, words, monkeypatch)

    asked = module.get_parser().parse(words)
    if hasattr(module, "rules"):
        refuse_idle(asked.given, module.rules(asked))


def check_main(module, words, monkeypatch):
    """The same for a module that makes its parser in `main`, which is stopped after it."""
    parse = argparse.ArgumentParser.parse_args

    def stop(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [module.__name__, *words])
    with pytest.raises(Parsed):
        module.main()


@pytest.mark.parametrize("printed", PRINTED, ids=title)
def test_printed_command_is_taken(printed, monkeypatch):
    _, folder, words = printed
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in words[1:] if "=" not in word and word not in targets] == []
        return
    found = started(folder, words)
    if found is not None:
        monkeypatch.chdir(folder)  # configurations are named from there
        check(*found, monkeypatch)


def test_published_commands_are_shown():
    """The transformer's and VGGSNN's commands stand where a reader looks for them."""
    shown = {page: commands(ROOT / "docs" / f"{page}.md") for page in ("transformer", "events")}
    names = [
        started(*command)[0] for page in shown for command in shown[page] if command[1][0] != "make"
    ]
    assert names.count("spike_driven_transformer.train") == 8
    assert names.count("neuromorphic_tasks.main_training_parallel") == 7


SCRIPTS = (
    *("ann_ddp", "snn_ddp", "absorb_bn", "energy", "export", "reproduce", "classify"),
    *("experiments.questions", "experiments.chains", "experiments.zoo"),
    "spike_driven_transformer.train",
    *("neuromorphic_tasks.main_training_parallel", "neuromorphic_tasks.main_test"),
    *("neuromorphic_tasks.data.dvscifar_prepare", "neuromorphic_tasks.data.simulate"),
)
# options of torch, TensorBoard, the benchmarks and the doctor
FOREIGN = {"--registers", "--networks", "--no_scaling", "--repeats", "--logdir", "--help"}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_options_named_in_the_text_are_there(path):
    """An option in `code` is one of some script."""
    known = set(FOREIGN)
    for name in SCRIPTS:
        known |= set(importlib.import_module(name).get_parser()._option_string_actions)
    spans = re.findall(r"`([^`]*)`", prose(path))
    named = {option for span in spans for option in re.findall(r"(?<!\S)--[A-Za-z][\w-]*", span)}
    assert {f"--{option[2:].replace('-', '_')}" for option in named} <= known


# ---- the reader of command lines itself ----

PAGE = """
```sh
# a comment, the image's own
cd spike-driven-transformer && python3 train.py --lr 0.1 \\
    --epochs 2    # and another; with a separator
python3 -m torch.distributed.launch --nproc_per_node=2 train.py -c 'a b.yml' &
A=1 srun -N 1 torchrun --nnodes 2 train.py --seed 3; wait
cd ..
for W in 0 1; do
    .venv/bin/python ann_ddp.py --epochs $W
done
python -m models.neuron --registers
pip install aedat
```

```
python3 not_a_command.py
```

```sh
python3 energy.py
```
"""


def test_command_lines_are_read(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    dashed = ROOT / "spike-driven-transformer"
    read = commands(page)
    assert [folder for folder, _ in read] == [dashed] * 3 + [ROOT] * 4
    assert [started(*command) for command in read] == [
        ("spike_driven_transformer.train", ["--lr", "0.1", "--epochs", "2"]),
        ("spike_driven_transformer.train", ["-c", "a b.yml"]),
        ("spike_driven_transformer.train", ["--seed", "3"]),
        ("ann_ddp", ["--epochs", "0"]),
        ("models.neuron.__main__", ["--registers"]),
        None,
        ("energy", []),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python3 absent.py", "there is no script"),
        ("python3 -m models.absent", "no such module"),
        ("python3 -m pytest", "no such module"),
        ("results/run.sh 0.5", "is not known"),
    ],
)
def test_command_lines_that_start_nothing_here(line, words):
    with pytest.raises(ValueError, match=words):
        started(ROOT, line.split())
