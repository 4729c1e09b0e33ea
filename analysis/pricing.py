"""What measured activity costs: energy under each of `MODELS`, and bits moved.

The equations are those of docs/method.md, section 7:

    E = mac * MAC_first + add * sum_(l > first) additions_l      SNN, directly encoded
    E = mac * rate_first * MAC_first + ...                       transformer: first layer, each step
    E = add * sum_l additions_l                                  VGGSNN, whose input is spikes
    E = mac * sum_l MAC_l                                        ANN, LQ-ANN

Counts are sums over the T steps and means over the images; a model only prices them. What counts
as additions_l is
- in `paper`, as published, rate_l * MAC_l, where rate_l = nonzero inputs / inputs of layer l:
  weights on padding count too;
- in `exact`, SpikingJelly's count, the number of weights that nonzero inputs meet: none on padding;
- in `int8`, the same at 8 bits (a spike of any worth is one addition: its shift is not billed);
- in `shift-add`, the same for each digit of the inputs as binary numbers, with a shift unless the
  digit is worth 1. A spike has one digit (multi-hot: one per lane), an average of four spikes has
  several; an analog value has none and is a MAC. The readout is billed as all its MACs at each
  step.

These bill neither neurons nor memory; the models of `analysis.hardware` do. No model bills
poolings, biases, leaks, resets or attention's products. The bits moved are those that the layers
read, each input once at each step and each weight once: counts that suppose perfect reuse, not
energies.
"""

import csv
from collections import Counter
from dataclasses import asdict, dataclass, field, replace

from engine.files import write_atomic
from engine.log import write_json

from .hardware import HARDWARE

E_MAC = 4.6  # pJ, 45 nm, float32
E_AC = 0.9
MICRO = 1e-6  # uJ of a pJ

# Columns of the CSV file that no model prices.
PLAIN = [
    "name",
    "macs",
    "inputs",
    "weights",
    "rate",
    "code",
]
# A line of the table, and its first.
LINE = "{:<28}{:>14}{:>9}{:>12}{:>11}{:>12}"
HEAD = ("layer", "MACs", "rate", "uJ", "kbit in", "of weights")


@dataclass(frozen=True)
class Model:
    """Prices of the operations, and how additions are counted."""

    mac: float  # pJ
    add: float  # pJ
    source: str  # of the prices
    shift: float | None = None  # pJ; None: shifts are not billed
    bits: int = 32  # of a weight, and of an analog input
    exact: bool = True  # additions are those that happen, else rate * MACs

    def charges(self, row):
        """{lane: (pJ, how often it is paid at each step)} of a layer's counts."""
        if row.dense is not None:
            return self._all_macs(row, row.dense)
        if not self.exact:
            return self._spikes(
                row,
                self.add * row.macs,
                row.step_rates,
                row.lane_rates,
            )
        if self.shift is None:
            return self._spikes(
                row,
                self.add,
                row.additions,
                row.lane_additions,
            )
        if row.readout:
            return self._all_macs(row, [1] * len(row.step_rates))
        return self._digits(row)

    def _all_macs(self, row, times):
        """Of analog inputs, as often as `dense` says; of the readout where shifts are billed."""
        return {"all": (self.mac * row.macs, times)}

    def _digits(self, row):
        """An addition and a shift for each digit and weight; a MAC for an input without digits."""
        charges = {"all": (self.mac, row.other)}
        for worth, counts in row.lane_additions.items():
            shift = 0 if worth == 1 else self.shift  # a digit worth 1 is where it belongs
            charges[worth] = (self.add + shift, counts)
        return charges

    def _spikes(self, row, price, total, lanes):
        """An addition, at `price`, for each spike and weight: `total`, by lane if possible."""
        if not row.one_hot:
            # By lane, an input with two digits would be paid twice.
            lanes = {"all": total}
        return {lane: (price, counts) for lane, counts in lanes.items()}


PAPER = Model(
    E_MAC,
    E_AC,
    "Horowitz, ISSCC 2014, 45 nm, 0.9 V: float32 multiplication 3.7, addition 0.9",
    exact=False,
)
INT8 = Model(
    0.23,
    0.03,
    "Horowitz, ISSCC 2014, 45 nm, 0.9 V: int8 multiplication 0.2, addition 0.03: as usually "
    "quoted, with an accumulator of 8 bits (an int32 addition is 0.1)",
    bits=8,
)
MODELS = {
    "paper": PAPER,
    "exact": replace(PAPER, exact=True),
    "int8": INT8,
    "shift-add": replace(
        INT8,
        shift=0.024,
        source="as int8; int8 shift 0.024 of ShiftAddViT (NeurIPS 2023), 45 nm, as cited by later "
        "work, not checked in its own table",
    ),
    **HARDWARE,
}


