"""The loop with a recipe of the test's own, on a network that fits on a line."""

import time

import pytest
import torch
from torch.nn import functional as F

from engine.dist import World
from engine.errors import RunError, UseError
from engine.evaluation import evaluate
from engine.generators import rng_state
from engine.loop import ComputeOptions, Record, RunOptions, Trainer
from engine.recipes.base import Recipe
from tests.engine.toys import linear, noise
from tests.mutated import measured

CPU = torch.device("cpu")
ABOUT = {
    "source": "noise",
    "where": "here",
    "train": {"images": 7, "sha256": "a"},
    "test": {"images": 4, "sha256": "b"},
}


class Noting(Recipe):
    """Plain descent that notes the calls of the trainer."""

    def __init__(self, epochs):
        super().__init__(epochs)
        self.calls = []

    def optimizer(self, net):
        return torch.optim.SGD(net.parameters(), lr=0.1)

    def before_epoch(self, net, epoch):
        self.calls.append(f"before epoch {epoch}")

    def set_rate(self, optimizer, epoch):
        self.calls.append(f"rate {epoch:.2f}")
        return 0.1

    def targets(self, images, labels, epoch):
        self.calls.append("targets")
        return images, labels

    def loss(self, out, targets):
        self.calls.append("loss")
        return F.cross_entropy(out, targets, reduction="sum")

    def before_step(self, net, optimizer, scaler):
        assert all(p.grad is not None for p in net.parameters())
        self.calls.append("before step")

    def after_step(self, net):
        self.calls.append("after step")

    def after_epoch(self, net, optimizer):
        self.calls.append("after epoch")

    def trained(self, net):
        self.calls.append("trained")
        return net


def trainer(net, recipe, train, choose=None, test=None, **options):
    """A trainer that writes no files."""
    test = test or noise(4)
    loaders = (train, choose or test, test)
    record = Record("toy", ABOUT, {}, stable=None, folder=None, extra={"colour": "red"})
    return Trainer(net, recipe, loaders, record, RunOptions(**options), ComputeOptions(), World())


def test_the_recipe_is_called_in_the_order_of_its_methods():
    recipe = Noting(epochs=1)
    trainer(linear(), recipe, noise(3, 3)).fit()
    step = ["targets", "loss", "before step", "after step"]
    before = recipe.calls[: recipe.calls.index("trained")]
    steps = ["before epoch 1", "rate 1.00", *step, "rate 1.50", *step]
    assert before == [*steps, "after epoch"]


def test_a_step_descends_by_the_mean_gradient_of_the_batch():
    """By hand: w - rate * mean of the images' gradients."""
    net, train = linear(), noise(4)
    images, labels = train.given[0]
    loss = F.cross_entropy(net(images), labels)
    (gradient,) = torch.autograd.grad(loss, [net.weight])
    want = net.weight.detach() - 0.1 * gradient
    trainer(net, Noting(epochs=1), train).fit()
    torch.testing.assert_close(net.weight.detach(), want)


def test_a_smaller_last_batch_counts_by_its_own_images(monkeypatch):
    """Its step descends by its own mean, the epoch's loss is the mean over all images."""
    net, train = linear(), noise(4, 2)
    by_hand, total = linear(), 0.0
    by_hand.load_state_dict(net.state_dict())
    for images, labels in train.given:
        loss = F.cross_entropy(by_hand(images), labels)
        total += loss.item() * len(labels)
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), gradients):
                parameter -= 0.1 * gradient
    run, told = trainer(net, Noting(epochs=1), train), []
    monkeypatch.setattr(run, "_log_epoch", lambda log, trained, *_: told.append(trained))
    run.fit()
    torch.testing.assert_close(net.weight.detach(), by_hand.weight.detach())
    ((loss, _),) = told
    assert loss == pytest.approx(total / 6)


def test_the_summary_says_what_was_reached(capsys):
    summary = trainer(linear(), Noting(epochs=3), noise(4), dont_save=True).fit()
    assert (summary["kind"], summary["epochs"], summary["colour"]) == ("toy", 3, "red")
    assert summary["best_accuracy"] >= summary["last_accuracy"]
    assert (summary["checkpoint"], summary["run"]) == (None, None)
    said = capsys.readouterr().out
    assert "noise: 7 training, 4 test images; the best epoch is chosen on the test set" in said
    assert "epoch 3/3  train " in said
    assert said.endswith("nothing saved (--dont_save)\n")
    # a training of which something else is made says nothing of files
    trainer(linear(), Noting(epochs=1), noise(4)).fit()
    assert "saved" not in capsys.readouterr().out


