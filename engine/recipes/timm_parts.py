"""The transformer's training recipe, from timm's parts: optimizer, schedule, mixing, smoothing,
clipping, average of the weights; cross-entropy or TET loss (docs/method.md, sections 3 and 5).
"""

from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass

from timm.data import Mixup
from timm.models import model_parameters
from timm.optim import create_optimizer_v2, get_optimizer_info
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch.nn import functional as F

from ..errors import UseError
from ..settings import finite, natural, nonnegative_float, option, positive_float, share
from .base import Recipe
from .cnn import TrainingOptions
from .tet import TETOptions, tet_loss


@dataclass(frozen=True)
class TimmOptions:
    """optimizer"""

    # None leaves the value to timm, which has one for each optimizer
    opt: str = option("sgd", "timm's name of the optimizer: adamw, lamb, sgd ...")
    opt_eps: float | None = option(None, "epsilon of the optimizer; None: timm's", positive_float)
    opt_betas: tuple | None = option(
        None, "averaging factors of the optimizer; None: timm's", share, nargs="+"
    )
    clip_grad: float | None = option(None, "bound of the gradients; None: none", positive_float)
    clip_mode: str = option(
        "norm",
        "what --clip_grad bounds: the norm of all gradients, every value, or norms relative to "
        "those of the weights (agc; all but the readout's)",
        choices=("norm", "value", "agc"),
    )

    # the average takes the place of the trained network in evaluation and in the result
    model_ema: bool = option(False, "evaluate and keep a moving average of the weights")
    model_ema_decay: float = option(
        0.9998, "share of the moving average that is kept at each step", share
    )


@dataclass(frozen=True)
class ScheduleOptions:
    """schedule"""

    # the names are those of timm's `create_scheduler_v2`, which receives all of them
    sched: str = option(
        "step",
        "schedule of the learning rate, set once per epoch",
        choices=("cosine", "step", "tanh", "poly"),
    )
    # the rise takes the place of the first epochs, it does not shift the schedule
    warmup_epochs: int = option(
        3, "length of the linear rise of the learning rate", natural, unit="epochs"
    )
    warmup_lr: float = option(1e-4, "learning rate that the rise starts from", nonnegative_float)
    # --epochs does not count the end
    cooldown_epochs: int = option(10, "length of the end at --min_lr", natural, unit="epochs")
    min_lr: float = option(1e-5, "lowest learning rate", nonnegative_float)
    decay_epochs: float = option(
        30, "time between two drops of --sched step", positive_float, unit="epochs"
    )
    decay_rate: float = option(
        0.1,
        "factor of a drop of --sched step, or power of --sched poly",
        positive_float,
        spellings=("--dr",),
    )

    @property
    def cooldown(self):
        """Epochs that come after those of --epochs."""
        # --sched step goes on dropping, the others end at the lowest rate
        return 0 if self.sched == "step" else self.cooldown_epochs


@dataclass(frozen=True)
class MixingOptions:
    """mixing of images"""

    # Two images become one, and so do their labels: blended (mixup), or with a patch of the other
    # (cutmix). All options but the last are the arguments of timm's `Mixup`, in order.
    mixup: float = option(
        0.0, "alpha of the beta distribution of mixup, 0: none", nonnegative_float
    )
    cutmix: float = option(
        0.0, "alpha of the beta distribution of cutmix, 0: none", nonnegative_float
    )
    cutmix_minmax: tuple | None = option(
        None,
        "smallest and largest side of a patch of cutmix as shares of the side of the image, in "
        "the place of --cutmix",
        finite,
        nargs=2,
    )
    mixup_prob: float = option(1.0, "share of the batches that are mixed", share)
    mixup_switch_prob: float = option(
        0.5, "share of cutmix in the mixed batches where mixup is on, too", share
    )
    mixup_mode: str = option(
        "batch",
        "what is mixed by one draw: the batch, each pair of images, or each image (elem)",
        choices=("batch", "pair", "elem"),
    )
    mixup_off_epoch: int = option(0, "last epoch that mixes, 0: all do", natural)

    @property
    def on(self):
        """Whether images are mixed at all."""
        return bool(self.mixup or self.cutmix or self.cutmix_minmax)


