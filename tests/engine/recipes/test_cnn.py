"""Schedules, optimizers, smoothed labels and the teacher: by hand, and through the scripts."""

import math

import pytest
import torch
from torch.nn import functional as F

import ann_ddp
import snn_ddp
from engine.recipes.cnn import CNNRecipe, TrainingOptions, learning_rate, make_optimizer

SMALL = (
    "--dataset DIGITS --architecture RESNET20 --width_mult 0.03 --bias --dropout 0 --batch_size 16 "
    "--epochs 1 --limit_train_batches 2 --limit_eval_batches 1 --device cpu"
)


def options(**given):
    common = {
        "learning_rate": 0.8,
        "epochs": 8,
        "lr_schedule": "cosine",
        "lr_interval": (0.5,),
        "warm_up_epochs": 2,
        "warm_up_lr": 0.0,
        "distill_weight": 0.25,
        "distill_temperature": 2.0,
    }
    return TrainingOptions(**common | given)


# ---- schedules


def test_cosine_falls_step_by_step_to_zero():
    cosine = options()
    assert learning_rate(1, cosine) == 0.8
    assert learning_rate(5, cosine) == pytest.approx(0.4)
    assert learning_rate(3.5, cosine) == pytest.approx(0.4 * (1 + math.cos(math.pi * 2.5 / 8)))
    assert learning_rate(9 - 1e-9, cosine) == pytest.approx(0, abs=1e-12)


def test_a_line_falls_to_zero_after_the_warm_up():
    line = options(lr_schedule="linear", warm_up=True)
    rates = [learning_rate(e, line) for e in (1, 2, 3, 6, 9)]
    assert rates == pytest.approx([0, 0.4, 0.8, 0.4, 0])


def test_a_warm_up_comes_before_the_cosine():
    warm = options(warm_up=True)
    assert [learning_rate(e, warm) for e in (1, 1.5, 2)] == pytest.approx([0, 0.2, 0.4])
    assert learning_rate(3, warm) == 0.8
    assert learning_rate(6, warm) == pytest.approx(0.4)


def test_steps_drop_at_whole_epochs_alone():
    steps = options(lr_schedule="step")
    rates = [learning_rate(e, steps) for e in (1, 3.9, 4, 4.5)]
    assert rates == pytest.approx([0.8, 0.8, 0.08, 0.08])


def test_a_warm_up_before_steps_is_in_whole_epochs():
    """As published."""
    warm = options(lr_schedule="step", warm_up=True)
    rates = [learning_rate(e, warm) for e in (1, 1.9, 2, 2.5, 3)]
    assert rates == pytest.approx([0, 0, 0.4, 0.4, 0.8])


def test_a_drop_is_at_the_whole_part_of_its_fraction():
    """As published: 0.7 of 90 epochs is 62.99..., so the drop comes with epoch 62."""
    steps = options(lr_schedule="step", epochs=90, lr_interval=(0.7,), lr_reduce=5)
    rates = [learning_rate(e, steps) for e in (61, 62, 63)]
    assert rates == pytest.approx([0.8, 0.16, 0.16])


# ---- optimizers


def test_the_biases_of_batch_norm_learn_at_a_multiple_of_the_rate():
    """And with fixed scales nothing else of it does."""
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1, bias=False), torch.nn.BatchNorm2d(2))
    recipe = CNNRecipe(options(norm_bias_lr=64.0, fixed_norm_scale=True, momentum=0.0))
    optimizer = recipe.optimizer(net)
    recipe.set_rate(optimizer, 5)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [parameter.clone() for parameter in net.parameters()]
    optimizer.step()
    weight, scale, bias = [old - p for old, p in zip(before, net.parameters())]
    decayed = 0.4 * 5e-4 * before[0]
    torch.testing.assert_close(weight, 0.4 + decayed)
    torch.testing.assert_close(bias, torch.full((2,), 0.4 * 64))
    assert scale.eq(0).all()


class Site(torch.nn.Module):
    """A weight, and parameters with the names of a neuron's."""

    def __init__(self):
        super().__init__()
        for name in ("weight", "theta", "leak", "scale"):
            setattr(self, name, torch.nn.Parameter(torch.ones(2)))


def test_without_thr_lr_there_is_one_group():
    (group,) = make_optimizer(Site(), options()).param_groups
    assert len(group["params"]) == 4
    assert group["lr"] == 0.8


def test_thresholds_and_scales_have_a_constant_rate_of_their_own():
    net = Site()
    recipe = CNNRecipe(options(thr_lr=0.01))
    optimizer = recipe.optimizer(net)
    weights, thresholds = optimizer.param_groups
    assert {id(p) for p in weights["params"]} == {id(net.weight), id(net.leak)}
    assert {id(p) for p in thresholds["params"]} == {id(net.theta), id(net.scale)}
    assert recipe.set_rate(optimizer, 5) == pytest.approx(0.4)
    assert (weights["lr"], thresholds["lr"]) == (pytest.approx(0.4), 0.01)


