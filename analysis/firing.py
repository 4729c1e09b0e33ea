"""What a test script says of a trained network: accuracy, rates per layer, lane and step, and energy."""

from engine.loop import report

from . import figures


def table(energy):
    """Nonzero input rates per layer and step, firing rates per neuron layer, step and lane, as text."""
    head = "".join(f"{f't={t}':>9}" for t in range(energy.steps))
    lines = [f"{'nonzero inputs of':<28}{head}"]
    lines += [
        f"{r.name:<28}" + "".join(f"{rate:>9.4f}" for rate in r.step_rates) for r in energy.layers
    ]
    lines.append(f"{'spikes of (lane by lane)':<28}{head}")
    for name, steps in energy.lane_rates_per_step.items():
        for lane in range(len(steps[0])):
            lines.append(
                f"{f'{name} x{2**lane}':<28}" + "".join(f"{step[lane]:>9.4f}" for step in steps)
            )
    return "\n".join(lines)


def measured(net, loader, world, args, about, stem):
    """Measure `net` on the loader's images, of the data set `about`; print it, write <stem>.json, .csv, .png and .svg; returns
    the summary."""
    args.energy = True
    summary = report(net.eval(), loader, world, args, about, stem)
    if world.main:
        print(table(summary["energy"]))
        figures.firing(
            f"{about['source']}: {summary['test_accuracy']:.2%}, {summary['energy_uj']:.4g} uJ per image",
            summary["energy"],
            f"{stem}.png",
        )
        print(
            f"accuracy {summary['test_accuracy']:.2%} on {summary['test_images']} images, {summary['energy_uj']:.4g} uJ per "
            f"image; written to {stem}.json, .csv, .png and .svg"
        )
    return summary
