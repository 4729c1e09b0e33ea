"""Train a multi-level LIF spiking network from a fused ANN.

python snn_ddp.py --dataset CIFAR10 --architecture RESNET20 --bias -num_channels 3 -multi_channel 1 --timesteps 1 \
    --pretrained_ann trained_models/ann/ann_resnet20_cifar10_bn_fused.pth
"""

from pathlib import Path

import torch

import models
from analysis.energy import lane_curves
from cli import parser as cli
from cli import run
from engine import checkpoint
from engine.dist import launch
from engine.errors import RunError, UseError, guard
from engine.log import progress
from engine.loop import evaluate
from models import convert
from models.rates import FiringRate

THETA_MIN = 1e-4  # thresholds and output scales are kept above it


def get_parser():
    parser = cli.Parser(
        prog="snn_ddp.py", description="Convert a fused ANN into a spiking network and train it."
    )
    network = cli.add_network(
        parser, 0.5, "dropout after activations; its mask is held over the timesteps"
    )
    network.add_argument(
        "--pretrained_ann", default="", help="fused ANN to convert (absorb_bn.py writes it)"
    )
    network.add_argument("--pretrained_snn", default="", help="SNN checkpoint to start from")
    neuron = parser.add_argument_group("neuron")
    neuron.add_argument(
        "--multi_channel",
        type=int,
        default=0,
        choices=(0, 1),
        help="1: M-LIF, 0: plain LIF (one lane)",
    )
    neuron.add_argument(
        "--num_channels", type=cli.number(int, low=1, high=8), default=1, help="spike lanes S"
    )
    neuron.add_argument(
        "--hardware_opt", type=int, default=1, choices=(0, 1, 2), help="0, 1: one-hot; 2: multi-hot"
    )
    neuron.add_argument("--timesteps", type=cli.positive, default=20, help="simulated timesteps T")
    neuron.add_argument(
        "--leak",
        type=cli.number(float, low=0, high=1),
        default=1.0,
        help="initial leak, 1: none; learned",
    )
    neuron.add_argument(
        "--default_threshold",
        type=cli.strictly_positive,
        default=1.0,
        help="initial threshold of the layers that the conversion leaves alone",
    )
    neuron.add_argument(
        "--reset_to_zero", type=int, default=0, choices=(0, 1), help="1: hard reset, 0: subtract"
    )
    neuron.add_argument(
        "--input_encoding",
        type=int,
        default=1,
        choices=(0, 1),
        help="1: analog image, 0: Bernoulli rate",
    )
    neuron.add_argument(
        "--activation", default="Linear", choices=("Linear",), help="surrogate: the linear triangle"
    )
    neuron.add_argument(
        "--surrogate_gamma",
        type=cli.strictly_positive,
        default=0.3,
        help="height of the triangle (damping)",
    )
    neuron.add_argument(
        "--surrogate_edge",
        default="published",
        choices=("paper", "published"),
        help="weight of the inner edges in the surrogate: the paper's 1/2 or the published code's 3/2",
    )
    neuron.add_argument(
        "--neuron_backend",
        default="auto",
        choices=models.BACKENDS,
        help="what runs the neuron (python -m models.neuron tells what can)",
    )
    conversion = parser.add_argument_group("conversion")
    conversion.add_argument(
        "--conversion",
        default="published",
        choices=("published", "matched"),
        help="published: balanced thresholds; matched: thresholds and output scales fitted per layer",
    )
    conversion.add_argument(
        "--scaling_factor",
        type=cli.strictly_positive,
        default=0.3,
        help="factor of balanced thresholds",
    )
    conversion.add_argument(
        "--balance",
        default=None,
        choices=("all", "stem"),
        help="layers to balance; default: ResNet20 stem (as published), VGG16 all",
    )
    conversion.add_argument(
        "--balance_steps", type=cli.positive, default=100, help="timesteps of the threshold search"
    )
    cli.add_data(parser)
    training = cli.add_training(parser, 30, 1e-4, [0.6, 0.8, 0.9], 0.95)
    training.add_argument(
        "--recompute",
        action="store_true",
        help="keep only each stage's input spikes and run the stage "
        "again in the backward: less memory at many timesteps, more time",
    )
    training.add_argument(
        "--thr_lr",
        type=cli.rate,
        default=0.0,
        help="constant rate of the thresholds, 0: as the weights",
    )
    training.add_argument(
        "--rate_penalty",
        type=cli.rate,
        default=0.0,
        help="weight of the mean firing rate in the loss: "
        "fewer spikes, so less energy, for some accuracy",
    )
    training.add_argument(
        "--fixed_neuron",
        action="store_true",
        help="keep the initial thetas, leaks and output scales",
    )
    training.add_argument(
        "--amsgrad", type=cli.boolean, default=True, help="Adam's AMSGrad variant: true or false"
    )
    training.add_argument(
        "--betas", type=cli.pair, default=[0.9, 0.999], help="Adam's two averaging factors"
    )
    cli.add_output(parser)
    cli.add_distributed(parser)
    return parser


