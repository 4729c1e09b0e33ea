"""The price on energy: its weight over the epochs, and the energy that is asked for."""

from pathlib import Path

import pytest
import torch

import snn_ddp
from cli import checks
from engine.dist import World
from engine.errors import UseError
from engine.log import read_lines
from engine.recipes.price import BAND, MOST, Price, PriceOptions
from neuromorphic_tasks import main_training_parallel
from spike_driven_transformer import train

LINE = (
    "--dataset DIGITS -a RESNET20 --width_mult 0.0625 --bias --batch_size 64 --device cpu "
    "-multi_channel 1 -num_channels 3 --timesteps 1 --default_threshold 0.5 --optimizer Adam "
    "--lr_schedule cosine --weight_decay 0 --learning_rate 0.001 --energy"
)


def price(share, **options):
    """A price of 4 epochs with one share of additions all the time; 1 uJ fixed, 10 uJ in full."""
    made = Price(PriceOptions(**options), torch.nn.Sequential(), 4, 1.0, 10.0, World())
    made.additions = lambda: torch.tensor(share)
    return made


@pytest.fixture(autouse=True)
def without_steps(monkeypatch):
    """A network without neurons has no steps, and needs none here."""
    monkeypatch.setattr(
        torch.nn.Sequential, "act", type("Act", (), {"steps": 1, "scale": False}), raising=False
    )


def test_the_price_is_its_weight_times_the_share():
    assert price(0.2, rate_penalty=0.3)(1.0).item() == pytest.approx(0.06)


def test_the_weight_rises_over_the_warm_up():
    made = price(0.5, rate_penalty=0.4, penalty_warm_up=2.0)
    prices = [made(epoch).item() for epoch in (1.0, 1.5, 2.0, 3.0, 9.0)]
    assert prices == pytest.approx([0, 0.05, 0.1, 0.2, 0.2])
    made(1.5)
    assert made.figures()["penalty"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "over, weight", [(-0.5, 0), (0, 0), (BAND / 4, MOST / 4), (BAND, MOST), (1, MOST)]
)
def test_the_weight_follows_the_energy_that_is_asked_for(over, weight):
    """2 uJ are asked for, at once."""
    energy = 2 * (1 + over)
    made = price((energy - 1) / 10, energy_target=2.0, penalty_warm_up=0.0)
    assert made(1.0).item() == pytest.approx(weight * (energy - 1) / 10, abs=1e-5)
    figures = made.figures()
    assert figures["penalty"] == pytest.approx(weight, abs=1e-4)
    assert figures["batch_energy_uj"] == pytest.approx(energy)


def test_a_rate_is_asked_for_as_its_energy():
    one, two = price(0.3, energy_target=2.5), price(0.3, rate_target=0.15)
    for step in range(11):
        prices = {made(1 + step / 10).item() for made in (one, two)}
        assert len(prices) == 1
    assert two.target == 2.5


@pytest.mark.parametrize("other", ["--energy_target 2", "--rate_penalty 1"])
def test_two_prices_are_refused(other, here):
    with pytest.raises(UseError, match="give one of --rate_penalty, --energy_target and"):
        snn_ddp.main(f"{LINE} --rate_target 0.2 {other}".split())


def between(made):
    """Weights with an energy of 3 uJ, before and after it is more than what is aimed at."""
    made.additions = lambda: torch.tensor(0.2)
    weights = []
    for epoch in (1.9, 2.1):
        made(epoch)
        weights.append(made.figures()["penalty"])
    return weights


def test_the_energy_is_asked_for_in_small_steps():
    """From 4 uJ, where the network is, in a line to 2 after half of the 4 epochs."""
    made = price(0.3, energy_target=2.0)
    made(1.0)
    assert between(made) == [0, MOST]


def test_a_network_below_the_target_may_take_more():
    """It has 2 uJ at first, and may have 5."""
    made = price(0.1, energy_target=5.0)
    made(1.0)
    made.additions = lambda: torch.tensor(0.4)
    assert made(1.1).item() == 0


def test_a_resumed_price_goes_on():
    one, two = (price(0.3, energy_target=2.0) for _ in range(2))
    one(1.0)
    # what was measured of other images counts
    one.fixed, one.full = 1.5, 9.0
    one.load_state_dict(one.state_dict())
    two.load_state_dict(one.state_dict())
    assert between(one) == between(two)
    assert (two.fixed, two.full) == (1.5, 9.0)
    rate = price(0.3, rate_target=0.1)
    rate.load_state_dict(one.state_dict())
    assert rate.target == pytest.approx(1.5 + 0.1 * 9)


