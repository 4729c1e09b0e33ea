"""Questions: what is declared, the commands that follow, the statistics, the recorded pages."""

import dataclasses
import json
import shlex

import pytest

from engine.errors import UseError
from engine.settings import flat
from experiments import answers, questions
from experiments.options import settled
from experiments.stage import portable, slug
from tests.helpers import ROOT

PAGES = sorted((ROOT / "results" / "questions").glob("*.json"))
BROKEN = {
    "stages: {}": "every is missing",
    "[1]": "expected a mapping of",
    "stages: {a: {script: snn_ddp}}\nevery: {}\ntraining: {}\nquestions: {}": "options is missing",
    "stages: {}\nevery: {}\ntraining: {}\nquestions: {a: {quest: b}}": "question is missing",
    "stages: {}\nevery: {}\ntraining: {}\nquestions: {a: {question: b, reference: c, variants: []}}"
    "": "a: there is no stage 'c'",
    "a: [": "is not a readable YAML file",
}


def asked(words=""):
    return settled(questions.get_parser().parse(shlex.split(words)))


def made(name, words=""):
    """{variant: its stage} of a question."""
    question = questions.read(questions.FILE)[name]
    chain = questions.make_chain(asked(words), question, 0)
    return {variant: chain.stages[stage] for variant, stage in question.stages.items()}


def recorded(path):
    """(recorded content of a page, the words of its command)."""
    command = path.with_suffix(".md").read_text().partition("```sh\n")[2].partition("\n```")[0]
    return json.loads(path.read_text()), command.partition("experiments.questions ")[2]


@pytest.mark.parametrize("name", questions.read(questions.FILE))
def test_a_question_is_commands_that_differ_in_one_thing(name):
    found = made(name, "--amp none --limit_train_batches 1")
    parsed = {variant: flat(stage.parsed()) for variant, stage in found.items()}
    reference, *others = parsed
    base = found[reference].recipe
    for variant in others:
        values = parsed[variant].items()
        changed = {k for k, v in values if v != parsed[reference].get(k)} - {"output_dir"}
        # the LQ-ANN is another script's
        own = found[variant].recipe
        expected = {k for k in own.keys() | base.keys() if own.get(k) != base.get(k)}
        assert changed
        if variant != "LQ-ANN":
            assert changed <= expected | {"surrogate_edge", "pretrained_ann"}, (variant, changed)


