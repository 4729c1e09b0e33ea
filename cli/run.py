"""What the training commands share: data and network at the start, run folder, training."""

import copy
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

import models
from analysis import energy
from analysis.measure import Measure
from engine import checkpoint, log, settings
from engine.dist import World, launch
from engine.errors import UseError
from engine.evaluation import finite
from engine.files import locked
from engine.generators import seed_all
from engine.loop import ComputeOptions, Record, Trainer
from engine.recipes.base import Recipe
from engine.recipes.price import MOST, Price, PriceOptions
from engine.settings import Settings
from inputs.images import IN_MEMORY, Data
from inputs.loader import loaders as make_loaders
from inputs.table import DataOptions, augmented, load
from models import convert
from models.neuron.backends import compiled

from .checks import check_device, note_unused
from .options import CNNSettings, NetworkOptions, TrainingSettings
from .parser import Parser
from .provenance import note_images
from .resume import read_settings

RANDOM = 64  # random images on which two networks are compared
LARGE_RANDOM = 4  # the same, above IN_MEMORY pixels
FEW = 32  # images that tell whether two networks are equal, or a layer is silent


@dataclass(frozen=True)
class Task:
    """What a training command works on, as one of the processes of `world`.

    asked: its settings. saved: content of the last.pth of a run that goes on, or None. loaders:
    (training, choosing, test), see `inputs.loader.loaders`.
    """

    asked: TrainingSettings
    saved: dict | None
    world: World
    data: Data
    loaders: tuple

    @property
    def about(self):
        """What the data set is, plain values."""
        return self.data.about

    @property
    def test(self):
        """The loader of the test images."""
        return self.loaders[-1]


def training_command(parser: Parser, argv, rules, work):
    """Run a training command: work(asked, saved, world), in as many processes as it asks for.

    rules: function of the settings, see `parser.refuse_idle`. saved: see `Task`.
    """
    asked, saved = read_settings(parser, argv, rules)
    return in_processes(partial(work, asked, saved), asked)


def in_processes(job, asked: Settings):
    """job(world), in as many processes as the settings ask for; see `engine.dist.launch`."""
    check_device(asked)
    return launch(job, asked.device, asked.compute.amp, asked.common.debug)


def own_head(asked: TrainingSettings):
    """(`new_head` of `checkpoint.load_into`, how it is told of weights that were read)."""
    # a test keeps the head of the file
    if asked.run.test_only:
        return None, ""
    return asked.head.new_head, ", but for a new last layer" if asked.head.new_head else ""


def load_weights(net, path, task: Task, new, dropped=()):
    """Start the CNN `net` with the weights of the file `path`, and say so.

    new, dropped: see `checkpoint.load_into`.
    Returns:
        The file's content.
    """
    content = checkpoint.load(path)
    new_head, but = own_head(task.asked)
    checkpoint.load_into(net, content, path, new, dropped, new_head)
    say_weights(content, path, task, but)
    return content


def say_weights(content, path, task: Task, but=""):
    """Tell of the weights that were read, and whether their images were others.

    content: what `checkpoint.load(path)` returned. but: what was not taken.
    """
    task.world.say(f"{checkpoint.told(content, path)}{but}")
    note_images(content, path, task.about, task.world)


def suffix(network: NetworkOptions, data: DataOptions):
    """Name parts that the published names do not have: own image folder, width."""
    folder = folder_suffix(data.dataset, data.dataset_dir)
    return folder + width_suffix(network.width_mult)


def folder_suffix(dataset, folder):
    """Name part of an own image folder."""
    return f"_{Path(folder).resolve().name.lower()}" if dataset == "FOLDER" else ""


def width_suffix(width_mult):
    """Name part of a scaled width."""
    return "" if width_mult == 1 else f"_w{width_mult:g}"


