"""The training engine: fit and resume. The loop knows nothing of spikes; a `Recipe` says
what a step is.
"""

import copy
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from models import set_backend

from . import checkpoint
from .dist import World
from .errors import MALFORMED, RunError, UseError, reason
from .evaluation import AMP, autocast, evaluate, finite
from .generators import rng_state, set_rng_state
from .log import RunLog, progress, write_json
from .machine import device_name
from .recipes.base import Recipe, mean_readout
from .recipes.price import Price
from .settings import machine_option, natural, option, positive_int, run_option, seed

COMPILE = ("none", "default", "reduce-overhead", "max-autotune")  # modes of torch.compile
PROGRESS = ("epoch", "step", "best", "best_epoch", "seconds")  # attributes kept in last.pth
FILES = ("run", "checkpoint")  # parts of a summary that name files of this machine


@dataclass(frozen=True)
class ComputeOptions:
    """computation"""

    seed: int = option(0, "seed of everything random", seed, spellings=("-s",))
    amp: str = option(
        "none",
        "autocast type; the membrane stays float32",
        choices=("none", *AMP),
        nargs="?",
        const="fp16",
    )
    compile: str = machine_option(
        "none",
        "compile the training step (torch.compile); reduce-overhead adds CUDA graphs",
        choices=COMPILE,
        nargs="?",
        const="default",
    )
    recompute: bool = machine_option(
        False,
        "keep only the input spikes of each stage and run the stage again in the backward: less "
        "memory at many timesteps, more time",
    )


@dataclass(frozen=True)
class RunOptions:
    """output"""

    output_dir: str = option("./trained_models", "folder of the checkpoints and run folders")
    print_freq: int = run_option(
        10,
        "how often the metrics are read and shown, in batches",
        positive_int,
    )
    save_freq: int = run_option(
        0,
        "how often a checkpoint is written inside an epoch, in batches, and before an evaluation; "
        "0: never",
        natural,
    )
    resume: str = run_option(
        "",
        "run folder (or the last.pth in a run folder) of an interrupted run to go on with; the "
        "settings of that run hold",
    )
    keep: str = option(
        "best",
        "epoch whose network is the result: the best one on the test set, as published, or on "
        "images held back by --val_fraction; or the last one",
        choices=("best", "last"),
    )
    test_only: bool = option(False, "evaluate the given weights once, train nothing")
    energy: bool = run_option(
        False,
        "measure firing rates and energy over the whole test set at the end",
    )
    dont_save: bool = option(False, "write no checkpoint")


@dataclass
class Record:
    """What the files of a run say of it, beside weights and figures.

    kind: of the checkpoint, see `checkpoint`. data: what the data set is. settings: {option:
    value}. stable: file of the best network, where the next command looks for it. folder: run
    folder, None if nothing is stored. extra: further plain values for checkpoints and summary.
    """

    kind: str
    data: dict
    settings: dict
    stable: Path
    folder: Path | None
    extra: dict = field(default_factory=dict)


def _check_optimizer(own, stored):
    """Refuse a stored state of an optimizer that has other settings than `own`.

    Raises:
        ValueError: torch would take them, and fail in a later step.
    """
    for ours, theirs in zip(own["param_groups"], stored["param_groups"], strict=True):
        for name, value in ours.items():
            held = theirs[name]
            same = type(held) is type(value) or {type(held), type(value)} <= {int, float}
            if name != "params" and not same:
                raise ValueError(f"the optimizer's {name} is {held!r}, expected one as {value!r}")


COPIED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


def _try_step(optimizer):
    """Raise what a step of the optimizer would raise, by one of a copy."""
    # the copy of another's may not be whole
    if type(optimizer) not in COPIED:
        return
    trial = copy.deepcopy(optimizer)
    for group in trial.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    trial.step()