def result(args):
    """File of the trained network."""
    kind = (
        f"MC_T_{args.timesteps}_H_{args.hardware_opt}_C_{args.num_channels}_Z_{args.reset_to_zero}"
        if args.multi_channel
        else f"SC_T_{args.timesteps}"
    )
    name = f"snn_{args.architecture}_{args.dataset}".lower() + run.suffix(args) + f"_{kind}"
    return Path(args.output_dir) / "snn" / f"{name}.pth"


def rules(args):
    published = bool(args.pretrained_ann) and args.conversion == "published"
    return [
        *run.common_rules(args),
        (
            ["num_channels", "hardware_opt"],
            args.multi_channel,
            "plain LIF has one lane, give --multi_channel 1",
        ),
        (
            ["surrogate_edge"],
            args.multi_channel and args.num_channels > 1 and args.hardware_opt != 2,
            "only one-hot neurons of several lanes have inner edges",
        ),
        (["amsgrad", "betas"], args.optimizer == "Adam", "it belongs to --optimizer Adam"),
        (["thr_lr"], not args.fixed_neuron, "--fixed_neuron keeps the thresholds"),
        (
            ["neuron_backend"],
            args.compile == "none" or args.neuron_backend in ("auto", "compiled"),
            "--compile traces the neuron into the step; leave it out, or say auto or compiled",
        ),
        (
            ["default_threshold", "leak"],
            not args.pretrained_snn,
            "--pretrained_snn holds thresholds and leaks",
        ),
        (["conversion"], args.pretrained_ann, "there is no --pretrained_ann to convert"),
        (
            ["scaling_factor", "balance", "balance_steps"],
            published,
            "no thresholds are balanced without --pretrained_ann and --conversion published",
        ),
    ]


def convert_ann(net, content, args, world):
    """Load the ANN and set thresholds (rank 0; all ranks use them); returns what was done, for the checkpoint."""
    checkpoint.load_into(
        net,
        checkpoint.load(args.pretrained_ann),
        args.pretrained_ann,
        new=("theta", "leak", "scale"),
        dropped=("lo", "hi"),
    )
    net = run.place(net, world).eval()
    done = {"conversion": args.conversion, "pretrained_ann": args.pretrained_ann}

    def bar(items):
        return progress(items, world, desc=f"{args.conversion} conversion", unit="layer")

    if world.main:
        images = run.calibration_images(content, args, world, 512, epoch=0)
        steps = args.balance_steps if args.conversion == "published" else args.timesteps
        count = convert.affordable(net, images, steps)
        if count < len(images):
            world.say(
                f"conversion uses {count} of {len(images)} images, what {convert.MEMORY / 1e9:g} GB hold"
            )
        if args.conversion == "matched":
            fits = convert.match_activations(net, images[:count], progress=bar)
            done |= {
                "thresholds": [f[0] for f in fits],
                "scales": [f[1] for f in fits],
                "errors": [f[2] for f in fits],
            }
        else:
            which = args.balance or ("stem" if net.stem else "all")
            thetas = convert.balance_thresholds(net, images[:count], steps, which, progress=bar)
            for site, theta in zip(net.sites(), thetas, strict=False):
                site.theta.data.fill_(theta * args.scaling_factor)
            done |= {"thresholds": thetas, "scaling_factor": args.scaling_factor, "balance": which}
        world.say("thresholds: " + " ".join(f"{site.theta.item():.3g}" for site in net.sites()))
    world.share([p.data for p in net.parameters()])
    return done