def test_the_best_epoch_is_the_first_of_the_highest_accuracy(monkeypatch):
    accuracies = iter([0.25, 0.75, 0.75, 0.5])
    run = trainer(linear(), Noting(epochs=4), noise(4))
    monkeypatch.setattr(run, "_evaluate", lambda: {"loss": 1.0, "accuracy": next(accuracies)})
    summary = run.fit()
    assert (summary["best_epoch"], summary["best_accuracy"]) == (2, 0.75)
    assert summary["last_accuracy"] == 0.5


def test_the_last_epoch_counts_where_it_is_asked_for(monkeypatch, capsys):
    """So no figure of it was chosen on the test set."""
    accuracies = iter([0.25, 0.75, 0.5])
    net = linear()
    run = trainer(net, Noting(epochs=3), noise(4), keep="last")
    monkeypatch.setattr(run, "_evaluate", lambda: {"loss": 1.0, "accuracy": next(accuracies)})
    summary = run.fit()
    assert (summary["best_epoch"], summary["best_accuracy"]) == (3, 0.5)
    assert torch.equal(run.kept.weight, net.weight)
    said = capsys.readouterr().out
    assert "the last epoch counts" in said
    assert "last 50.00% at epoch 3" in said


def test_the_best_network_is_kept_as_it_was(monkeypatch):
    """In memory, where no folder holds it; further training does not move it."""
    accuracies, seen = iter([0.75, 0.5]), []
    net = linear()
    run = trainer(net, Noting(epochs=2), noise(4))

    def evaluation():
        seen.append(net.weight.detach().clone())
        return {"loss": 1.0, "accuracy": next(accuracies)}

    monkeypatch.setattr(run, "_evaluate", evaluation)
    run.fit()
    assert torch.equal(run.kept.weight, seen[0])
    assert not torch.equal(run.kept.weight, net.weight)


def test_what_the_recipe_trained_is_evaluated_and_kept():
    """An average of the weights, for instance."""
    other = linear()

    class Averaged(Noting):
        def trained(self, net):
            return other

    run = trainer(linear(), Averaged(2), noise(6), noise(12))
    summary = run.fit()
    assert torch.equal(run.kept.weight, other.weight)
    assert not torch.equal(run.net.weight, other.weight)
    choose = run.choose_loader
    assert summary["best_accuracy"] == evaluate(other, choose, World())["accuracy"]


def test_held_back_images_choose_the_best_epoch(capsys):
    choose, test = noise(2), noise(4)
    run = trainer(linear(), Noting(epochs=1), noise(4), choose, test)
    assert run.held_back
    read = []
    for name, loader in (("val", choose), ("test", test)):
        whole = loader.epoch
        loader.epoch = lambda epoch, name=name, whole=whole: read.append(name) or whole(epoch)
    summary = run.fit()
    assert read == ["val"]
    assert summary["best_accuracy"] == evaluate(run.kept, choose, World())["accuracy"]
    said = capsys.readouterr().out
    assert "the best epoch is chosen on held-back training images" in said
    assert "val " in said


def test_the_measure_is_asked_for_the_best_network_alone():
    """On the test set; the energy itself is no part of the summary."""
    asked = []

    def measure(net, stem):
        asked.append((net, stem))
        return {"test_accuracy": 0.5, "energy": "a table"}

    run = trainer(linear(), Noting(epochs=2), noise(4))
    run.measure = measure
    summary = run.fit()
    assert asked == [(run.kept, None)]
    assert summary["test_accuracy"] == 0.5
    assert "energy" not in summary


def test_a_loss_that_is_not_finite_ends_the_run():
    train = noise(2, 2, 2)
    train.given[1][0][0, 0] = float("inf")
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at epoch 1, step 2: begin anew"):
        trainer(linear(), Noting(1), train, print_freq=2).fit()


def test_a_network_that_leaves_the_finite_numbers_ends_the_run():
    recipe = Noting(1)
    recipe.after_step = lambda net: net.bias.data.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite numbers: lower --learning_rate, this is"):
        trainer(linear(), recipe, noise(4)).fit()


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_run_does_not_go_on_with_other_images(part):
    saved = {"training": {}, "data": {**ABOUT, part: {"images": 3, "sha256": "c"}}}
    with pytest.raises(UseError) as error:
        trainer(linear(), Noting(1), noise(4)).restore(saved)
    assert f"the {part} images are not those of the interrupted run: it had" in str(error.value)
    assert "'sha256': 'c'" in str(error.value)
    assert "(here)" in str(error.value)