def test_only_the_networks_that_a_question_needs_are_trained():
    def names(name):
        return list(next(iter(made(name).values())).chain.stages)

    assert names("distillation") == ["ann", "ann_fused", "base", "distilled"]
    assert names("levels") == ["ann", "lq", "ann_fused", "base", "multi_hot", "lif__t_1"]
    assert names("start") == [
        *("ann", "lq", "ann_fused", "lq_fused"),
        *("base", "from_the_lq_ann", "twice_the_epochs"),
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_recorded_recipes_are_those_of_today(path):
    content, command = recorded(path)
    for variant, stage in made(path.stem, command).items():
        for run in content["runs"].get(variant, []):
            stored = portable(stage.script, run["recipe"])
            assert stored == {**stage.recipe, "seed": str(run["seed"])}, variant


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_written_anew_as_it_stands(path):
    content, command = recorded(path)
    question = questions.read(questions.FILE)[path.stem]
    page = answers.page(asked(command), question, content["runs"])
    assert page == path.with_suffix(".md").read_text()


# ---- what is finished ----


class Finished:
    """A stage that is finished, of a chain of itself and its ANN."""

    def __init__(self, accuracy, recipe=None):
        self.summary = {
            "run": "here",
            "last_accuracy": accuracy,
            # a file is measured in float32, an epoch as it trains
            "test_accuracy": accuracy and accuracy + 0.01,
            "energy_uj": 5.0,
            "ann_energy_uj": 60.0,
            "data": "somewhere",
        }
        self.log = [{"test_accuracy": 0.1}, {"test_accuracy": accuracy}]
        self.recipe = recipe or {"num_channels": "3", "timesteps": "1"}
        self.record = {"commit": "abc"}
        self.versions = {"torch": "2.11.0"}
        self.data = {part: {"images": 1, "sha256": "a"} for part in ("train", "test")}
        self.checked = None

    def check(self, **now):
        self.checked = now


class Chained:
    def __init__(self, **stages):
        self.stages = stages
        for stage in stages.values():
            stage.chain = self


def seeds_of(*accuracies):
    """{seed: chain} with an ANN, a base and another stage of these accuracies; None: unfinished."""
    chains = {}
    for seed, (base, other) in enumerate(accuracies):
        chains[seed] = Chained(ann=Finished(0.9), base=Finished(base), other=Finished(other))
        for stage in chains[seed].stages.values():
            if stage.summary["last_accuracy"] is None:
                stage.summary = None
    return chains


QUESTION = questions.Question(
    "q", "What?", "base", {"base": "base", "S=4": "other"}, figure=True, chain={}
)


def test_a_variant_counts_when_every_seed_is_finished():
    chains = seeds_of((0.5, 0.6), (0.4, None))
    runs = answers.collect(QUESTION, chains)
    assert list(runs) == ["base"]
    assert [run["last_accuracy"] for run in runs["base"]] == [0.5, 0.4]
    assert [run["seed"] for run in runs["base"]] == [0, 1]


def test_a_file_is_told_where_it_holds_the_last_epoch():
    """And the epoch itself where the file holds the best one, which the test set chose."""
    chains = seeds_of((0.5, None))
    (run,) = answers.collect(QUESTION, chains)["base"]
    assert answers.accuracies([run]) == [50]

    for stage in chains[0].stages.values():
        stage.recipe["keep"] = "last"
    (run,) = answers.collect(QUESTION, chains)["base"]
    assert answers.accuracies([run]) == [51]
    assert run["ann_accuracy"] == pytest.approx(0.91)


def test_what_is_kept_of_a_run():
    (run,) = answers.collect(QUESTION, seeds_of((0.5, None)))["base"]
    assert run["curve"] == [0.1, 0.5]
    assert run["ann_accuracy"] == 0.9
    assert (run["commit"], run["versions"]) == ("abc", {"torch": "2.11.0"})
    assert "run" not in run


def test_what_is_reported_is_of_the_recipe_that_is_asked_for():
    chains = seeds_of((0.5, 0.6))
    answers.collect(QUESTION, chains)
    # the ANN that they began with, too
    for stage in chains[0].stages.values():
        assert stage.checked == {"recipe": stage.recipe}


def test_runs_on_other_data_are_never_paired():
    chains = seeds_of((0.5, 0.6), (0.5, 0.6))
    chains[1].stages["base"].data = {"train": {"images": 2, "sha256": "b"}, "test": {}}
    with pytest.raises(UseError, match="base, seed 1 has 2 train images"):
        answers.collect(QUESTION, chains)


def test_page_numbers_and_figure_are_written(tmp_path):
    chains = seeds_of((0.5, 0.6), (0.4, 0.6))
    for chain in chains.values():
        chain.stages["other"].recipe = {"num_channels": "4", "timesteps": "2"}
    words = f"--seeds 0 1 --results {tmp_path} --amp none --compile --limit_eval_batches 3"
    page = answers.report(asked(words), QUESTION, chains)
    assert (tmp_path / "q.md").read_text() == page
    assert "| S=4 |  | 10.00 | 60.00 ± 0.00 | +15.00 ± 5.00 | 5.00 | not told apart |" in page
    limits = "--limit_eval_batches 3 --compile default"
    assert page.rstrip().endswith(f"--amp none --seeds 0 1 {limits}\n```")
    assert list(json.loads((tmp_path / "q.json").read_text())["runs"]) == ["base", "S=4"]
    assert (tmp_path / "q.png").stat().st_size > 10_000


def test_a_dot_in_a_questions_name_is_no_suffix(tmp_path):
    question = questions.Question("q0.5", "What?", "base", {"base": "base"}, figure=True, chain={})
    chains = seeds_of((0.5, 0.6))
    chains[0].stages["base"].recipe = {"num_channels": "4", "timesteps": "2"}
    answers.report(asked(f"--seeds 0 --results {tmp_path}"), question, chains)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["q0.5.json", "q0.5.md", "q0.5.png", "q0.5.svg"]


@pytest.mark.parametrize("question", questions.read(questions.FILE).values(), ids=lambda q: q.name)
def test_the_reference_is_the_first_variant_under_its_label(question):
    assert question.reference == next(iter(question.stages))


def test_nothing_is_written_before_the_reference_is_finished(tmp_path):
    words = f"--seeds 0 1 --results {tmp_path}"
    told = answers.report(asked(words), QUESTION, seeds_of((0.5, 0.6), (None, 0.6)))
    assert told == "q: not finished for every seed"
    assert not list(tmp_path.iterdir())


def test_an_answer_of_other_options_seeds_data_or_trainings_is_not_replaced(tmp_path, fails):
    question = dataclasses.replace(QUESTION, figure=False)

    def report(words, *found):
        chains = seeds_of(*found)
        answers.report(asked(f"--results {tmp_path} {words}"), question, chains)

    two = "--seeds 0 1"
    report(two, (0.5, None), (0.4, None))
    # what is finished since comes to it
    report(two, (0.5, 0.6), (0.4, 0.6))
    refused = "other options, seeds, data or trainings, or of more variants"
    for words, found in (
        (two, [(0.5, 0.6), (0.4, 0.7)]),
        (f"{two} --ann_epochs 9", [(0.5, 0.6), (0.4, 0.6)]),
        ("--seeds 0", [(0.5, 0.6)]),
        (two, [(0.5, None), (0.4, None)]),
    ):
        fails(lambda argv: report(*argv), [words, *found], refused, keep=tmp_path)
    elsewhere = seeds_of((0.5, 0.6), (0.4, 0.6))
    elsewhere[0].stages["base"].summary["data"] = "CIFAR-10"
    with pytest.raises(UseError, match=refused):
        answers.report(asked(f"--results {tmp_path} {two}"), question, elsewhere)


@pytest.mark.long
def test_a_question_is_asked(cifar, tmp_path, capsys, fails):
    words = (
        f"distillation --width_mult 0.03 --epochs 1 --seeds 0 --amp none --device cpu "
        f"--limit_train_batches 1 --data_root {cifar} --output_dir {tmp_path}/runs "
        f"--results {tmp_path}/out"
    )
    questions.main(words.split())
    assert (tmp_path / "out/distillation.md").read_text() in capsys.readouterr().out
    # before anything is trained
    said = fails(questions.main, f"{words} --ann_epochs 9", "other options", keep=tmp_path)
    assert "distillation.md" in said


# ---- statistics ----


def test_paired_differences_by_hand():
    assert answers.paired([1.0, 2.0, 4.0], [0.0, 2.0, 2.0]) == pytest.approx((1.0, (1 / 3) ** 0.5))
    assert answers.paired([1.0], [3.0]) == (-2.0, float("inf"))


def test_a_difference_counts_from_4_3_of_its_errors_on():
    assert answers.judge(1.0, 0.23, 3) == "better"
    assert answers.judge(-1.0, 0.23, 3) == "worse"
    assert answers.judge(1.0, 0.24, 3) == "not told apart"
    assert answers.judge(9.0, float("inf"), 1) == "one seed"


def test_the_questions_are_listed(capsys):
    questions.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(questions.read(questions.FILE))
    assert lines[4] == "distillation       Does following the ANN's outputs help?"


@pytest.mark.parametrize(
    "argv, words",
    [
        ("levels --seeds 1 1", ["names a seed twice"]),
        ("conversion -a VGG16", ["ResNet20's stem, VGG16 has none"]),
        ("convertion", ["there is no question 'convertion'", "conversion_long"]),
        ("levels --seeds 1,2", ["--seeds", "expected int"]),
    ],
)
def test_bad_input(argv, words, fails):
    fails(questions.main, argv, *words)


@pytest.mark.parametrize(
    "words, idle",
    [
        ("teacher --learning_rate 0.001 --epochs 5", ["learning_rate"]),
        ("conversion_long --epochs 5 --learning_rate 0.001", ["epochs"]),
        ("start --epochs 5 --learning_rate 0.001 --ann_epochs 3", []),
        ("teacher", []),
    ],
)
def test_what_a_question_does_not_take_is_told(words, idle):
    asked = questions.get_parser().parse(words.split())
    (name,) = asked.question.questions
    assert questions.idle(asked, questions.read(questions.FILE)[name]) == idle


@pytest.mark.parametrize("text", BROKEN)
def test_a_wrong_declaration_says_where_and_what(text, tmp_path, fails):
    (tmp_path / "q.yml").write_text(text)
    fails(lambda _: questions.read(tmp_path / "q.yml"), "", "q.yml", BROKEN[text])


def test_folders_have_plain_names():
    assert slug("published, all, x0.85") == "published__all__x0_85"
