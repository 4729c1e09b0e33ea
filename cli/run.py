"""What the training commands share: settings with --resume, network, teacher, run folder."""

import copy
import math
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
from engine.files import locked
from engine.loop import ComputeOptions, Record, Trainer, finite, seed_all
from engine.recipes.base import Recipe
from engine.recipes.price import Price, PriceOptions
from engine.settings import Settings
from inputs.images import IN_MEMORY, Data
from inputs.loader import loaders as make_loaders
from inputs.pretrained import normalisation
from inputs.table import TABLE, DataOptions, augmented, data_rules, load
from models import convert
from models.neuron.backends import compiled

from .options import CNNSettings, NetworkOptions, NeuronOptions, TrainingSettings
from .parser import Parser, refuse_idle

RANDOM = 64  # random images on which two networks are compared
LARGE_RANDOM = 4  # the same, above IN_MEMORY pixels
FEW = 32  # images that tell whether two networks are equal, or a layer is silent

# options of a launch: which of the processes this one is, and where they meet
LAUNCH = ("local_rank", "world_size", "rank", "dist_url")


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


def check_device(asked: Settings):
    """Refuse two options that name the device."""
    if {"gpu", "device"} <= asked.given:
        raise UseError("--gpu and --device both name the device: give one of them")


def cnn_rules(asked: CNNSettings):
    """Options that do nothing with this network, data set or optimizer."""
    training = asked.training
    return [
        *data_rules(asked.data, asked.crop),
        kernel_rule(asked.network),
        (
            ["lr_interval", "lr_reduce"],
            training.lr_schedule == "step",
            f"--lr_schedule {training.lr_schedule} has no drops",
        ),
        (["warm_up_epochs", "warm_up_lr"], training.warm_up, "give --warm_up"),
        (
            ["nesterov"],
            training.optimizer == "SGD" and training.momentum > 0,
            "it belongs to --optimizer SGD with a --momentum",
        ),
        (
            ["norm_bias_lr", "fixed_norm_scale"],
            asked.network.bn,
            "there is no batch norm, give --bn",
        ),
        (
            ["distill_weight", "distill_temperature"],
            training.distill,
            "there is no teacher, give --distill",
        ),
    ]


def kernel_rule(network: NetworkOptions):
    """--kernel_size does nothing with a network that has its own."""
    name = network.architecture
    free = "kernel_size" in models.options(name)
    return (["kernel_size"], free, f"{name} has no free kernel size")


def head_rule(asked: TrainingSettings, start):
    """--new_head does nothing without weights to start a training from; start: their file."""
    trains = not asked.run.test_only
    return (["new_head"], start and trains, "it goes with the weights that a training starts from")


def own_head(asked: TrainingSettings):
    """(`new_head` of `checkpoint.load_into`, how it is told of weights that were read)."""
    # a test keeps the head of the file
    if asked.run.test_only:
        return None, ""
    return asked.head.new_head, ", but for a new last layer" if asked.head.new_head else ""


def backend_rule(compute: ComputeOptions, neuron: NeuronOptions, reason):
    """--neuron_backend does nothing where torch.compile traces the neuron."""
    traced = compute.compile != "none"
    named = neuron.neuron_backend not in ("auto", "compiled")
    return (["neuron_backend"], not (traced and named), reason)


def note_unused(asked: CNNSettings, world: World):
    """Tell of options that published commands give though they do nothing."""
    if asked.training.optimizer == "Adam" and "momentum" in asked.given:
        world.say("note: --momentum is not used by Adam")
    data = asked.data
    if TABLE[data.dataset].looks_in == "data_root" and "dataset_dir" in asked.given:
        world.say(
            f"note: --dataset_dir is not used by {data.dataset}, which is looked for under "
            f"--data_root {data.data_root}"
        )


def load_weights(net, path, task: Task, new, dropped=()):
    """Start `net` with the weights of the file `path`, and say so; returns the file's content.

    new, dropped: see `checkpoint.load_into`.
    """
    asked, world = task.asked, task.world
    content = checkpoint.load(path)
    new_head, but = own_head(asked)
    checkpoint.load_into(net, content, path, new, dropped, new_head)
    world.say(f"{checkpoint.told(content, path)}{but}")
    # a published file does not say which images it saw; --test_only tells of it, too
    if content["format"] != checkpoint.PUBLISHED and not asked.run.test_only:
        other = _other_meaning(content, task.about, path)
        if other:
            world.say(f"note: {other}")
    return content


