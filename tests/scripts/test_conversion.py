"""How snn_ddp.py makes an SNN of an ANN: the thresholds of every process, and what is told."""

from types import SimpleNamespace

import pytest
import torch

import models
import snn_ddp
from cli import run
from engine import checkpoint
from engine.dist import World
from tests.zoo import DATA

ALONE = World()
LINE = "-a RESNET20 --multi_channel 1 --num_channels 3 --timesteps 1 --balance_steps 2 --bias"


class Follower(World):
    """A process that is not the first, and gets 7 for every number that the first one shares."""

    def share(self, tensors):
        for tensor in tensors:
            tensor.fill_(7)


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """convert(words, world, bias of the second layer) -> (the converted network, what was done)."""
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(run, "calibration_images", lambda *_: images)

    def do(words="", world=ALONE, bias=0.0):
        ann = models.build("resnet20", models.ReLU(), width_mult=1 / 16, bn=False)
        ann.stages[1].synapse.map.bias.data.fill_(bias)
        path = tmp_path / "ann.pth"
        checkpoint.save(path, checkpoint.content(ann, "ann", DATA, {}))
        words = f"{LINE} --width_mult 0.0625 --pretrained_ann {path} {words}"
        asked = snn_ddp.get_parser().parse(words.split())
        task = SimpleNamespace(asked=asked, about={}, data=None, world=world)
        net = run.build(asked.network, {}, snn_ddp.activation(asked))
        return net, snn_ddp.convert_ann(net, task)

    return do


def test_the_stem_alone_is_balanced(convert):
    """Of ResNet20, as published: its blocks begin at the default threshold, unscaled."""
    net, done = convert("--scaling_factor 0.2 --default_threshold 0.8")
    thetas = [site.theta.item() for site in net.sites()]
    assert len(done["thresholds"]) == net.stem == 3
    assert thetas[:3] == pytest.approx([0.2 * theta for theta in done["thresholds"]])
    assert thetas[3:] == pytest.approx([0.8] * len(thetas[3:]))


def test_all_processes_have_the_thresholds_of_the_first(convert):
    net, done = convert(world=Follower(rank=1, size=2))
    assert "thresholds" not in done
    assert all((parameter == 7).all() for parameter in net.parameters())


@pytest.mark.parametrize("bias, silent", [(0.0, False), (-1e3, True)])
def test_a_silent_layer_is_named(bias, silent, convert, capsys):
    convert(bias=bias)
    told = "warning: for 32 images no neuron fires in stages.1.act"
    assert (told in capsys.readouterr().out) == silent
