"""What counts cost: every model by hand, the published table, the text, the files, energy.py."""

import csv
import json

import numpy as np
import pytest
import torch
from spikingjelly.activation_based.op_counter import LemaireEnergyCostConfig

import energy as command
import models
from analysis.energy import measure
from analysis.hardware import Device, access
from analysis.pricing import MODELS, Energy, Model, Row
from engine import checkpoint
from models import NeuronConfig, Spiking, calibrate, transformer, vggsnn
from tests.analysis.networks import IMAGE, chain, layer, silent_chain, spiking
from tests.helpers import GOLDEN, ROOT


@pytest.mark.parametrize("key", ["VGG16_T1_S3", "VGG16_T3_S1", "RESNET20_T1_S3", "RESNET20_T3_S1"])
def test_published_operation_table(key):
    """As in the published table: rate = spikes / inputs, operations = rate * MACs.

    The first layer is billed as MACs.
    """
    table = np.load(GOLDEN / "D2_ops_energy.npz")[f"{key}_mac_spikes_neurons_rate_snnop"].astype(
        np.float64
    )
    for macs, spikes, neurons, rate, operations in table[1:]:
        row = Row("layer", macs, neurons, step_rates=[spikes / neurons])
        assert row.rate == pytest.approx(rate, rel=1e-5)
        assert row.energy_uj == pytest.approx(0.9e-6 * operations, rel=1e-5)
    first = Row("first", *table[0, [0, 2]], dense=[1.0])
    assert first.energy_uj == pytest.approx(4.6e-6 * table[0, 0])


BYTE = 2.5 / 8192  # pJ to reach a byte, for each byte of a memory below 8 KiB
EVENTS = (
    # The image once: 4 MACs of 8 bits and the image's 4 bytes, written once and read by each MAC.
    (4 * (BYTE * 1 + 0.3) + (4 + 4) * BYTE * 4)
    # 20 additions with a shift: a weight of 9; one of 4 potentials of 4 bytes, read and written.
    + 20 * (BYTE * 9 + 2 * 4 * BYTE * 16 + 0.124)
    # Two layers of 4 neurons at two steps, with two comparisons each.
    + 2 * 2 * 4 * (2 * 4 * BYTE * 16 + 0.2)
    # 5 spikes of 2 bits, through a memory of 1000 words of 4 bytes.
    + 5 * 2 * 2 * BYTE * 4000 / 8
)
WANTED = {
    "paper": 4.6 * 4 + 0.9 * 36 * 1.25,
    "exact": 4.6 * 4 + 0.9 * 20,
    "int8": 0.23 * 4 + 0.03 * 20,
    # Two spikes with 4 additions each are worth 2; the readout at both steps.
    "shift-add": 0.23 * 4 + 0.03 * 20 + 0.024 * 8 + 0.23 * 8 * 2,
    "event-memory": EVENTS,
    "event-memory-t1": EVENTS,  # the potentials are kept from step to step
    # Two steps of three nonzero values have sums up to 6: 3 bits, of which 4 inputs fill 1.5 bytes.
    # At the step of more spikes 12 weights meet one; the readout's inputs are all zero.
    "qnn": 4 * (BYTE + 0.3)
    + 8 * BYTE * 4
    + (36 + 4 + 8 + 4) * 3 / 8 * BYTE * 1.5
    + 12 * (BYTE * 9 + 0.3),
    "device": 27.1 * (4 + 20) + 81 * 16,
    "device-unit": 27.1 * (4 + 12 + 2 * 8) + 81 * 16,
    "device-spinnaker2": 450 * (4 + 20) + 2190 * 16,
}  # pJ of `silent_chain`


@pytest.mark.parametrize("name", WANTED)
def test_every_model_by_hand(name):
    assert WANTED.keys() == MODELS.keys()
    energy = measure(silent_chain(), [IMAGE])
    assert energy.uj(name) == pytest.approx(WANTED[name] * 1e-6)
    by_lane = sum(sum(step.values()) for step in energy.by_lane(name))
    assert by_lane == pytest.approx(WANTED[name] * 1e-6)


