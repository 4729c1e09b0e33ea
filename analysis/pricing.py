"""What measured activity costs: the energy of a network under any of `MODELS`, and the bits that it moves (SPEC section 7).

    E = mac * MAC_first + add * sum_(l > first) additions_l          (SNN, directly encoded)
    E = mac * rate_first * MAC_first + ...                           (transformer: the first layer at every step)
    E = mac * sum_l MAC_l                                            (ANN, LQ-ANN)

Counts are sums over the T steps and means over the images; a model only prices them. additions_l is
- in `paper`, as published, rate_l * MAC_l, rate_l = nonzero inputs / inputs of layer l: weights on padding count too;
- in `exact`, SpikingJelly's count, the number of weights that nonzero inputs meet: none on padding;
- in `int8`, the same at 8 bits (a spike of any worth is one addition: its shift is not billed);
- in `shift-add`, the same for each digit of the inputs as binary numbers, with a shift unless the digit is worth 1. A spike
  has one digit (multi-hot: one per lane), an average of four spikes has several; an analog value has none and is a MAC. The
  readout is billed as all its MACs at each step.
No model bills neurons, poolings, biases, attention's products or memory. The bits moved are those that the layers read, each
input once at each step and each weight once: counts that suppose perfect reuse, not energies.
"""

import csv
from collections import defaultdict
from dataclasses import asdict, dataclass, field

from engine.files import write_atomic
from engine.log import write_json

E_MAC, E_AC = 4.6, 0.9  # pJ, 45 nm, float32


@dataclass(frozen=True)
class Model:
    """pJ of a MAC, of an addition and (None: not billed) of a shift; bits of a weight and of an analog input; the source.

    exact: additions are those that happen, else rate * MACs.
    """

    mac: float
    add: float
    source: str
    shift: float | None = None
    bits: int = 32
    exact: bool = True


HOROWITZ = "Horowitz, ISSCC 2014, 45 nm, 0.9 V: "
MODELS = {
    "paper": Model(E_MAC, E_AC, HOROWITZ + "float32 multiplication 3.7, addition 0.9", exact=False),
    "exact": Model(E_MAC, E_AC, HOROWITZ + "float32 multiplication 3.7, addition 0.9"),
    "int8": Model(
        0.23,
        0.03,
        HOROWITZ
        + "int8 multiplication 0.2, addition 0.03: as usually quoted, with an accumulator of "
        "8 bits (an int32 addition is 0.1)",
        bits=8,
    ),
    "shift-add": Model(
        0.23,
        0.03,
        "as int8; int8 shift 0.024 of ShiftAddViT (NeurIPS 2023), 45 nm, as cited by later work, "
        "not checked in its own table",
        shift=0.024,
        bits=8,
    ),
}


@dataclass
class Row:
    """What was counted of a weighted layer, per image; lists are by step, `lane_` ones {worth of the digit: list}.

    macs, inputs: of one step. step_rates: nonzero inputs / inputs. additions: weights that nonzero inputs meet, `other` those
    of inputs that are no binary numbers of few digits. one_hot: no input has two digits. dense: how often all MACs are billed
    for an analog input, None: the inputs are spikes. code: bits of an input as lanes, 0: analog. reads: steps at which
    the inputs are read.
    """

    name: str
    macs: int
    inputs: int
    weights: int = 0
    step_rates: list = field(default_factory=list)
    additions: list = field(default_factory=list)
    other: list = field(default_factory=list)
    lane_rates: dict = field(default_factory=dict)
    lane_additions: dict = field(default_factory=dict)
    one_hot: bool = False
    dense: list | None = None
    code: int = 0
    reads: int = 1
    readout: bool = False

    @property
    def rate(self):
        """Over all steps; None if it was not measured."""
        return sum(self.step_rates) if self.step_rates else None

    def bill(self, model):
        """[{lane: uJ}] of each step; lane: worth of the inputs' digit, or 'all' for what is not told apart by lane."""
        if self.dense is not None:
            steps = [{"all": model.mac * self.macs * times} for times in self.dense]
        elif model.shift is not None and self.readout:
            steps = [{"all": model.mac * self.macs} for _ in self.step_rates]
        elif model.shift is not None:
            price = {worth: model.add + model.shift * (worth != 1) for worth in self.lane_additions}
            steps = [
                {"all": model.mac * n}
                | {worth: price[worth] * lane[t] for worth, lane in self.lane_additions.items()}
                for t, n in enumerate(self.other)
            ]
        else:
            price, total, lanes = (
                (model.add, self.additions, self.lane_additions)
                if model.exact
                else (model.add * self.macs, self.step_rates, self.lane_rates)
            )
            lanes = lanes if self.one_hot else {"all": total}
            steps = [
                {worth: price * lane[t] for worth, lane in lanes.items()} for t in range(len(total))
            ]
        return [{lane: picojoule * 1e-6 for lane, picojoule in step.items()} for step in steps]

    def uj(self, model):
        return sum(sum(step.values()) for step in self.bill(model))

    @property
    def energy_uj(self):
        """Of the model `paper`."""
        return self.uj(MODELS["paper"])

    def bits(self, model):
        """(bits of its inputs, of its weights)"""
        return self.inputs * self.reads * (self.code or model.bits), self.weights * model.bits


