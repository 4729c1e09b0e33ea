"""Train an ANN, or with --quant_act a log-quantised ANN (LQ-ANN).

python ann_ddp.py --dataset CIFAR10 --architecture RESNET20 --bn --bias --epochs 300 \
    --learning_rate 0.01
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import models
from cli import checks, provenance, run
from cli.options import CNNSettings, NetworkOptions, QuantOptions
from cli.parser import Parser
from engine.dist import World
from engine.errors import guard
from engine.loop import ComputeOptions
from engine.recipes.cnn import CNNRecipe, TrainingOptions
from engine.recipes.lq import LQRecipe
from engine.settings import group
from inputs.loader import loaders as make_loaders


@dataclass(frozen=True)
class AnnSettings(CNNSettings):
    """Options of ann_ddp.py."""

    network: NetworkOptions = group(hidden=("pretrained_snn",))
    quant: QuantOptions = group()
    training: TrainingOptions = group(hidden=("thr_lr", "amsgrad", "betas"))
    compute: ComputeOptions = group(hidden=("recompute",))


def get_parser():
    """Its command line."""
    about = "Train an ANN, or with --quant_act a log-quantised ANN."
    return Parser("ann_ddp.py", about, AnnSettings)


def result(asked: AnnSettings):
    """File of the trained network."""
    network, quant = asked.network, asked.quant
    name = f"ann_{network.architecture}_{asked.data.dataset}".lower()
    name += run.suffix(network, asked.data)
    if quant.quant_act:
        name += f"_AB_{quant.act_bits}_{quant.quant_id}"
    return Path(asked.run.output_dir) / "ann" / f"{name}.pth"


def rules(asked: AnnSettings):
    """Options that do nothing for what is asked."""
    names = ["act_bits", "quant_id", "quant_scale_max", "quant_num_batches"]
    reason = "it belongs to the quantiser, give --quant_act"
    return [
        *checks.cnn_rules(asked),
        checks.head_rule(asked, asked.network.pretrained_ann),
        (names, asked.quant.quant_act, reason),
    ]


def activation(quant: QuantOptions):
    """What follows every weighted layer but the last."""
    if not quant.quant_act:
        return models.ReLU()
    return models.LogQuant(quant.act_bits, quant.quant_id, quant.quant_scale_max)


def calibration_batches(task: run.Task):
    """Function of an epoch that yields the images [B, 3, H, W] which set the quantisers' ranges.

    They are those of whole training batches, as one process draws them, however many there are.
    """
    asked, world = task.asked, task.world
    loader = task.loaders[0]
    # rank 0 alone asks for them, and its own loader has a share of each batch
    if world.size > 1 and world.main:
        alone = World(device=world.device)
        loader, *_ = make_loaders(task.data, asked.batches, asked.compute.seed, alone)
    count = min(asked.quant.quant_num_batches, len(loader))

    def batches(epoch):
        for images, *_ in islice(loader.epoch(epoch), count):
            yield images

    return batches


def build(task: run.Task):
    """The network with its starting weights, on the device."""
    network, act = task.asked.network, activation(task.asked.quant)
    # VGG16's head has its own dropout on small images, as published
    small = network.architecture == "VGG16" and task.about["image_size"] < 128
    head = 0.5 if small else network.dropout
    net = run.build(network, task.about, act, head_dropout=head)
    # a resumed run's weights are in its own last.pth
    path = network.pretrained_ann
    if path and not task.saved:
        # an ANN has no ranges, an LQ-ANN's may start an ANN
        ranges = ("lo", "hi")
        weights = run.load_weights(net, path, task, new=ranges, dropped=ranges)
        if task.asked.run.test_only:
            provenance.note_activation(weights, act, path, task.world)
    return task.world.place(net)


def make_recipe(task: run.Task):
    """The recipe of the ANN, or of the LQ-ANN."""
    training, world = task.asked.training, task.world
    teacher = provenance.teacher(training.distill, task.about, world)
    if not task.asked.quant.quant_act:
        return CNNRecipe(training, teacher)
    return LQRecipe(training, calibration_batches(task), world, teacher)


def work(asked: AnnSettings, saved, world: World):
    """Train or test, as one of the processes of `world`; returns the summary."""
    task = run.start(asked, saved, world)
    net = build(task)
    if asked.run.test_only:
        # an ANN's weights have no ranges yet: measure them as before a first epoch
        weights = asked.network.pretrained_ann
        quantisers = [m for m in net.modules() if isinstance(m, models.QuantReLU)]
        if weights and not all(quantiser.ready for quantiser in quantisers):
            make_recipe(task).before_epoch(net, 0)
        return run.test_only(net, task, weights, "--pretrained_ann")
    kind = "lq" if asked.quant.quant_act else "ann"
    return run.train(net, make_recipe(task), kind, result(asked), task)


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    return run.training_command(get_parser(), argv, rules, work)


if __name__ == "__main__":
    guard(main)