def test_at_one_step_the_potential_may_stay_in_the_accumulator():
    """Spikes 0, 1, 2, 0 of 3 lanes, 2 bits each, into a 1x1 convolution of weight 0."""
    act = Spiking(NeuronConfig.vgg(3), 1)
    net = chain(act, layer(act, 1, 1, 1))
    net.stages[1].synapse.map.weight.data.zero_()
    energy = measure(net, [IMAGE])
    image = 4 * (BYTE + 0.3) + 8 * BYTE * 4
    kept = image + 2 * (BYTE + 0.124) + 2 * 4 * 0.3 + 2 * 2 * 2 * BYTE * 4000 / 8
    stored = kept + (2 + 2 * 4) * 2 * 4 * BYTE * 16
    assert energy.uj("event-memory-t1") == pytest.approx(kept * 1e-6)
    assert energy.uj("event-memory") == pytest.approx(stored * 1e-6)


def test_a_memory_costs_by_its_size():
    """10, 20 and 100 pJ per 4 bytes at 8 KiB, 32 KiB and 1 MiB, as SpikingJelly has it."""
    sizes = [4, 8, 20, 32, 1024, 4096]  # KiB
    found = [access(32, 256 * size) for size in sizes]
    assert found == [5, 10, 15, 20, 100, 100]
    theirs = LemaireEnergyCostConfig().memory_cost_pj  # per byte
    assert [access(8, 1024 * size) for size in sizes] == [theirs(1024 * size) for size in sizes]


def test_values_without_digits_are_multiplied_or_an_event():
    row = Row("head", 40, 10, 80, [0.5], [20], [20], code=0, outputs=4)
    weight, potential = BYTE * 80, 2 * 4 * BYTE * 16
    assert row.uj(MODELS["event-memory"]) == pytest.approx(20e-6 * (weight + potential + 0.3))
    dense = (40 + 10) * BYTE * 10 + 20 * (weight + 0.3)  # the codes of analog values have 8 bits
    assert row.uj(MODELS["qnn"]) == pytest.approx(dense * 1e-6)
    assert row.uj(MODELS["device-unit"]) == pytest.approx(27.1 * 20e-6)


def test_an_average_is_an_event_per_digit():
    """0.25 + 0.5 is two events, or three units of a quarter."""
    digits = {0.25: [4], 0.5: [4]}
    row = Row("conv", 16, 4, 4, [1.0], [4], [0], digits, digits, code=4)
    assert row.uj(MODELS["device"]) == pytest.approx(27.1e-6 * 8)
    assert row.uj(MODELS["device-unit"]) == pytest.approx(27.1e-6 * 12)


@pytest.mark.parametrize("act", [models.ReLU(), models.LogQuant(2, "lvl")])
def test_an_ann_is_dense(act):
    """All MACs of 8-bit inputs and weights, zeros too, wherever memory is billed; else events."""
    net = models.build("vgg16", act, width_mult=1 / 16).eval()
    image = torch.randn(1, 3, 32, 32)
    calibrate(net, [image])
    energy = measure(net, [image])
    memory = sum(
        (row.macs + row.inputs) * access(8, row.inputs) + row.macs * (access(8, row.weights) + 0.3)
        for row in energy.layers
    )
    wanted = {"qnn": memory, "event-memory": memory, "device": 27.1 * energy.macs}
    for name, picojoule in wanted.items():
        assert energy.uj(name) == pytest.approx(picojoule * 1e-6)
        assert energy.ann(name) == pytest.approx(picojoule * 1e-6)


