"""The transformer's recipe: schedule, mixing, losses, clipping and average, by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from engine.errors import UseError
from engine.recipes.cnn import TrainingOptions
from engine.recipes.tet import TETOptions
from engine.recipes.timm_parts import MixingOptions, ScheduleOptions, TimmOptions, TimmRecipe
from models import transformer

CLASSES = 4
IMAGES, LABELS = torch.randn(6, 3, 4, 4), torch.tensor([0, 1, 2, 3, 0, 1])
# as the CIFAR configurations have them
COSINE = ScheduleOptions(
    "cosine", warmup_epochs=20, warmup_lr=1e-6, cooldown_epochs=10, min_lr=1e-5
)


def make(net, training=None, timm=None, schedule=None, mixing=None, loss=None):
    """A recipe in which nothing is smoothed, mixed or clipped, unless it is asked for."""
    return TimmRecipe(
        training or TrainingOptions(),
        timm or TimmOptions(),
        schedule or ScheduleOptions(),
        mixing or MixingOptions(),
        loss or TETOptions(TET=False),
        CLASSES,
        net,
    )


@pytest.fixture
def net():
    return nn.Linear(2, CLASSES)


# ---- schedule and optimizer


def test_the_schedule_is_the_published_one(net):
    """Linear to epoch 20, cosine on the unshifted epoch, cool-down at the minimum."""
    recipe = make(net, TrainingOptions(epochs=300, learning_rate=3e-4), schedule=COSINE)
    optimizer = recipe.optimizer(net)
    rates = [recipe.set_rate(optimizer, epoch) for epoch in range(1, recipe.epochs + 1)]
    assert len(rates) == 310
    # published values, of epochs counted from 0
    published = {0: 1e-6, 10: 1.505e-4, 19: 2.8505e-4, 20: 2.9683e-4, 150: 1.55e-4, 300: 1e-5}
    assert {epoch: rates[epoch] for epoch in published} == pytest.approx(published, rel=1e-4)
    assert optimizer.param_groups[0]["lr"] == rates[-1]


def test_the_rate_changes_between_epochs_only(net):
    recipe = make(net, schedule=COSINE)
    optimizer = recipe.optimizer(net)
    assert recipe.set_rate(optimizer, 30) == recipe.set_rate(optimizer, 30.9)


def test_drops_have_no_cool_down(net):
    schedule = ScheduleOptions("step", warmup_epochs=0, decay_epochs=2, decay_rate=0.5)
    recipe = make(net, TrainingOptions(epochs=5, learning_rate=0.8), schedule=schedule)
    assert recipe.epochs == 5
    optimizer = recipe.optimizer(net)
    rates = [recipe.set_rate(optimizer, epoch) for epoch in range(1, 6)]
    assert rates == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2])


def test_biases_do_not_decay(net):
    recipe = make(net, TrainingOptions(weight_decay=0.06))
    decays = {
        id(parameter): group["weight_decay"]
        for group in recipe.optimizer(net).param_groups
        for parameter in group["params"]
    }
    assert decays == {id(net.weight): 0.06, id(net.bias): 0.0}


def test_the_optimizer_is_the_one_that_is_named(net):
    timm = TimmOptions("adamw", opt_eps=1e-5, opt_betas=(0.8, 0.9))
    optimizer = make(net, TrainingOptions(learning_rate=0.3), timm).optimizer(net)
    assert isinstance(optimizer, torch.optim.AdamW)
    wanted = {"lr": 0.3, "eps": 1e-5, "betas": (0.8, 0.9)}
    assert {name: optimizer.defaults[name] for name in wanted} == wanted
    momentum = make(net, TrainingOptions(momentum=0.7)).optimizer(net).defaults["momentum"]
    assert momentum == 0.7


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"timm": TimmOptions("adamv")}, "timm refuses one of the options .*adamv"),
        ({"schedule": ScheduleOptions("spline")}, "timm refuses one of the options"),
        ({"timm": TimmOptions("adahessian")}, "--opt adahessian .*second derivatives"),
        ({"timm": TimmOptions("lookahead_adahessian")}, "--opt lookahead_adahessian .*second"),
    ],
)
def test_what_timm_refuses_is_the_command_lines_mistake(net, given, words):
    with pytest.raises(UseError, match=words):
        make(net, **given)


# ---- mixing and loss


def test_mixing_ends_when_it_is_told_to(net):
    recipe = make(net, mixing=MixingOptions(mixup=0.5, mixup_off_epoch=3))
    mixed, _ = recipe.targets(IMAGES.clone(), LABELS, 3)
    assert not torch.equal(mixed, IMAGES)
    plain, targets = recipe.targets(IMAGES.clone(), LABELS, 4)
    assert torch.equal(plain, IMAGES)
    assert torch.equal(targets, F.one_hot(LABELS, CLASSES).float())


def test_by_default_all_epochs_mix(net):
    recipe = make(net, TrainingOptions(epochs=7), mixing=MixingOptions(cutmix=1.0))
    mixed, _ = recipe.targets(IMAGES.clone(), LABELS, 7)
    assert not torch.equal(mixed, IMAGES)


@pytest.mark.parametrize(
    "given", [{"mixup": 0.1}, {"cutmix": 1.0}, {"cutmix_minmax": (0.2, 0.5)}], ids=str
)
def test_each_kind_of_mixing_counts(given):
    assert MixingOptions(**given).on
    assert not MixingOptions(mixup_prob=0.5).on


def test_mixing_is_what_timm_is_told(net):
    given = (0.3, 0.6, (0.2, 0.5), 0.9, 0.4, "elem")
    mixup = make(net, TrainingOptions(label_smoothing=0.2), mixing=MixingOptions(*given)).mixup
    # an extent takes the place of cutmix's alpha, in timm
    found = (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.cutmix_minmax)
    assert found == (0.3, 1.0, (0.2, 0.5))
    assert (mixup.mix_prob, mixup.switch_prob, mixup.mode) == (0.9, 0.4, "elem")
    assert (mixup.label_smoothing, mixup.num_classes) == (0.2, CLASSES)


def test_labels_are_smoothed_once(net):
    training = TrainingOptions(label_smoothing=0.3)
    out = torch.randn(6, CLASSES)
    want = F.cross_entropy(out, LABELS, reduction="sum", label_smoothing=0.3)
    assert make(net, training).loss(out, LABELS) == pytest.approx(want.item())
    # mixing off: `Mixup` smooths the labels of images that it leaves
    recipe = make(net, training, mixing=MixingOptions(mixup=0.5, mixup_off_epoch=1))
    _, targets = recipe.targets(IMAGES.clone(), LABELS, 2)
    assert recipe.loss(out, targets) == pytest.approx(want.item())


def test_tet_loss_by_hand(net):
    recipe = make(net, loss=TETOptions(TET=True, lamb=0.1))
    out = torch.randn(3, 6, CLASSES)
    entropy = torch.stack([F.cross_entropy(y, LABELS) for y in out]).mean()
    want = 0.9 * entropy + 0.1 * (out - 1).square().mean()
    assert recipe.loss(out, LABELS) == pytest.approx(6 * want.item(), rel=1e-5)


def test_without_tet_its_regulariser_has_no_weight(net):
    recipe = make(net, loss=TETOptions(TET=False, lamb=0.5))
    assert recipe.loss(torch.zeros(6, CLASSES), LABELS) == pytest.approx(6 * math.log(CLASSES))


# ---- around a step


@pytest.mark.parametrize(
    ("timm", "largest"),
    [(TimmOptions(), 100.0), (TimmOptions(clip_grad=0.5, clip_mode="value"), 0.5)],
)
def test_gradients_are_bounded_where_it_is_asked_for(net, timm, largest):
    recipe = make(net, timm=timm)
    net(torch.full((1, 2), 100.0)).sum().backward()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    recipe.before_step(net, recipe.optimizer(net), scaler)
    assert net.weight.grad.max() == largest


@pytest.mark.parametrize("mode", ["norm", "value"])
def test_true_gradients_are_bounded_not_scaled_ones(net, mode):
    """A step of a training that fp16 scales is that of one that it does not."""
    recipe = make(net, timm=TimmOptions(clip_grad=0.5, clip_mode=mode))
    weights = []
    for enabled in (True, False):
        one = copy.deepcopy(net)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        optimizer = torch.optim.SGD(one.parameters(), lr=1.0)
        scaler.scale(one(torch.full((1, 2), 100.0)).sum()).backward()
        recipe.before_step(one, optimizer, scaler)
        scaler.step(optimizer)
        weights.append(one.weight)
    torch.testing.assert_close(*weights)
    assert not torch.equal(weights[0], net.weight)


def test_agc_leaves_the_head_alone():
    """As in timm's train.py: the gradients of all other weights are bounded unit by unit."""
    net = models.build("sdt", transformer.activation("lif", 1, 1), depth=1, dim=16)
    recipe = make(net, timm=TimmOptions(clip_grad=0.01, clip_mode="agc"))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    recipe.before_step(net, recipe.optimizer(net), scaler)
    untouched = [name for name, p in net.named_parameters() if p.grad.min() == 1]
    assert untouched == ["head.weight", "head.bias"]
    first = next(net.parameters())
    size, bound = first.grad.flatten(1).norm(dim=1), first.flatten(1).norm(dim=1)
    assert (size <= 0.01 * bound * 1.001).all()


