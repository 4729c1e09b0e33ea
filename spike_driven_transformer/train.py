"""Train the spike-driven transformer.

python train.py -c conf/cifar10/2_512_300E_t4_c3.yml --model sdt --spike-mode mlif
"""

import sys
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import models
from cli import parser as cli
from cli import run
from engine import checkpoint
from engine.dist import launch
from engine.errors import UseError, guard
from engine.loop import seed_all
from engine.recipes.timm_parts import TimmRecipe
from inputs import images as data
from models.transformer import MODES, from_published, neurons

DATASETS = {
    "torch/cifar10": "CIFAR10",
    "torch/cifar100": "CIFAR100",
    "imagenet": "IMAGENET",
    "digits": "DIGITS",
    "folder": "FOLDER",
}
SIZES = {
    "sdt": {},
    "sdt_2_512_cifar": {"layer": 2, "dim": 512},
    "sdt_8_512_imagenet": {"layer": 8, "dim": 512},
}
RESIZINGS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
UNUSED = "it had no effect in the published code"
GONE = {
    "attn_mode": "there is one attention, sdsa; drop the key",
    "use_conv_as_linear": UNUSED,
    "pretrained": UNUSED,
    "patch_size": UNUSED,
    "drop": UNUSED,
    "gp": UNUSED,
    "channels_last": "it is always on",
    "log_interval": "it is called print_freq",
    "apex_amp": "use amp",
    "native_amp": "use amp",
    "dist_bn": "batch norm's statistics are rank 0's after every epoch",
    "pin_mem": "it is always on",
    "no_prefetcher": "there is none",
    "use_multi_epochs_loader": "there is none",
    "start_epoch": "use resume",
    "eval_metric": "the best epoch is the most accurate one",
    "in_channels": "images have three",
    "num_classes": "it is the data set's",
}