class Other(World):
    """Two processes, of which the other one has a quarter of the batch and 0.7 of its MACs."""

    def sum(self, tensor):
        return tensor.add_(0.25 * 0.7)


def test_processes_count_by_their_images():
    made = price(0.3, energy_target=2.0)
    made.world = Other()
    made(1.0, part=0.75)
    assert made.energy.item() == pytest.approx(1 + 10 * (0.75 * 0.3 + 0.25 * 0.7))


def test_the_best_epoch_may_be_one_that_takes_more(here):
    with pytest.raises(UseError, match="--energy_target and --rate_target need --keep last"):
        snn_ddp.main(f"{LINE} --rate_target 0.2".split())


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_a_penalised_network_takes_less_energy(here):
    energies = [
        snn_ddp.main(f"{LINE} --epochs 2 --limit_train_batches 8 --rate_penalty {weight}".split())[
            "energy_uj"
        ]
        for weight in (0, 3)
    ]
    assert energies[1] < 0.9 * energies[0]


def test_an_energy_that_the_first_layer_alone_exceeds_is_refused(here):
    with pytest.raises(UseError, match=r"the first layer alone takes 0.* uJ"):
        snn_ddp.main(f"{LINE} --epochs 1 --keep last --energy_target 0.001".split())


def test_a_price_that_is_due_after_the_training_is_refused():
    asked = PriceOptions(rate_target=0.2, penalty_warm_up=2.0)
    with pytest.raises(UseError, match="ends after 1 epochs, before the price is due"):
        checks.price_rule(asked, "last", 1)
    assert checks.price_rule(asked, "last", 2)[1]


def test_a_price_that_rises_keeps_the_last_network():
    asked = PriceOptions(rate_penalty=0.1, penalty_warm_up=2.0)
    with pytest.raises(UseError, match="before the price has"):
        checks.price_rule(asked, "best", 2)
    assert checks.price_rule(asked, "last", 2)[1]


def test_a_target_is_missed_by_the_mean_of_the_last_epoch():
    made = price(0.25, energy_target=2.0)  # 3.5 uJ
    assert made.missed() == 0
    made(4.0)
    made.additions = lambda: torch.tensor(0.15)  # 2.5 uJ
    made(4.5)
    assert made.missed() == pytest.approx(0.5)
    resumed = price(0.15, energy_target=2.0)
    resumed.load_state_dict(made.state_dict())
    assert resumed.missed() == pytest.approx(0.5)
    # another epoch
    resumed(5.0)
    assert resumed.missed() == pytest.approx(0.25)


@pytest.mark.parametrize("options", [{"rate_penalty": 0.1}, {"energy_target": 3.45}])
def test_a_target_is_met_within_the_band(options):
    made = price(0.25, **options)
    made(1)
    assert made.missed() == 0


def test_a_training_that_misses_its_target_says_so(here, capsys):
    argv = f"{LINE} --epochs 1 --limit_train_batches 2 --limit_eval_batches 1 --keep last"
    summary = snn_ddp.main([*argv.split(), "--rate_target", "0.001", "--penalty_warm_up", "0"])
    words = "note: the energy of the last epoch's batches is "
    assert words in capsys.readouterr().out
    snn_ddp.main(["--resume", summary["run"], "--device", "cpu"])
    assert words in capsys.readouterr().out


def test_the_loss_of_the_log_is_without_the_price(here):
    """The share of additions is under 1, which 100 of it would show in the loss."""
    argv = f"{LINE} --epochs 1 --limit_train_batches 2 --limit_eval_batches 1"
    losses = []
    for weight in (0, 100):
        summary = snn_ddp.main([*argv.split(), "--rate_penalty", str(weight)])
        losses.append(read_lines(Path(summary["run"]) / "log.jsonl")[0]["train_loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1)


@pytest.mark.parametrize("script", [snn_ddp, train, main_training_parallel])
def test_every_spiking_network_may_have_a_price(script):
    argv = ["--rate_penalty", "0.1", "--penalty_warm_up", "2", "--keep", "last"]
    asked = script.get_parser().parse(argv)
    assert asked.price.on
    idle = [names for names, used, _ in script.rules(asked) if not used]
    assert ["penalty_warm_up"] not in idle
