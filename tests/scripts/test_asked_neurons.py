"""The neuron and the quantiser that a command line asks for."""

import pytest

import ann_ddp
import snn_ddp
from models import LogQuant, ReLU, Spiking, build
from models.neuron.config import NeuronConfig

vgg = NeuronConfig.vgg
LINE = "--multi_channel 1 --num_channels 3 --timesteps 2 --leak 0.9 --default_threshold 0.4"


@pytest.mark.parametrize(
    "words, neuron",
    [
        ("", vgg(3)),
        ("--num_channels 2", vgg(2)),
        ("--multi_channel 0", vgg(1)),
        ("--surrogate clipped", vgg(3, gamma=0.75, surrogate="clipped")),
        ("--surrogate clipped --clipped_slope 0.5", vgg(3, gamma=0.5, surrogate="clipped")),
        ("--surrogate_gamma 1", vgg(3, gamma=1.0)),
        ("--surrogate_edge paper", vgg(3, inner_slope="paper")),
        ("--hardware_opt 2", vgg(3, 2)),
        ("--reset_to_zero 1", vgg(3, reset_to_zero=True)),
    ],
)
def test_options_make_the_neuron(words, neuron):
    asked = snn_ddp.get_parser().parse(f"{LINE} {words}".split())
    assert snn_ddp.activation(asked) == Spiking(neuron, 2, 0.4, 0.9)


@pytest.mark.parametrize(
    "words, kept",
    [("", set()), ("--fixed_leak", {"leak"}), ("--fixed_neuron", {"theta", "leak", "scale"})],
)
def test_options_keep_what_the_neurons_begin_with(words, kept):
    neuron = snn_ddp.get_parser().parse(f"{LINE} {words}".split()).neuron
    net = build("resnet20", Spiking(vgg(3), scale=True), width_mult=1 / 16)
    snn_ddp.freeze(net, neuron)
    for site in net.sites():
        assert {name for name, p in site.named_parameters() if not p.requires_grad} == kept


@pytest.mark.parametrize("words, encoding", [("1", "direct"), ("0", "rate")])
def test_options_encode_images(words, encoding):
    asked = snn_ddp.get_parser().parse(f"{LINE} --input_encoding {words}".split())
    assert snn_ddp.activation(asked) == Spiking(vgg(3), 2, 0.4, 0.9, encoding=encoding)


@pytest.mark.parametrize(
    "words, activation",
    [
        ("", ReLU()),
        ("--quant_act --act_bits 3 --quant_id lvl", LogQuant(3, "lvl")),
        ("--quant_act --act_bits 2 --quant_scale_max 99", LogQuant(2, "log", 99.0)),
    ],
)
def test_options_make_the_quantiser(words, activation):
    asked = ann_ddp.get_parser().parse(words.split())
    assert ann_ddp.activation(asked.quant) == activation
