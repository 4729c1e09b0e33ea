"""Open questions of the method, settled by paired runs: one recipe, the same seeds, one thing
changed.

python -m experiments.questions --list
python -m experiments.questions teacher --data_root data --results results/mine

The second runs what is missing, then writes results/mine/. Every seed trains its own ANN and
LQ-ANN; every variant of that seed starts from them and sees the same images in the same order.
questions.yml declares the questions; `answers` says how they are judged.
"""

from dataclasses import dataclass
from pathlib import Path

import models
from cli.parser import Parser
from engine.errors import UseError, guard
from engine.settings import flat

from . import answers, declared
from .chain import Chain
from .options import QuestionSettings, settled
from .stage import slug

FILE = Path(__file__).with_name("questions.yml")


@dataclass(frozen=True)
class Question:
    """A question.

    text: what is asked. reference: what the others are compared with. stages: {variant, as a page
    has it: its stage}, `reference` first. figure: draw accuracy against energy over S and T.
    chain: what questions.yml declares.
    """

    name: str
    text: str
    reference: str
    stages: dict
    figure: bool
    chain: dict


def get_parser():
    """Its command line."""
    about = "Open questions of the method, settled by paired runs."
    return Parser("python -m experiments.questions", about, QuestionSettings)


def read(path):
    """{name: `Question`} of a file such as questions.yml.

    Raises:
        UseError: it declares something else; the message says where and what.
    """
    content = declared.read(path)
    declared.check_chain(path, content, "questions")
    found = {}
    for name, own in content["questions"].items():
        where = f"{path}, {name}"
        keys = ("question", "reference", "variants")
        declared.check(where, own, keys, ("figure",))
        stages = {}
        for variant in (own["reference"], *own["variants"]):
            if variant not in content["stages"]:
                raise UseError(f"{where}: there is no stage {variant!r}")
            # a network has a name of its own, a variant is its own label
            label = content["stages"][variant].get("label", variant)
            stages[label] = slug(variant)
        reference, *_ = stages
        found[name] = Question(
            name,
            own["question"],
            reference,
            stages,
            own.get("figure", False),
            content,
        )
    return found


def needed(question: Question, values):
    """The stages of a question, with `values` in the place of `{name}`."""
    stages = declared.stages(declared.filled(question.chain, values))
    return declared.needed(stages, question.stages.values())


def idle(asked: QuestionSettings, question: Question):
    """The given options that no stage of the question takes: questions.yml has their values."""
    values = flat(asked) | {"seed": 0, "twice_the_epochs": 0}
    before = needed(question, values)
    found = []
    for name in sorted(asked.given & {"ann_epochs", "epochs", "learning_rate"}):
        others = {name: "another"}
        if name == "epochs":
            others["twice_the_epochs"] = "another"
        if needed(question, values | others) == before:
            found.append(name)
    return found


def make_chain(asked: QuestionSettings, question: Question, seed):
    """The chain of a question and seed; chains of the same seed share their folder.

    Raises:
        UseError: the network lacks what the question is about.
    """
    network = asked.network
    # what stands for `{name}` in questions.yml
    values = flat(asked)
    values["seed"] = seed
    values["twice_the_epochs"] = 2 * asked.training.epochs
    stages = needed(question, values)
    about_stem = any("stem" in stage.given.values() for stage in stages)
    name = network.architecture
    if about_stem and not models.network(name).stem:
        raise UseError(
            f"{question.name} is about ResNet20's stem, {name} has none: ask it of RESNET20"
        )
    # the same for all questions, which share their networks
    size = f"{name.lower()}-w{network.width_mult:g}"
    folder = Path(asked.run.output_dir) / size / f"seed{seed}"
    return Chain(folder, stages, f"{question.name}, seed {seed}")


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    known = read(FILE)
    what = asked.experiment
    names = asked.question.questions
    if what.list or not (names or what.report):
        for name, question in known.items():
            print(f"{name:<18} {question.text}")
        return
    asked = settled(asked)
    # --report alone writes every page
    if names in ((), ("all",)):
        names = known
    chains = {}
    # a question that cannot be asked ends this before the first one is run
    for name in names:
        if name not in known:
            raise UseError(f"there is no question {name!r}: all, {', '.join(known)}")
        question = known[name]
        chains[name] = {seed: make_chain(asked, question, seed) for seed in what.seeds}
        for given in idle(asked, question):
            print(f"note: --{given} does nothing for {name}, which has a value of its own")
        # hours later it would be too late
        if not what.report:
            answers.check_free(asked, question, chains[name])
    for name, seeds in chains.items():
        if not what.report:
            for chain in seeds.values():
                chain.all()
        page = answers.report(asked, known[name], seeds)
        print(page, flush=True)


if __name__ == "__main__":
    guard(main)
