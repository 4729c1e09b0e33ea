"""What paired runs say of a question: differences, their test, and the page that shows them.

Accuracies are those after the last epoch, on the test set, so nothing is chosen on it (`final`). A
difference counts when a paired t-test over the seeds says so at 5 %: of three seeds, when it
exceeds 4.3 times its standard error.
"""

import math
import statistics
from pathlib import Path

from scipy import stats

from analysis import figures
from engine.errors import MALFORMED, UseError
from engine.files import write_text
from engine.log import read_json, versions, write_json
from engine.settings import flat

from .chain import same_data
from .options import QuestionSettings
from .results import of_any_machine
from .verdict import number, spread

EARLY = (1, 5, 10)  # epochs whose accuracy a page shows, too
CONFIDENCE = 0.975  # quantile of a two-sided test at 5 %
SIZE = "{architecture} at width x{width_mult:g}, {data}"
PAGE = f"""\
# {{text}}

{SIZE}; seeds {{seeds}}; ANN {{ann_epochs}} epochs ({{ann}} %), \
then {{trained}}. Accuracy in % after the last \
epoch, mean ± standard deviation; difference to the first row paired by seed, ± its standard \
error; energy of the stored network.

| variant | after conversion | after epoch {{early}} | accuracy | difference (points) \
| energy (uJ) | |
|---|---|---|---|---|---|---|
{{rows}}

Command (it goes on where it stopped):

```sh
{{command}}
```
"""
COMMAND = """\
python -m experiments.questions {name} --architecture {architecture} \
--width_mult {width_mult:g} --ann_epochs {ann_epochs} --epochs {epochs} \
--learning_rate {learning_rate:g} --amp {amp} --seeds {words}{more}"""


def paired(values, reference):
    """(mean difference, its standard error) of paired values.

    The error of a single pair is infinite.
    """
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    mean = statistics.mean(differences)
    count = len(differences)
    if count == 1:
        return mean, math.inf
    return mean, statistics.stdev(differences) / math.sqrt(count)


def judge(difference, error, count):
    """What a paired difference of `count` pairs says by a t-test at 5 %; one pair says nothing."""
    if count < 2:
        return "one seed"
    quantile = stats.t.ppf(CONFIDENCE, count - 1)  # 4.3 of three seeds
    if abs(difference) <= quantile * error:
        return "not told apart"
    return "better" if difference > 0 else "worse"


def collect(question, chains):
    """{variant: [summary with its learning curve, per seed]} of what is finished for all seeds.

    chains: {seed: the question's chain}.
    Raises:
        UseError: a stage was made with another recipe than the chain's, or on other data.
    """
    runs = {}
    data = {}
    # what is only reported was not checked on the way, nor the ANN that it began with
    for chain in chains.values():
        for stage in chain.stages.values():
            if stage.record:
                stage.check(recipe=stage.recipe)
    for variant, name in question.stages.items():
        found = []
        for seed, chain in chains.items():
            stage = chain.stages[name]
            if stage.summary is None or stage.record is None:
                continue
            data[f"{variant}, seed {seed}"] = stage.data
            found.append(_of_run(stage, seed))
        # pairs need every seed
        if len(found) == len(chains):
            runs[variant] = found
    if data:
        same_data(data)
    return runs


def _of_run(stage, seed):
    """What a page keeps of a finished stage."""
    ann, *_ = stage.chain.stages.values()
    return {
        **of_any_machine(stage.summary),
        "seed": seed,
        "curve": [line["test_accuracy"] for line in stage.log],
        "ann_accuracy": ann.summary[final(ann.recipe)],
        "recipe": stage.recipe,
        "commit": stage.record["commit"],
        "versions": stage.versions,
    }


def final(recipe):
    """The name of a summary's accuracy after the last epoch: the file's, where it holds that epoch.

    Else the epoch's own, of the network in training: the file holds the best of the epochs.
    """
    return "test_accuracy" if recipe.get("keep") == "last" else "last_accuracy"


def column(runs, name):
    """The values of one key, a seed each; accuracies in %."""
    # summaries hold fractions
    unit = 100 if name.endswith("accuracy") else 1
    return [unit * run[name] for run in runs if name in run]


def accuracies(runs):
    """Accuracies of a variant after the last epoch, a seed each, in %."""
    return column(runs, final(runs[0]["recipe"]))