def stored(run, processes=1):
    """What the last.pth of a run holds that `restore` reads, after 1 of 3 epochs."""
    training = {
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "recipe": {"average": 0.25},
        "sums": torch.tensor([1.0, 2.0, 3.0]),
        "rng": [rng_state(CPU)] * processes,
        "epoch": 2,
        "step": 0,
        "seconds": 7.0,
        "best": 0.9,
        "best_epoch": 1,
    }
    return {"training": training, "data": ABOUT, "model": run.net.state_dict()}


def test_a_run_goes_on_where_it_was():
    first = trainer(linear(), Noting(3), noise(4))
    again = trainer(linear(), Noting(3), noise(4))
    saved = stored(first)
    again.recipe.load_state_dict = again.recipe.calls.append
    expected = torch.rand(3)
    again.restore(saved)
    assert torch.equal(again.net.weight, first.net.weight)
    assert again.recipe.calls == [{"average": 0.25}]
    assert (again.epoch, again.step, again.seconds) == (2, 0, 7.0)
    assert (again.best, again.best_epoch) == (0.9, 1)
    assert again.sums.tolist() == [1.0, 2.0, 3.0]
    assert torch.equal(torch.rand(3), expected)


def test_batches_of_another_size_are_refused():
    """A transformer on other processes has them: its step would count other images."""
    run = trainer(linear(), Noting(3), noise(4))
    saved = stored(run, processes=2)
    saved["training"]["batch_size"] = 8
    said = refused(run, saved)
    assert "had batches of 8 images, here they have 4: start 2 process(es), as then" in said
    # damaged, as everything in such a file may be
    saved["training"]["batch_size"] = torch.zeros(1).expand(9, 9)
    assert "does not hold the state of this run" in refused(run, saved)


def test_the_time_of_an_interrupted_epoch_counts(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    seconds = []
    run = trainer(linear(), Noting(1), noise(4, 4), save_freq=1)
    run.save_last = lambda: seconds.append(run.seconds)
    whole = run.fit()
    # before the epoch, after each of its two steps, at its end
    before, *steps, end = seconds
    assert 0 == before < steps[0] < steps[1] < end == whole["seconds"]


class Averaging(Noting):
    """Trains by Adam, whose optimizer has a state."""

    def optimizer(self, net):
        return torch.optim.Adam(net.parameters())


MOMENTUM = {
    "shape": torch.zeros(7),
    "spread": torch.zeros(1).expand(10**6, 10**6),
    "word": "x",
}


@pytest.mark.parametrize("odd", MOMENTUM.values(), ids=MOMENTUM)
def test_momentum_that_no_step_can_take_is_refused(odd):
    run = trainer(linear(), Averaging(1), noise(4))
    run.net(torch.ones(1, 5)).sum().backward()
    run.optimizer.step()
    saved = stored(run)
    saved["training"]["optimizer"]["state"][0]["exp_avg"] = odd
    again = trainer(linear(), Averaging(1), noise(4))
    with pytest.raises(UseError, match="does not hold the state of this run"):
        again.restore(saved)


@pytest.mark.parametrize("name", ["numpy", "python"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "a-number"])
def test_a_generator_s_state_that_is_spread_is_refused(name, whole):
    run = trainer(linear(), Noting(3), noise(4))
    saved = stored(run)
    spread = torch.zeros(1, dtype=torch.int64).expand(1000, 1000, 1000)
    state = saved["training"]["rng"][0][name]
    state[1] = spread if whole else [*state[1][:-1], spread]
    said, _, memory = measured(lambda: refused(run, saved))
    assert said.startswith("None/last.pth does not hold the state of this run")
    assert memory < 1 << 29


def refused(run, saved):
    """What is said of a state that cannot be restored."""
    with pytest.raises(UseError) as error:
        run.restore(saved)
    return str(error.value)


def test_another_number_of_processes_is_told(capsys):
    run = trainer(linear(), Noting(1), noise(4))
    run.restore(stored(run, processes=2))
    assert "the run had 2 processes, now 1: dropout masks will differ" in capsys.readouterr().out