# an optimizer of a package that is not installed is an ImportError
REFUSALS = (
    AssertionError,
    ImportError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def timms_errors():
    """timm refuses values by errors of many kinds; all of them are the command line's."""
    try:
        yield
    except REFUSALS as error:
        kind = type(error).__name__
        raise UseError(f"timm refuses one of the options ({kind}: {error})") from None


def takes(timm: TimmOptions, what):
    """Whether the optimizer of the options has 'eps', 'betas' or 'momentum'.

    One that timm does not know may have anything: its making is refused.
    """
    # lookahead_adamw is adamw, and something around it
    *_, name = timm.opt.lower().split("_")
    try:
        return getattr(get_optimizer_info(name), f"has_{what}")
    except ValueError:
        return True


def make_optimizer(net, training: TrainingOptions, timm: TimmOptions):
    """timm's optimizer of the options; biases and norms have no weight decay."""
    named = {"eps": timm.opt_eps, "betas": timm.opt_betas}
    return create_optimizer_v2(
        net,
        timm.opt,
        training.learning_rate,
        training.weight_decay,
        training.momentum,
        **{name: value for name, value in named.items() if value},
    )


def check_patches(mixing: MixingOptions, side):
    """Refuse bounds between which timm would find no patch, in the middle of a run.

    side: of the images, in pixels.
    """
    low, high = mixing.cutmix_minmax or (0, 1)
    if not (0 <= low <= high <= 1 and int(side * low) < int(side * high)):
        raise UseError(
            f"--cutmix_minmax {low:g} {high:g}: expected 0 <= smallest < largest side <= 1, a "
            f"pixel or more apart in images of {side} pixels"
        )


class TimmRecipe(Recipe):
    """The recipe of the transformer; `epochs` includes the cool-down.

    Args:
        training: epochs, learning_rate, weight_decay, momentum and label_smoothing count.
        num_classes: of the data set. net: what is trained, on the device.
    Raises:
        UseError: timm refuses a value.
    """

    def __init__(
        self,
        training: TrainingOptions,
        timm: TimmOptions,
        schedule: ScheduleOptions,
        mixing: MixingOptions,
        loss: TETOptions,
        num_classes,
        net,
    ):
        super().__init__(training.epochs + schedule.cooldown)
        self.timm = timm
        self.tet = loss
        # made now, since timm checks values in the making
        with timms_errors():
            self.made = make_optimizer(net, training, timm)
        if getattr(self.made, "is_second_order", False):
            raise UseError(
                f"--opt {timm.opt} needs second derivatives, which a spiking neuron has not: "
                "give another"
            )
        with timms_errors():
            self.scheduler, _ = create_scheduler_v2(
                self.made, num_epochs=training.epochs, **asdict(schedule)
            )
        self.average = ModelEmaV3(net, decay=timm.model_ema_decay) if timm.model_ema else None

        self.smoothing = training.label_smoothing
        *arguments, last = astuple(mixing)
        self.last_mixed = last or self.epochs
        self.mixup = None
        if mixing.on:
            self.mixup = Mixup(*arguments, label_smoothing=self.smoothing, num_classes=num_classes)

    def optimizer(self, net):
        return self.made

    def set_rate(self, optimizer, epoch):
        self.scheduler.step(int(epoch) - 1)  # timm counts epochs from 0
        return optimizer.param_groups[0]["lr"]

    def targets(self, images, labels, epoch):
        if not self.mixup:
            return images, labels
        # beyond the last epoch that mixes, `Mixup` smooths the labels and leaves the images
        self.mixup.mixup_enabled = epoch <= self.last_mixed
        return self.mixup(images, labels)

    def loss(self, out, targets):
        # labels [B] are smoothed here, the probabilities [B, classes] of `Mixup` already are
        smoothing = self.smoothing if targets.dim() == 1 else 0.0
        if self.tet.TET:
            return tet_loss(out, targets, self.tet, smoothing)
        return F.cross_entropy(out, targets, reduction="sum", label_smoothing=smoothing)

    def before_step(self, net, optimizer, scaler):
        bound, mode = self.timm.clip_grad, self.timm.clip_mode
        if bound:
            scaler.unscale_(optimizer)  # true gradients are bounded, not those that fp16 scales
            # agc is not meant for the readout, which comes last
            parameters = model_parameters(net, exclude_head=mode == "agc")
            dispatch_clip_grad(parameters, bound, mode=mode)

    def after_step(self, net):
        if self.average:
            self.average.update(net)

    def after_epoch(self, net, optimizer):
        # --opt lookahead_...: its slow weights are the result
        if hasattr(optimizer, "sync_lookahead"):
            optimizer.sync_lookahead()

    def trained(self, net):
        return self.average.module if self.average else net

    # a resumed run needs the average, too; it has no other state than the optimizer's
    def state_dict(self):
        return {"average": self.average.module.state_dict()} if self.average else {}

    def load_state_dict(self, state):
        if self.average:
            self.average.module.load_state_dict(state["average"])
