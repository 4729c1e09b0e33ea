"""What the demos share: public scripts run one after the other, and the table of their results."""

import importlib
import shlex
from pathlib import Path

from engine.files import locked
from engine.machine import fast_amp
from engine.settings import Settings, flat

from . import declared

FILE = Path(__file__).with_name("demos.yml")


def run(name, asked: Settings):
    """Run the scripts of a demo in this process, each under a title that shows its command line.

    Returns {step of demos.yml: what the script's `main` returns}.
    """
    values = flat(asked)
    values["amp"] = fast_amp()
    done = {}
    steps = declared.read(FILE)[name]
    # a step reads what the one before wrote
    with locked(Path(values["output_dir"]), "give another --output_dir"):
        for step, about in steps.items():
            done[step] = _step(about, values)
            # what prepares data returns nothing
            if done[step]:
                values[step] = done[step].get("checkpoint")
    return done


def _step(about, values):
    """Run the script of a step; returns what its `main` does."""
    script = about["script"]
    shown = _words(about["command"], values)
    _, _, file = script.rpartition(".")
    print(f"\n== {about['title']}: python3 {file}.py {shlex.join(shown)}", flush=True)
    hidden = _words(about.get("hidden", ""), values)
    # in this process, which has imported torch already
    return importlib.import_module(script).main(shown + hidden)


def _words(command, values):
    """The words of a command line with values in the place of `{name}`."""
    # word by word, since a folder may have a space in its name
    return [word.format_map(values) for word in shlex.split(command)]


def table(first, more, rows):
    """Print accuracy and energy of rows, {name: (its summary, text of `more`)}.

    first, more: titles of the first column and of what follows the energy.
    """
    width = 16 if first else 8
    print(f"\n{first:<{width}}{'accuracy':>10}{'energy (uJ)':>14}{more}")
    for name, (summary, text) in rows.items():
        accuracy, energy = summary["accuracy"], summary["energy_uj"]
        print(f"{name:<{width}}{accuracy:>10.2%}{energy:>14.3f}{text}")