NETWORKS = {
    "vgg16": lambda: (spiking("vgg16", 3, 2), (3, 32, 32)),
    "resnet20": lambda: (spiking("resnet20", 3, 1), (3, 32, 32)),
    "sdt": lambda: (
        models.build(
            "sdt", transformer.activation("mlif", 3, 2, True), dim=16, depth=1, img_size=32
        ),
        (3, 32, 32),
    ),
    "vggsnn": lambda: (
        models.build("vggsnn", vggsnn.activation(3, 2), width_mult=0.05),
        (2, 2, 48, 48),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_price_under_every_model(name):
    """Finite, and the sum of its lanes; each neuron is billed once."""
    torch.manual_seed(0)
    net, shape = NETWORKS[name]()
    energy = measure(net, [torch.rand(2, *shape)])
    for model in MODELS:
        lanes = sum(sum(step.values()) for step in energy.by_lane(model))
        assert 0 < energy.uj(model) < 1e6 and energy.ann(model) > 0
        assert lanes == pytest.approx(energy.uj(model))
    assert sum(len(row.neurons) for row in energy.layers) == len(energy.lane_rates_per_layer)
    fired = sum(sum(layer.spikes) for row in energy.layers for layer in row.neurons)
    count = sum(layer.count for row in energy.layers for layer in row.neurons)
    assert fired == pytest.approx(sum(energy.lane_rates) * count)


def test_lanes_by_hand():
    """A digit worth 2 costs an addition and a shift, 0.054 pJ; the readout 8 MACs at each step."""
    first, second = measure(silent_chain(), [IMAGE]).by_lane("shift-add")
    assert first == pytest.approx({"all": 0.23 * 12e-6, 1: 0.03 * 4e-6, 2: 0.054 * 4e-6})
    assert second == pytest.approx({"all": 0.23 * 8e-6, 1: 0.03 * 8e-6, 2: 0.054 * 4e-6})
    assert list(first) == ["all", 1, 2]


def test_bits_by_hand():
    """The image once, then 4 spikes of 2 bits at 2 steps, twice; 1 + 9 + 8 weights."""
    energy = measure(silent_chain(), [IMAGE])
    assert energy.bits("paper") == energy.bits("exact") == (4 * 32 + 16 + 16, 18 * 32)
    assert (
        energy.bits("qnn")
        == energy.bits("int8")
        == energy.bits("shift-add")
        == (4 * 8 + 16 + 16, 18 * 8)
    )


def test_the_readout_is_dense_where_shifts_are_billed():
    counts = {"step_rates": [0.5, 0.0], "additions": [20, 0], "one_hot": True}
    counts |= {"other": [0, 0], "lane_additions": {1: [20, 0]}, "lane_rates": {1: [0.5, 0.0]}}
    for readout, wanted in ((False, 0.03 * 20), (True, 0.23 * 40 * 2)):
        row = Row("head", 40, 10, readout=readout, **counts)
        assert row.uj(MODELS["shift-add"]) == pytest.approx(wanted * 1e-6)
        assert row.uj(MODELS["int8"]) == pytest.approx(0.03 * 20e-6)


def by_hand():
    """Two layers of two steps: an image of 12,000 values, then spikes of two lanes."""
    first = Row("stages.0", 2_000_000, 12_000, 500, [0.5, 0.5], [1, 1], [1, 1], dense=[1.0, 0.0])
    head = Row(
        "head",
        1000,
        100,
        2500,
        step_rates=[0.25, 0.5],
        additions=[250, 500],
        other=[0, 0],
        lane_rates={1.0: [0.25, 0.25], 2.0: [0.0, 0.25]},
        lane_additions={1.0: [250, 250], 2.0: [0, 250]},
        one_hot=True,
        code=2,
        reads=2,
        readout=True,
    )
    return Energy(3, 2, [first, head], [0.5, 0.25], {"act": [0.5, 0.25]})


TABLE = """\
layer                                 MACs     rate          uJ    kbit in  of weights
stages.0                         2,000,000   1.0000      9.2000      384.0        16.0
head                                 1,000   0.7500      0.0007        0.4        80.0
total, paper                     2,001,000               9.2007      384.4        96.0   (ANN: 9.20)
prices: Horowitz, ISSCC 2014, 45 nm, 0.9 V: float32 multiplication 3.7, addition 0.9
other models:
  exact 9.201 uJ (ANN: 9.205)
  int8 0.46 uJ (ANN: 0.4602)
  shift-add 0.4605 uJ (ANN: 0.4602)
  event-memory 6.715 uJ (ANN: 6.716)
  event-memory-t1 6.715 uJ (ANN: 6.716)
  qnn 6.715 uJ (ANN: 6.716)
  device 54.22 uJ (ANN: 54.23)
  device-unit 54.23 uJ (ANN: 54.23)
  device-spinnaker2 900.3 uJ (ANN: 900.5)
additions per MAC of spikes: 0.7500
uJ at step 0, by worth of a digit: all: 9.2000  1: 0.0002  2: 0.0000
uJ at step 1, by worth of a digit: all: 0.0000  1: 0.0002  2: 0.0002
firing rate per lane (lowest: 1): 1: 0.5000  2: 0.2500"""


def test_the_table():
    assert by_hand().table() == TABLE
    shape = Energy(1, 1, [Row("head", 1000, 100, dense=[1.0])])
    lines = shape.table("int8").splitlines()
    assert lines[1].split() == ["head", "1,000", "-", "0.0002", "0.8", "0.0"]  # no rate is known
    assert not any(line.startswith("additions") for line in lines)


def test_the_files(tmp_path):
    """Counts, prices under all models and what else was measured; a line per layer."""
    energy = by_hand()
    energy.write(tmp_path / "e", {"test_accuracy": 0.5})
    stored = json.loads((tmp_path / "e.json").read_text())
    assert stored["test_accuracy"] == 0.5
    assert stored["images"] == 3 and stored["steps"] == 2 and stored["macs"] == 2_001_000
    assert stored["total_uj"] == stored["models"]["paper"]["total_uj"] == energy.total_uj
    assert stored["additions_per_mac"] == 0.75
    assert stored["models"]["device"]["source"].startswith("second-hand")
    assert stored["models"]["int8"]["bits"] == 8
    assert stored["models"]["int8"]["bits_read"] == [12_000 * 8 + 400, 3000 * 8]
    assert stored["lane_rates_per_layer"] == {"act": [0.5, 0.25]}
    assert stored["layers"][1]["lane_additions"] == {"1.0": [250, 250], "2.0": [0, 250]}
    assert stored["layers"][1]["rate"] == 0.75
    assert stored["layers"][1]["step_lane_uj"]["int8"][0] == pytest.approx(
        {"1.0": 7.5e-6, "2.0": 0}
    )
    names = ["name", "macs", "inputs", "weights", "rate", "code"]
    lines = list(csv.DictReader((tmp_path / "e.csv").read_text().splitlines()))
    assert list(lines[0]) == [*names, *(f"{model}_uj" for model in MODELS)]
    assert [line["name"] for line in lines] == ["stages.0", "head"]
    assert float(lines[1]["exact_uj"]) == pytest.approx(0.9 * 750e-6)


def test_command(cifar, tmp_path, capsys):
    """energy.py on a checkpoint: the table under the chosen model, all models in the files."""
    path = tmp_path / "snn.pth"
    content = checkpoint.content(
        spiking("vgg16", 3, 1),
        "snn",
        {"num_classes": 10, "image_size": 32},
        {"dataset": "CIFAR10", "data_root": str(cifar)},
    )
    checkpoint.save(path, content)
    found = command.main([str(path), "--device", "cpu", "--energy_model", "shift-add"])["energy"]
    out = capsys.readouterr().out
    assert f"{found.uj('shift-add'):.4g} uJ per image (shift-add)" in out
    assert f"paper {found.total_uj:.4g} uJ" in out

    stored = json.loads((tmp_path / "snn_energy.json").read_text())
    assert stored["total_uj"] == pytest.approx(found.total_uj) and stored["images"] == 12
    for name in MODELS:
        total = sum(r["energy_uj"][name] for r in stored["layers"])
        assert stored["models"][name]["total_uj"] == pytest.approx(total)
        assert stored["models"][name]["bits_read"] == list(found.bits(name))
        assert stored["models"][name]["source"]
    lines = list(csv.DictReader((tmp_path / "snn_energy.csv").read_text().splitlines()))
    prices = [float(line["int8_uj"]) for line in lines]
    assert prices == pytest.approx([r.uj(MODELS["int8"]) for r in found.layers])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("{path} --energy_model int4", ("int4", *MODELS)),
        ("{path} -a VGG16", ("not both",)),
        ("{path} --width_mult 2", ("--width_mult does nothing here",)),
        ("", ("give a checkpoint",)),
        ("-a VGG16 --batch_size 4", ("--batch_size does nothing here",)),
        ("-a RESNET20 --dataset DIGITS", ("CIFAR100", "got DIGITS")),
        ("-a SDT", ("VGG16", "RESNET20")),
    ],
)
def test_what_the_command_refuses(words, wanted, tmp_path, fails):
    fails(command.main, words.format(path=tmp_path / "snn.pth"), *wanted)


def test_the_page_shows_the_models():
    page = (ROOT / "docs" / "energy.md").read_text()
    for name, m in MODELS.items():
        if isinstance(m, Model):
            assert f"| `{name}` | {m.mac} | {m.add} | {m.shift or '-'} | {m.bits} |" in page
        elif isinstance(m, Device):
            assert f"| `{name}` | {m.event:g} | {m.update:g} |" in page
        else:
            assert f"| `{name}` |" in page