def test_lookahead_is_evaluated_at_its_slow_weights(net):
    """Of nine steps of -1 the slow weights, which meet the sixth, go half of the rest."""
    training = TrainingOptions(learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    still = ScheduleOptions(warmup_epochs=0)
    recipe = make(net, training, TimmOptions("lookahead_momentum"), still)
    optimizer, start = recipe.optimizer(net), net.weight.detach().clone()
    net.weight.grad, net.bias.grad = torch.ones_like(net.weight), torch.ones_like(net.bias)
    for _ in range(9):
        optimizer.step()
    torch.testing.assert_close(net.weight, start - 9)
    recipe.after_epoch(net, optimizer)
    torch.testing.assert_close(net.weight, start - 7.5)


def test_the_average_follows_the_weights_and_is_stored(net):
    recipe = make(net, timm=TimmOptions(model_ema=True, model_ema_decay=0.75))
    start = net.weight.detach().clone()
    with torch.no_grad():
        net.weight += 1
    recipe.after_step(net)
    average = recipe.trained(net).weight
    torch.testing.assert_close(average, start + 0.25)

    other = make(net, timm=TimmOptions(model_ema=True))
    assert not torch.equal(other.trained(net).weight, average)
    other.load_state_dict(recipe.state_dict())
    assert torch.equal(other.trained(net).weight, average)


def test_without_an_average_the_network_itself_is_evaluated(net):
    recipe = make(net)
    recipe.after_step(net)
    assert recipe.trained(net) is net
    assert recipe.state_dict() == {}
    recipe.load_state_dict({})