def test_fixed_parameters_are_not_trained():
    net = Site()
    for fixed in (net.theta, net.leak, net.scale):
        fixed.requires_grad_(False)
    (group,) = make_optimizer(net, options(thr_lr=0.01)).param_groups
    assert group["params"] == [net.weight]


def test_sgd_has_momentum_and_decay():
    optimizer = make_optimizer(Site(), options(momentum=0.8, weight_decay=0.1))
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["momentum"], optimizer.defaults["weight_decay"]) == (0.8, 0.1)
    assert not optimizer.defaults["nesterov"]
    optimizer = make_optimizer(Site(), options(momentum=0.8, nesterov=True))
    assert optimizer.defaults["nesterov"]


def test_adam_is_amsgrad_by_default_as_published():
    optimizer = make_optimizer(Site(), options(optimizer="Adam", betas=(0.8, 0.9)))
    assert isinstance(optimizer, torch.optim.Adam)
    assert (optimizer.defaults["betas"], optimizer.defaults["amsgrad"]) == ((0.8, 0.9), True)


# ---- the loss


@pytest.fixture
def batch():
    """(images, labels, readout)"""
    out = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    return torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 1, 0]), out


def test_without_a_teacher_it_is_cross_entropy(batch):
    images, labels, out = batch
    recipe = CNNRecipe(options(label_smoothing=0.1))
    same, targets = recipe.targets(images, labels, 1)
    assert same is images
    want = F.cross_entropy(out, labels, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(recipe.loss(out, targets), want)


def test_the_loss_follows_labels_and_teacher(batch):
    images, labels, out = batch
    teacher = torch.nn.Linear(4, 3).double()
    recipe = CNNRecipe(options(label_smoothing=0.1), teacher)
    same, targets = recipe.targets(images, labels, 1)
    assert same is images
    p, log_q = F.softmax(teacher(images).float() / 2, 1), F.log_softmax(out / 2, 1)
    entropy = F.cross_entropy(out, labels, reduction="sum", label_smoothing=0.1)
    expected = 0.75 * entropy + 0.25 * 4 * (p * (p.log() - log_q)).sum()
    loss = recipe.loss(out, targets)
    torch.testing.assert_close(loss, expected)

    loss.backward()
    assert out.grad is not None
    assert teacher.weight.grad is None


def test_a_teacher_with_a_readout_per_step_is_averaged():
    steps, labels = torch.randn(3, 4, 5), torch.zeros(4, dtype=torch.long)
    recipe = CNNRecipe(options(), teacher=lambda images: steps)
    _, targets = recipe.targets(None, labels, 1)
    assert torch.equal(targets[1], steps.mean(0))


# ---- through the scripts


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(output folder, checkpoint of an ANN that was trained with warm-up and cosine)."""
    folder = tmp_path_factory.mktemp("trained")
    line = f"{SMALL} --lr_schedule cosine --warm_up --warm_up_epochs 1 --output_dir {folder}"
    return folder, ann_ddp.main(line.split())["checkpoint"]


@pytest.fixture
def spiking(trained):
    """Command line of an SNN with that ANN as its start and teacher."""
    folder, ann = trained
    return (
        f"{SMALL} --multi_channel 1 --num_channels 3 --timesteps 1 --conversion matched "
        f"--output_dir {folder} --optimizer Adam --lr_schedule cosine --pretrained_ann {ann} "
        f"--distill {ann}"
    )


def test_fixed_thresholds_stay_those_of_the_conversion(spiking):
    snn = snn_ddp.main(f"{spiking} --fixed_neuron -lr 0.01".split())
    saved = torch.load(f"{snn['run']}/last.pth", weights_only=True)
    thetas = [v for k, v in saved["model"].items() if k.endswith("theta")]
    torch.testing.assert_close(torch.stack(thetas), torch.tensor(saved["converted"]["thresholds"]))
    assert saved["training"]["epoch"] == 2


def test_a_missing_teacher_is_named(spiking, fails, tmp_path):
    line = f"{spiking} --distill {tmp_path}/none.pth"
    fails(snn_ddp.main, line, "no checkpoint at", "none.pth")


def test_a_teacher_of_other_classes_is_refused(trained, fails, tmp_path):
    content = torch.load(trained[1], weights_only=True)
    content["data"]["num_classes"] = 7
    torch.save(content, tmp_path / "other.pth")
    words = ("--distill", "was trained on", "not on")
    fails(ann_ddp.main, f"{SMALL} --distill {tmp_path}/other.pth", *words)


@pytest.mark.parametrize(
    "script, more, words",
    [
        (snn_ddp, "--fixed_neuron --thr_lr 0.1", ("--thr_lr", "--fixed_neuron")),
        (ann_ddp, "--lr_schedule cosine --lr_interval 0.5", ("--lr_interval", "no drops")),
        (ann_ddp, "--distill_weight 0.5", ("--distill_weight", "give --distill")),
    ],
    ids=["fixed thresholds", "cosine", "no teacher"],
)
def test_what_would_do_nothing_is_refused(script, more, words, fails):
    option, reason = words
    fails(script.main, f"{SMALL} {more}", f"{option} does nothing here", reason)