def each_model(price):
    """{name: price(model)} of all models."""
    return {name: price(model) for name, model in MODELS.items()}


@dataclass
class NeuronCounts:
    """What was counted of a layer of neurons, per image."""

    count: int
    levels: int  # S
    spikes: list  # [T]: of all lanes


@dataclass
class Row:
    """What was counted of a weighted layer, per image.

    An input is told apart by the digits it has as a binary number: a spike has one. Analog inputs
    are those that are no binary number of few digits.
    """

    name: str
    macs: int  # of one step
    inputs: int  # of one step
    weights: int = 0
    step_rates: list = field(default_factory=list)  # [T]: nonzero inputs / inputs
    additions: list = field(default_factory=list)  # [T]: weights that nonzero inputs meet
    other: list = field(default_factory=list)  # [T]: of these, those that analog inputs meet
    lane_rates: dict = field(default_factory=dict)  # {worth of a digit: [T]}
    lane_additions: dict = field(default_factory=dict)  # {worth of a digit: [T]}
    one_hot: bool = False  # no input has two digits
    dense: list | None = None  # [T]: how often all MACs are billed; None: the inputs are spikes
    code: int = 0  # bits of an input as lanes; 0: analog
    reads: int = 1  # steps at which the inputs are read
    readout: bool = False  # the last layer, whose outputs are no spikes
    outputs: int = 0  # of one step
    # `NeuronCounts` that fire before the next layer runs
    neurons: list = field(default_factory=list)

    @property
    def rate(self):
        """Over all steps; None if it was not measured."""
        return sum(self.step_rates) if self.step_rates else None

    def bill(self, model):
        """[{lane: uJ}] of each step.

        A lane is the worth of the inputs' digit, or 'all' for what is not told apart by lane.
        """
        charges = model.charges(self)
        return [
            {lane: price * counts[t] * MICRO for lane, (price, counts) in charges.items()}
            for t in range(len(self.dense or self.step_rates))
        ]

    def uj(self, model):
        """Energy of the layer under `model`, over all steps."""
        return sum(sum(step.values()) for step in self.bill(model))

    @property
    def energy_uj(self):
        """Energy as published."""
        return self.uj(PAPER)

    def bits(self, model):
        """(bits of its inputs, bits of its weights) that are read."""
        width = self.code or model.bits
        return self.inputs * self.reads * width, self.weights * model.bits

    def as_dict(self):
        """The counts and, under each model, the energy."""
        return asdict(self) | {
            "rate": self.rate,
            "energy_uj": each_model(self.uj),
            "step_lane_uj": each_model(self.bill),
        }


