"""The published rows: the table, the recipes that follow from it, what they cost."""

import json
import shlex
from dataclasses import replace

import pytest
import torch

import models
from analysis.energy import Counter, of_ann
from engine import settings
from engine.errors import UseError
from experiments import rows, tables
from experiments.options import SCHEDULES
from experiments.stage import machine_spellings
from inputs.table import TABLE
from tests.experiments.asked import asked_for, chain_of
from tests.helpers import ROOT

HEAD = "name,dataset,network,method,levels,steps,frames,accuracy,energy,macs\n"
GOOD = "a,CIFAR10,VGG16,ANN,,1,,94.31,997,1\n"
TRANSFORMER = {"dim": 512, "num_classes": 10, "img_size": 32, "depth": 2, "pooling": "0011"}
LARGE = {"num_classes": 1000, "img_size": 224, "depth": 8, "pooling": "1111"}
NAMES = list(rows.table())


class Shapes(models.ReLU):
    """An activation for every network, of which only the shapes count."""

    theta = 1.0

    def layer(self, **_):
        return super().layer()


def macs(name, channels, side, **arguments):
    """MACs of one image and step of a network that is no CNN."""
    with torch.device("meta"):
        net = models.build(name, Shapes(), **arguments).eval()
        with Counter(net) as counter:
            net(torch.empty(1, channels, side, side))
    return sum(row.macs for row in counter.sizes.values())


# ---- the table ----


def test_the_rows_are_those_of_the_published_tables():
    recordings = [row for row in rows.table().values() if row.dataset == "DVS-CIFAR10"]
    assert len(NAMES) == 23
    assert len(recordings) == 6
    row = rows.find("dvscifar10-vggsnn-s3-q5")
    assert (row.levels, row.frames, row.steps, row.accuracy, row.energy) == (3, 20, 5, 83.0, 170)


@pytest.mark.parametrize("name", [name for name in NAMES if "transformer" in name])
def test_a_transformer_s_row_is_taken_from_any_folder(name, tmp_path, monkeypatch):
    """By its script's own rules: the configuration holds what the schedule overrides."""
    monkeypatch.chdir(tmp_path)
    (stage,) = chain_of(name, f"--schedule smoke --output_dir {tmp_path}").stages.values()
    assert stage.parsed().training.epochs == 1


@pytest.mark.parametrize("name, few", [("imagenet-vgg16-mlif", 2), ("cifar10-vgg16-mlif", 0)])
def test_a_smoke_takes_minutes(name, few, tmp_path):
    """So it takes a few batches of ImageNet, of which an epoch takes hours."""
    stages = chain_of(name, f"--schedule smoke --output_dir {tmp_path}").stages
    for stage in stages["ann"], stages["snn"]:
        batches = stage.parsed().batches
        assert batches.limit_train_batches == batches.limit_eval_batches == few


def test_a_line_is_a_row(tmp_path):
    (tmp_path / "rows.csv").write_text(HEAD + GOOD)
    (row,) = rows.read(tmp_path / "rows.csv").values()
    assert row == rows.Row("a", "CIFAR10", "VGG16", "ANN", 0, 1, 0, 94.31, 997.0, 1)


@pytest.mark.parametrize(
    "line, words",
    [
        ("a,CIFAR10,VGG16,ANN,,1,,94.31,997", ["line 3", "expected the values name,dataset"]),
        (GOOD.strip() + ",7", ["line 3", "expected the values name,dataset"]),
        (GOOD, ["line 3", "there is a row a already"]),
        ("b,CIFAR11,VGG16,ANN,,1,,94.31,997,1", ["dataset is 'CIFAR11'", "CIFAR10, CIFAR100"]),
        ("b,DIGITS,VGG16,ANN,,1,,94.31,997,1", ["dataset is 'DIGITS'", "CIFAR10, CIFAR100"]),
        ("b,CIFAR10,VGG17,ANN,,1,,94.31,997,1", ["network is 'VGG17'", "VGGSNN"]),
        ("b,CIFAR10,VGG16,SNN,,1,,94.31,997,1", ["method is 'SNN'", "ANN, M-LIF"]),
        ("b,CIFAR10,VGG16,ANN,,1,,x,997,1", ["line 3: expected a number", "'x'"]),
        ("b,CIFAR10,VGG16,ANN,,1.5,,94.31,997,1", ["line 3: expected a number", "'1.5'"]),
    ],
)
def test_a_wrong_line_is_told(line, words, tmp_path, fails):
    path = tmp_path / "rows.csv"
    path.write_text(HEAD + GOOD + line + "\n")
    fails(lambda _: rows.read(path), "", str(path), *words)


