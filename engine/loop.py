"""The training engine: fit, evaluate, resume. It knows nothing of spikes; scripts hang on it by four hooks."""

import copy
import random
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from . import checkpoint
from .errors import RunError, UseError
from .log import RunLog, progress, write_json
from .recipes.cnn import whole


def rng_state(device):
    """State of every random generator, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [kind, keys.tolist(), *rest],
        "python": list(random.getstate()),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_rng_state(state, device):
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_all(seed):
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def autocast(device, amp):
    """Autocast context of --amp."""
    if amp == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[amp])


@torch.no_grad()
def evaluate(net, loader, world, amp="none", label="test"):
    """Loss and accuracy (fraction) over the loader, every image counted once whatever the number of processes."""
    training = net.training
    net.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    with progress(loader.epoch(0), world, total=len(loader), desc=label) as bar:
        for images, labels, _ in bar:
            with autocast(world.device, amp):
                out = whole(net(images).float())
            sums += torch.stack(
                [
                    F.cross_entropy(out, labels, reduction="sum"),
                    (out.argmax(1) == labels).sum(),
                    out.new_full((), len(labels)),
                ]
            ).double()
    net.train(training)
    loss, correct, count = world.sum(sums).tolist()
    return {"loss": loss / count, "accuracy": correct / count, "images": int(count)}


class Trainer:
    """Trains a network by `args` and a `recipe` (see `optim.Recipe`) and keeps its run folder.

    Hooks: before_epoch(epoch) before its first step; after_step() after each optimizer step; scalars() -> dict of
    further curves after each epoch; export(net) -> the network that is stored as the result.
    """

    def __init__(
        self,
        net,
        kind,
        stable,
        folder,
        loaders,
        about,
        args,
        world,
        before_epoch=None,
        after_step=None,
        scalars=None,
        export=None,
        extra=None,
        *,
        recipe,
    ):
        self.net, self.kind, self.stable, self.folder = net, kind, Path(stable), folder
        self.train_loader, self.choose_loader, self.test_loader = loaders
        self.about, self.args, self.world = about, args, world
        nothing = lambda *_: None  # noqa: E731
        self.before_epoch, self.after_step = before_epoch or nothing, after_step or nothing
        self.scalars, self.export = scalars or dict, export or (lambda net: net)
        self.extra = extra or {}  # plain values kept in every checkpoint and in the summary
        self.settings = {k: v for k, v in vars(args).items() if k != "given"}
        self.recipe = recipe
        self.optimizer = self.recipe.optimizer(net)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=args.amp == "fp16")
        self.model = net
        if world.size > 1:
            ids = [world.device.index] if world.device.type == "cuda" else None
            self.model = torch.nn.parallel.DistributedDataParallel(net, device_ids=ids)
        self.fast = None  # of the training step alone: evaluation, counters and checkpoints see the plain network
        if args.compile != "none":
            self.fast = torch.compile(self.model, mode=args.compile, dynamic=False)
        self.epoch, self.step, self.best, self.best_epoch, self.seconds = 1, 0, -1.0, 0, 0.0
        self.rate = 0.0  # of the last step
        self.accuracy = None  # after the last epoch, None in the middle of one
        self.kept = None  # the best network, where no folder holds it
        self.sums = torch.zeros(3, dtype=torch.float64, device=world.device)

    # ---- state ----

    def _gather_rng(self):
        states = [rng_state(self.world.device)]
        if self.world.size > 1:
            states = [None] * self.world.size
            torch.distributed.all_gather_object(states, rng_state(self.world.device))
        return states

    def _content(self, net, accuracy, epoch, **more):
        return checkpoint.content(
            net,
            self.kind,
            self.about,
            self.settings,
            accuracy=accuracy,
            epoch=epoch,
            **self.extra,
            **more,
        )

    def save_last(self):
        """Write last.pth: everything that a resumed run needs."""
        states, sums = self._gather_rng(), self.world.sum(self.sums.clone())
        if self.folder is None or not self.world.main:
            return
        training = {
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "sums": sums.cpu(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "recipe": self.recipe.state_dict(),
            "rng": states,
            "stable": str(self.stable),
        }
        checkpoint.save(
            self.folder / "last.pth",
            self._content(self.net, self.accuracy, self.epoch - 1, training=training),
        )

    def save_best(self):
        best = (
            self.export(self.recipe.trained(self.net))
            if self.folder is None or self.world.main
            else None
        )
        if self.folder is None:
            self.kept = copy.deepcopy(best)
        if self.folder is None or not self.world.main:
            return
        content = self._content(best, self.accuracy, self.epoch)
        for path in (self.folder / "best.pth", self.stable):
            checkpoint.save(path, content)

    def restore(self, saved):
        """Go on from the content of a last.pth."""
        state = saved["training"]
        for part in ("train", "test"):
            if saved["data"][part] != self.about[part]:
                raise UseError(
                    f"the {part} images are not those of the interrupted run: it had {saved['data'][part]}, "
                    f"here are {self.about[part]} ({self.about['where']})"
                )
        self.net.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.recipe.load_state_dict(state.get("recipe", {}))
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        if self.world.main:  # they are of all processes
            self.sums.copy_(state["sums"])
        if len(state["rng"]) == self.world.size:
            set_rng_state(state["rng"][self.world.rank], self.world.device)
        else:
            self.world.say(
                f"warning: the run had {len(state['rng'])} processes, now {self.world.size}: "
                "dropout masks will differ from the uninterrupted run's"
            )

    # ---- training ----

    def _check(self):
        loss, correct, count = self.sums.tolist()
        if not np.isfinite(loss):
            raise RunError(
                f"the loss is {loss} at epoch {self.epoch}, step {self.step}: lower --learning_rate"
                + (f"; {self.folder}/last.pth holds the state before" if self.folder else "")
            )
        return loss / max(count, 1), correct / max(count, 1)

    def _train_epoch(self):
        self.net.train()
        steps = self.train_loader.epoch(self.epoch, self.step)
        with progress(
            steps,
            self.world,
            total=len(self.train_loader),
            initial=self.step,
            desc=f"epoch {self.epoch}/{self.recipe.epochs}",
        ) as bar:
            for images, labels, n in bar:
                self.rate = self.recipe.set_rate(
                    self.optimizer, self.epoch + self.step / len(self.train_loader)
                )
                full = n == min(
                    self.train_loader.batch_size, self.train_loader.images
                )  # others are not worth compiling for
                with autocast(self.world.device, self.args.amp):
                    images, targets = self.recipe.targets(images, labels, self.epoch)
                    out = (self.fast if self.fast is not None and full else self.model)(images)
                out = out.float()
                loss = self.recipe.loss(out, targets)
                self.optimizer.zero_grad(set_to_none=True)
                self.scaler.scale(
                    loss * (self.world.size / n)
                ).backward()  # DDP averages: the sum over processes is / n
                self.recipe.before_step(self.net, self.optimizer, self.scaler)
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.after_step()
                self.recipe.after_step(self.net)
                with torch.no_grad():
                    correct = (whole(out).argmax(1) == labels).sum()
                    self.sums += torch.stack(
                        [loss, correct, loss.new_full((), len(labels))]
                    ).double()
                self.step += 1
                if self.step % self.args.print_freq == 0:
                    loss, accuracy = self._check()
                    bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.2%}")
                if (
                    self.args.save_freq
                    and self.step % self.args.save_freq == 0
                    and self.step < len(self.train_loader)
                ):
                    self._check()
                    if all(
                        p.isfinite().all() for p in self.net.parameters()
                    ):  # else the next loss ends the run
                        self.save_last()

    def fit(self, resumed=False):
        """Train to the last epoch; returns the summary, which is also written to the run folder."""
        args, world = self.args, self.world
        log = RunLog(
            self.folder if world.main else None,
            None
            if resumed
            else {"settings": self.settings, "data": self.about, "network": self.net.built},
            resume_epoch=self.epoch - 1 if resumed else None,
        )
        counts = [self.about[part]["images"] for part in ("train", "test")]
        world.say(
            f"{self.about['source']}: {counts[0]} training, {counts[1]} test images; "
            + (
                "the best epoch is chosen on held-back training images"
                if args.val_fraction
                else "the best epoch is chosen on the test set (published habit; --val_fraction holds images back)"
            )
        )
        if not resumed:
            self.save_last()
        chosen = None
        try:
            while self.epoch <= self.recipe.epochs:
                start, first = time.perf_counter(), self.step
                self.accuracy = None
                if self.step == 0:
                    self.sums.zero_()
                    self.before_epoch(self.epoch)
                self._train_epoch()
                for net in dict.fromkeys((self.net, self.recipe.trained(self.net))):
                    world.share(net.buffers())  # batch norm: all evaluate what rank 0 stores
                trained = time.perf_counter() - start
                world.sum(self.sums)
                loss, accuracy = self._check()
                chosen = evaluate(
                    self.recipe.trained(self.net), self.choose_loader, world, args.amp
                )
                self.seconds += time.perf_counter() - start
                name = "val" if args.val_fraction else "test"
                values = {
                    "train_loss": loss,
                    "train_accuracy": accuracy,
                    f"{name}_loss": chosen["loss"],
                    f"{name}_accuracy": chosen["accuracy"],
                    "learning_rate": self.rate,
                    "images_per_s": (
                        self.train_loader.images - first * self.train_loader.batch_size
                    )
                    / trained,
                    "seconds": self.seconds,
                }
                if not np.isfinite(chosen["loss"]):
                    raise RunError(
                        f"the {name} loss is {chosen['loss']} after epoch {self.epoch}: lower --learning_rate"
                    )
                self.accuracy = chosen["accuracy"]
                if chosen["accuracy"] > self.best:
                    self.best, self.best_epoch = chosen["accuracy"], self.epoch
                    self.save_best()
                log.epoch(self.epoch, values, self.scalars() if log.board else None)
                world.say(
                    f"epoch {self.epoch}/{self.recipe.epochs}  train {loss:.4f} {accuracy:.2%}  "
                    f"{name} {chosen['loss']:.4f} {chosen['accuracy']:.2%}  best {self.best:.2%} ({self.best_epoch})  "
                    f"lr {self.rate:.3g}  {values['images_per_s']:.0f} images/s"
                )
                self.epoch, self.step = self.epoch + 1, 0
                self.save_last()
        finally:
            log.close()
        if chosen is None:  # a finished run was resumed: there was nothing left to train
            chosen = evaluate(self.recipe.trained(self.net), self.choose_loader, world, args.amp)
        return self._finish(chosen)

    def _finish(self, last):
        """Summary of the stored best network; with --energy its energy on the whole test set."""
        best = self.kept
        if self.folder is not None:
            self.world.barrier()
            best = checkpoint.rebuild(checkpoint.load(self.folder / "best.pth")).to(
                self.world.device, memory_format=torch.channels_last
            )
        summary = {
            "kind": self.kind,
            "network": self.net.built,
            "data": self.about["source"],
            "best_epoch": self.best_epoch,
            "best_accuracy": self.best,
            "last_accuracy": last["accuracy"],
            "epochs": self.recipe.epochs,
            "seconds": self.seconds,
            "checkpoint": self.folder and str(self.stable),
            "run": self.folder and str(self.folder),
            **self.extra,
        }
        if self.args.val_fraction or self.args.energy:
            measured = report(
                best,
                self.test_loader,
                self.world,
                self.args,
                self.about,
                self.folder and self.folder / "energy",
            )
            summary |= {k: v for k, v in measured.items() if k != "energy"}
        if self.world.main and self.folder is not None:
            write_json(self.folder / "summary.json", summary)
        self.world.say(
            f"best {self.best:.2%} at epoch {self.best_epoch}"
            + (f", test {summary['test_accuracy']:.2%}" if "test_accuracy" in summary else "")
            + (
                f"; weights {self.stable}, run {self.folder}"
                if self.folder
                else "; nothing saved (--dont_save)"
            )
        )
        return summary


def report(net, loader, world, args, about, stem=None, model="paper"):
    """Test accuracy and, with --energy, the energy of `net`: printed under `model`, under all in <stem>.json and .csv."""
    from analysis.energy import Counter

    counter = Counter(net) if args.energy else None
    with counter or nullcontext():
        result = evaluate(net, loader, world, args.amp)
    summary = {
        "test_accuracy": result["accuracy"],
        "test_loss": result["loss"],
        "test_images": result["images"],
    }
    on = {"network": net.built, "data": about["source"], "test": about["test"]}
    if counter:
        energy = counter.energy(world)
        summary |= {
            "energy_uj": energy.total_uj,
            "ann_energy_uj": energy.ann_uj,
            "lane_rates": energy.lane_rates,
        }
        summary["energy"] = energy
        world.say(energy.table(model))
        if stem and world.main:
            energy.write(stem, {**on, **{k: v for k, v in summary.items() if k != "energy"}})
    return summary