def get_parser(prog="train.py"):
    parser = cli.Parser(prog=prog, description="Train the spike-driven transformer.")
    parser.add_argument(
        "-c",
        "--config",
        default="",
        help="YAML file of these options; the command line overrides it",
    )
    number, natural, positive, rate = cli.number, cli.natural, cli.positive, cli.rate
    share = number(float, low=0, high=1)
    group = parser.add_argument_group("network")
    group.add_argument(
        "--model", default="sdt", choices=tuple(SIZES), help="network, or a named size of it"
    )
    group.add_argument("--layer", type=positive, default=4, help="attention blocks")
    group.add_argument("--dim", type=positive, default=512, help="width of the stream")
    group.add_argument(
        "--num_heads",
        type=positive,
        default=8,
        help="attention heads (checked against dim; a sum has none)",
    )
    group.add_argument(
        "--mlp_ratio", type=cli.strictly_positive, default=4.0, help="width of the MLP, in dims"
    )
    group.add_argument(
        "--pooling_stat",
        default="1111",
        help="four digits, 1: that embedding stage halves the image",
    )
    group.add_argument(
        "--img_size",
        type=positive,
        default=None,
        help="side of the image in pixels; default: the data set's",
    )
    group.add_argument(
        "--drop_path",
        type=number(float, low=0, high=0.99),
        default=0.0,
        help="share of dropped branches",
    )
    group = parser.add_argument_group("neuron")
    group.add_argument(
        "--spike_mode", default="lif", choices=MODES, help="neuron; (p)lif are SpikingJelly's"
    )
    group.add_argument(
        "--mlif_channels", type=number(int, low=1, high=8), default=1, help="spike lanes S"
    )
    group.add_argument("--time_steps", type=positive, default=4, help="simulated timesteps T")
    group.add_argument(
        "--scaled",
        nargs="?",
        const=True,
        type=cli.boolean,
        default=False,
        help="the top lane is worth 1",
    )
    group.add_argument(
        "--surrogate_edge",
        default="published",
        choices=("paper", "published"),
        help="weight of mlif's inner edges in the surrogate: 1/2 or 3/2",
    )
    group.add_argument(
        "--neuron_backend",
        default="auto",
        choices=models.BACKENDS,
        help="what runs the M-LIF neuron",
    )
    group = parser.add_argument_group("data")
    group.add_argument(
        "-d", "--dataset", default="torch/cifar10", choices=tuple(DATASETS), help="data set"
    )
    group.add_argument("--data_dir", default=str(ROOT / "data"), help="its folder")
    group.add_argument(
        "-b", "--batch_size", type=positive, default=32, help="images per step and process"
    )
    group.add_argument(
        "-vb", "--val_batch_size", type=positive, default=64, help="the same in evaluation"
    )
    group.add_argument(
        "-j",
        "--workers",
        type=natural,
        default=4,
        help="image-decoding processes per training process",
    )
    group.add_argument(
        "--mean",
        type=cli.finite,
        nargs=3,
        default=None,
        help="of the channels; default: the data set's",
    )
    group.add_argument(
        "--std",
        type=cli.strictly_positive,
        nargs=3,
        default=None,
        help="of the channels; default: the data set's",
    )
    cli.add_limits(group)
    group = parser.add_argument_group("augmentation")
    group.add_argument("--no_aug", action="store_true", help="none at all")
    group.add_argument(
        "--scale",
        type=cli.finite,
        nargs=2,
        default=[0.08, 1.0],
        help="area of the random resized crop",
    )
    group.add_argument(
        "--ratio", type=cli.finite, nargs=2, default=[3 / 4, 4 / 3], help="its aspect"
    )
    group.add_argument(
        "--pad_crop",
        type=natural,
        default=0,
        help="random crop after padding by so many pixels, on the "
        "device; needs scale and ratio 1 and no further augmentation than the flip and mixing",
    )
    group.add_argument("--hflip", type=share, default=0.5, help="chance of a horizontal flip")
    group.add_argument("--vflip", type=share, default=0.0, help="chance of a vertical flip")
    group.add_argument(
        "--color_jitter", type=rate, default=0.4, help="its strength, if there is no --aa"
    )
    group.add_argument(
        "--aa", default=None, help="automatic augmentation, e.g. rand-m9-n1-mstd0.4-inc1"
    )
    group.add_argument("--reprob", type=share, default=0.0, help="chance of random erasing")
    group.add_argument(
        "--remode", default="const", choices=("const", "rand", "pixel"), help="what erases"
    )
    group.add_argument("--recount", type=positive, default=1, help="how often")
    group.add_argument(
        "--interpolation", default="bicubic", choices=RESIZINGS, help="of resizing in evaluation"
    )
    group.add_argument(
        "--train_interpolation",
        default="random",
        choices=("random", *RESIZINGS),
        help="the same in training",
    )
    group.add_argument(
        "--crop_pct",
        type=number(float, above=0, high=1),
        default=None,
        help="share of the image that is evaluated",
    )
    group.add_argument(
        "--aug_repeats",
        type=natural,
        default=0,
        help="how often an epoch shows an image (and fewer images)",
    )
    group.add_argument("--mixup", type=rate, default=0.0, help="its alpha")
    group.add_argument("--cutmix", type=rate, default=0.0, help="its alpha")
    group.add_argument(
        "--cutmix_minmax",
        type=cli.finite,
        nargs=2,
        default=None,
        help="its extent, in the place of alpha",
    )
    group.add_argument(
        "--mixup_prob", type=share, default=1.0, help="share of the batches that are mixed"
    )
    group.add_argument(
        "--mixup_switch_prob", type=share, default=0.5, help="share of cutmix if both are on"
    )
    group.add_argument(
        "--mixup_mode",
        default="batch",
        choices=("batch", "pair", "elem"),
        help="what shares a draw",
    )
    group.add_argument(
        "--mixup_off_epoch", type=natural, default=0, help="last epoch that mixes, 0: all do"
    )
    group.add_argument("--smoothing", type=share, default=0.1, help="label smoothing")
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs",
        type=positive,
        default=200,
        help="epochs of the schedule; the cool-down comes on top",
    )
    group.add_argument(
        "--cooldown_epochs", type=natural, default=10, help="epochs at min_lr at the end"
    )
    group.add_argument("--warmup_epochs", type=natural, default=3, help="epochs of a linear rise")
    group.add_argument(
        "--opt", default="sgd", help="timm's name of the optimizer: adamw, lamb, sgd ..."
    )
    group.add_argument("--opt_eps", type=cli.strictly_positive, default=None, help="its epsilon")
    group.add_argument(
        "--opt_betas", type=share, nargs="+", default=None, help="its averaging factors"
    )
    group.add_argument("--momentum", type=rate, default=0.9, help="of sgd")
    group.add_argument(
        "--weight_decay", type=rate, default=1e-4, help="of all but biases and norms"
    )
    group.add_argument(
        "--clip_grad", type=cli.strictly_positive, default=None, help="bound of the gradient"
    )
    group.add_argument(
        "--clip_mode", default="norm", choices=("norm", "value", "agc"), help="what it bounds"
    )
    group.add_argument(
        "--sched",
        default="step",
        choices=("cosine", "step", "tanh", "poly"),
        help="schedule, per epoch",
    )
    group.add_argument("--lr", type=rate, default=0.01, help="learning rate")
    group.add_argument(
        "--warmup_lr", type=rate, default=1e-4, help="rate that the rise starts from"
    )
    group.add_argument("--min_lr", type=rate, default=1e-5, help="lowest rate")
    group.add_argument(
        "--decay_epochs",
        type=cli.strictly_positive,
        default=30,
        help="step: epochs between two drops",
    )
    group.add_argument(
        "--decay_rate",
        "--dr",
        type=cli.strictly_positive,
        default=0.1,
        help="step: factor of a drop",
    )
    group.add_argument(
        "--TET",
        nargs="?",
        const=True,
        type=cli.boolean,
        default=False,
        help="loss at every timestep",
    )
    group.add_argument(
        "--TET_means",
        type=cli.finite,
        default=1.0,
        help="what its regulariser pulls the readout to",
    )
    group.add_argument("--TET_lamb", type=share, default=0.0, help="weight of it")
    group.add_argument(
        "--sync_bn", action="store_true", help="batch norm over all processes (GPUs)"
    )
    group.add_argument(
        "--model_ema", action="store_true", help="evaluate and keep a moving average of the weights"
    )
    group.add_argument("--model_ema_decay", type=share, default=0.9998, help="its decay")
    group.add_argument(
        "--recompute",
        action="store_true",
        help="run each stage again in the backward: less memory, more time",
    )
    group.add_argument(
        "--initial_checkpoint",
        default="",
        help="weights to start from: ours, the published code's or the "
        "original Spike-Driven Transformer's",
    )
    group.add_argument("-s", "--seed", type=cli.seed, default=42, help="of everything random")
    group.add_argument(
        "--amp",
        nargs="?",
        const="fp16",
        default="none",
        choices=("none", "bf16", "fp16"),
        help="autocast type; the membrane stays float32",
    )
    cli.add_compile(group)
    output = cli.add_output(parser, "./output", "--output")
    output.add_argument(
        "--experiment", default="", help="name of the run, in the place of one made of its settings"
    )
    cli.add_distributed(parser)
    return parser