def test_the_first_line_names_the_columns(tmp_path, fails):
    (tmp_path / "rows.csv").write_text(HEAD.replace("macs", "mac") + GOOD)
    fails(lambda _: rows.read(tmp_path / "rows.csv"), "", "line 2: expected the values name,")


def test_an_unknown_row_names_the_nearest(fails):
    fails(lambda _: rows.find("cifar10-vgg17-ann"), "", "did you mean cifar10-vgg16-ann?")


# ---- its figures ----


@pytest.mark.parametrize("name", [name for name in NAMES if rows.find(name).cnn])
def test_macs_of_cnns_follow_from_their_shape(name):
    row, entry = rows.find(name), TABLE[rows.find(name).dataset]
    size = {"num_classes": entry.classes, "image_size": entry.side}
    energy = of_ann(row.network.lower(), **size)
    assert row.macs == energy.macs
    if row.method == "ANN":
        assert tables.ann_energy(row, "{:.6g}") == f"{energy.total_uj:.6g} uJ at full width"


@pytest.mark.parametrize(
    "name, shape, arguments",
    [
        ("cifar10-transformer-t4", ("sdt", 3, 32), TRANSFORMER),
        ("cifar100-transformer-t1", ("sdt", 3, 32), TRANSFORMER | {"num_classes": 100}),
        ("imagenet-transformer-t1", ("sdt", 3, 224), TRANSFORMER | LARGE),
        ("dvscifar10-vggsnn-s4-q3", ("vggsnn", 2, 48), {"num_classes": 10, "image_size": 48}),
    ],
)
def test_macs_of_the_other_networks_follow_from_their_shape(name, shape, arguments):
    assert rows.find(name).macs == macs(*shape, **arguments)


def test_cost_by_hand():
    ann, mlif = rows.find("cifar10-resnet20-ann"), rows.find("cifar10-resnet20-mlif")
    assert rows.operations(ann) == 6 * 215_699_456 * 50_000 * 300
    assert tables.cost(mlif) == "300 + 150 epochs, 29 PFLOP"
    # the printed command's neuron, of one lane and three steps, is trained beside the table's
    printed = rows.find("cifar10-vgg16-mlif")
    assert rows.trainings(printed) == [(1200, 1), (500, 3), (500, 1)]
    events = rows.find("dvscifar10-vggsnn-s4-q10")
    assert rows.operations(events) == 6 * 660_943_872 * 10 * 9_000 * 300
    large = rows.find("imagenet-transformer-t1")
    assert rows.operations(large) == 6 * 8_256_671_744 * 1_281_167 * 310


# ---- recipes ----


@pytest.fixture
def toy(monkeypatch):
    """A row of a new CNN, which has the chain of ResNet20 and no published command."""
    monkeypatch.setitem(models.CNNS, "toy", "toy.Toy")
    monkeypatch.setitem(rows.recipes(), "Toy", rows.recipes()["ResNet20"])
    return replace(rows.find("cifar10-resnet20-mlif"), name="toy", network="Toy")


def test_a_new_cnn_has_no_published_schedule(toy):
    words = (
        r"no command of ann_ddp.py for Toy on CIFAR10 is published, and .* no published schedule"
    )
    with pytest.raises(UseError, match=words):
        rows.stages(toy, asked_for(toy), 0)
    assert tables.cost(toy) == "no published schedule"


