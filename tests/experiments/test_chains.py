"""Declared chains, and the results folders of finished runs."""

import json
import shlex
from pathlib import Path

import pytest

import ann_ddp
import energy
from engine import settings
from experiments import chain as chain_module
from experiments import chains, declared, report
from tests.helpers import ROOT

DIGITS = "--dataset DIGITS -a RESNET20 --width_mult 0.03 --bias --bn --device cpu --epochs 1"
KNOWN = chains.read(chains.FILE)
# settings of before that are named otherwise today, or belong to one run
MOVED = {"output_dir", "pretrained_ann", "local_rank", "experiment", "resume", "workers"}
BROKEN = {
    "a: {}": "every is missing",
    "a: 3": "expected a mapping of",
    "a: [": "is not a readable YAML file",
    "a: {every: {}, training: {}, stages: {}, about: b, cost: c, width_mult: 1, folder: d, e: f}"
    "": "e is unknown",
}


def made(name, words=""):
    asked = chains.get_parser().parse([name, *shlex.split(words)])
    return chains.make(asked, name, KNOWN[name])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run folder of a finished training."""
    words = f"{DIGITS} --limit_train_batches 1 --energy --output_dir"
    return ann_ddp.main([*words.split(), str(tmp_path_factory.mktemp("run"))])["run"]


# ---- chains ----


def test_the_chains_are_listed(capsys):
    chains.main([])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names == ["cifar10_resnet20", "cifar10_sdt", "resnet20_norm", "resnet20_norm_75"]


@pytest.mark.parametrize("name", KNOWN)
def test_a_chain_is_commands_that_its_scripts_accept(name):
    _, chain = made(name)
    for stage in chain.stages.values():
        stage.parsed()


@pytest.mark.parametrize("name", ["cifar10_sdt"])
def test_a_recorded_chain_is_run_as_it_was(name):
    """Every setting that the recorded files hold, but for folders."""
    folder, chain = made(name)
    assert folder == name
    labels = {stage.get("label"): key for key, stage in KNOWN[name]["stages"].items()}
    for path in (ROOT / "results" / folder).glob("*.json"):
        stored = json.loads(path.read_text())
        stage = chain.stages[labels[stored["stage"]]]
        assert stage.file == stored["script"]
        kind = type(stage.parsed())
        options, names = settings.options(kind), settings.stored_name(kind)
        here = settings.flat(stage.parsed())
        for key, value in stored["settings"].items():
            option = options[names[key]]
            if option.governs != settings.MACHINE and key not in MOVED:
                value = option.value(value)
                value = list(value) if isinstance(value, tuple) else value
                assert here[option.name] == value, (path.name, key)


def test_options_go_to_every_command_that_trains():
    _, chain = made("cifar10_resnet20", "--amp bf16 --limit_train_batches 2 --data_root /d")
    for stage in chain.stages.values():
        shown = shlex.join(stage.words)
        given = "--amp bf16" in shown, "--limit_train_batches 2" in shown, "/d" in shown
        assert given == (stage.trains,) * 3


def test_a_width_goes_to_every_command():
    folder, chain = made("cifar10_resnet20", "--width_mult 1")
    assert folder == "cifar10_resnet20_w1"
    assert chain.folder.name == folder
    assert all("--width_mult 1" in shlex.join(stage.words) for stage in chain.stages.values())


def test_the_transformer_refuses_a_width(fails, tmp_path):
    words = f"cifar10_sdt --width_mult 0.5 --output_dir {tmp_path}"
    fails(chains.main, words, "unrecognized arguments: --width_mult")


def test_results_of_another_run_stay(cifar, tmp_path, fails):
    """And nothing is trained for what could not be written."""
    held = {"stage": "ANN", "summary": {"run": "runs/another"}, "log": []}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ann.json").write_text(json.dumps(held))
    # what other commands wrote there is no matter
    (tmp_path / "out" / "teacher.json").write_text('{"runs": {}}')
    argv = f"cifar10_resnet20 --data_root {cifar} --output_dir {tmp_path}/runs"
    words = "ann.json is of another run, another: give another --results"
    fails(chains.main, f"{argv} --results {tmp_path}/out", words, keep=tmp_path / "out")
    assert not (tmp_path / "runs").exists()


def test_chains_are_run_and_written_one_after_the_other(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(chain_module.Chain, "all", lambda chain: done.append(chain.title))
    monkeypatch.setattr(chains, "write", lambda folder, runs: done.append((folder, len(runs))))
    monkeypatch.chdir(tmp_path)
    chains.main(["resnet20_norm", "resnet20_norm_75", "--output_dir", str(tmp_path)])
    first, written, second, _ = done
    assert (first, second) == ("resnet20_norm", "resnet20_norm_75")
    labels = [stage for stage in KNOWN["resnet20_norm"]["stages"].values() if "label" in stage]
    assert written == (Path("results/resnet20_norm"), len(labels))


@pytest.mark.long
def test_a_chain_runs_and_writes_its_results(cifar, tmp_path, monkeypatch, capsys):
    small = {"width_mult": "0.03", "data_root": str(cifar), "device": "cpu"}
    own = json.loads(json.dumps(KNOWN["cifar10_resnet20"]))
    for name in ("lq", "published"):
        del own["stages"][name]
    for stage in own["stages"].values():
        if "epochs" in stage["options"]:
            stage["options"]["epochs"] = 1
    monkeypatch.setattr(chains, "read", lambda path: {"small": own})
    # whoever edits a file while the tests run does not stop this one
    monkeypatch.setattr(chain_module, "sources", str)
    words = [f"--{name}={value}" for name, value in small.items()]
    argv = ["small", *words, "--output_dir", str(tmp_path), "--results", str(tmp_path / "out")]
    chains.main(argv)
    table = (tmp_path / "out" / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[4:]] == ["| ANN", "| SNN, matched"]
    assert table in capsys.readouterr().out
    chains.main(argv)
    assert capsys.readouterr().out.count("done before") == 3


@pytest.mark.parametrize("text", BROKEN)
def test_a_wrong_declaration_says_where_and_what(text, tmp_path, fails):
    (tmp_path / "c.yml").write_text(text)
    fails(lambda _: chains.read(tmp_path / "c.yml"), "", "c.yml", BROKEN[text])


def test_values_are_filled_in_and_stages_stay():
    content = {"a": "{width_mult:g}", "b": {"c": "{ann}", "d": 3, "e": "x{seed}"}}
    values = {"width_mult": 0.5, "seed": 1}
    assert declared.filled(content, values) == {"a": "0.5", "b": {"c": "{ann}", "d": 3, "e": "x1"}}


# ---- results folders ----


def test_finished_runs_are_reported_under_their_labels(run, tmp_path):
    chains.main(["--results", f"{tmp_path}/out", "--report", f"A={run}", f"B={run}"])
    names = ["a.json", "b.json", "chain.png", "chain.svg", "table.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    stored = json.loads((tmp_path / "out" / "a.json").read_text())
    recorded = json.loads((ROOT / "results" / "cifar10_sdt" / "lif.json").read_text())
    assert list(stored) == list(recorded)


def test_the_figure_shows_the_lanes_of_the_first_spiking_network(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report.figures, "chain", lambda *given: drawn.append(given))
    kept = report.read("A", run)
    energies = {"A": {}, "B": {"act": [0.1]}, "C": {"act": [0.2]}}

    def read(label, folder):
        steps = {name: [[0.05], [0.05]] for name in energies[label]}
        energy = {"lane_rates_per_layer": energies[label], "lane_rates_per_step": steps}
        return kept | {"stage": label, "energy": energy}

    monkeypatch.setattr(report, "read", read)
    report.write(tmp_path, [(label, run) for label in energies])
    report.write(tmp_path, [("A", run)])
    assert [lanes for _, _, lanes, *_ in drawn] == [{"act": [0.1]}, {"-": [0.0]}]
    assert [given[4:] for given in drawn] == [(2, "B"), (1, "none")]


@pytest.mark.parametrize(
    "runs, words",
    [
        (["A b={run}", "a-b={run}"], ["the labels give 2 runs the file a_b.json"]),
        (["{run}"], ["expected LABEL=RUN"]),
        (["A={run}/.."], ["holds no summary.json", "--resume"]),
    ],
)
def test_wrong_runs_are_told(runs, words, run, tmp_path, fails):
    argv = ["--report", *(pair.format(run=run) for pair in runs), "--results", f"{tmp_path}/two"]
    fails(chains.main, argv, *words)


def test_runs_of_before_are_read(tmp_path, monkeypatch):
    """Recorded when energies had fewer models and counts: the same table comes of them."""
    monkeypatch.setattr(report.figures, "chain", lambda *given: None)
    recorded = ROOT / "results" / "cifar10_sdt"
    runs = []
    for name in ("m_lif__3_lanes", "m_lif__3_lanes__paper_edge", "lif"):
        kept = json.loads((recorded / f"{name}.json").read_text())
        folder = tmp_path / name
        folder.mkdir()
        for part in ("summary", "energy"):
            (folder / f"{part}.json").write_text(json.dumps(kept[part]))
        config = {key: kept[key] for key in ("data", "settings", "versions")}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "log.jsonl").write_text("")
        runs.append((kept["stage"], folder))
    assert report.write(tmp_path, runs) == (recorded / "table.md").read_text()


def test_a_report_of_nothing_is_refused(tmp_path, fails):
    """As of a pattern of file names that fits none."""
    fails(chains.main, f"--report --results {tmp_path}/out", "here is none")


def test_a_report_needs_its_folder(run, fails):
    fails(chains.main, ["--report", f"A={run}"], "name it by --results")


def test_an_unknown_chain_is_told(fails):
    fails(chains.main, "cifar11", "there is no chain 'cifar11'", "cifar10_resnet20, cifar10_sdt")


@pytest.mark.parametrize(
    "words, told",
    [("cifar10_resnet20 cifar11", "no chain"), ("cifar10_resnet20 cifar10_sdt --width_mult 2", "")],
)
def test_what_is_wrong_with_a_chain_is_told_before_another_is_trained(
    words, told, fails, monkeypatch
):
    monkeypatch.setattr(chain_module.Chain, "all", None)
    fails(chains.main, words, told)


def test_a_run_folder_is_measured_as_its_best_checkpoint(run, tmp_path, fails):
    energy.main([run, "--device", "cpu", "--output", f"{tmp_path}/"])
    measured = json.loads((tmp_path / "best_energy.json").read_text())
    assert "digits" in measured["data"]
    assert measured["test"]["images"] == measured["test_images"] == measured["images"]
    words = f"{run} --device cpu --data_root {tmp_path}"
    fails(energy.main, words, "--data_root does nothing here", "DIGITS")