class Trainer:
    """Trains a network by a recipe and keeps its run folder.

    Args:
        net: the network, on the world's device.
        loaders: (training, choosing, test) loaders; the best epoch is chosen on the second.
        measure: `analysis.measure.Measure` or None; called for the figures of the finished network,
            and asked for `curves` after each epoch.
        price: added to the loss.
    """

    def __init__(
        self,
        net,
        recipe: Recipe,
        loaders,
        record: Record,
        run: RunOptions,
        compute: ComputeOptions,
        world: World,
        measure=None,
        price: Price | None = None,
    ):
        self.net, self.recipe, self.record, self.world = net, recipe, record, world
        self.train_loader, self.choose_loader, self.test_loader = loaders
        self.run, self.compute, self.measure, self.price = run, compute, measure, price
        self.optimizer = recipe.optimizer(net)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=compute.amp == "fp16")

        # what a training step calls: the network, shared by the processes, compiled; evaluation,
        # counters and checkpoints see the plain one
        self.model = net
        if world.size > 1:
            ids = [world.device.index] if world.device.type == "cuda" else None
            self.model = torch.nn.parallel.DistributedDataParallel(net, device_ids=ids)
        self.compiled = None
        if compute.compile != "none":
            self.compiled = torch.compile(self.model, mode=compute.compile, dynamic=False)

        self.epoch, self.step = 1, 0  # the epoch that is being trained, steps of it that are done
        self.best, self.best_epoch = -1.0, 0
        self.seconds = 0.0
        self.since = None  # up to when they are counted
        self.rate = 0.0  # of the last step
        self.accuracy = None  # after the last epoch, None in the middle of one
        self.kept = None  # the best network, where no folder holds it
        self.processes = [world.size]  # all numbers of them that have trained it
        # loss, correct, images of this epoch and process
        self.sums = torch.zeros(3, dtype=torch.float64, device=world.device)

    @property
    def held_back(self):
        """Whether the best epoch is chosen on images that were held back from training."""
        return self.choose_loader is not self.test_loader

    @property
    def choosing(self):
        """What the images that choose the best epoch are called: val or test."""
        return "val" if self.held_back else "test"

    @property
    def writes(self):
        """Whether this process writes files."""
        return self.record.folder is not None and self.world.main

    # ---- state ----

    def _gather_rng(self):
        """States of the random generators of every process."""
        own = rng_state(self.world.device)
        if self.world.size == 1:
            return [own]
        states = [None] * self.world.size
        torch.distributed.all_gather_object(states, own)
        return states

    def _content(self, net, epoch, **more):
        record = self.record
        more |= {"accuracy": self.accuracy, "epoch": epoch, **record.extra}
        return checkpoint.content(net, record.kind, record.data, record.settings, **more)

    def _count_time(self):
        """Add the time since the last call, or since the epoch began, to the run's."""
        now = time.perf_counter()
        self.seconds += now - self.since
        self.since = now

    def save_last(self):
        """Write last.pth: everything that a resumed run needs."""
        # every process takes part in these two, whether it writes or not
        states = self._gather_rng()
        sums = self.world.sum(self.sums.clone())
        if not self.writes:
            return
        training = {name: getattr(self, name) for name in PROGRESS}
        training |= {
            "sums": sums.cpu(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "recipe": self.recipe.state_dict(),
            "price": self.price and self.price.state_dict(),
            "processes": self.processes,
            "rng": states,
            "batch_size": self.train_loader.batch_size,
            "rate": self.rate,
        }
        content = self._content(self.net, self.epoch - 1, training=training)
        checkpoint.save(self.record.folder / "last.pth", content)

    def save_best(self):
        """Keep the network as the best so far: in the run folder and as the stable file, else in
        memory.
        """
        if self.record.folder is not None and not self.world.main:
            return
        best = self.recipe.export(self.recipe.trained(self.net))
        if self.record.folder is None:
            self.kept = copy.deepcopy(best)
            return
        content = self._content(best, self.epoch)
        for path in (self.record.folder / "best.pth", self.record.stable):
            checkpoint.save(path, content)

    def _check_batch(self, state):
        """Refuse to go on with batches of another size, as a transformer's on other processes are.

        Its `--batch_size` is that of a process, and the step would count other images.
        """
        here = self.train_loader.batch_size
        # files of earlier versions do not say it
        there = state.get("batch_size", here)
        if not isinstance(there, int):
            raise TypeError(f"batch_size is {type(there).__name__}, expected int")
        if there != here:
            raise UseError(
                f"the interrupted run had batches of {there} images, here they have {here}: start "
                f"{len(state['rng'])} process(es), as then"
            )

    def restore(self, saved):
        """Go on from the content of a last.pth.

        Raises:
            UseError: the images are not those of the interrupted run, or the file is damaged.
        """
        about = self.record.data
        for part in ("train", "test"):
            held = saved["data"].get(part)
            if held != about[part]:
                raise UseError(
                    f"the {part} images are not those of the interrupted run: it had "
                    f"{held}, here are {about[part]} ({about['where']})"
                )
        try:
            self._take_up(saved)
        except MALFORMED as error:
            raise UseError(
                f"{self.record.folder}/last.pth does not hold the state of this run "
                f"({reason(error)}): start a new run, best.pth is as it was"
            ) from None

    def _take_up(self, saved):
        """Set the state of everything that a training changes."""
        state = saved["training"]
        self._check_batch(state)
        self.net.load_state_dict(saved["model"])
        _check_optimizer(self.optimizer.state_dict(), state["optimizer"])
        # what all processes were started with lies in shared memory, where AdamW would count steps
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        _try_step(self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        # files of early versions have no state of the recipe
        self.recipe.load_state_dict(state.get("recipe", {}))
        # nor had they a price with a state
        if self.price and state.get("price"):
            self.price.load_state_dict(state["price"])
        # for the log, where no step of the epoch is left; files of earlier versions have none
        self.rate = float(state.get("rate", 0.0))
        # files of earlier versions have the number of the last ones alone
        before = state.get("processes", [len(state["rng"])])
        self.processes = sorted({*before, self.world.size})
        for name in PROGRESS:
            kind = type(getattr(self, name))
            if not isinstance(state[name], kind):
                raise TypeError(f"{name} is {state[name]!r}, expected {kind.__name__}")
            setattr(self, name, state[name])
        if self.epoch < 1 or self.step < 0:
            raise ValueError(f"epoch {self.epoch}, step {self.step}")
        # the sums are of all processes: one of them goes on with them
        if self.world.main:
            self.sums.copy_(state["sums"])
        # dropout goes on where it stopped
        if len(state["rng"]) == self.world.size:
            set_rng_state(state["rng"][self.world.rank], self.world.device)
        else:
            self.world.say(
                f"warning: the run had {len(state['rng'])} processes, now {self.world.size}: "
                "dropout masks will differ from the uninterrupted run's"
            )

    # ---- training ----

    def _checked_means(self, sums):
        """Mean loss and accuracy of the epoch so far, read from the device.

        sums: those of this process, or of all.
        Raises:
            RunError: the loss is not finite.
        """
        loss, correct, count = sums.tolist()
        if not np.isfinite(loss):
            folder = self.record.folder
            hint = f"; {folder}/last.pth holds the state before" if folder else ""
            raise RunError(
                f"the loss is {loss} at epoch {self.epoch}, step {self.step}: "
                f"begin anew with a lower --learning_rate{hint}"
            )
        return loss / max(count, 1), correct / max(count, 1)

    def _train_epoch(self):
        """The steps of the epoch that are left."""
        self.net.train()
        steps = self.train_loader.epoch(self.epoch, self.step)
        title = f"epoch {self.epoch}/{self.recipe.epochs}"
        total = len(self.train_loader)
        with progress(steps, self.world, total=total, initial=self.step, desc=title) as bar:
            for images, labels, whole_batch in bar:
                self._train_step(images, labels, whole_batch)
                # reading the sums makes the host wait for the device, so not at every step
                if self.step % self.run.print_freq == 0:
                    loss, accuracy = self._checked_means(self.sums)
                    shown = {"loss": f"{loss:.3f}", "accuracy": f"{accuracy:.2%}"}
                    # the bar knows when it is due
                    bar.set_postfix(shown, refresh=False)
                every = self.run.save_freq
                # after the last step, too: what evaluates may fail or be killed
                if every and (self.step % every == 0 or self.step == total):
                    self._checked_means(self.sums)
                    # weights that are not finite are not stored: the next loss ends the run
                    if finite(self.net):
                        self._count_time()
                        self.save_last()

    def _train_step(self, images, labels, whole_batch):
        """Forward, loss, backward and the optimizer's step.

        images [b, ...], labels [b]: this process's share of a batch of `whole_batch` images.
        """
        recipe, loader = self.recipe, self.train_loader
        now = self.epoch + self.step / len(loader)
        self.rate = recipe.set_rate(self.optimizer, now)
        # a smaller last batch is not worth compiling for
        full = whole_batch == min(loader.batch_size, loader.images)
        model = self.compiled if self.compiled is not None and full else self.model
        with autocast(self.world.device, self.compute.amp):
            images, targets = recipe.targets(images, labels, self.epoch)
            out = model(images)
        out = out.float()
        loss = priced = recipe.loss(out, targets)
        if self.price:
            priced = loss + len(images) * self.price(now, len(images) / whole_batch)

        self.optimizer.zero_grad()
        # DDP averages over the processes: scaled, it is the sum over the whole batch, divided by
        # its size
        self.scaler.scale(priced * (self.world.size / whole_batch)).backward()
        recipe.before_step(self.net, self.optimizer, self.scaler)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        recipe.after_step(self.net)

        with torch.no_grad():
            correct = (mean_readout(out).argmax(1) == labels).sum()
            count = loss.new_full((), len(labels))
            self.sums += torch.stack([loss, correct, count]).double()
        self.step += 1

    def _open_log(self, resumed):
        """The run's log on the main process; on the others one that writes nothing."""
        folder = self.record.folder if self.world.main else None
        if resumed:
            return RunLog(folder, resume_epoch=self.epoch - 1)
        record = self.record
        config = {"settings": record.settings, "data": record.data, "network": self.net.built}
        # by which torchrun's restart finds the run
        if "TORCHELASTIC_RUN_ID" in os.environ:
            config["job"] = os.environ["TORCHELASTIC_RUN_ID"]
        return RunLog(folder, config)

    def _say_data(self):
        about = self.record.data
        train, test = (about[part]["images"] for part in ("train", "test"))
        chosen = "the best epoch is chosen on "
        if self.run.keep == "last":
            chosen = "the last epoch counts"
        elif self.held_back:
            chosen += "held-back training images"
        else:
            chosen += "the test set (published habit; --val_fraction holds images back)"
        self.world.say(f"{about['source']}: {train} training, {test} test images; {chosen}")

    def fit(self, resumed=False):
        """Train to the last epoch; returns the summary, which is also written to the run folder.

        Raises:
            RunError: weights, outputs or loss are not finite numbers, or a file cannot be written.
        """
        log = self._open_log(resumed)
        self._say_data()
        # a run that is killed in its first epoch can be resumed, too
        if not resumed:
            self.save_last()
        chosen = None
        try:
            while self.epoch <= self.recipe.epochs:
                chosen = self._fit_epoch(log)
        finally:
            log.close()
        # a finished run was resumed: there was nothing left to train
        if chosen is None:
            chosen = self._evaluate()
        return self._finish(chosen)

    def _evaluate(self):
        """Loss and accuracy of the trained network on the images that choose the best epoch."""
        net = self.recipe.trained(self.net)
        advice = f"lower --learning_rate, this is epoch {self.epoch}"
        amp = self.compute.amp
        return evaluate(net, self.choose_loader, self.world, amp, self.choosing, advice)

    def _fit_epoch(self, log):
        """Train, evaluate, log and store one epoch; returns its evaluation."""
        start, first = time.perf_counter(), self.step
        self.since = start
        self.accuracy = None
        if self.step == 0:
            self.sums.zero_()
            self.recipe.before_epoch(self.net, self.epoch)
        self._train_epoch()
        self.recipe.after_epoch(self.net, self.optimizer)
        # batch norm: all processes evaluate what rank 0 stores
        for net in dict.fromkeys((self.net, self.recipe.trained(self.net))):
            self.world.share(net.buffers())
        # the steps before a resumption were not of this process
        images = max(0, self.train_loader.images - first * self.train_loader.batch_size)
        speed = images / (time.perf_counter() - start)
        trained = self._checked_means(self.world.sum(self.sums.clone()))

        chosen = self._evaluate()
        self._count_time()
        self.accuracy = chosen["accuracy"]
        if self.accuracy > self.best or self.run.keep == "last":
            self.best, self.best_epoch = self.accuracy, self.epoch
            self.save_best()
        self._log_epoch(log, trained, chosen, speed)
        # the next epoch's number goes with this epoch's weights
        self.epoch, self.step = self.epoch + 1, 0
        self.save_last()
        return chosen

    def _log_epoch(self, log, trained, chosen, speed):
        """Log an epoch and tell of it.

        trained: (loss, accuracy) of its training. chosen: its evaluation. speed: images/s.
        """
        loss, accuracy = trained
        name = self.choosing
        values = {
            "train_loss": loss,
            "train_accuracy": accuracy,
            f"{name}_loss": chosen["loss"],
            f"{name}_accuracy": chosen["accuracy"],
            "learning_rate": self.rate,
            "images_per_s": speed,
            "seconds": self.seconds,
        }
        if self.price:
            values |= self.price.figures()
        curves = self.measure.curves(self.net) if log.board and self.measure else {}
        log.epoch(self.epoch, values, curves)
        self.world.say(
            f"epoch {self.epoch}/{self.recipe.epochs}  train {loss:.4f} {accuracy:.2%}  "
            f"{name} {chosen['loss']:.4f} {chosen['accuracy']:.2%}  "
            f"{self.run.keep} {self.best:.2%} ({self.best_epoch})  "
            f"lr {self.rate:.3g}  {speed:.0f} images/s"
        )

    def _take_best(self):
        """(the best network, the file that is named as the result); `best` and `best_epoch` follow.

        All is read back from its file, so that the figures are those of the file.
        """
        if self.record.folder is None:
            return self.kept, None
        path = self.record.folder / "best.pth"
        content = self.world.read(lambda: checkpoint.load(path))
        checkpoint.check_own(content, path)
        if content["network"]["name"] != self.net.built["name"]:
            name = content["network"]["name"]
            raise UseError(f"{path} is not of this run: it holds a {name}; start a new run")
        # a run that was killed between this file and last.pth has forgotten what it stored
        self.best, self.best_epoch = content["accuracy"], content["epoch"]
        best = checkpoint.rebuild(content, path)
        # the neurons' backend belongs to the machine: no file has it
        set_backend(best, self.net.act.backend)
        # a run folder that was moved alone has left the stable file behind, and a later run of the
        # same name has its own there
        if self.writes and checkpoint.holds(self.record.stable, content["model"]):
            path = self.record.stable
        return self.world.place(best), path

    def _finish(self, last):
        """Summary of the best network, with its figures on the test set.

        An epoch's accuracy is that of the network in training, as autocast and its scales round it;
        here the file is measured as every other script reads it.
        """
        record, folder = self.record, self.record.folder
        best, weights = self._take_best()
        summary = {
            "kind": record.kind,
            "network": self.net.built,
            "data": record.data["source"],
            "best_epoch": self.best_epoch,
            "best_accuracy": self.best,
            "last_accuracy": last["accuracy"],
            "epochs": self.recipe.epochs,
            "seconds": self.seconds,
            "machine": device_name(self.world.device),
            "processes": self.processes,
            "checkpoint": folder and str(weights),
            "run": folder and str(folder),
            **record.extra,
        }
        if self.measure:
            measured = self.measure(best, folder and folder / "energy")
            summary |= {key: value for key, value in measured.items() if key != "energy"}
        if self.writes:
            write_json(folder / "summary.json", summary)

        text = f"{self.run.keep} {self.best:.2%} at epoch {self.best_epoch}"
        if "test_accuracy" in summary:
            text += f", test {summary['test_accuracy']:.2%}"
        if folder:
            text += f"; weights {weights}, run {folder}"
        elif self.run.dont_save:
            text += "; nothing saved (--dont_save)"
        self.world.say(text)
        return summary
