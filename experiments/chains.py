"""Chains that chains.yml declares, each with a results folder.

python -m experiments.chains cifar10_resnet20 --width_mult 0.5 --amp bf16
python -m experiments.chains --results results/mine --report "ANN=<run folder>" "SNN=<run folder>"

The first runs what is missing, then writes results/; further options go to every command that
trains. The second writes a results folder of runs that are finished, however they were made.
"""

from dataclasses import dataclass
from pathlib import Path

from cli.parser import Parser
from engine.dist import DeviceOptions
from engine.errors import UseError, guard
from engine.loop import ComputeOptions
from engine.settings import flat, group, option
from inputs.loader import BatchOptions

from . import declared, report
from .chain import Chain
from .options import ExperimentOptions, ExperimentSettings, settled

FILE = Path(__file__).with_name("chains.yml")
# Options that no training command is given.
OWN = {
    "names",
    "list",
    "report",
    "results",
    "output_dir",
    "debug",
}


@dataclass(frozen=True)
class ChainOptions:
    """chain"""

    names: tuple = option(
        (), "names of chains; with --report LABEL=RUN of finished runs", positional=True, nargs="*"
    )


@dataclass(frozen=True)
class ChainSettings(ExperimentSettings):
    """Options of chains.py."""

    chain: ChainOptions = group()
    experiment: ExperimentOptions = group(hidden=("seeds",))
    compute: ComputeOptions = group()
    batches: BatchOptions = group(hidden=("batch_size",))
    device: DeviceOptions = group()


def get_parser():
    """Its command line."""
    about = "Run a declared chain and write its results folder."
    return Parser("python -m experiments.chains", about, ChainSettings)


def read(path):
    """{name: declared chain} of a file such as chains.yml.

    Raises:
        UseError: it declares something else; the message says where and what.
    """
    content = declared.read(path)
    declared.check(path, content, list(content) if isinstance(content, dict) else ["names"])
    for name, own in content.items():
        keys = ("about", "cost", "width_mult", "folder")
        declared.check_chain(f"{path}, {name}", own, *keys)
    return content


def make(asked: ChainSettings, name, own):
    """(name of the folder of a declared chain, the chain)."""
    given = flat(asked)
    more = {option: given[option] for option in asked.given - OWN}
    # a width that is not asked for is the chain's
    content = declared.filled(own, {**own, **more})
    folder = content["folder"]
    # a script that lacks one of the options refuses it
    stages = declared.stages(content, **more)
    return folder, Chain(Path(asked.run.output_dir) / folder, stages, name)


def place(what: ExperimentOptions, folder):
    """The results folder of a chain."""
    return Path(what.results or f"results/{folder}")


def labelled(chain, own):
    """[(label, run folder or None)] of the stages that have a label."""
    found = []
    for stage, about in zip(chain.stages.values(), own["stages"].values()):
        # a fused network is measured as the ANN that it comes from
        if "label" in about:
            found.append((about["label"], stage.run_folder))
    return found


def finished(asked: ChainSettings):
    """[(label, run folder)] of --report."""
    if not asked.experiment.results:
        raise UseError("--report writes a results folder: name it by --results")
    if not asked.chain.names:
        raise UseError("--report takes LABEL=RUN of finished runs, here is none")
    runs = []
    for pair in asked.chain.names:
        label, _, folder = pair.partition("=")
        if not (label.strip() and folder):
            raise UseError(f"expected LABEL=RUN, a label and a run folder, got {pair!r}")
        runs.append((label, folder))
    return runs


def write(folder, runs):
    """Write the results folder and say so."""
    print(f"{report.write(Path(folder), runs)}\nwritten to {folder}")


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = settled(get_parser().parse(argv))
    known = read(FILE)
    what = asked.experiment
    names = asked.chain.names
    if what.list or not (names or what.report):
        for name, own in known.items():
            print(f"{name:<18} {own['about']}; {own['cost']}")
    elif what.report:
        write(what.results, finished(asked))
    else:
        if what.results and len(names) > 1:
            raise UseError("--results is the folder of one chain: name one, or leave it out")
        made = []
        for name in names:
            if name not in known:
                raise UseError(f"there is no chain {name!r}: {', '.join(known)}")
            made.append((name, *make(asked, name, known[name])))
        # what is wrong with the last chain ends the command before the first one is trained
        for name, folder, chain in made:
            for stage in chain.stages.values():
                stage.parsed()
            report.check_free(place(what, folder), labelled(chain, known[name]))
        for name, folder, chain in made:
            chain.all()
            write(place(what, folder), labelled(chain, known[name]))


if __name__ == "__main__":
    guard(main)