def note_activation(content, act, path, world: World):
    """Tell where the activation of a loaded checkpoint differs from that of the network."""
    if content["format"] == checkpoint.PUBLISHED:
        steps = content.get("steps")
        if steps not in (None, act.steps):
            world.say(f"note: {path} was trained with steps {steps}, here {act.steps}")
        return
    # read and described anew, since older files name some fields otherwise
    stored = models.from_description(content["activation"])
    here, there = _flat(models.describe(act)), _flat(models.describe(stored))
    # an output scale folds away, so that it makes no difference
    different = [
        f"{name} {there[name]}, here {value}"
        for name, value in here.items()
        if name in there and there[name] != value and name != "scale"
    ]
    if different:
        world.say(f"note: {path} was trained with {'; '.join(different)}")


def _flat(activation):
    """A described activation with the fields of its neuron beside its own."""
    own = {name: value for name, value in activation.items() if name != "neuron"}
    return own | activation.get("neuron", {})


def read_settings(parser: Parser, argv, rules):
    """Parse argv; with --resume, take the interrupted run's settings instead.

    rules: function of the settings, see `parser.refuse_idle`.
    Returns (settings, content of the run's last.pth or None).
    Raises:
        UseError: an option differs from the interrupted run's, or the run is of another script.
    """
    asked = parser.parse(argv)
    check_device(asked)
    if not (asked.run.resume or asked.run.dont_save):
        asked = replace(asked, run=replace(asked.run, resume=_restarted(asked)))
    if not asked.run.resume:
        # a configuration file may hold what the command line overrides
        refuse_idle(parser.named(argv), rules(asked))
        return asked, None

    # a run folder or a file in it
    path = Path(asked.run.resume)
    saved = checkpoint.load(path / "last.pth" if path.is_dir() else path)
    if "training" not in saved:
        raise UseError(f"{path} is not the last.pth of a run: --resume takes a run folder")
    return _resumed(parser, asked, path, saved), saved


