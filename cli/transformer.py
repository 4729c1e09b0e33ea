"""What the transformer's scripts share: settings and configurations, images, network."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine.dist import World
from engine.errors import UseError
from engine.loop import ComputeOptions, RunOptions
from engine.recipes.cnn import TrainingOptions
from engine.recipes.price import PriceOptions
from engine.recipes.snn import lane_count
from engine.recipes.tet import TETOptions
from engine.recipes.timm_parts import MixingOptions, ScheduleOptions, TimmOptions
from engine.settings import boolean, group, number, option, positive_int, run_option, width
from inputs.loader import BatchOptions, loaders
from inputs.table import DataOptions, load
from inputs.timm_transforms import AugmentOptions, augmented
from models.transformer import FAST, M_LIF, MODES, ONE_LANE, sdt

from .options import HeadOptions, NeuronOptions, TrainingSettings
from .parser import Parser, read_conf

# scripts are started in their own folder, the data lie in the project's
DATA = Path(__file__).resolve().parents[1] / "data"

# what a --model says of the network; `sdt` leaves all to the other options
SIZES = {
    "sdt": {},
    "sdt_2_512_cifar": {"layer": 2, "dim": 512, "pooling_stat": "0011"},
    "sdt_8_512_imagenet": {"layer": 8, "dim": 512, "pooling_stat": "1111"},
}
# and of its neuron, where no option does
NEURONS = {
    "sdt": {},
    "sdt_2_512_cifar": M_LIF,
    "sdt_8_512_imagenet": FAST,
}

# keys of the published configurations that are no options here, and why
NO_EFFECT = "it had no effect in the published code"
GONE = {
    "attn_mode": "there is one attention, sdsa; drop the key",
    "use_conv_as_linear": NO_EFFECT,
    "pretrained": NO_EFFECT,
    "patch_size": NO_EFFECT,
    "drop": NO_EFFECT,
    "gp": NO_EFFECT,
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
    "local_rank": "a launcher gives it",
    "num_classes": "it is the data set's",
}


@dataclass(frozen=True)
class ExperimentOptions:
    """experiment"""

    # what is in it holds, wherever it lies
    config: str = run_option(
        "", "YAML file of options, which those of the command line override", spellings=("-c",)
    )
    model: str = option(
        "sdt",
        "network; a name with sizes sets the sizes, and the neuron where no option names one",
        choices=tuple(SIZES),
    )
    initial_checkpoint: str = option(
        "",
        "weights to start from: ours, the published code's or those of the original Spike-Driven "
        "Transformer",
    )
    sync_bn: bool = option(False, "statistics of batch norm over all processes (GPUs)")
    experiment: str = option("", "name of the run; default: made of network, data set and neuron")


@dataclass(frozen=True)
class TransformerOptions:
    """network"""

    layer: int = option(4, "attention blocks L", positive_int)
    dim: int = option(512, "width D of the stream", positive_int, unit="channels")
    # a sum over tokens has no heads
    num_heads: int = option(
        8, "attention heads, of whose number --dim must be a multiple", positive_int
    )
    mlp_ratio: float = option(4.0, "width of the MLP in multiples of D", width)
    pooling_stat: str = option("1111", "a digit per stage of the embedding, 1 halves the image")
    # the first block drops nothing, the last one this share of the images
    drop_path: float = option(
        0.0, "largest share of dropped branches", number(float, low=0, high=0.99)
    )
    spike_mode: str = option("lif", "neuron; lif and plif are SpikingJelly's", choices=MODES)
    mlif_channels: int = option(1, "spike lanes S", lane_count)
    time_steps: int = option(4, "simulated timesteps T", positive_int)
    # powers of two, so exact
    scaled: bool = option(
        False, "scale spikes so that the top lane is worth 1", boolean, nargs="?", const=True
    )

    @property
    def multi_level(self):
        """Whether the neuron is this project's M-LIF."""
        return self.spike_mode not in ONE_LANE


