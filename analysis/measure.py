"""What is measured of a network: accuracy, firing rates, energy; the curves of a training."""

from contextlib import nullcontext
from functools import cached_property

from engine.evaluation import evaluate
from models import SpikingLayer

from . import figures
from .energy import Counter, lane_curves

FEW = 32  # images of a curve: counting takes more memory than a forward


class Measure:
    """Measures networks on one set of images.

    Args:
        loader: of the images, as `inputs.loader` makes them. world: `engine.dist.World`.
        about: what the data set is. amp: autocast type. energy: count activity, too.
        model: energy model of the printed table, see `analysis.pricing`.
    """

    def __init__(self, loader, world, about, amp="none", energy=False, model="paper"):
        self.loader, self.world, self.about = loader, world, about
        self.amp, self.energy, self.model = amp, energy, model

    def __call__(self, net, stem=None):
        """The test accuracy of `net` and, with `energy`, its energy.

        The energy is printed and, with a `stem`, written under all models to <stem>.json and .csv.
        Returns {"test_accuracy", "test_loss", "test_images"}, with energy also {"energy_uj",
        "ann_energy_uj" (both of the model `paper`), "lane_rates", "energy": the `Energy` itself}.
        """
        counter = Counter(net) if self.energy else None
        with counter or nullcontext():
            result = evaluate(net, self.loader, self.world, self.amp)
        summary = {
            "test_accuracy": result["accuracy"],
            "test_loss": result["loss"],
            "test_images": result["images"],
        }
        # counting takes time, so it is done where it was asked for
        if counter is None:
            return summary

        energy = counter.energy(self.world)
        summary["energy_uj"] = energy.total_uj
        summary["ann_energy_uj"] = energy.ann_uj
        summary["lane_rates"] = energy.lane_rates
        self.world.say(energy.table(self.model))
        if stem and self.world.main:
            source, test = self.about["source"], self.about["test"]
            energy.write(stem, {"network": net.built, "data": source, "test": test, **summary})
        return summary | {"energy": energy}

    def curves(self, net):
        """{name: number} for TensorBoard: learned thetas and leaks, firing rates on FEW images."""
        # fixed thresholds would be flat lines
        found = {}
        for name, site in net.named_modules():
            if isinstance(site, SpikingLayer) and site.theta.requires_grad:
                found |= {
                    f"{kind}/{name}": getattr(site, kind).item() for kind in ("theta", "leak")
                }
        if any(isinstance(module, SpikingLayer) for module in net.modules()):
            found |= lane_curves(net, self.few)
        return found

    @cached_property
    def few(self):
        """The first images of an evaluation."""
        images, *_ = next(self.loader.epoch(0))
        return images[:FEW].clone()


def rates_table(energy):
    """Nonzero inputs per layer and step, firing rates per neuron layer, step and lane, as text."""
    # one column for each step
    head = "".join(f"{f't={t}':>9}" for t in range(energy.steps))
    lines = [f"{'nonzero inputs of':<28}{head}"]
    for row in energy.layers:
        lines.append(f"{row.name:<28}" + _cells(row.step_rates))
    lines.append(f"{'spikes of (lane by lane)':<28}{head}")
    for name, steps in energy.lane_rates_per_step.items():
        for lane, rates in enumerate(zip(*steps)):
            lines.append(f"{f'{name} x{2**lane}':<28}" + _cells(rates))
    return "\n".join(lines)


def _cells(rates):
    return "".join(f"{rate:>9.4f}" for rate in rates)


def draw_rates(summary, source, found, stem):
    """Draw the firing rates of a summary with energy; returns the names of all that is written.

    source: the data set. found: accuracy and energy, for the title.
    """
    figures.firing(f"{source}: {found}", summary["energy"], f"{stem}.png")
    return f"{stem}.json, .csv, .png and .svg"


def whole_report(net, measure, stem):
    """Measure `net`, print all, write <stem>.json, .csv, .png and .svg; returns the summary.

    measure: a `Measure` with `energy`.
    """
    summary = measure(net.eval(), stem)
    if measure.world.main:
        accuracy, energy = f"{summary['test_accuracy']:.2%}", f"{summary['energy_uj']:.4g} uJ"
        print(rates_table(summary["energy"]))
        found = f"accuracy {accuracy} on {summary['test_images']} images, {energy} per image"
        written = draw_rates(summary, measure.about["source"], found, stem)
        print(f"{found}; written to {written}")
    return summary