def build(network: NetworkOptions, about, act, **more):
    """The network that the options describe, for the data set `about`.

    more: further arguments, and those in the place of the options'; they reach networks that take
    them.
    Raises:
        UseError: the network cannot be built so.
    """
    # kernel_size, head_dropout: not every network has them
    taken = models.options(network.architecture)
    known = {**asdict(network), **about, **more}
    arguments = {name: value for name, value in known.items() if name in taken}
    try:
        return models.build(network.architecture, act, **arguments)
    except ValueError as error:
        raise UseError(str(error)) from None


def prepare_compile(compute: ComputeOptions, world: World):
    """Refuse a --compile that cannot run here, else make torch ready for it."""
    mode = compute.compile
    if mode == "none":
        return
    if compute.recompute:
        raise UseError("--recompute cannot run in a step of --compile: give one of them")
    reason = compiled.why_not(world.device, torch.float32)
    if mode == "reduce-overhead" and world.device.type != "cuda":
        reason = "reduce-overhead means CUDA graphs, which need a GPU; give --compile alone"
    if reason:
        raise UseError(f"--compile {mode}: {reason}")
    # The numbers of a neuron are facts of the compilation: a symbol for one that differs between
    # two networks of this process would break the trace of the backward.
    torch._dynamo.config.specialize_float = True


def say_backend(backend, world: World, compile="none"):
    """Say what runs the neurons; refuse a --neuron_backend that cannot."""
    try:
        name = models.choose(backend, world.device)
    except RuntimeError as error:
        raise UseError(f"--neuron_backend {backend}: {error}") from None
    traced = ", traced by torch.compile in training" if compile != "none" else ""
    world.say(f"neuron backend: {name}{traced}")


def start(asked: CNNSettings, saved, world: World):
    """Seed everything and read the data: the `Task` of a CNN's training command."""
    note_unused(asked, world)
    prepare_compile(asked.compute, world)
    seed_all(asked.compute.seed)
    data = augmented(load(asked.data, world), asked.crop)
    loaders = make_loaders(data, asked.batches, asked.compute.seed, world)
    return Task(asked, saved, world, data, loaders)


def random_count(side):
    """How many random images of `side` pixels two networks are compared on."""
    return RANDOM if side <= IN_MEMORY else LARGE_RANDOM


def calibration_images(data: Data, asked: TrainingSettings, world: World, count):
    """Up to `count` augmented training images [n, 3, H, W], the same on any number of processes."""
    batches = asked.batches
    if batches.limit_train_batches:
        count = min(count, batches.limit_train_batches * batches.batch_size)
    # one large batch, drawn by one process for all
    one = replace(batches, batch_size=count, limit_train_batches=1)
    alone = World(device=world.device)
    train, *_ = make_loaders(data, one, asked.compute.seed, alone)
    images, *_ = next(train.epoch(0))
    return images


def _measure(task: Task, amp="none"):
    return Measure(task.test, task.world, task.about, amp, task.asked.run.energy)


def stored_form(net, loader, path):
    """The SNN with batch norm and output scales where they are stored: energies are of its spikes.

    loader: of images on which the two are compared. path: of its checkpoint.
    Raises:
        UseError: their outputs differ.
    """
    images, *_ = next(loader.epoch(0))
    try:
        return convert.stored_form(net.eval(), images[:FEW])
    except convert.ConversionError as error:
        raise UseError(f"{path}: {error}; give best.pth of its run folder") from None


def test_only(net, task: Task, weights, give):
    """What --test_only does: evaluate once.

    weights: the file that they came from. give: what to give if there was none.
    """
    if not weights:
        raise UseError(f"--test_only evaluates trained weights: give {give}")
    summary = _measure(task, task.asked.compute.amp)(net)
    task.world.say(f"{task.about['source']}: test accuracy {summary['test_accuracy']:.2%}")
    return summary


@torch.no_grad()
def check_shares(net, loader):
    """Refuse training batches of which a process gets too little for the network's batch norm.

    Raises:
        UseError: a share is a single image, whose smallest feature maps are a single value.
    """
    if min(loader.share_sizes()) > 1:
        return
    images, *_ = next(loader.epoch(1))
    image = images[:1]
    probe = copy.deepcopy(net)
    models.calibrate(probe, [image])  # an LQ-ANN has no ranges yet
    try:
        probe.train()(image)
    except ValueError as error:
        raise UseError(
            "batch norm needs more than one value per channel, and a process gets a single image "
            f"of a training batch: give another --batch_size ({error})"
        ) from None


