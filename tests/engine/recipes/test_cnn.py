"""Schedules, smoothed labels and the teacher: by hand, and through the scripts."""

import math
from argparse import Namespace

import pytest
import torch
from torch.nn import functional as F

import ann_ddp
import snn_ddp
from engine.recipes.cnn import Recipe, learning_rate

SMALL = (
    "--dataset DIGITS --architecture RESNET20 --width_mult 0.03 --bias --dropout 0 --batch_size 16 --epochs 1 "
    "--limit_train_batches 2 --limit_eval_batches 1 --device cpu"
)


def settings(**given):
    return Namespace(
        **{
            "learning_rate": 0.8,
            "epochs": 8,
            "lr_schedule": "cosine",
            "lr_interval": [0.5],
            "lr_reduce": 10,
            "warm_up": False,
            "warm_up_epochs": 2,
            "warm_up_lr": 0.0,
            "label_smoothing": 0.0,
            "distill_weight": 0.25,
            "distill_temperature": 2.0,
        }
        | given
    )


def test_cosine_falls_step_by_step_to_zero():
    args = settings()
    assert learning_rate(1, args) == 0.8
    assert learning_rate(5, args) == pytest.approx(0.4)
    assert learning_rate(3.5, args) == pytest.approx(0.4 * (1 + math.cos(math.pi * 2.5 / 8)))
    assert learning_rate(9 - 1e-9, args) == pytest.approx(0, abs=1e-12)
    warm = settings(warm_up=True)
    assert [learning_rate(e, warm) for e in (1, 1.5, 2)] == pytest.approx([0, 0.2, 0.4])
    assert learning_rate(3, warm) == 0.8 and learning_rate(6, warm) == pytest.approx(0.4)


def test_steps_drop_at_whole_epochs_alone():
    args = settings(lr_schedule="step")
    assert [learning_rate(e, args) for e in (1, 3.9, 4, 4.5)] == pytest.approx(
        [0.8, 0.8, 0.08, 0.08]
    )


def test_the_loss_follows_labels_and_teacher():
    torch.manual_seed(0)
    teacher = torch.nn.Linear(4, 3).double()
    images, labels = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 1, 0])
    out = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    args = settings(label_smoothing=0.1)
    recipe = Recipe(args, teacher)
    same, targets = recipe.targets(images, labels, 1)
    assert same is images
    p, log_q = F.softmax(teacher(images).float() / 2, 1), F.log_softmax(out / 2, 1)
    expected = (
        0.75 * F.cross_entropy(out, labels, reduction="sum", label_smoothing=0.1)
        + 0.25 * 4 * (p * (p.log() - log_q)).sum()
    )
    loss = recipe.loss(out, targets)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert out.grad is not None and teacher.weight.grad is None
    plain = Recipe(args)
    torch.testing.assert_close(
        plain.loss(out, plain.targets(images, labels, 1)[1]),
        F.cross_entropy(out, labels, reduction="sum", label_smoothing=0.1),
    )


def test_a_teacher_with_a_readout_per_step_is_averaged():
    steps, labels = torch.randn(3, 4, 5), torch.zeros(4, dtype=torch.long)
    recipe = Recipe(settings(), teacher=lambda images: steps)
    _, targets = recipe.targets(None, labels, 1)
    assert torch.equal(targets[1], steps.mean(0))


def test_a_chain_with_a_teacher_and_fixed_thresholds(tmp_path, fails, capsys):
    ann = ann_ddp.main(
        f"{SMALL} --lr_schedule cosine --warm_up --warm_up_epochs 1 --output_dir {tmp_path}".split()
    )
    more = (
        f"--multi_channel 1 --num_channels 3 --timesteps 1 --conversion matched --output_dir {tmp_path} --optimizer Adam "
        f"--lr_schedule cosine --pretrained_ann {ann['checkpoint']} --distill {ann['checkpoint']}"
    )
    snn = snn_ddp.main(f"{SMALL} {more} --fixed_neuron -lr 0.01".split())
    saved = torch.load(f"{snn['run']}/last.pth", weights_only=True)
    thetas = [v for k, v in saved["model"].items() if k.endswith("theta")]
    torch.testing.assert_close(torch.stack(thetas), torch.tensor(saved["converted"]["thresholds"]))
    assert saved["training"]["epoch"] == 2
    fails(
        snn_ddp.main,
        f"{SMALL} {more} --distill {tmp_path}/none.pth",
        "no checkpoint at",
        "none.pth",
    )
    fails(
        snn_ddp.main,
        f"{SMALL} {more} --fixed_neuron --thr_lr 0.1",
        "--thr_lr does nothing here",
        "--fixed_neuron",
    )
    fails(
        ann_ddp.main,
        f"{SMALL} --lr_schedule cosine --lr_interval 0.5",
        "--lr_interval does nothing here",
        "no drops",
    )
    fails(
        ann_ddp.main,
        f"{SMALL} --distill_weight 0.5",
        "--distill_weight does nothing here",
        "give --distill",
    )
    content = torch.load(ann["checkpoint"], weights_only=True)
    content["data"]["num_classes"] = 7
    torch.save(content, tmp_path / "other.pth")
    fails(
        ann_ddp.main,
        f"{SMALL} --distill {tmp_path}/other.pth",
        "--distill",
        "was trained on",
        "not on",
    )
