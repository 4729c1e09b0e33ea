"""Energy models that bill memory, neurons or a device's events: what reviewers ask for.

The equations, and what they assume, are in docs/method.md, section 7. All prices are in pJ. A model
takes a `Row` of counts and returns its charges, as `analysis.pricing.Model` does.
"""

from dataclasses import dataclass

import numpy as np

# Lemaire et al., ICONIP 2022, as SpikingJelly 2.0 has it: bytes of an SRAM, and pJ to read or write
# 4 of its bytes; linear between them, and constant above 1 MiB (45 nm).
SRAM_BYTES = (0, 8 * 1024, 32 * 1024, 1024 * 1024)
SRAM_PJ = (0.0, 10.0, 20.0, 100.0)
SRAM_WORD = 32  # bits
FIFO = 1000  # words of the memory that spikes pass, as in Lemaire's experiments
POTENTIAL = 32  # bits of a potential or an accumulator


def access(bits, values):
    """pJ to read or write a value of `bits` bits in a memory of so many values."""
    price = np.interp(values * bits / 8, SRAM_BYTES, SRAM_PJ)
    return float(price) * bits / SRAM_WORD


def steps_of(row):
    """T, or 1 for a network without steps."""
    return len(row.dense or row.step_rates)


@dataclass(frozen=True)
class Quantised:
    """`qnn`: the layers run once, with zero-skipping, on codes of what T steps of spikes add up to.

    Each MAC reads its input and, where that is not zero, reads a weight, multiplies and adds; the
    sum stays in an accumulator. An input is written once. Analog inputs have the weights' bits.
    """

    source: str
    mul: float = 0.2  # int8, Horowitz, ISSCC 2014
    add: float = 0.1  # int32, the same
    bits: int = 8  # of a weight

    def charges(self, row):
        steps, width = steps_of(row), self.bits
        if row.dense is not None:
            met = max(row.dense) * row.macs
        else:
            # A sum is zero where all steps are: the fewest that it can be, known without counting.
            met = max(row.additions)
            largest = steps * (2**row.code - 1)
            width = largest.bit_length() or self.bits
        once = [self.layer(row, met, width)] + [0.0] * (steps - 1)
        return {"all": (1.0, once)}

    def layer(self, row, met, width):
        """pJ of a layer with inputs of `width` bits; those that are not 0 meet `met` weights."""
        reads = (row.macs + row.inputs) * access(width, row.inputs)
        return reads + met * (access(self.bits, row.weights) + self.mul + self.add)


@dataclass(frozen=True)
class EventMemory(Quantised):
    """`event-memory`: a spike reads its weights, and reads and writes the potentials they change.

    Neurons read, compare and write their potentials at each step. Layers of analog inputs are those
    of `qnn`, without zero-skipping. `accumulator`: at T = 1 no potential is read or written.
    """

    shift: float = 0.024  # int8, ShiftAddViT, NeurIPS 2023, at second hand
    compare: float = 0.1  # a subtraction of int32: an assumption
    accumulator: bool = False

    def charges(self, row):
        neurons = [self._neurons(row, t) for t in range(steps_of(row))]
        if row.dense is not None:
            image = self.layer(row, row.macs, self.bits)
            rest = [share * image + more for share, more in zip(row.dense, neurons)]
            return {"all": (1.0, rest)}

        event = access(self.bits, row.weights) + self._update(row, row.outputs) + self.add
        charges = {
            worth: (event + self.shift, counts) for worth, counts in row.lane_additions.items()
        }
        # what has no digits is multiplied
        rest = [n * (event + self.mul) + more for n, more in zip(row.other, neurons)]
        return charges | {"all": (1.0, rest)}

    def _update(self, row, potentials):
        """pJ to read and write one of so many potentials."""
        if self.accumulator and steps_of(row) == 1:
            return 0.0
        return 2 * access(POTENTIAL, potentials)

    def _neurons(self, row, t):
        """pJ of the neurons behind a layer at step t, and of their spikes."""
        bit = 2 * access(SRAM_WORD, FIFO) / SRAM_WORD  # written once and read once
        total = 0.0
        for layer in row.neurons:
            update = self._update(row, layer.count) + layer.levels * self.compare
            code = layer.levels.bit_length()  # ceil(log2(S + 1))
            total += layer.count * update + layer.spikes[t] * code * bit
        return total


@dataclass(frozen=True)
class Device:
    """`device`: a price for each synaptic event, and one for each neuron at each step.

    A spike is one event for each of its digits, or, with `unit_spikes`, as many as it is worth:
    shifts are missing there. Units are 1 or the least digit of the layer, if that is less. A MAC on
    an analog input is billed as one event.
    """

    source: str
    event: float
    update: float
    unit_spikes: bool = False
    bits: int = 8  # of a weight

    def charges(self, row):
        charges = {}
        analog = row.other
        if row.dense is not None:
            analog = [share * row.macs for share in row.dense]
        else:
            unit = min([1.0, *row.lane_additions])
            for worth, counts in row.lane_additions.items():
                events = worth / unit if self.unit_spikes else 1
                charges[worth] = (self.event * events, counts)
        updates = sum(layer.count for layer in row.neurons)
        rest = [n * self.event + updates * self.update for n in analog]
        return charges | {"all": (1.0, rest)}


MEMORY = (
    "Lemaire et al., ICONIP 2022: SRAM 10, 20, 100 pJ per 4 bytes at 8 KiB, 32 KiB, 1 MiB, at "
    "second hand (SpikingJelly 2.0); Horowitz, ISSCC 2014, 45 nm: int8 multiplication 0.2, int32 "
    "addition 0.1"
)
SHIFT = "; int8 shift 0.024 of ShiftAddViT, at second hand"
LOIHI = (
    "second-hand and disputed: Davies et al. 2018 (Loihi 1) as cited by keras-spiking, synaptic "
    "event 23.6 + 3.5, neuron update 81"
)
SPINNAKER2 = (
    "second-hand and disputed: Hoeppner et al. 2019 (SpiNNaker 2) as cited by keras-spiking, "
    "synaptic event 450, neuron update 2190"
)
HARDWARE = {
    "event-memory": EventMemory(MEMORY + SHIFT),
    "event-memory-t1": EventMemory(MEMORY + SHIFT, accumulator=True),
    "qnn": Quantised(MEMORY),
    "device": Device(LOIHI, 23.6 + 3.5, 81.0),
    "device-unit": Device(LOIHI, 23.6 + 3.5, 81.0, unit_spikes=True),
    "device-spinnaker2": Device(SPINNAKER2, 450.0, 2190.0),
}
