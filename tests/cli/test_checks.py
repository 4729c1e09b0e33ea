"""Options that do nothing, of which published commands give some."""

import pytest

import ann_ddp
from cli import checks
from engine.dist import World


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--optimizer Adam --momentum 0.9", "note: --momentum is not used by Adam"),
        ("--dataset_dir here", "note: --dataset_dir is not used by CIFAR10"),
    ],
)
def test_published_options_without_effect_are_told(argv, words, capsys):
    asked = ann_ddp.get_parser().parse(argv.split())
    checks.note_unused(asked, World())
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("argv", ["--momentum 0.9", "--dataset IMAGENET --dataset_dir here"])
def test_options_with_effect_are_not(argv, capsys):
    checks.note_unused(ann_ddp.get_parser().parse(argv.split()), World())
    assert capsys.readouterr().out == ""