@dataclass
class Energy:
    """Counts of one image by layer, priced by the name of a model.

    Firing rates are shares of the neurons that fire; they are empty for a network without spikes.
    """

    images: int  # over how many the counts are means
    steps: int  # T
    layers: list  # a `Row` each
    lane_rates: list = field(default_factory=list)  # [S], of all neurons, summed over the steps
    lane_rates_per_layer: dict = field(default_factory=dict)  # {layer: [S]}, summed likewise
    lane_rates_per_step: dict = field(default_factory=dict)  # {layer: [T][S]}

    @property
    def macs(self):
        """MACs of one step."""
        return sum(row.macs for row in self.layers)

    def uj(self, name):
        """Energy under the model `name`, over all steps."""
        return sum(row.uj(MODELS[name]) for row in self.layers)

    def ann(self, name):
        """uJ of the same network as an ANN."""
        rows = [replace(row, dense=[1.0], neurons=[]) for row in self.layers]
        return sum(row.uj(MODELS[name]) for row in rows)

    @property
    def additions_per_mac(self):
        """Additions over all steps per MAC, of layers that read spikes; None: there are none.

        Both at every place of a kernel, in the frame, too, as `paper` counts and the literature.
        """
        spiking = [row for row in self.layers if row.dense is None]
        if not spiking:
            return None
        return sum(row.rate * row.macs for row in spiking) / sum(row.macs for row in spiking)

    def fixed_and_full_uj(self):
        """(uJ of the first layer, uJ of all others if each of their MACs were an addition).

        As published: an SNN of this shape takes between the first and the sum of both.
        """
        first, *others = self.layers
        return first.energy_uj, sum(row.macs for row in others) * E_AC * MICRO

    @property
    def total_uj(self):
        """Energy as published."""
        return self.uj("paper")

    @property
    def ann_uj(self):
        """Energy as published, of the same network as an ANN."""
        return self.ann("paper")

    def bits(self, name):
        """(bits of activations, bits of weights) that all layers read."""
        parts = [row.bits(MODELS[name]) for row in self.layers]
        return tuple(map(sum, zip(*parts)))

    def by_lane(self, name):
        """uJ of all layers at each step, [{lane: uJ}]; see `Row.bill`."""
        bills = [row.bill(MODELS[name]) for row in self.layers]
        totals = []
        for step in zip(*bills, strict=True):  # a bill of each layer
            total = Counter()
            for bill in step:
                total.update(bill)  # adds up, lane by lane
            totals.append({lane: total[lane] for lane in sorted(total, key=_place)})
        return totals

    def as_dict(self):
        """All counts, and all prices of each model, as plain values for a JSON file."""
        priced = {}
        for name, model in MODELS.items():
            priced[name] = {
                **asdict(model),
                "total_uj": self.uj(name),
                "ann_uj": self.ann(name),
                "bits_read": self.bits(name),
                "step_lane_uj": self.by_lane(name),
            }
        return {
            "total_uj": self.total_uj,
            "ann_uj": self.ann_uj,
            "macs": self.macs,
            "additions_per_mac": self.additions_per_mac,
            "models": priced,
            **asdict(self),
            "layers": [row.as_dict() for row in self.layers],
        }

    def table(self, name="paper"):
        """The layers under a model as text, then the totals of all models."""
        model = MODELS[name]
        lines = [LINE.format(*HEAD)]
        for row in self.layers:
            rate = "-" if row.rate is None else f"{row.rate:.4f}"
            lines.append(_line(row.name, row.macs, rate, row.uj(model), row.bits(model)))
        total = _line(f"total, {name}", self.macs, "", self.uj(name), self.bits(name))
        lines.append(f"{total}   (ANN: {self.ann(name):.2f})")

        lines += [f"prices: {model.source}", "other models:"]
        for other in MODELS:
            if other != name:
                lines.append(f"  {other} {self.uj(other):.4g} uJ (ANN: {self.ann(other):.4g})")
        if self.additions_per_mac is not None:
            lines.append(f"additions per MAC of spikes: {self.additions_per_mac:.4f}")
        if self.lane_rates:
            for t, step in enumerate(self.by_lane(name)):
                lines.append(f"uJ at step {t}, by worth of a digit: {_lanes(step)}")
            rates = {2**s: rate for s, rate in enumerate(self.lane_rates)}
            lines.append(f"firing rate per lane (lowest: 1): {_lanes(rates)}")
        return "\n".join(lines)

    def write(self, stem, measured=None):
        """Write <stem>.json, with what else was `measured`, and <stem>.csv, a line per layer."""
        write_json(f"{stem}.json", (measured or {}) | self.as_dict())
        write_atomic(f"{stem}.csv", self._write_csv)

    def _write_csv(self, path):
        lines = [PLAIN + [f"{name}_uj" for name in MODELS]]
        for row in self.layers:
            plain = [getattr(row, key) for key in PLAIN]
            prices = each_model(row.uj).values()
            lines.append(plain + list(prices))
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows(lines)


def _line(name, macs, rate, uj, bits):
    """A line of the table; bits: of inputs and of weights."""
    inputs, weights = (f"{count / 1000:,.1f}" for count in bits)
    return LINE.format(name, f"{macs:,}", rate, f"{uj:.4f}", inputs, weights)


def _place(lane):
    """By what lanes are sorted: 'all' comes first, the others by their worth."""
    return 0 if lane == "all" else lane


def _label(lane):
    return lane if lane == "all" else f"{lane:g}"


def _lanes(values):
    """{lane: number} as text."""
    return "  ".join(f"{_label(lane)}: {value:.4f}" for lane, value in values.items())