@dataclass(frozen=True)
class TransformerSettings(TrainingSettings):
    """Options of the transformer's scripts; all published names are names or spellings of them."""

    experiment: ExperimentOptions = group()
    head: HeadOptions = group()
    network: TransformerOptions = group()
    neuron: NeuronOptions = group(only=("surrogate_edge", "neuron_backend"))
    # one folder for all data sets, see `load_data`
    data: DataOptions = group(
        hidden=("dataset_dir",),
        # no path by default: a checkpoint would keep that of a project that has moved since
        data_root={
            "default": "",
            "help": "folder of the data set, to which CIFAR10 and CIFAR100 are downloaded; "
            "default: data/ of this project",
        },
    )
    augment: AugmentOptions = group()
    mixing: MixingOptions = group()
    # timm counts per process
    batches: BatchOptions = group(
        batch_size={"default": 32, "help": "images per step and process"},
        val_batch_size={"default": 64, "help": "images per step and process in evaluation"},
    )
    training: TrainingOptions = group(
        only=("epochs", "learning_rate", "weight_decay", "momentum", "label_smoothing"),
        epochs=200,
        learning_rate=0.01,
        weight_decay={"default": 1e-4, "help": "weight decay of all but biases and norms"},
        label_smoothing=0.1,
    )
    timm: TimmOptions = group()
    schedule: ScheduleOptions = group()
    loss: TETOptions = group(TET=False, lamb=0.0)
    price: PriceOptions = group()
    compute: ComputeOptions = group(seed=42)
    run: RunOptions = group(
        output_dir={"default": "./output", "spellings": ("--output",)},
        test_only={"help": "evaluate the weights of --initial_checkpoint, train nothing"},
    )


class TransformerParser(Parser):
    """The parser of the transformer's scripts: it reads the -c file, and heeds --model."""

    def parse(self, argv):
        argv = list(self.spelled(argv))
        path = super().parse(argv).experiment.config
        # the later one of two words counts, so the command line overrides the file
        words = read_conf(self, path, GONE) if path else []
        return filled_by_name(super().parse(words + argv))


def filled_by_name(asked: TransformerSettings):
    """The settings with the sizes that --model names, and with its neuron unless that is given.

    Raises:
        UseError: a given size is another one.
    """
    model, network = asked.experiment.model, asked.network
    sizes = SIZES[model]
    for name, value in sizes.items():
        wanted = getattr(network, name)
        if name in asked.given and wanted != value:
            raise UseError(f"--{name} {wanted} contradicts --model {model}: use --model sdt")

    neuron = {name: value for name, value in NEURONS[model].items() if name not in asked.given}
    if "spike_mode" in asked.given and not network.multi_level:
        # several lanes, and their scaling, are no part of the neuron that was named
        neuron = {name: value for name, value in neuron.items() if name == "time_steps"}
    return replace(asked, network=replace(network, **sizes, **neuron))


def folder_of(data: DataOptions):
    """The folder of the data set that the options name."""
    return data.data_root or str(DATA)


def load_data(asked: TransformerSettings, world: World):
    """The data set with the recipe's augmentation: (`Data`, (training, choosing, test) loaders)."""
    options, batches = asked.data, asked.batches
    folder = folder_of(options)
    data = load(replace(options, data_root=folder, dataset_dir=folder), world)
    side = data.about["image_size"]
    # configurations say the side of every data set, though only FOLDER has a free one
    if options.image_size not in (None, side):
        raise UseError(
            f"--image_size {options.image_size}: the images of {options.dataset} are {side} "
            "pixels wide"
        )
    data = augmented(data, asked.augment)
    # loaders count the batch of all processes
    whole = replace(
        batches,
        batch_size=batches.batch_size * world.size,
        val_batch_size=batches.val_batch_size * world.size,
    )
    return data, loaders(data, whole, asked.compute.seed, world)


def build(asked: TransformerSettings, about):
    """The network of the options, for the data set `about`.

    Raises:
        UseError: there is no such network.
    """
    arguments = asdict(asked.network)
    # the network has these under other names
    arguments["depth"] = arguments.pop("layer")
    arguments["pooling"] = arguments.pop("pooling_stat")
    try:
        return sdt(
            **arguments,
            surrogate_edge=asked.neuron.surrogate_edge,
            neuron_backend=asked.neuron.neuron_backend,
            num_classes=about["num_classes"],
            img_size=about["image_size"],
            tet=asked.loss.TET,
        )
    except ValueError as error:
        raise UseError(str(error)) from None