def _row(variant, runs, first, early):
    """A variant's line; first: the runs of the reference. early: epochs."""
    # an LQ-ANN is not converted
    after = column(runs, "converted_accuracy")
    accuracy = accuracies(runs)
    curves = []
    for epoch in early:
        mean = statistics.mean(run["curve"][epoch - 1] for run in runs)
        curves.append(f"{100 * mean:.2f}")

    shown = ""
    told = "reference"
    if runs is not first:
        difference, error = paired(accuracy, accuracies(first))
        shown = f"{difference:+.2f}"
        if len(runs) > 1:
            shown += f" ± {error:.2f}"
        told = judge(difference, error, len(runs))
    cells = (
        variant,
        number(spread(after)) if after else "",
        ", ".join(curves),
        number(spread(accuracy)),
        shown,
        f"{statistics.mean(column(runs, 'energy_uj')):.2f}",
        told,
    )
    return f"| {' | '.join(cells)} |"


def command(asked: QuestionSettings, question):
    """The command whose runs a page tells of."""
    more = {
        "limit_train_batches": asked.batches.limit_train_batches,
        "limit_eval_batches": asked.batches.limit_eval_batches,
        "compile": asked.compute.compile.replace("none", ""),
    }
    about = {
        "name": question.name,
        "words": " ".join(map(str, asked.experiment.seeds)),
        "more": "".join(f" --{name} {value}" for name, value in more.items() if value),
    }
    return COMMAND.format(**flat(asked) | about)


def page(asked: QuestionSettings, question, runs):
    """The question's Markdown page; runs: see `collect`."""
    first = runs[question.reference]
    trained = len(first[0]["curve"])  # epochs of the reference
    early = [epoch for epoch in EARLY if epoch < trained]
    rows = []
    for variant in question.stages:
        if variant in runs:
            rows.append(_row(variant, runs[variant], first, early))
        else:
            rows.append(f"| {variant} | | | not measured | | | |")
    about = {
        "name": question.name,
        "text": question.text,
        "data": first[0]["data"],
        "ann": number(spread(column(first, "ann_accuracy"))),
        "trained": trained,
        "early": ", ".join(map(str, early)),
        "rows": "\n".join(rows),
        "seeds": ", ".join(map(str, asked.experiment.seeds)),
        "command": command(asked, question),
    }
    return PAGE.format(**flat(asked) | about)


def draw(asked: QuestionSettings, runs, first, path):
    """Accuracy against energy, a curve over T for every S; first: the runs of the reference."""
    points = {}
    for found in runs.values():
        recipe = found[0]["recipe"]
        place = (int(recipe["num_channels"]), int(recipe["timesteps"]))  # (S, T)
        energies = column(found, "energy_uj")
        points[place] = list(zip(accuracies(found), energies))
    # its energy follows from its shape, so it is that of every seed
    ann = (statistics.mean(column(first, "ann_accuracy")), first[0]["ann_energy_uj"])
    count = len(asked.experiment.seeds)
    size = SIZE.format(**flat(asked), data=first[0]["data"])
    title = f"{size}, {asked.training.epochs} epochs, {count} seed{'s' * (count > 1)}"
    figures.tradeoff(title, points, ann, path)


def check_free(asked: QuestionSettings, question, chains):
    """Refuse to replace an answer of other options, seeds, data or trainings, or of more variants.

    chains: {seed: the question's chain}.
    Raises:
        UseError: the results folder holds one.
    """
    target = Path(asked.experiment.results) / question.name
    path = Path(f"{target}.md")
    if not path.is_file():
        return
    other = f"{command(asked, question)}\n```" not in path.read_text(encoding="utf-8")
    if not other:
        now = collect(question, chains)
        try:
            old = read_json(f"{target}.json")["runs"]
            other = any(_told(old[variant]) != _told(now.get(variant, ())) for variant in old)
        except (UseError, *MALFORMED):
            raise UseError(
                f"{target}.json is not of the page beside it: remove both, or give another "
                "--results"
            ) from None
    if other:
        raise UseError(
            f"{path} is an answer of other options, seeds, data or trainings, or of more variants: "
            "give another --results, or remove it"
        )


def _told(found):
    """By what the trainings of a variant are told from others."""
    return [(run["data"], run["curve"]) for run in found]


def report(asked: QuestionSettings, question, chains):
    """Write the question's page and numbers; returns the page.

    Nothing is written while the reference is not finished for every seed.
    Raises:
        UseError: see `check_free`.
    """
    runs = collect(question, chains)
    first = runs.get(question.reference)
    if first is None:
        return f"{question.name}: not finished for every seed"
    check_free(asked, question, chains)
    target = Path(asked.experiment.results) / question.name
    content = {
        "question": question.text,
        "versions": versions(),
        "runs": runs,
    }
    write_json(f"{target}.json", content)
    if question.figure:
        draw(asked, runs, first, f"{target}.png")
    # the page comes last, since it names the others
    text = page(asked, question, runs)
    write_text(f"{target}.md", text)
    return text
