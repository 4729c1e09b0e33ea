"""Train the spike-driven transformer.

python train.py -c conf/cifar10/2_512_300E_t4_c3.yml --model sdt --spike-mode mlif
"""

import sys
from pathlib import Path

import torch

# a script that is started in its own folder does not find the project's
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli import checks, provenance, run
from cli.transformer import TransformerParser, TransformerSettings, build, folder_of, load_data
from engine import checkpoint
from engine.errors import UseError, guard
from engine.generators import seed_all
from engine.recipes.timm_parts import TimmRecipe, check_patches, takes
from inputs.images import IN_MEMORY
from inputs.table import TABLE


def get_parser():
    """Its command line."""
    about = "Train the spike-driven transformer."
    return TransformerParser("train.py", about, TransformerSettings)


def result(asked: TransformerSettings):
    """File of the trained network."""
    network, data = asked.network, asked.data
    name = asked.experiment.experiment
    if not name:
        name = f"sdt_{network.layer}_{network.dim}_{data.dataset.lower()}"
        name += run.folder_suffix(data.dataset, folder_of(data))
        name += f"_t{network.time_steps}_{network.spike_mode}"
        if network.multi_level:
            name += f"_c{network.mlif_channels}"
    return Path(asked.run.output_dir) / f"{name}.pth"


def image_rules(asked: TransformerSettings):
    """Options of the images that do nothing for what is asked."""
    data, augment, mixing = asked.data, asked.augment, asked.mixing
    entry = TABLE[data.dataset]
    patches = mixing.cutmix or mixing.cutmix_minmax
    large = (data.side or 0) > IN_MEMORY
    on_device = augment.device_side and not large
    return [
        (
            ["scale", "ratio", "hflip", "vflip", "color_jitter", "aa", "reprob"],
            not augment.no_aug,
            "--no_aug trains on the plain images",
        ),
        (["train_interpolation"], not on_device, "these images are not resized"),
        (["remode", "recount"], augment.reprob, "give --reprob"),
        (["color_jitter"], not augment.aa, "--aa takes its place"),
        (
            ["interpolation", "crop_pct"],
            large,
            f"images up to {IN_MEMORY} pixels are evaluated as they are",
        ),
        (
            ["pad_crop"],
            on_device and not augment.no_aug,
            f"it needs images up to {IN_MEMORY} pixels, --scale 1 1 --ratio 1 1 --color_jitter 0 "
            "--hflip 0 or 0.5 and neither --aa, --reprob, --vflip nor --no_aug",
        ),
        (["hflip"], entry.flip, f"{entry.name} is not mirrored"),
        (["data_root"], entry.looks_in, f"{entry.name} needs no folder"),
        (
            ["mixup_mode", "mixup_prob", "mixup_switch_prob", "mixup_off_epoch"],
            mixing.on,
            "give --mixup or --cutmix",
        ),
        (["mixup_switch_prob"], mixing.mixup and patches, "give --mixup and --cutmix"),
        (["cutmix"], not mixing.cutmix_minmax, "--cutmix_minmax takes its place"),
    ]


def rules(asked: TransformerSettings):
    """Options that do nothing for what is asked."""
    network, timm = asked.network, asked.timm
    inner = network.spike_mode == "mlif" and network.mlif_channels > 1
    sched = asked.schedule.sched
    return [
        # the surrogate of fast_mlif has the heights of the jumps
        (["surrogate_edge"], inner, "only mlif of several lanes has inner boundaries to weigh"),
        (["neuron_backend"], network.multi_level, "lif and plif are SpikingJelly's"),
        (["scaled"], network.multi_level, "lif and plif have one lane"),
        (["drop_path"], network.layer > 1, "the first block drops nothing"),
        (["opt_eps"], takes(timm, "eps"), f"--opt {timm.opt} has none"),
        (["opt_betas"], takes(timm, "betas"), f"--opt {timm.opt} has none"),
        (["momentum"], takes(timm, "momentum"), f"--opt {timm.opt} has none"),
        checks.backend_rule(asked.compute, asked.neuron, "--compile traces the neuron"),
        checks.head_rule(asked, asked.experiment.initial_checkpoint),
        checks.price_rule(
            asked.price, asked.run.keep, asked.training.epochs + asked.schedule.cooldown
        ),
        (["means", "lamb"], asked.loss.TET, "give --TET"),
        (["cooldown_epochs"], sched != "step", "--sched step has no cool-down"),
        (["min_lr"], sched != "step", "--sched step has no lowest rate"),
        (["warmup_lr"], asked.schedule.warmup_epochs, "give --warmup_epochs"),
        (["decay_epochs"], sched == "step", f"--sched {sched} has no drops"),
        (["decay_rate"], sched in ("step", "poly"), f"--sched {sched} has none"),
        (["clip_mode"], timm.clip_grad, "give --clip_grad"),
        (["model_ema_decay"], timm.model_ema, "give --model_ema"),
        *image_rules(asked),
    ]


def start_network(task: run.Task):
    """The network with its starting weights, on the device."""
    asked, world = task.asked, task.world
    net = build(asked, task.about)
    path = asked.experiment.initial_checkpoint
    # a resumed run has its weights in last.pth
    if path and not task.saved:
        content = checkpoint.load(path)
        new_head, but = run.own_head(asked)
        checkpoint.load_named(net, content, path, new_head)
        run.say_weights(content, path, task, but)
        if asked.run.test_only:
            provenance.note_activation(content, net.act, path, world)
    net = world.place(net)
    net.recompute = asked.compute.recompute
    if asked.experiment.sync_bn:
        # torch synchronises on GPUs alone
        if world.device.type != "cuda":
            raise UseError("--sync_bn needs GPUs")
        net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return net


def make_recipe(task: run.Task, net):
    """The recipe of the options.

    Raises:
        UseError: timm refuses an option, or a batch cannot be mixed so.
    """
    asked, mixing = task.asked, task.asked.mixing
    # timm mixes images in pairs, and demands an even number in every mode
    odd = [n for n in task.loaders[0].share_sizes() if n % 2]
    if mixing.on and odd:
        raise UseError(
            f"mixing needs an even number of images per step and process, here {odd[0]}: give an "
            "even --batch_size of no more than the training images"
        )
    check_patches(mixing, task.about["image_size"])
    parts = (asked.training, asked.timm, asked.schedule, mixing, asked.loss)
    return TimmRecipe(*parts, task.about["num_classes"], net)


def work(asked: TransformerSettings, saved, world):
    """Train or test, as one of the processes of `world`; returns the summary."""
    compute = asked.compute
    run.prepare_compile(compute, world)
    if asked.network.multi_level:
        run.say_backend(asked.neuron.neuron_backend, world, compute.compile)
    # the weights of all processes begin alike
    seed_all(compute.seed)
    task = run.Task(asked, saved, world, *load_data(asked, world))
    net = start_network(task)
    if asked.run.test_only:
        weights = asked.experiment.initial_checkpoint
        return run.test_only(net, task, weights, "--initial_checkpoint")
    recipe = make_recipe(task, net)
    return run.train(net, recipe, "sdt", result(asked), task, price=asked.price)


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    return run.training_command(get_parser(), argv, rules, work)


if __name__ == "__main__":
    guard(main)
