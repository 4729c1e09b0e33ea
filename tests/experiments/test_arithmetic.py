"""What the code computes, pinned: tiny trainings whose numbers tell when ARITHMETIC must be raised.

Networks are trained in double precision, so that another CPU, which rounds otherwise, finds the
same numbers; dropout masks, which are drawn otherwise elsewhere, are not among them.

`python -m tests.experiments.test_arithmetic` writes the numbers anew.
"""

import json
from contextlib import contextmanager
from functools import cache

import pytest
import torch

import models
from analysis.energy import measure
from engine.dist import World
from engine.evaluation import evaluate
from engine.generators import seed_all
from engine.loop import ComputeOptions, Record, RunOptions, Trainer
from engine.recipes.cnn import CNNRecipe, TrainingOptions, learning_rate
from engine.recipes.lq import LQRecipe
from engine.recipes.price import Price, PriceOptions
from engine.recipes.snn import SpikingRecipe
from engine.recipes.tet import TETOptions, TETRecipe
from engine.recipes.timm_parts import MixingOptions, ScheduleOptions, TimmOptions, TimmRecipe
from experiments import arithmetic
from experiments.arithmetic import ARITHMETIC
from inputs.images import Data, Memory
from inputs.loader import BatchOptions, loaders
from models import convert, transformer, vggsnn
from tests.helpers import GOLDEN

PINNED = GOLDEN / "arithmetic.json"
PRICED = ("paper", "exact", "int8", "shift-add")  # the energy models whose prices are pinned
CHANGED = (
    "what the code computes has changed. If that is meant, raise ARITHMETIC in "
    "experiments/arithmetic.py, so that results of before and after never mix, and write the "
    "numbers anew: python -m tests.experiments.test_arithmetic"
)
WORLD = World()
ABOUT = {
    "source": "noise",
    "where": "here",
    "train": {"images": 8, "sha256": ""},
    "test": {"images": 8, "sha256": ""},
}
SIZE = {"num_classes": 10, "image_size": 32, "width_mult": 0.05, "bias": True}
ADAM = {"epochs": 2, "optimizer": "Adam", "weight_decay": 0.0, "lr_interval": (1.0,)}


@contextmanager
def doubles():
    """Weights and images are doubles, and drawn as such."""
    torch.set_default_dtype(torch.float64)
    try:
        seed_all(0)
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class Batches:
    """A loader of two batches of noise."""

    batch_size, images = 4, 8

    def __init__(self, *shape):
        draw = torch.Generator().manual_seed(1)
        self.given = [torch.rand(4, *shape, generator=draw) - 0.3 for _ in range(2)]
        self.labels = torch.arange(4)

    def __len__(self):
        return len(self.given)

    def epoch(self, epoch, start=0):
        for images in self.given[start:]:
            yield images, self.labels, self.batch_size


def excited(net):
    """The network with twice the current everywhere, in evaluation as in training, so that its last
    layers fire, too.
    """
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 2.0)
            module.momentum = 1.0
    return net


def trained(net, recipe, batches, price=None):
    """Train two epochs; returns figures of the last gradients, and of the network that is stored:
    loss, outputs, weights, energies, firing rates.
    """
    record = Record("ann", ABOUT, {}, None, None)
    parts = (record, RunOptions(), ComputeOptions(), WORLD)
    trainer = Trainer(net, recipe, (batches,) * 3, *parts, price=price)
    trainer.fit()
    gradients = [p.grad.abs().sum().item() for p in net.parameters() if p.grad is not None]
    stored = recipe.export(recipe.trained(net)).eval()
    weights = sum(value.abs().sum().item() for value in stored.state_dict().values())
    with torch.no_grad():
        out = stored(batches.given[0]).flatten()
    loss = evaluate(stored, batches, WORLD)["loss"]
    energy = measure(stored, batches.given)
    prices = [energy.uj(name) for name in PRICED]
    return [*gradients[::5], loss, *out[:10].tolist(), weights, *prices, *energy.lane_rates]


@cache
def ann():
    """(what the training of an ANN with batch norm gives, the ANN, the same fused, its images)"""
    batches = Batches(3, 32, 32)
    net = models.build("resnet20", models.ReLU(), bn=True, **SIZE)
    options = TrainingOptions(
        epochs=2, learning_rate=0.05, lr_interval=(1.0,), warm_up=True, label_smoothing=0.1
    )
    found = trained(net, CNNRecipe(options), batches)
    fused, _ = convert.fuse_bn(net.eval(), batches.given[0])
    return found, net, fused, batches


def ann_training():
    found, *_ = ann()
    return found


def lq_training():
    net = models.build("resnet20", models.LogQuant(3, "lvl"), bn=True, **SIZE)
    options, batches = TrainingOptions(learning_rate=1e-3, **ADAM), Batches(3, 32, 32)
    return trained(net, LQRecipe(options, lambda epoch: batches.given, WORLD), batches)