def work(args, world, saved=None):
    content, loaders = run.start(args, world)
    about, lanes = content.about, args.num_channels if args.multi_channel else 1
    neuron = models.NeuronConfig.vgg(
        lanes,
        args.hardware_opt,
        bool(args.reset_to_zero),
        args.surrogate_gamma,
        args.surrogate_edge,
    )
    act = models.Spiking(
        neuron,
        args.timesteps,
        args.default_threshold,
        args.leak,
        "direct" if args.input_encoding else "rate",
        scale=bool(args.pretrained_ann) and args.conversion == "matched",
        backend=args.neuron_backend,
    )
    run.say_backend(args, world)
    if args.pretrained_ann and not args.input_encoding and args.conversion == "published":
        raise UseError(
            "thresholds are balanced under direct encoding: use --input_encoding 1, or --pretrained_snn"
        )
    net = run.build(args, about, act, bn=False, bias=args.bias, head_dropout=args.dropout)
    if args.balance == "stem" and not net.stem:
        raise UseError(f"--balance stem: {args.architecture} has no stem, use --balance all")
    extra = {}
    if saved:
        extra = {k: saved[k] for k in ("converted", "converted_accuracy") if k in saved}
    elif args.pretrained_snn:
        weights = checkpoint.load(args.pretrained_snn)
        checkpoint.load_into(net, weights, args.pretrained_snn, new=("scale",))
        run.note_activation(weights, act, args.pretrained_snn, world)
    elif args.pretrained_ann:
        extra["converted"] = convert_ann(net, content, args, world)
    net = run.place(net, world)
    net.recompute = args.recompute
    if args.fixed_neuron:
        for site in net.sites():
            site.requires_grad_(False)
    if args.test_only:
        return run.test_only(
            net,
            loaders,
            about,
            args,
            world,
            args.pretrained_snn or args.pretrained_ann,
            "--pretrained_snn, or --pretrained_ann to convert",
        )
    if args.pretrained_ann and not saved:
        extra["converted_accuracy"] = evaluate(net, loaders[2], world, args.amp)["accuracy"]
        world.say(
            f"right after the {args.conversion} conversion: {extra['converted_accuracy']:.2%} on the test set"
        )
    sites = net.sites()
    names = {id(m): n for n, m in net.named_modules()}
    leaks = [s.leak for s in sites]
    positive = [p for s in sites for p in ((s.theta, s.scale) if act.scale else (s.theta,))]

    @torch.no_grad()
    def clamp():
        torch._foreach_clamp_max_(leaks, 1.0)
        torch._foreach_clamp_min_(positive, THETA_MIN)

    def scalars():
        """Thetas, leaks and, on one test batch, firing rates per layer and lane."""
        return {
            f"{kind}/{names[id(s)]}": getattr(s, kind).item()
            for s in sites
            for kind in ("theta", "leak")
        } | lane_curves(net, next(loaders[2].epoch(0))[0])

    def export(trained):
        """What is stored emits plain powers of two: output scales are folded away and proved away."""
        if not act.scale:
            return trained
        with torch.no_grad():
            images = next(loaders[2].epoch(0))[0][:32]
        try:
            return convert.fold_scales(trained, images)
        except convert.ConversionError as error:
            raise RunError(
                f"{error}: lower --thr_lr or --learning_rate, last.pth holds the state before"
            ) from None

    price = None
    if args.rate_penalty:
        rate = FiringRate(net)
        price = lambda: args.rate_penalty * rate()  # noqa: E731
    return run.train(
        net,
        "snn",
        result(args),
        loaders,
        about,
        args,
        world,
        saved,
        after_step=clamp,
        scalars=scalars,
        export=export,
        extra=extra,
        recipe=run.recipe(args, about, world, price),
    )


def main(argv=None):
    args, saved = run.settings(get_parser(), argv, rules)
    if args.pretrained_ann and args.pretrained_snn:
        raise UseError(
            "give --pretrained_ann (to convert) or --pretrained_snn (to start from), not both"
        )
    return launch(run.Work(work, saved), args)


if __name__ == "__main__":
    guard(main)