@pytest.mark.parametrize("schedule", ["fast", "smoke"])
def test_a_new_cnn_trains_itself(schedule, toy):
    """And not the network that the scripts train by default."""
    ann, fused, snn = rows.stages(toy, asked_for(toy, f"--schedule {schedule}"), 0)
    assert ann.given["architecture"] == snn.given["architecture"] == "TOY"
    assert fused.given["pretrained_ann"] == "{ann}"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_commands_that_its_scripts_accept(name, schedule):
    row = rows.find(name)
    if schedule == "fast" and not (row.cnn and "CIFAR" in row.dataset):
        with pytest.raises(UseError, match="has no fast schedule"):
            rows.stages(row, asked_for(row, "--schedule fast"), 0)
        return
    made = chain_of(name, f"--schedule {schedule}")
    parsed = {stage.name: stage.parsed() for stage in made.stages.values()}
    if row.cnn and row.method == "M-LIF":
        neuron, network = parsed["snn"].neuron, parsed["snn"].network
        assert (neuron.num_channels, neuron.timesteps) == (row.levels, row.steps)
        assert network.pretrained_ann == str(made.stages["ann_fused"].checkpoint)
        twice = name == "cifar10-vgg16-mlif" and schedule == "published"
        assert ("snn_as_printed" in parsed) == twice


def test_the_recipe_that_contradicts_its_row_runs_both_ways():
    made = chain_of("cifar10-vgg16-mlif")
    names = ("snn_as_printed", "snn")
    printed, wanted = (settings.flat(made.stages[name].parsed()) for name in names)
    assert (printed["num_channels"], printed["timesteps"]) == (1, 3)
    assert (wanted["num_channels"], wanted["timesteps"]) == (3, 1)
    different = {key for key in printed if printed[key] != wanted[key]}
    assert different == {"num_channels", "timesteps", "output_dir"}


@pytest.mark.parametrize("name", NAMES)
def test_recipes_hold_every_option_that_is_no_machines(name):
    for stage in chain_of(name, "--data_root data --compile").stages.values():
        given = {word.lstrip("-") for word in stage.words if word.startswith("--")}
        assert given - machine_spellings(stage.script) - {"output_dir"} == set(stage.recipe)
        machine = {"device", "data_root", "data_dir", "dataset_dir", "prepared", "compile"}
        assert not machine & set(stage.recipe)
        assert {"device", "compile"} <= given or not stage.trains


def test_a_width_that_a_network_does_not_have_is_told(fails):
    row = rows.find("cifar10-transformer-t1")
    asked = asked_for(row, "--width_mult 0.5")
    fails(lambda _: rows.stages(row, asked, 0), "", "--width_mult", "has one width")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results" / "rows").glob("*.json")), ids=lambda path: path.stem
)
def test_recorded_recipes_are_those_of_today(path):
    stored = json.loads(path.read_text())
    (recipes,) = stored["recipe"].values()
    amp = recipes["ann"]["amp"]
    words = f"--schedule {stored['schedule']} --width_mult {stored['width_mult']} --amp {amp}"
    assert chain_of(stored["row"], words).recipes == recipes
    for name, stage in stored["runs"]["0"]["stages"].items():
        assert stage["recipe"] == recipes[name]


def test_a_row_is_added_by_a_line_alone(tmp_path, monkeypatch):
    line = "cifar100-vgg16-mlif-s4,CIFAR100,VGG16,M-LIF,4,2,,70,60,338771968\n"
    (tmp_path / "rows.csv").write_text((rows.FOLDER / "rows.csv").read_text() + line)
    content = rows.read(tmp_path / "rows.csv")
    monkeypatch.setattr(rows, "table", lambda: content)
    snn = chain_of("cifar100-vgg16-mlif-s4").stages["snn"]
    assert shlex.join(snn.words).count("--num_channels 4") == 1
    assert rows.find("cifar100-vgg16-mlif-s4").ann.name == "cifar100-vgg16-ann"