def fusion():
    _, _, fused, _ = ann()
    return [value.abs().sum().item() for value in fused.state_dict().values()]


def converted(fused, act, convert_it, batches, teacher=None):
    """Thresholds after a conversion, and what the training of the SNN gives."""
    net = convert.to_spiking(fused, act).eval()
    convert_it(net, batches.given[0])
    thresholds = [site.theta.item() for site in net.sites()]
    options = TrainingOptions(learning_rate=0.01, thr_lr=0.02, **ADAM)
    recipe = SpikingRecipe(options, net, lambda: batches.given[0], teacher)
    price = Price(PriceOptions(rate_penalty=0.1), net, 2, 0.0, 1.0, WORLD)
    return [*thresholds, *trained(net, recipe, batches, price)]


def matched_conversion():
    _, net, fused, batches = ann()
    act = models.Spiking(models.NeuronConfig.vgg(3), 1, scale=True, backend="torch")
    return converted(fused, act, convert.match_activations, batches, net)


def published_conversion():
    _, _, fused, batches = ann()
    act = models.Spiking(models.NeuronConfig.vgg(3), 2, leak=0.9, backend="torch")

    def balance(net, images):
        thetas = convert.balance_thresholds(net, images, 5, "all")
        for site, theta in zip(net.sites(), thetas):
            site.theta.data.fill_(0.3 * theta)

    return converted(fused, act, balance, batches)


def transformer_training():
    act = transformer.activation("mlif", 3, 2, True, "published", "torch")
    net = models.build("sdt", act, dim=16, depth=1, img_size=32, num_classes=10)
    options = TrainingOptions(epochs=2, learning_rate=0.01, weight_decay=0.06, label_smoothing=0.1)
    schedule = ScheduleOptions(sched="cosine", warmup_epochs=1, cooldown_epochs=0)
    parts = (TimmOptions(opt="adamw"), schedule, MixingOptions(mixup=0.5), TETOptions(TET=False))
    return trained(excited(net), TimmRecipe(options, *parts, 10, net), Batches(3, 32, 32))


def vggsnn_training():
    act = vggsnn.activation(3, 2, "published", "torch")
    net = models.build("vggsnn", act, width_mult=0.05)
    recipe = TETRecipe(TrainingOptions(learning_rate=0.01, **ADAM), TETOptions(lamb=0.1))
    return trained(excited(net), recipe, Batches(2, 2, 48, 48))


def schedules():
    """Learning rates of the CNNs' schedules, in the middle of epochs."""
    common = {"epochs": 10, "learning_rate": 0.1, "warm_up_epochs": 2}
    found = []
    for schedule in ("step", "cosine"):
        for warm_up in (False, True):
            options = TrainingOptions(lr_schedule=schedule, warm_up=warm_up, **common)
            found += [learning_rate(epoch + 0.5, options) for epoch in range(1, 11)]
    return found


def augmented_pixels():
    """Sums over the pixels of two epochs of the loader, and single pixels."""
    draw = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=draw)
    part = Memory(images, torch.arange(8))
    data = Data(part, part, {}, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 4, True)
    train, _, test = loaders(data, BatchOptions(batch_size=4), 3, WORLD)
    found = []
    for batches in (train.epoch(1), train.epoch(2), test.epoch(0)):
        for pixels, labels, _ in batches:
            found += [*labels.tolist(), *pixels.mean((1, 2, 3)).tolist(), pixels[0, 0, 5, 7].item()]
    return found


CASES = (
    ann_training,
    lq_training,
    fusion,
    matched_conversion,
    published_conversion,
    transformer_training,
    vggsnn_training,
    schedules,
    augmented_pixels,
)


def numbers(case):
    with doubles():
        return case()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_the_code_computes_is_what_it_was(case):
    stored = json.loads(PINNED.read_text())
    assert stored["version"] == ARITHMETIC, "the pinned numbers are of another version: " + CHANGED
    found = numbers(case)
    wanted = pytest.approx(stored["numbers"][case.__name__], rel=1e-4, abs=1e-9)
    assert found == wanted, CHANGED


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert arithmetic.commit() == ""


def test_a_folder_inside_another_repository_has_not_its_commit(monkeypatch):
    monkeypatch.setattr(arithmetic, "ROOT", arithmetic.ROOT / "models")
    assert arithmetic.commit() == ""


def write():
    found = {case.__name__: [float(f"{n:.6g}") for n in numbers(case)] for case in CASES}
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(v)}" for name, v in found.items())
    PINNED.write_text(f'{{\n  "version": {ARITHMETIC},\n  "numbers": {{\n{lines}\n  }}\n}}\n')


if __name__ == "__main__":
    write()
