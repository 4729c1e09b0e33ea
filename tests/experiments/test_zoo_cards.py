"""python -m experiments.zoo: what is stored is what was measured, and is found again."""

from types import SimpleNamespace

import pytest
import torch

import energy
from engine import checkpoint
from engine import zoo as table
from engine.errors import guard
from experiments import zoo
from inputs.pretrained import from_pretrained
from tests.zoo import DATA, NAME, network

MADE = ("--made_by", "python3 demo.py")
SETTINGS = {
    "dataset": "DIGITS",
    "data_root": "/home/somebody/data",
    "output_dir": "/home/somebody/runs",
    "pretrained_ann": "/home/somebody/ann.pth",
    "epochs": 7,
    "betas": [0.9, 0.999],
    "num_channels": 3,
    "multi_channel": 1,
}


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of snn_ddp.py on the digits."""
    content = checkpoint.content(
        network(), "snn", DATA, SETTINGS, accuracy=0.9, converted={"pretrained_ann": "/home/x"}
    )
    checkpoint.save(tmp_path / "snn.pth", content)
    return tmp_path / "snn.pth"


def add(trained, *more, name="small"):
    return zoo.main(["add", name, "--checkpoint", str(trained), *MADE, *more])


def test_what_is_added_is_measured_as_it_is_stored(trained, small_zoo, capsys):
    entry = add(trained)
    assert (entry.network, entry.width, entry.levels, entry.steps) == (
        "resnet20",
        "0.0625",
        "3",
        "1",
    )
    assert entry.data == "scikit-learn digits" and entry.sha256 == table.digest(
        small_zoo / "small.pth"
    )
    assert table.table()["small"] == entry
    # the file and not the checkpoint, by the ordinary script
    found = energy.main(["small", "--output", str(small_zoo / "x")])
    assert float(entry.accuracy) == pytest.approx(found["test_accuracy"], abs=5e-5)
    assert float(entry.energy_uj) == pytest.approx(found["energy_uj"], rel=1e-3)
    assert checkpoint.load("small")["accuracy"] == found["test_accuracy"] != 0.9
    assert (small_zoo / "small.pth").stat().st_size < 0.4 * trained.stat().st_size
    assert "small.pth" in capsys.readouterr().out


def test_other_networks_stay(trained, small_zoo):
    before = table.table()
    add(trained)
    after = table.table()
    assert {name: after[name] for name in before} == before
    assert list(after) == sorted(after)


def test_the_card_says_what_it_is(trained, small_zoo):
    entry = add(trained)
    card = (small_zoo / "small.md").read_text()
    words = (
        "S = 3, T = 1",
        f"{float(entry.accuracy):.2%} of the 360 test images of scikit-learn digits",
        f"{entry.energy_uj} uJ",
        entry.sha256,
        "python3 demo.py",
        "--epochs 7",
        f"torch {torch.__version__.partition('+')[0]}",
    )
    for word in words:
        assert word in card
    # options at their defaults say nothing
    assert "--betas" not in card


def test_nothing_of_this_machine_is_stored(trained, small_zoo):
    add(trained)
    for path in (small_zoo / "small.pth", small_zoo / "small.md", small_zoo / "zoo.csv"):
        assert b"/home/" not in path.read_bytes()
    # digits lie in scikit-learn, other images in somebody's folder
    data = SimpleNamespace(about=DATA | {"where": "/home/x"}, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "/home" not in str(zoo.packed(checkpoint.load(trained), data))
    settings = checkpoint.load("small")["settings"]
    assert settings["epochs"] == 7 and "data_root" not in settings


def test_normalisation_is_stored(trained, small_zoo):
    """The digits' statistics are measured; nobody could know them later."""
    add(trained)
    net = from_pretrained("small")
    assert 0.2 < net.mean[0] < 0.4


def test_check_measures_all_again(trained, small_zoo, capsys):
    add(trained)
    zoo.main(["check", "small"])
    assert "small: as on its card" in capsys.readouterr().out


WRONG = {"accuracy": "0.5", "energy_uj": "1e-3", "sha256": "0" * 64}


@pytest.mark.parametrize("field", WRONG)
def test_check_finds_what_differs(field, trained, small_zoo, fails):
    entry = add(trained)
    changed = type(entry)(**{**vars(entry), field: WRONG[field]})
    table.write([changed], small_zoo)
    # another file is refused before it is measured
    words = ("sha256",) if field == "sha256" else ("small", "its card")
    status = 2 if field == "sha256" else 1
    fails(zoo.main, "check", *words, status=status)


def test_a_card_of_another_file_is_found(trained, small_zoo, fails):
    add(trained)
    (small_zoo / "small.md").write_text("an older card")
    fails(zoo.main, "check small", "small.md is not the card", status=1)


def test_other_test_images_are_no_check(trained, small_zoo, fails):
    add(trained)
    content = torch.load(small_zoo / "small.pth", weights_only=True)
    content["data"]["test"] = {"images": 10, "sha256": "0" * 16}
    torch.save(content, small_zoo / "small.pth")
    entry = table.table()["small"]
    changed = {**vars(entry), "sha256": table.digest(small_zoo / "small.pth")}
    table.write([type(entry)(**changed)], small_zoo)
    fails(zoo.main, "check", "test images", "results never mix")


def test_a_file_is_replaced_when_asked_for(trained, small_zoo, fails):
    add(trained)
    line = ["add", "small", "--checkpoint", str(trained), *MADE]
    fails(zoo.main, line, "small.pth is there already", "--replace", keep=small_zoo)
    guard(zoo.main, [*line, "--replace"])


def test_what_is_described_alone_may_get_a_file(trained, small_zoo):
    add(trained, name="resnet20_cifar10")
    assert table.find("resnet20_cifar10").name == "resnet20_cifar10.pth"


def ann(path):
    content = checkpoint.load(path)
    checkpoint.save(path, {**content, "kind": "ann"})


CASES = {
    "no name": ("add", "is no name"),
    "no checkpoint": ("add small", "give --checkpoint"),
    "no command": ("add small --checkpoint {path}", "give --made_by"),
    "a path": ("add a/b --checkpoint {path} --made_by x", "a/b is no name"),
    "unknown": ("check absent", "there is no absent", NAME),
    "described": ("check resnet20_cifar10", "the weights of resnet20_cifar10 are not here"),
    "idle": ("check --made_by x", "--made_by does nothing here"),
}


@pytest.mark.parametrize("argv, words", [(c[0], c[1:]) for c in CASES.values()], ids=CASES)
def test_one_line(argv, words, trained, small_zoo, fails):
    fails(zoo.main, argv.format(path=trained), *words, keep=small_zoo)


def test_an_ann_is_refused(trained, small_zoo, fails):
    ann(trained)
    line = ["add", "small", "--checkpoint", str(trained), *MADE]
    fails(zoo.main, line, "snn.pth holds a network of kind ann", "snn_ddp.py", keep=small_zoo)
