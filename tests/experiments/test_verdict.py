"""What a result says of its row, by hand; the tables that show it."""

import json

import pytest

import reproduce
from experiments import rows, tables
from experiments.verdict import effort, outcome, verdict, where
from tests.helpers import ROOT

ROW = rows.find("cifar10-resnet20-mlif")


def run(accuracy=0.93, energy=50.0, **stages):
    """A seed's chain: an ANN of 94 % and 1000 uJ, and the SNN."""
    ann = {"test_accuracy": 0.94, "seconds": 1800}
    snn = {
        "test_accuracy": accuracy,
        "energy_uj": energy,
        "ann_energy_uj": 1000.0,
        "lane_rates": [0.1, 0.2],
        "seconds": 1800,
        "data": "somewhere",
    }
    return {"result": "snn", "stages": {"ann": ann, **stages, "snn": snn}}


def result(*runs, width_mult=1.0):
    numbered = {str(seed): one for seed, one in enumerate(runs)}
    return {"schedule": "published", "width_mult": width_mult, "runs": numbered}


def test_outcome_by_hand():
    found = {name: mean for name, (mean, _) in outcome(result(run())).items()}
    expected = {"accuracy": 93, "energy": 50, "rate": 0.3, "hours": 1, "gap": 1, "ratio": 20}
    assert found == pytest.approx(expected)


def test_an_ann_has_neither_gap_nor_rate():
    ann = run()["stages"]["snn"] | {"lane_rates": []}
    found = outcome(result({"result": "ann", "stages": {"ann": ann}}))
    assert set(found) == {"accuracy", "energy", "hours"}


def test_several_seeds_give_mean_and_spread():
    several = result(run(), run(accuracy=0.95))
    assert outcome(several)["accuracy"] == pytest.approx((94, 2**0.5))
    assert "94.00 ± 1.41" in verdict(ROW, several)
    assert where(several) == "somewhere, published, 2 seeds"


def test_the_effort_is_of_the_whole_chain_and_its_machines():
    one = run()
    one["stages"]["ann"] |= {"log": [{"images_per_s": 5}], "machine": "a GPU"}
    one["stages"]["snn"]["log"] = [{"images_per_s": speed} for speed in (2000, 9000, 1000)]
    assert effort(result(one)) == "1 h, 2,000 images/s, a GPU"
    one["stages"]["snn"]["machine"] = "a CPU"
    assert effort(result(one)) == "1 h, 2,000 images/s, a GPU, a CPU"


def test_a_row_that_is_reached():
    text = verdict(ROW, result(run()))
    assert (
        "verdict: accuracy (tolerance 0.5 points) reached, energy (tolerance 10%) reached" in text
    )
    assert "1.12" in text
    assert "18.0" in text


def test_a_row_that_is_not_reached():
    text = verdict(ROW, result(run(accuracy=0.92, energy=100.0)))
    assert "points) NOT reached" in text
    assert "10%) NOT reached" in text


def test_the_tolerances_at_their_ends():
    text = verdict(ROW, result(run(accuracy=0.9270, energy=61.0)))
    assert text.count("NOT reached") == 0
    text = verdict(ROW, result(run(accuracy=0.9268, energy=61.1)))
    assert text.count("NOT reached") == 2


def test_at_another_width_gap_and_ratio_compare():
    text = verdict(ROW, result(run(), width_mult=0.5))
    assert "verdict: gap reached, energy ratio reached" in text
    text = verdict(ROW, result(run(accuracy=0.92, energy=100.0), width_mult=0.5))
    assert "verdict: gap NOT reached, energy ratio NOT reached" in text
    ann = {"result": "ann", "stages": {"ann": run()["stages"]["snn"]}}
    text = verdict(rows.find("cifar10-resnet20-ann"), result(ann, width_mult=0.5))
    assert "verdict: nothing compares at another width" in text


def test_the_printed_recipe_stands_beside_its_row():
    printed = {"test_accuracy": 0.5, "energy_uj": 7.0, "seconds": 3600}
    text = verdict(ROW, result(run(snn_as_printed=printed)))
    assert "the printed recipe has another neuron (S=1, T=3)" in text
    assert "50.00%, 7 uJ" in text
    # it does not belong to the row's training
    assert "training (hours)                                      1.00" in text


# ---- tables ----


def test_the_list_shows_published_cost_and_what_is_known(capsys):
    reproduce.main(["--list"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 25
    for part in ("energy 1557 uJ at full width", "energy 992.2 uJ", "7.116e+04"):
        assert part in text


def test_the_readme_shows_the_table_of_the_results():
    text = (ROOT / "README.md").read_text()
    shown = text.partition(tables.START)[2].partition(tables.END)[0].strip()
    assert shown == tables.table(ROOT / "results" / "rows"), "run: python reproduce.py --report"


def test_the_report_writes_table_and_figure(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.START}\nold\n{tables.END}\nafter\n")
    for path in (ROOT / "results" / "rows").glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    shown = tables.report(tmp_path, readme)
    assert readme.read_text() == f"before\n{tables.START}\n{shown}\n{tables.END}\nafter\n"
    assert "| 93.97 %, gap 0.76 | 44.5 uJ, 1/35.0 |" in shown
    assert (tmp_path / "rows.png").stat().st_size > 10_000


def test_what_a_price_buys_is_a_line_of_the_figure(tmp_path):
    """A point for each variant, the mean of its seeds."""
    assert tables.prices(tmp_path / "missing.json") == {}
    recipe = {
        "dataset": "CIFAR10",
        "architecture": "RESNET20",
        "width_mult": "0.25",
        "keep": "last",
    }
    seeds = [
        {"recipe": recipe, "energy_uj": 6.0, "test_accuracy": 0.83},
        {"recipe": recipe, "energy_uj": 7.0, "test_accuracy": 0.84},
    ]
    cheaper = [{"recipe": recipe, "energy_uj": 5.0, "test_accuracy": 0.82}]
    path = tmp_path / "rate_target.json"
    path.write_text(json.dumps({"runs": {"none": seeds, "rate 0.2": cheaper}}))
    line = ("CIFAR10, width x0.25", "ResNet20", "price on energy")
    assert tables.prices(path) == {line: [(6.5, pytest.approx(83.5)), (5.0, 82.0)]}


def test_a_report_of_nothing_is_refused(tmp_path, fails):
    """It would say of every row that nothing was measured."""
    readme = tmp_path / "README.md"
    readme.write_text(f"{tables.START}\nold\n{tables.END}\n")
    (tmp_path / "none").mkdir()
    words = "none holds no result of a row"
    fails(lambda _: tables.report(tmp_path / "none", readme), "", words, keep=tmp_path)


def test_a_report_of_own_results_has_a_page_of_its_own(tmp_path, capsys):
    """The README tells of the repository's."""
    before = (ROOT / "README.md").read_bytes()
    name = "cifar10-resnet20-ann.fast.json"
    (tmp_path / name).write_text((ROOT / "results" / "rows" / name).read_text())
    reproduce.main(["--report", "--results", str(tmp_path)])
    assert (ROOT / "README.md").read_bytes() == before
    page = (tmp_path / "table.md").read_text()
    assert page.startswith(tables.START) and "| 94.33 % |" in page
    assert str(tmp_path / "table.md") in capsys.readouterr().out


def test_the_report_needs_its_place(tmp_path, fails):
    (tmp_path / "README.md").write_text("nothing\n")
    fails(
        lambda _: tables.report(tmp_path, tmp_path / "README.md"),
        "",
        "has no place for the table",
        keep=tmp_path,
    )