@dataclass
class Energy:
    """Counts of one image by layer, priced by name of a model; firing rate per lane over all neurons and per layer.

    Lane rates are summed over the T steps; lane_rates_per_step is {layer: [step][lane]}.
    """

    images: int
    steps: int
    layers: list
    lane_rates: list = field(default_factory=list)
    lane_rates_per_layer: dict = field(default_factory=dict)
    lane_rates_per_step: dict = field(default_factory=dict)

    @property
    def macs(self):
        return sum(r.macs for r in self.layers)

    def uj(self, name):
        return sum(r.uj(MODELS[name]) for r in self.layers)

    def ann(self, name):
        """uJ of the same network as an ANN."""
        return MODELS[name].mac * self.macs * 1e-6

    @property
    def total_uj(self):
        return self.uj("paper")

    @property
    def ann_uj(self):
        return self.ann("paper")

    def bits(self, name):
        """(activations, weights)"""
        return tuple(
            sum(part) for part in zip(*(r.bits(MODELS[name]) for r in self.layers), strict=True)
        )

    def by_lane(self, name):
        """uJ of all layers at each step, [{lane: uJ}]; see `Row.bill`."""
        steps = [defaultdict(float) for _ in range(self.steps)]
        for r in self.layers:
            for total, step in zip(steps, r.bill(MODELS[name]), strict=True):
                for lane, value in step.items():
                    total[lane] += value
        return [
            dict(sorted(step.items(), key=lambda item: (item[0] != "all", item[0])))
            for step in steps
        ]

    def as_dict(self):
        priced = {
            name: {
                **asdict(model),
                "total_uj": self.uj(name),
                "ann_uj": self.ann(name),
                "bits": self.bits(name),
                "step_lane_uj": self.by_lane(name),
            }
            for name, model in MODELS.items()
        }
        content = asdict(self)
        for values, r in zip(content["layers"], self.layers, strict=True):
            values |= {
                "rate": r.rate,
                "energy_uj": {name: r.uj(model) for name, model in MODELS.items()},
                "step_lane_uj": {name: r.bill(model) for name, model in MODELS.items()},
            }
        return {
            "total_uj": self.total_uj,
            "ann_uj": self.ann_uj,
            "macs": self.macs,
            "models": priced,
        } | content

    def table(self, name="paper"):
        """The layers under a model as text, then the totals of all models."""
        model = MODELS[name]
        lines = [f"{'layer':<28}{'MACs':>14}{'rate':>9}{'uJ':>12}{'kbit in':>11}{'of weights':>12}"]
        for r in self.layers:
            moved = [f"{n / 1000:,.1f}" for n in r.bits(model)]
            rate = "-" if r.rate is None else f"{r.rate:.4f}"
            lines.append(
                f"{r.name:<28}{r.macs:>14,}{rate:>9}{r.uj(model):>12.4f}{moved[0]:>11}{moved[1]:>12}"
            )
        moved = [f"{n / 1000:,.1f}" for n in self.bits(name)]
        lines.append(
            f"{'total, ' + name:<28}{self.macs:>14,}{'':>9}{self.uj(name):>12.4f}{moved[0]:>11}{moved[1]:>12}"
            f"   (ANN: {self.ann(name):.2f})"
        )
        lines.append(
            "other models: "
            + ", ".join(
                f"{other} {self.uj(other):.4g} uJ (ANN: {self.ann(other):.4g})"
                for other in MODELS
                if other != name
            )
        )
        if self.lane_rates:
            lines += [
                f"uJ at step {t}, by lane: "
                + "  ".join(
                    f"{lane if lane == 'all' else format(lane, 'g')}: {value:.4f}"
                    for lane, value in step.items()
                )
                for t, step in enumerate(self.by_lane(name))
            ]
            lines.append(
                "firing rate per lane: "
                + "  ".join(f"{2**s}: {v:.4f}" for s, v in enumerate(self.lane_rates))
            )
        return "\n".join(lines)

    def write(self, stem, measured=None):
        """Write <stem>.json, with what else was `measured`, and <stem>.csv."""
        write_json(f"{stem}.json", {**(measured or {}), **self.as_dict()})
        plain = ["name", "macs", "inputs", "weights", "rate", "code"]

        def rows(path):
            with open(path, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(plain + [f"{name}_uj" for name in MODELS])
                writer.writerows(
                    [getattr(r, k) for k in plain] + [r.uj(m) for m in MODELS.values()]
                    for r in self.layers
                )

        write_atomic(f"{stem}.csv", rows)
