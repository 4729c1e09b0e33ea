"""Groups of options that no room below obeys: network, neuron, quantiser, conversion."""

from dataclasses import dataclass

import models
from analysis.pricing import MODELS
from engine.dist import DeviceOptions
from engine.loop import ComputeOptions, RunOptions
from engine.recipes.cnn import TrainingOptions
from engine.recipes.snn import lane_count
from engine.settings import (
    Settings,
    group,
    machine_option,
    number,
    option,
    positive_float,
    positive_int,
    share,
    width,
)
from inputs.loader import BatchOptions
from inputs.table import CropOptions, DataOptions

# the published spelling of the networks that the CNN scripts train
ARCHITECTURES = tuple(name.upper() for name in models.CNNS)
SWITCH = {"type": int, "choices": (0, 1)}


@dataclass(frozen=True)
class NetworkOptions:
    """network"""

    architecture: str = option(
        "VGG16", "network", str.upper, choices=ARCHITECTURES, spellings=("-a",)
    )
    width_mult: float = option(1.0, "factor of the width of every layer", width)
    dropout: float = option(
        0.2,
        "dropout after activations; the head of VGG16 has 0.5 on small images",
        number(float, low=0, high=0.99),
    )
    kernel_size: int = option(
        3, "side of the convolutions of VGG16, odd", number(int, low=1, high=31), unit="pixels"
    )
    bn: bool = option(False, "batch norm after each convolution")
    bias: bool = option(False, "biases in the convolutions (the linear layers have none)")
    pretrained_ann: str = option("", "checkpoint to start from (ANN)")
    pretrained_snn: str = option("", "SNN checkpoint to start from")


@dataclass(frozen=True)
class HeadOptions:
    """last layer"""

    new_head: bool = option(
        False,
        "start with a last layer of new weights, for other classes than those of the checkpoint",
    )


@dataclass(frozen=True)
class NeuronOptions:
    """neuron"""

    multi_channel: int = option(0, "1: M-LIF, 0: plain LIF (one lane)", **SWITCH)
    num_channels: int = option(1, "spike lanes S", lane_count)
    hardware_opt: int = option(1, "0, 1: one-hot; 2: multi-hot", int, choices=(0, 1, 2))
    timesteps: int = option(20, "simulated timesteps T", positive_int)
    leak: float = option(1.0, "initial leak, 1: none; learned", share)
    default_threshold: float = option(
        1.0,
        "initial threshold of the layers that the conversion leaves alone",
        positive_float,
    )
    reset_to_zero: int = option(0, "1: hard reset, 0: subtract", **SWITCH)
    input_encoding: int = option(1, "1: analog image, 0: Bernoulli rate", **SWITCH)
    activation: str = option(
        "Linear", "accepted as published, changes nothing: see --surrogate", choices=("Linear",)
    )
    surrogate: str = option(
        "triangle",
        "surrogate gradient: the published triangle around each threshold, or clipped: constant up "
        "to where a line of slope --clipped_slope reaches the top output, 0 above",
        choices=("triangle", "clipped"),
    )
    surrogate_gamma: float = option(
        0.3, "height of the triangular surrogate (damping)", positive_float
    )
    clipped_slope: float = option(0.75, "height of the clipped surrogate", positive_float)
    surrogate_edge: str = option(
        "published",
        "weight of the inner boundaries in the surrogate: 1/2 of the paper, or 3/2 of the "
        "published code",
        choices=("paper", "published"),
    )
    neuron_backend: str = machine_option(
        "auto",
        "what runs the neuron (python -m models.neuron tells what can)",
        choices=models.BACKENDS,
    )
    fixed_neuron: bool = option(False, "keep the initial thresholds, leaks and output scales")
    fixed_leak: bool = option(
        False, "do not train the leaks; with --leak 1 several timesteps can become integers"
    )

    @property
    def levels(self):
        """S of the neurons; plain LIF has one lane."""
        return self.num_channels if self.multi_channel else 1


@dataclass(frozen=True)
class EnergyOptions:
    """measurement"""

    checkpoint: str = option(
        "",
        "checkpoint of ann_ddp.py, absorb_bn.py or snn_ddp.py, or a name of docs/zoo.md",
        positional=True,
        nargs="?",
    )
    energy_model: str = option(
        "paper", "prices of the table; files hold all models", choices=tuple(MODELS)
    )


@dataclass(frozen=True)
class FileOptions:
    """files"""

    output: str = option("", "file that is written to, else beside the checkpoint")
    replace: bool = option(False, "replace a file that is there")


@dataclass(frozen=True)
class QuantOptions:
    """quantiser"""

    quant_act: bool = option(False, "quantise every activation: train the LQ-ANN")
    act_bits: int = option(
        1,
        "resolution: 2^bits - 1 powers of two and zero ('log')",
        number(int, low=1, high=models.quantize.MAX_BITS),
        unit="bits",
    )
    quant_id: str = option(
        "log",
        "levels beside zero: log, 2^bits - 1 powers of two; lvl, as many powers of two as bits, "
        "those of a neuron with S = bits; uniform, equal steps",
        choices=models.quantize.SCHEMES,
    )
    quant_scale_max: float = option(
        99.7,
        "upper end of the range: percentile of the activations of a layer",
        number(float, above=0, high=100),
        unit="percent",
    )
    quant_num_batches: int = option(10, "training batches that set the range", positive_int)


@dataclass(frozen=True)
class ConversionOptions:
    """conversion"""

    conversion: str = option(
        "published",
        "published: balanced thresholds; matched: thresholds and output scales fitted per layer",
        choices=("published", "matched"),
    )
    scaling_factor: float = option(0.3, "factor of balanced thresholds", positive_float)
    balance: str | None = option(
        None,
        "layers to balance; default: ResNet20 stem (as published), VGG16 all",
        choices=("all", "stem"),
    )
    balance_steps: int = option(100, "timesteps of the threshold search", positive_int)


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """What every training command has."""

    batches: BatchOptions = group()
    compute: ComputeOptions = group()
    run: RunOptions = group()
    device: DeviceOptions = group()


@dataclass(frozen=True)
class CNNSettings(TrainingSettings):
    """What the training commands of the CNNs have."""

    network: NetworkOptions = group()
    head: HeadOptions = group()
    data: DataOptions = group()
    crop: CropOptions = group()
    training: TrainingOptions = group()
