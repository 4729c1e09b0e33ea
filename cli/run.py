"""What the training scripts share: settings with --resume, data, network, folders."""

from argparse import Namespace
from pathlib import Path

import torch

import models
from engine import checkpoint, log
from engine.errors import UseError
from engine.loop import Trainer, report, seed_all
from engine.recipes.cnn import Recipe
from inputs import images as data
from models.neuron.backends import compiled

from .parser import refuse_idle

FREE = {
    "print_freq",
    "save_freq",
    "workers",
    "debug",
    "resume",
    "energy",
    "data_root",
    "dataset_dir",
    "data_dir",
    "device",
    "gpu",
    "multiprocessing_distributed",
    "world_size",
    "rank",
    "dist_url",
    "dist_backend",
    "local_rank",
    "compile",
    "neuron_backend",
    "recompute",
    "prepared",
    "cache_gb",
}


def data_rules(args):
    """Options that do nothing with this data set (see `cli.refuse_idle`)."""
    cifar = args.dataset in ("CIFAR10", "CIFAR100")
    return [
        (
            ["image_size"],
            args.dataset == "FOLDER",
            f"{args.dataset} has a fixed size, only --dataset FOLDER takes it",
        ),
        (["data_root"], cifar, f"{args.dataset} is not looked for under --data_root"),
        (
            ["dataset_dir"],
            cifar or args.dataset in ("IMAGENET", "FOLDER"),
            f"{args.dataset} needs no folder",
        ),
    ]


def common_rules(args):
    """Options that do nothing with this network, data set or optimizer."""
    return [
        *data_rules(args),
        (["kernel_size"], args.architecture == "VGG16", "only VGG16 has a free kernel size"),
        (
            ["lr_interval", "lr_reduce"],
            args.lr_schedule == "step",
            "--lr_schedule cosine has no drops",
        ),
        (["warm_up_epochs", "warm_up_lr"], args.warm_up, "give --warm_up"),
        (
            ["distill_weight", "distill_temperature"],
            args.distill,
            "there is no teacher, give --distill",
        ),
    ]


def note_unused(args, world):
    """Tell of options that published commands give though they do nothing."""
    given = getattr(args, "given", ())  # a resumed run gives none
    if args.optimizer == "Adam" and "momentum" in given:
        world.say("note: --momentum is not used by Adam")
    if args.dataset.startswith("CIFAR") and "dataset_dir" in given:
        world.say(
            f"note: --dataset_dir is not used by {args.dataset}, which is looked for under --data_root {args.data_root}"
        )


def note_activation(content, act, path, world):
    """Tell where the activation of a checkpoint that is loaded differs from the network's, which then computes otherwise."""
    if content["format"] == "published":
        return
    here, there = models.describe(act), dict(content["activation"])
    here, there = ({**d, **d.pop("neuron", {})} for d in (here, there))
    different = [
        f"{k} {there[k]}, here {v}"
        for k, v in here.items()
        if k in there and there[k] != v and k != "scale"
    ]
    if different:
        world.say(f"note: {path} was trained with {'; '.join(different)}")


def settings(parser, argv, rules):
    """Parse argv; with --resume, take the interrupted run's settings instead, refusing options that differ from them.

    Returns (args, content of the run's last.pth or None). rules(args) -> see `cli.refuse_idle`.
    """
    args = parser.parse(argv)
    if not args.resume:
        refuse_idle(args, rules(args))
        return args, None
    path = Path(args.resume)
    saved = checkpoint.load(path / "last.pth" if path.is_dir() else path)
    if "training" not in saved:
        raise UseError(f"{path} is not the last.pth of a run: --resume takes a run folder")
    foreign = sorted(set(saved["settings"]) - set(vars(args)))
    if foreign:
        raise UseError(
            f"{path} is a run of another script: it has --{foreign[0]}, which {parser.prog} does not know"
        )
    merged = vars(args) | saved["settings"]
    for name in args.given:
        if name in FREE:
            merged[name] = getattr(args, name)
        elif getattr(args, name) != merged.get(name):
            raise UseError(
                f"--{name} {getattr(args, name)} differs from the interrupted run's {merged.get(name)}: "
                "leave it out, or start a new run"
            )
    merged["local_rank"] = args.local_rank  # of this launch, not of that one
    merged["resume"] = str(path if path.is_dir() else path.parent)
    return Namespace(**merged), saved


def suffix(args):
    """Name parts that the published names do not have: width, own image folders."""
    folder = f"_{Path(args.dataset_dir).resolve().name.lower()}" if args.dataset == "FOLDER" else ""
    return folder + (f"_w{args.width_mult:g}" if args.width_mult != 1 else "")


