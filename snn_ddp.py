"""Train a multi-level LIF spiking network from a fused ANN.

python snn_ddp.py --dataset CIFAR10 --architecture RESNET20 --bias --timesteps 1 \
    -num_channels 3 -multi_channel 1 \
    --pretrained_ann trained_models/ann/ann_resnet20_cifar10_bn_fused.pth
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import models
from cli import checks, provenance, run
from cli.options import CNNSettings, ConversionOptions, NetworkOptions, NeuronOptions
from cli.parser import Parser
from engine.dist import World
from engine.errors import UseError, guard
from engine.evaluation import evaluate
from engine.log import progress
from engine.recipes.cnn import TrainingOptions
from engine.recipes.price import PriceOptions
from engine.recipes.snn import LevelOptions, SpikingRecipe
from engine.settings import group
from models import convert

CALIBRATION_IMAGES = 512  # of the published threshold search


@dataclass(frozen=True)
class SnnSettings(CNNSettings):
    """Options of snn_ddp.py."""

    network: NetworkOptions = group(
        bn={"help": "train with the batch norm of an unfused ANN; what is stored is fused"},
        dropout={
            "default": 0.5,
            "help": "dropout after activations, with one mask for all timesteps",
        },
        pretrained_ann={
            "help": "ANN to convert: fused (absorb_bn.py writes one), or with --bn unfused"
        },
    )
    neuron: NeuronOptions = group()
    price: PriceOptions = group()
    conversion: ConversionOptions = group()
    levels: LevelOptions = group()
    training: TrainingOptions = group(
        epochs=30, learning_rate=1e-4, lr_interval=(0.6, 0.8, 0.9), momentum=0.95
    )


def get_parser():
    """Its command line."""
    about = "Convert a fused ANN into a spiking network and train it."
    return Parser("snn_ddp.py", about, SnnSettings)


def result(asked: SnnSettings):
    """File of the trained network."""
    network, neuron = asked.network, asked.neuron
    name = f"snn_{network.architecture}_{asked.data.dataset}".lower()
    name += run.suffix(network, asked.data)
    # the published names: MC multi-channel, SC single-channel
    if neuron.multi_channel:
        name += f"_MC_T_{neuron.timesteps}_H_{neuron.hardware_opt}"
        name += f"_C_{neuron.num_channels}_Z_{neuron.reset_to_zero}"
    else:
        name += f"_SC_T_{neuron.timesteps}"
    return Path(asked.run.output_dir) / "snn" / f"{name}.pth"


def rules(asked: SnnSettings):
    """Options that do nothing for what is asked.

    Raises:
        UseError: two options exclude each other.
    """
    network, neuron, training = asked.network, asked.neuron, asked.training
    if network.pretrained_ann and network.pretrained_snn:
        raise UseError(
            "give --pretrained_ann (to convert) or --pretrained_snn (to start from), not both"
        )
    check_lanes(asked)
    # conditions that several options share
    from_ann = bool(network.pretrained_ann)
    balanced = from_ann and asked.conversion.conversion == "published"
    inner = neuron.multi_channel and neuron.num_channels > 1 and neuron.hardware_opt != 2
    traced = "--compile traces the neuron into the step; leave it out, or say auto or compiled"
    return [
        *checks.cnn_rules(asked),
        checks.backend_rule(asked.compute, neuron, traced),
        checks.price_rule(asked.price, asked.run.keep, asked.training.epochs),
        (
            ["num_channels", "hardware_opt"],
            neuron.multi_channel,
            "plain LIF has one lane, give --multi_channel 1",
        ),
        (["surrogate_edge"], inner, "only one-hot neurons of several lanes have inner boundaries"),
        (
            ["surrogate_gamma", "surrogate_edge"],
            neuron.surrogate == "triangle",
            "it belongs to --surrogate triangle",
        ),
        (["clipped_slope"], neuron.surrogate == "clipped", "give --surrogate clipped"),
        (
            ["amsgrad", "betas"],
            training.optimizer == "Adam",
            "it belongs to --optimizer Adam",
        ),
        (["lsq_gradient"], training.optimizer == "SGD", "Adam does not see a gradient's size"),
        (
            ["thr_lr", "lsq_gradient"],
            not neuron.fixed_neuron,
            "--fixed_neuron keeps the thresholds",
        ),
        (["fixed_leak"], not neuron.fixed_neuron, "--fixed_neuron keeps the leaks, too"),
        (["fixed_leak"], neuron.timesteps > 1, "in one timestep nothing leaks"),
        (
            ["default_threshold", "leak"],
            not network.pretrained_snn,
            "--pretrained_snn holds thresholds and leaks",
        ),
        (["bn"], not network.pretrained_snn, "a stored spiking network has no batch norm"),
        checks.head_rule(asked, network.pretrained_ann or network.pretrained_snn),
        (["conversion"], from_ann, "there is no --pretrained_ann to convert"),
        (
            ["scaling_factor", "balance", "balance_steps"],
            balanced,
            "no thresholds are balanced without --pretrained_ann and --conversion published",
        ),
    ]


def check_lanes(asked: SnnSettings):
    """Refuse lanes that do not lead to the neurons that are asked for."""
    first, neuron, training = asked.levels.first_lanes, asked.neuron, asked.training
    if not first:
        return
    if not neuron.multi_channel or first[-1] <= neuron.num_channels:
        raise UseError(
            f"--first_lanes {' '.join(map(str, first))} must fall to the {neuron.levels} of "
            "--num_channels, with --multi_channel 1"
        )
    if neuron.hardware_opt == 2:
        raise UseError("--first_lanes needs one-hot neurons, not --hardware_opt 2")
    # what a lane less takes from the output goes into the output scales
    if not asked.network.pretrained_ann or asked.conversion.conversion != "matched":
        raise UseError("--first_lanes needs --pretrained_ann and --conversion matched")
    if asked.run.keep != "last" or training.epochs < 2:
        raise UseError("--first_lanes needs two epochs, and --keep last: the best may have others")


def activation(asked: SnnSettings, saved=None):
    """The `Spiking` activation of the options; saved: what an interrupted training left."""
    neuron = asked.neuron
    levels = (*asked.levels.first_lanes, neuron.levels)[0]
    if saved and asked.levels.first_lanes:
        levels = saved["activation"]["neuron"]["levels"]
    clipped = neuron.surrogate == "clipped"
    config = models.NeuronConfig.vgg(
        levels,
        neuron.hardware_opt,
        reset_to_zero=bool(neuron.reset_to_zero),
        gamma=neuron.clipped_slope if clipped else neuron.surrogate_gamma,
        inner_slope=neuron.surrogate_edge,
        surrogate=neuron.surrogate,
    )
    # matched conversion fits an output scale to every layer
    matched = asked.network.pretrained_ann and asked.conversion.conversion == "matched"
    return models.Spiking(
        config,
        neuron.timesteps,
        neuron.default_threshold,
        neuron.leak,
        encoding="direct" if neuron.input_encoding else "rate",
        scale=bool(matched),
        backend=neuron.neuron_backend,
    )


def set_thresholds(net, images, task: run.Task):
    """Set every threshold by the conversion that is asked for; returns what was done."""
    how, world = task.asked.conversion, task.world
    published = how.conversion == "published"
    size = convert.matched_bytes(net.act.steps)
    if published:
        size = convert.balanced_bytes(how.balance_steps)
    count = convert.affordable(net, images, *size)
    if count < len(images):
        world.say(
            f"conversion uses {count} of {len(images)} images, "
            f"what {convert.MEMORY / 1e9:g} GB hold"
        )
    # layer by layer, which takes minutes at full width
    bar = partial(progress, world=world, desc=f"{how.conversion} conversion", unit="layer")
    if not published:
        fits = convert.match_activations(net, images[:count], progress=bar)
        return dict(zip(("thresholds", "scales", "errors"), map(list, zip(*fits))))

    # the published code measures ResNet20's stem alone
    which = how.balance or ("stem" if net.stem else "all")
    thetas = convert.balance_thresholds(net, images[:count], how.balance_steps, which, bar)
    # the last layers of a network whose stem alone is balanced keep their initial threshold
    balanced = net.sites()[: len(thetas)]
    for site, theta in zip(balanced, thetas, strict=True):
        site.theta.data.fill_(theta * how.scaling_factor)
    return {"thresholds": thetas, "scaling_factor": how.scaling_factor, "balance": which}


def convert_ann(net, task: run.Task):
    """Load the ANN and set thresholds; returns what was done, for the checkpoint.

    Rank 0 computes, all processes use its thresholds.
    """
    asked, world = task.asked, task.world
    path = asked.network.pretrained_ann
    run.load_weights(net, path, task, new=convert.NEW, dropped=convert.LEFT)
    net = world.place(net).eval()
    done = {"conversion": asked.conversion.conversion, "pretrained_ann": path}
    if world.main:
        images = run.calibration_images(task.data, asked, world, CALIBRATION_IMAGES)
        done |= set_thresholds(net, images, task)
        silent = convert.silent_layers(net, images[: run.FEW])
        if silent:
            world.say(
                f"warning: for {run.FEW} images no neuron fires in {', '.join(silent)}: it begins "
                "silent"
            )
        shown = " ".join(f"{site.theta.item():.3g}" for site in net.sites())
        world.say(f"thresholds: {shown}")
    world.share([parameter.data for parameter in net.parameters()])
    return done


def start_weights(net, act, task: run.Task):
    """Give the network its weights; returns what checkpoint and summary say of the conversion."""
    network, saved = task.asked.network, task.saved
    if saved:
        return {k: saved[k] for k in ("converted", "converted_accuracy") if k in saved}
    # an SNN's thresholds and leaks come with its weights
    path = network.pretrained_snn
    if path:
        weights = run.load_weights(net, path, task, new=("scale",))
        provenance.note_activation(weights, act, path, task.world)
    elif network.pretrained_ann:
        return {"converted": convert_ann(net, task)}
    return {}


def check(net, asked: SnnSettings):
    """Refuse a conversion that this network does not have."""
    conversion, network = asked.conversion, asked.network
    rate_coded = not asked.neuron.input_encoding
    if network.pretrained_ann and rate_coded and conversion.conversion == "published":
        raise UseError(
            "thresholds are balanced under direct encoding: use --input_encoding 1, or "
            "--pretrained_snn"
        )
    if conversion.balance == "stem" and not net.stem:
        raise UseError(f"--balance stem: {network.architecture} has no stem, use --balance all")


def freeze(net, neuron: NeuronOptions):
    """Keep what the options say of the neurons as it begins."""
    for site in net.sites():
        # theta, leak and output scale
        if neuron.fixed_neuron:
            site.requires_grad_(False)
        if neuron.fixed_leak:
            site.leak.requires_grad_(False)


def make_recipe(net, task: run.Task):
    """The recipe of the spiking network."""

    # asked for at each new best epoch
    def proof():
        images, *_ = next(task.test.epoch(0))
        return images[: run.FEW]

    asked = task.asked
    training, lanes = asked.training, asked.neuron.levels
    teacher = provenance.teacher(training.distill, task.about, task.world)
    return SpikingRecipe(training, net, proof, teacher, asked.levels, lanes)


def work(asked: SnnSettings, saved, world: World):
    """Train or test, as one of the processes of `world`; returns the summary."""
    task = run.start(asked, saved, world)
    network, neuron, compute = asked.network, asked.neuron, asked.compute
    run.say_backend(neuron.neuron_backend, world, compute.compile)
    act = activation(asked, saved)
    net = run.build(network, task.about, act, head_dropout=network.dropout)
    check(net, asked)
    extra = start_weights(net, act, task)
    net = world.place(net)
    net.recompute = compute.recompute
    freeze(net, neuron)
    if asked.run.test_only:
        weights = network.pretrained_snn or network.pretrained_ann
        if weights and asked.run.energy:
            net = run.stored_form(net, task.test, weights)
        return run.test_only(net, task, weights, "--pretrained_snn, or --pretrained_ann to convert")

    # how far the conversion alone gets is a result of its own
    if "converted" in extra and not saved:
        right_after = evaluate(net, task.test, world, compute.amp)["accuracy"]
        extra["converted_accuracy"] = right_after
        world.say(
            f"right after the {asked.conversion.conversion} conversion: {right_after:.2%} "
            "on the test set"
        )
    recipe = make_recipe(net, task)
    return run.train(net, recipe, "snn", result(asked), task, extra, asked.price)


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    return run.training_command(get_parser(), argv, rules, work)


if __name__ == "__main__":
    guard(main)