def with_config(parser, argv):
    """argv with the options of its -c file in front, so that the command line overrides them."""
    argv = list(parser.spelled(argv))
    first = cli.Parser(add_help=False)
    first.add_argument("-c", "--config", default="")
    known, _ = first.parse_known_args(argv)
    return (cli.read_conf(parser, known.config, GONE) if known.config else []) + argv


def rules(args):
    mlif = args.spike_mode in ("mlif", "fast_mlif")
    large = args.dataset == "imagenet" or (args.img_size or 0) > data.IN_MEMORY
    return [
        (
            ["surrogate_edge"],
            args.spike_mode == "mlif" and args.mlif_channels > 1,
            "only mlif of several lanes has inner edges to weigh",
        ),
        (
            ["neuron_backend"],
            mlif and (args.compile == "none" or args.neuron_backend in ("auto", "compiled")),
            "lif and plif are SpikingJelly's, and --compile traces the neuron",
        ),
        (["TET_means", "TET_lamb"], args.TET, "give --TET"),
        (["cooldown_epochs"], args.sched != "step", "--sched step has no cool-down"),
        (["clip_mode"], args.clip_grad, "give --clip_grad"),
        (["model_ema_decay"], args.model_ema, "give --model_ema"),
        (["decay_epochs"], args.sched == "step", f"--sched {args.sched} has no drops"),
        (["decay_rate"], args.sched in ("step", "poly"), f"--sched {args.sched} has none"),
        (
            ["mixup_mode"],
            args.mixup or args.cutmix or args.cutmix_minmax,
            "give --mixup or --cutmix",
        ),
        (["remode", "recount"], args.reprob, "give --reprob"),
        (["color_jitter"], not args.aa, "--aa takes its place"),
        (
            ["interpolation", "crop_pct"],
            large,
            f"images up to {data.IN_MEMORY} pixels are evaluated as they are",
        ),
        (
            ["pad_crop"],
            device_side(args) and not args.no_aug,
            "it needs --scale 1 1 --ratio 1 1 --color_jitter 0 and "
            "neither --aa, --reprob, --vflip nor --no_aug",
        ),
    ]


def device_side(args):
    """Whether the augmentation is what the in-memory path does on the device: crop, flip, mixing."""
    resized = list(args.scale) != [1, 1] or list(args.ratio) != [1, 1]
    more = (
        args.aa
        or args.reprob
        or args.vflip
        or args.color_jitter
        or resized
        or args.hflip not in (0, 0.5)
    )
    return args.no_aug or not more


class Transforms:
    """timm's transform of a PIL image, for training or evaluation; a class, so that worker processes can receive it."""

    def __init__(self, args, size, mean, std):
        self.args, self.common = args, {"input_size": size, "mean": mean, "std": std}

    def __call__(self, training):
        from timm.data import create_transform

        args = self.args
        if not training:
            return create_transform(
                **self.common, interpolation=args.interpolation, crop_pct=args.crop_pct
            )
        return create_transform(
            **self.common,
            is_training=True,
            no_aug=args.no_aug,
            scale=args.scale,
            ratio=args.ratio,
            hflip=args.hflip,
            vflip=args.vflip,
            color_jitter=args.color_jitter,
            auto_augment=args.aa,
            interpolation=args.train_interpolation,
            re_prob=args.reprob,
            re_mode=args.remode,
            re_count=args.recount,
        )


