"""The price on energy: its weight over the epochs, and the energy that is asked for."""

import math

import pytest
import torch

import snn_ddp
from engine.dist import World
from engine.errors import UseError
from engine.recipes.price import GAIN, START, Price, PriceOptions
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


@pytest.mark.parametrize("share, factor", [(0.2, 0.5), (0.05, -0.25), (0.9, 1.0)])
def test_the_weight_follows_the_energy_that_is_asked_for(share, factor):
    """3, 1.5 and 10 uJ where 2 are asked for; no more than twice the energy counts."""
    made = price(share, energy_target=2.0, penalty_warm_up=0.0)
    for step in range(11):
        made(1 + step / 10)
    assert made.weight.item() == pytest.approx(START * math.exp(GAIN * factor), rel=1e-4)
    assert made.figures()["batch_energy_uj"] == pytest.approx(1 + 10 * share)


def test_a_rate_is_asked_for_as_its_energy():
    one, two = price(0.3, energy_target=2.5), price(0.3, rate_target=0.15)
    for step in range(11):
        prices = {made(1 + step / 10).item() for made in (one, two)}
        assert len(prices) == 1
    assert two.target == 2.5


def test_two_targets_are_refused(here):
    with pytest.raises(UseError, match="--energy_target or --rate_target, not both"):
        snn_ddp.main(f"{LINE} --energy_target 2 --rate_target 0.2".split())


def test_the_energy_is_asked_for_in_small_steps():
    """From 4 uJ, where the network is, in a line to 2 after half of the 4 epochs."""
    made = price(0.3, energy_target=2.0)
    for step in range(31):
        made(1 + step / 10)
    aims = [4 - 2 * min(1, step / 20) for step in range(1, 31)]
    growth = sum(GAIN * 0.1 * (4 / aim - 1) for aim in aims)
    assert made.weight.item() == pytest.approx(START * math.exp(growth), rel=1e-4)


def test_a_resumed_price_goes_on():
    one, two = (price(0.3, energy_target=2.0, penalty_warm_up=1.0) for _ in range(2))
    for step in range(20):
        one(1 + step / 10)
        if step == 14:
            two.load_state_dict(one.state_dict())
        if step > 14:
            two(1 + step / 10)
    assert two.weight.item() == pytest.approx(one.weight.item(), rel=1e-6)


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_a_penalised_network_takes_less_energy(here):
    energies = [
        snn_ddp.main(f"{LINE} --epochs 2 --rate_penalty {weight}".split())["energy_uj"]
        for weight in (0, 3)
    ]
    assert energies[1] < 0.9 * energies[0]


def test_an_energy_that_the_first_layer_alone_exceeds_is_refused(here):
    with pytest.raises(UseError, match=r"the first layer alone takes 0.* uJ"):
        snn_ddp.main(f"{LINE} --epochs 1 --energy_target 0.001".split())


@pytest.mark.parametrize("script", [snn_ddp, train, main_training_parallel])
def test_every_spiking_network_may_have_a_price(script):
    asked = script.get_parser().parse(["--rate_penalty", "0.1", "--penalty_warm_up", "2"])
    assert asked.price.on
    idle = [names for names, used, _ in script.rules(asked) if not used]
    assert ["penalty_warm_up"] not in idle
