"""Accuracy, nonzero and firing rates per layer, lane and step, and energy of a trained transformer on its whole test set.

python firing_num.py --resume output/sdt_2_512_cifar10_t4_mlif_c3.pth
python firing_num.py -c conf/cifar10/2_512_300E_t4_c3.yml --resume published_weights.pth.tar    (weights without settings)
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis import figures
from engine import checkpoint, run
from engine.dist import launch
from engine.errors import UseError, guard
from engine.loop import report
from spike_driven_transformer.train import build, get_parser, load_data, load_weights, with_config

DATA = ("dataset", "data_dir", "img_size", "mean", "std", "interpolation", "crop_pct", "val_fraction")


def table(energy):
    """Nonzero input rates per layer and step, firing rates per neuron layer, step and lane, as text."""
    head = "".join(f"{f't={t}':>9}" for t in range(energy.steps))
    lines = [f"{'nonzero inputs of':<28}{head}"]
    lines += [f"{r.name:<28}" + "".join(f"{rate:>9.4f}" for rate in r.step_rates) for r in energy.layers]
    lines.append(f"{'spikes of (lane by lane)':<28}{head}")
    for name, steps in energy.lane_rates_per_step.items():
        for lane in range(len(steps[0])):
            lines.append(f"{f'{name} x{2**lane}':<28}" + "".join(f"{step[lane]:>9.4f}" for step in steps))
    return "\n".join(lines)


def work(args, world):
    content = checkpoint.load(args.resume)
    if content["format"] != "published":
        if content["kind"] != "sdt":
            raise UseError(f"{args.resume} holds no transformer: use energy.py")
        stored = {k: v for k, v in content["settings"].items() if k in DATA and k not in args.given}
        args = Namespace(**{**vars(args), **stored})
        net, (data, loaders) = checkpoint.rebuild(content), load_data(args, world)
    elif args.config:
        data, loaders = load_data(args, world)
        net = build(args, data.about)
        load_weights(net, args.resume)
    else:
        raise UseError(f"{args.resume} holds weights without settings: give their -c configuration")
    if net.head.out_features != data.about["num_classes"]:
        raise UseError(f"{args.resume} has {net.head.out_features} classes, {data.about['source']} has "
                       f"{data.about['num_classes']}: check --dataset")
    stem = Path(args.experiment or Path(args.resume).with_suffix("").as_posix() + "_firing")
    args.energy = True
    summary = report(run.place(net, world).eval(), loaders[2], world, args, stem)
    if world.main:
        print(table(summary["energy"]))
        figures.firing(f"{data.about['source']}: {summary['test_accuracy']:.2%}, {summary['energy_uj']:.4g} uJ per image",
                       summary["energy"], f"{stem}.png")
        print(f"accuracy {summary['test_accuracy']:.2%} on {summary['test_images']} images, {summary['energy_uj']:.4g} uJ per "
              f"image; written to {stem}.json, .csv and .png")
    return summary


def main(argv=None):
    parser = get_parser("firing_num.py")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse(with_config(parser, argv))
    if not args.resume:
        raise UseError("give --resume, the checkpoint to measure")
    return launch(work, args)


if __name__ == "__main__":
    guard(main)
