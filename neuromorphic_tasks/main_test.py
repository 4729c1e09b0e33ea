"""Accuracy, operations, rates per layer, lane and step, and energy of a trained VGGSNN on the test
recordings.

python3 main_test.py --multi_channel 1 --num_channels 4 --T_prime 80
                                              the checkpoint that the training wrote for these
python3 main_test.py --checkpoint trained_models/vggsnn_dvscifar10_first900_T80_C4.pth
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

# the script may be started in its own folder, as published
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from analysis.measure import Measure, whole_report
from cli import events, run
from cli.options import FileOptions, NetworkOptions, NeuronOptions
from cli.parser import Parser, refuse_idle
from engine import checkpoint
from engine.errors import guard
from engine.loop import ComputeOptions, RunOptions
from engine.settings import group
from inputs.events.options import CodingOptions


@dataclass(frozen=True)
class MeasureSettings(events.EventSettings):
    """Options of main_test.py; S and T_F have other defaults than in the training, as published."""

    network: NetworkOptions = group(
        only=("width_mult", "pretrained_snn"),
        pretrained_snn={
            "help": "trained weights, ours (with the settings of the training; of a run folder "
            "the best ones) or the published code's; default: what the training wrote for these "
            "options",
            "spellings": ("--checkpoint",),
        },
    )
    # the published defaults
    coding: CodingOptions = group(T_prime=5, prepared=events.PREPARED)
    neuron: NeuronOptions = group(
        only=("multi_channel", "num_channels", "neuron_backend"), multi_channel=1, num_channels=2
    )
    compute: ComputeOptions = group(only=("seed", "amp"), seed=1000)
    run: RunOptions = group(
        only=("output_dir",), output_dir={"help": "folder of the results of the training"}
    )
    files: FileOptions = group(
        only=("output",),
        output={"help": "path without suffix of the results, else beside the checkpoint"},
    )


def get_parser():
    """Its command line."""
    about = "Accuracy, operations, rates and energy of a trained VGGSNN."
    return Parser("main_test.py", about, MeasureSettings)


def work(asked: MeasureSettings, world):
    """Measure the network, as one of the processes of `world`; returns the summary."""
    # without a name, what the training wrote for these options
    path = asked.network.pretrained_snn or str(events.result(asked))
    asked = replace(asked, network=replace(asked.network, pretrained_snn=path))
    asked, trained_on = events.settled(asked)
    task, net = events.start(asked, trained_on, None, world)
    measure = Measure(task.test, world, task.about, asked.compute.amp, energy=True)
    return whole_report(net, measure, checkpoint.beside(path, "_test", asked.files.output))


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    idle = ["val_fraction", "limit_train_batches"]
    reason = "the test set is measured, nothing is trained"
    refuse_idle(asked.given, [(idle, False, reason), events.lanes_rule(asked)])
    return run.in_processes(partial(work, asked), asked)


if __name__ == "__main__":
    guard(main)