def _restarted(asked: TrainingSettings):
    """The run folder that torchrun's restart of all processes goes on with, "" if it is none."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    # without --rdzv_id every job has the same name, and only a restart tells that it is this one
    if job is None or (job == "none" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"):
        return ""
    own = settings.flat(asked)
    for last in sorted(Path(asked.run.output_dir).glob("**/last.pth"), reverse=True):
        config, summary = last.with_name("config.json"), last.with_name("summary.json")
        if not config.exists() or summary.exists():
            continue
        stored = log.read_json(config)
        # each process of a node has a number of its own, the file that of the first
        same = {**own, "local_rank": stored["settings"].get("local_rank")}
        if stored.get("job") == job and stored["settings"] == same:
            return str(last.parent)
    return ""


def _resumed(parser: Parser, asked: TrainingSettings, path, saved):
    """The settings of the interrupted run in `path`, with what may be given anew."""
    names = settings.stored_name(parser.kind)
    foreign = sorted(set(saved["settings"]) - set(names))
    if foreign:
        raise UseError(
            f"{path} is a run of another script: it has --{foreign[0]}, "
            f"which {parser.prog} does not know"
        )

    # the settings of the run hold; what does not change the result may be given anew
    options, now = settings.options(parser.kind), settings.flat(asked)
    values = {names[key]: value for key, value in saved["settings"].items()}
    check_stored(path, options, values)
    values = settings.flat(settings.make(parser.kind, values))  # in today's spelling
    for name in asked.given:
        # a part of the evaluation images is as many as the batches hold
        part = name == "val_batch_size" and values["limit_eval_batches"]
        result = options[name].governs == settings.RESULT or part
        if result and now[name] != values[name]:
            raise UseError(
                f"--{name} {now[name]} differs from the interrupted run's {values[name]}: "
                "leave it out, or start a new run"
            )
        values[name] = now[name]
    # the processes are those of this launch, not of that one
    for name in LAUNCH:
        values[name] = now[name]
    if "device" in asked.given:
        values["gpu"] = now["gpu"]
    values["resume"] = str(path if path.is_dir() else path.parent)
    return settings.make(parser.kind, values)


def check_stored(path, options, values):
    """Refuse a file whose settings cannot be those of a command.

    options: {name: `Option`} of the command. values: {name: value}, in the file `path`.
    """
    for name, value in values.items():
        try:
            options[name].check(value)
        except ValueError as error:
            raise UseError(f"{path} holds --{name} {value!r}, which cannot be: {error}") from None


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


def trained_data(content, data: DataOptions, given, path):
    """The data options of the training of a checkpoint, unless the command line names others.

    content: of the checkpoint `path`. given: names of the options that were given.
    """
    # the command line wins: the data may have moved
    names = ("dataset", "data_root", "dataset_dir", "image_size")
    stored = {
        name: content["settings"][name]
        for name in names
        if name in content["settings"] and name not in given
    }
    # a published network that was fused has no settings, but says which images it takes
    images = content["data"].get("name")
    # a list, since a damaged file's name may be what no dictionary takes
    if "dataset" not in {*given, *stored} and images in list(TABLE):
        stored["dataset"] = images
    check_stored(path, settings.options(CNNSettings), stored)
    data = replace(data, **stored)
    refuse_idle(given, data_rules(data))
    return data


def check_given(asked: Settings, trained: Settings, names, path, option):
    """Refuse given options among `names` that contradict the settings of a checkpoint's training.

    asked: the settings of this command. trained: the same as `path` has them. option: what names
    the checkpoint.
    """
    here, there = settings.flat(asked), settings.flat(trained)
    for name in sorted(asked.given & names):
        if here[name] != there[name]:
            raise UseError(
                f"{path} was trained with --{name} {there[name]}, not {here[name]}: leave it out, "
                f"or give another {option}"
            )


def check_shape(content, about, path):
    """Refuse a data set that does not fit the network."""
    trained = content["data"]
    if any(trained[k] != about[k] for k in ("num_classes", "image_size")):
        sizes = "{num_classes} classes and {image_size} pixels".format(**trained)
        here = "{num_classes} classes and {image_size} pixels".format(**about)
        raise UseError(f"{path} was trained for {sizes}, {about['source']} has {here}")
    # names are known of own folders alone
    names, here = trained.get("classes"), about.get("classes")
    if names and here and names != here:
        raise UseError(
            f"{path} was trained on the classes {names}, {about['where']} has the classes {here}"
        )


def as_trained(data: Data, content, path):
    """The `Data` with the normalisation that the network of a checkpoint was trained with."""
    mean, std = normalisation(content, path)
    if mean is None:
        return data
    return replace(data, mean=mean, std=std)


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


def _other_meaning(content, about, path):
    """What a network's images had otherwise, their classes or their normalisation; "" if nothing.

    Files of earlier versions do not say all of it.
    """
    mean, std = normalisation(content, path)
    there = {"classes": content["data"].get("classes"), "mean": mean, "std": std}
    for name, value in there.items():
        here = about.get(name)
        if not value or not here:
            continue
        same = value == here
        if name != "classes":
            # the same images give other last digits on another machine
            same = all(map(math.isclose, value, here))
        if not same:
            return f"{path} was trained with other {name} of its images: {value}, not {here}"
    return ""


def teacher(distill, about, world: World):
    """The trained network that --distill names, in eval mode; None if it names none."""
    if not distill:
        return None
    content = checkpoint.load(distill)
    checkpoint.check_own(content, f"--distill {distill}", "run absorb_bn.py on it first")
    # the teacher sees the student's images, so they must mean the same to both
    known = content["data"]
    if any(known.get(k) != about[k] for k in ("name", "num_classes", "image_size")):
        source = known["source"]
        raise UseError(f"--distill {distill} was trained on {source}, not on {about['source']}")
    other = _other_meaning(content, about, f"--distill {distill}")
    if other:
        raise UseError(other)
    net = checkpoint.rebuild(content, distill).eval().requires_grad_(False)
    return world.place(net)


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
    content = checkpoint.load(weights)
    # a published file does not say which images it saw
    if content["format"] != checkpoint.PUBLISHED:
        other = _other_meaning(content, task.about, weights)
        if other:
            task.world.say(f"note: {other}")
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


def price_rule(price: PriceOptions, keep):
    """--penalty_warm_up does nothing where spikes have no price; keep: of the run.

    Raises:
        UseError: there are two prices, or the network that is kept may be one from before a target
            is due.
    """
    targets = (price.energy_target, price.rate_target)
    given = [value for value in (price.rate_penalty, *targets) if value]
    if len(given) > 1:
        raise UseError("give one of --rate_penalty, --energy_target and --rate_target")
    if any(targets) and keep != "last":
        raise UseError(
            "--energy_target and --rate_target need --keep last: the best epoch may be one before "
            "the target is met"
        )
    reason = "give --rate_penalty, --energy_target or --rate_target"
    return (["penalty_warm_up"], price.on, reason)


def make_price(options: PriceOptions, net, epochs, task: Task):
    """The `Price` on the network's spikes, or None.

    Raises:
        UseError: no spikes are few enough for the energy that is asked for.
    """
    if not options.on:
        return None

    def bill():
        images, *_ = next(task.test.epoch(0))
        return energy.measure(net, [images]).of_spikes()

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
        return trainer.fit(resumed=task.saved is not None)