@contextmanager
def timms_errors():
    """timm refuses values by errors of many kinds; all of them are the command line's."""
    try:
        yield
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UseError(
            f"timm refuses one of the options ({type(error).__name__}: {error})"
        ) from None


def load_data(args, world):
    """The data set with the recipe's augmentation, and its loaders."""
    name = DATASETS[args.dataset]
    if name == "FOLDER" and not args.img_size:
        raise UseError("--dataset folder needs --img_size")
    args = Namespace(
        **{
            **vars(args),
            "dataset": name,
            "data_root": args.data_dir,
            "dataset_dir": args.data_dir,
            "image_size": args.img_size,
            "batch_size": args.batch_size * world.size,
            "val_batch_size": args.val_batch_size * world.size,
        }
    )
    content = data.load(args, world)
    size = content.about["image_size"]
    if args.img_size not in (None, size):
        raise UseError(
            f"--img_size {args.img_size}: the images of {args.dataset} are {size} pixels wide"
        )
    mean, std = args.mean or content.mean, args.std or content.std
    flip = args.hflip > 0 and not args.no_aug and content.flip
    in_memory = isinstance(content.train, data.Memory) and device_side(args)
    with timms_errors():
        Transforms(args, size, mean, std)(True)
    content = replace(
        content,
        mean=tuple(mean),
        std=tuple(std),
        crop=0 if args.no_aug else args.pad_crop,
        flip=flip,
        repeats=max(1, args.aug_repeats),
        drop_last=True,
        transforms=None if in_memory else Transforms(args, size, mean, std),
    )
    return content, data.loaders(content, args, world)


def load_weights(net, path):
    """Copy weights into the network, strictly: ours, the published code's, or the original transformer's."""
    checkpoint.load_named(
        net, path, from_published, new=("theta", "leak"), dropped=("theta", "leak")
    )


def build(args, about):
    """The network of the options, for the data set `about`."""
    for name, value in SIZES[args.model].items():
        if getattr(args, name) != value and name in args.given:
            raise UseError(
                f"--{name} {getattr(args, name)} contradicts --model {args.model}: use --model sdt"
            )
        setattr(args, name, value)
    try:
        act = neurons(
            args.spike_mode,
            args.mlif_channels,
            args.time_steps,
            args.scaled,
            args.surrogate_edge,
            backend=args.neuron_backend,
        )
        return models.build(
            "sdt",
            act,
            num_classes=about["num_classes"],
            img_size=about["image_size"],
            dim=args.dim,
            depth=args.layer,
            num_heads=args.num_heads,
            mlp_ratio=args.mlp_ratio,
            pooling=args.pooling_stat,
            drop_path=args.drop_path,
            tet=args.TET,
        )
    except ValueError as error:
        raise UseError(str(error)) from None


def result(args):
    """File of the trained network."""
    lanes = f"_c{args.mlif_channels}" if args.spike_mode in ("mlif", "fast_mlif") else ""
    name = args.experiment or (
        f"sdt_{args.layer}_{args.dim}_{DATASETS[args.dataset].lower()}_t{args.time_steps}_"
        f"{args.spike_mode}{lanes}"
    )
    return Path(args.output_dir) / f"{name}.pth"


def work(args, world, saved=None):
    run.check_compile(args, world)
    if args.spike_mode in ("mlif", "fast_mlif"):
        run.say_backend(args, world)
    seed_all(args.seed)
    content, loaders = load_data(args, world)
    about = content.about
    net = build(args, about)
    if args.initial_checkpoint and not saved:
        load_weights(net, args.initial_checkpoint)
        world.say(f"weights from {args.initial_checkpoint}")
    net = run.place(net, world)
    net.recompute = args.recompute
    if args.sync_bn:
        if world.device.type != "cuda":
            raise UseError("--sync_bn needs GPUs")
        net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    if args.test_only:
        return run.test_only(
            net, loaders, about, args, world, args.initial_checkpoint, "--initial_checkpoint"
        )
    with timms_errors():
        recipe = TimmRecipe(args, about["num_classes"], net)
    if recipe.mixup and args.mixup_mode != "elem" and args.batch_size % 2:
        raise UseError(
            f"--batch_size {args.batch_size}: mixing by --mixup_mode {args.mixup_mode} needs an even one"
        )
    return run.train(net, "sdt", result(args), loaders, about, args, world, saved, recipe=recipe)


def main(argv=None):
    parser = get_parser()
    args, saved = run.settings(parser, with_config(parser, argv), rules)
    return launch(run.Work(work, saved), args)


if __name__ == "__main__":
    guard(main)