def _run_folder(asked: TrainingSettings, stable, world: World):
    """The run folder of all processes: that of --resume, else a new one; None with --dont_save."""
    if asked.run.dont_save:
        return None
    if asked.run.resume:
        return Path(asked.run.resume)

    def make():
        folder = log.new_folder(stable.with_suffix(""))
        if stable.is_file():
            kept = _keep_former(stable, folder)
            world.say(f"note: {stable} will be replaced; what is in it stays as {kept}")
        return str(folder)

    return Path(world.read(make))


def _keep_former(stable, folder):
    """Where the result that a new run will replace is kept; returns that file.

    It is in its own run folder. What was put there by hand has none, and is renamed. folder: of the
    new run.
    """
    try:
        weights = checkpoint.load(stable)["model"]
    except UseError:
        # it is no checkpoint, or half of one
        weights = {}
    # the newest first
    for former in reversed(log.run_folders(stable.with_suffix(""), "best.pth")):
        best = former / "best.pth"
        if checkpoint.holds(best, weights):
            return best
    return stable.rename(folder.with_name(f"{folder.name}_before.pth"))


def make_price(options: PriceOptions, net, epochs, task: Task):
    """The `Price` on the network's spikes, or None.

    Raises:
        UseError: no spikes are few enough for the energy that is asked for.
    """
    if not options.on:
        return None

    def bill():
        images, *_ = next(task.test.epoch(0))
        return energy.measure(net, [images]).fixed_and_full_uj()

    fixed, full = task.world.read(bill)
    target = options.energy_target
    if target and target <= fixed:
        raise UseError(
            f"--energy_target {target:g} uJ: the first layer alone takes {fixed:.3g} uJ, whatever "
            "fires; give more"
        )
    return Price(options, net, epochs, fixed, full, task.world)


def _beside(folder):
    """The folder in which a run folder lies now: it may have been moved, or be named by a link."""
    home = folder.resolve().parent
    return home if folder.is_absolute() else Path(os.path.relpath(home))


def train(
    net, recipe: Recipe, kind, stable, task: Task, extra=None, price: PriceOptions | None = None
):
    """Make or reopen the run folder and train; returns the summary.

    kind, stable, extra: see `engine.loop.Record`. price: None: spikes have none.
    Raises:
        UseError: another process works in the run folder, the starting weights are not finite
            numbers, or see `check_shares`.
    """
    asked, world = task.asked, task.world
    if not finite(net):
        raise UseError("the weights to start from are not finite numbers: give others")
    check_shares(net, task.loaders[0])
    billed = make_price(price, net, recipe.epochs, task) if price else None
    # from here on, where weights and data are the same, each process draws its own dropout masks
    seed_all(asked.compute.seed + world.rank)
    folder = _run_folder(asked, stable, world)
    if folder:
        world.say(f"run folder {folder}: what is interrupted goes on with --resume {folder}")
    if task.saved:
        # its settings name the folder of then
        stable = _beside(folder) / stable.name
    record = Record(kind, task.about, settings.flat(asked), stable, folder, extra or {})
    with ExitStack() as held:
        if folder:
            world.alone(lambda: held.enter_context(locked(folder, "end it")))
        trainer = Trainer(
            net,
            recipe,
            task.loaders,
            record,
            run=asked.run,
            compute=asked.compute,
            world=world,
            measure=_measure(task),
            price=billed,
        )
        if task.saved:
            trainer.restore(task.saved)
        summary = trainer.fit(resumed=task.saved is not None)
    over = billed.missed() if billed else 0
    if over:
        world.say(
            f"note: the energy of the last epoch's batches is {over:.1%} over the target of "
            f"{billed.target:.4g} uJ; the price on spikes ended at {billed.weight.item():.3g}, and "
            f"is {MOST:g} at most"
        )
    return summary