def build(args, about, act, **more):
    """The network that `args` describes, for the data set `about`; extra arguments reach networks that take them."""
    arguments = {
        "num_classes": about["num_classes"],
        "image_size": about["image_size"],
        "width_mult": args.width_mult,
        "dropout": args.dropout,
        "kernel_size": args.kernel_size,
        **more,
    }
    taken = models.options(args.architecture)
    try:
        return models.build(
            args.architecture, act, **{k: v for k, v in arguments.items() if k in taken}
        )
    except ValueError as error:
        raise UseError(str(error)) from None


def place(net, world):
    """Move to the device in channels_last, the faster layout for these convolutions."""
    if (
        world.device.type == "cpu"
    ):  # oneDNN 3.12 overruns its buffer in the weight gradient of such a narrow layer
        torch.backends.mkldnn.enabled = not any(
            isinstance(m, torch.nn.Conv2d)
            and m.kernel_size == (1, 1)
            and m.stride != (1, 1)
            and m.in_channels < 8
            for m in net.modules()
        )
    return net.to(world.device, memory_format=torch.channels_last)


def check_compile(args, world):
    """Refuse a --compile that cannot run here."""
    reason = compiled.why_not(world.device, torch.float32) if args.compile != "none" else None
    if args.compile == "reduce-overhead" and world.device.type != "cuda":
        reason = "reduce-overhead means CUDA graphs, which need a GPU; give --compile alone"
    if reason:
        raise UseError(f"--compile {args.compile}: {reason}")


def say_backend(args, world):
    """Say what runs the neurons; refuse a --neuron_backend that cannot."""
    try:
        name = models.choose(args.neuron_backend, world.device)
    except RuntimeError as error:
        raise UseError(f"--neuron_backend {args.neuron_backend}: {error}") from None
    world.say(
        f"neuron backend: {name}"
        + (", traced by torch.compile in training" if args.compile != "none" else "")
    )


def start(args, world):
    """Seed everything and read the data: (data, (training, choosing, test) loaders)."""
    note_unused(args, world)
    check_compile(args, world)
    seed_all(args.seed)
    content = data.load(args, world)
    return content, data.loaders(content, args, world)


def calibration_images(content, args, world, count, epoch):
    """Up to `count` augmented training images [n, 3, H, W], the same on any number of processes."""
    if args.limit_train_batches:
        count = min(count, args.limit_train_batches * args.batch_size)
    alone = type(world)(device=world.device)
    settings = Namespace(**{**vars(args), "batch_size": count, "limit_train_batches": 1})
    return next(data.loaders(content, settings, alone)[0].epoch(epoch))[0]


def recipe(args, about, world, price=None):
    """The published recipe, with the teacher that --distill names and a price (see `Recipe`)."""
    if not args.distill:
        return Recipe(args, price=price)
    content = checkpoint.load(args.distill)
    if content["format"] == "published":
        raise UseError(
            f"--distill {args.distill} is a file of the published code: run absorb_bn.py on it first"
        )
    if any(content["data"].get(k) != about[k] for k in ("name", "num_classes", "image_size")):
        raise UseError(
            f"--distill {args.distill} was trained on {content['data']['source']}, not on {about['source']}"
        )
    teacher = checkpoint.rebuild(content).eval().requires_grad_(False)
    return Recipe(args, teacher.to(world.device, memory_format=torch.channels_last), price)


def test_only(net, loaders, about, args, world, weights, give):
    """What --test_only does: evaluate once; weights: the file they came from, give: what to give if there was none."""
    if not weights:
        raise UseError(f"--test_only evaluates trained weights: give {give}")
    summary = report(net, loaders[2], world, args, about)
    world.say(f"{about['source']}: test accuracy {summary['test_accuracy']:.2%}")
    return summary


def train(net, kind, stable, loaders, about, args, world, saved, **hooks):
    """Make or reopen the run folder and train; returns the summary."""
    if args.compile != "none" and world.device.type == "cpu" and not torch.backends.mkldnn.enabled:
        raise UseError(
            "--compile: torch compiles these convolutions for oneDNN, which cannot run so narrow a network (see "
            "`engine.run.place`): leave it out, or give a larger --width_mult"
        )
    seed_all(args.seed + world.rank)
    folder = [None]
    if world.main and not args.dont_save:
        if stable.is_file() and not args.resume:
            world.say(
                f"note: {stable} will be replaced; what is in it stays as best.pth in its own run folder"
            )
        folder = [args.resume or str(log.new_folder(stable.with_suffix("")))]
    if world.size > 1:
        torch.distributed.broadcast_object_list(folder)
    trainer = Trainer(
        net, kind, stable, folder[0] and Path(folder[0]), loaders, about, args, world, **hooks
    )
    if saved:
        trainer.restore(saved)
    return trainer.fit(resumed=saved is not None)


class Work:
    """work(args, world, saved) with `saved` bound; a class, so that spawned processes can receive it."""

    def __init__(self, work, saved):
        self.work, self.saved = work, saved

    def __call__(self, args, world):
        return self.work(args, world, self.saved)
