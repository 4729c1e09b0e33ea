"""VGG16 and ResNet20 against numbers of the published code at an eighth of the width."""

import re

import pytest
import torch
from torch.nn import functional as F

import models
from tests.models import golden
from tests.models.golden import build, close, group, put, tensor

NAMES = tuple(golden.CNNS)
SNN = {"T1_S3": (1, 3), "T3_S1": (3, 1)}  # tag of the recording: steps, levels
FIRST = {"vgg16": "features.0", "resnet20": "pre_process.0"}
LQ_HEAD = {"vgg16": "classifier.8", "resnet20": "classifier.0"}


def loss_of(name, out):
    return F.cross_entropy(out, tensor(name, "target").long())


# ---- ANN


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_the_ann(name):
    close(golden.ann(name)(tensor(name, "x")), tensor(name, "ann_logits"), 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_of_the_ann(name):
    net = golden.ann(name).train()
    out = net(tensor(name, "x"))
    close(out, tensor(name, "ann_train_logits"), 1e-5)
    loss_of(name, out).backward()
    golden.check_gradients(net, group(name, "ann_w/"), group(name, "ann_train_grad/"))


# ---- LQ-ANN


def lq_ann(name, bits):
    """The recorded LQ-ANN, calibrated."""
    net = put(build(name, models.LogQuant(bits)), group(name, "ann_w/"), new=("lo", "hi"))
    models.calibrate(net, tensor(name, "x_quantcal"))
    return net


@pytest.mark.parametrize("name", NAMES)
def test_calibrated_ranges(name):
    wanted = sorted(v.item() for v in group(name, "lq_max/").values())
    got = sorted(site.hi.item() for site in lq_ann(name, 2).sites())
    assert got == pytest.approx(wanted, rel=1e-5)


def lq_key(key):
    """Key of an LQ-ANN's weight, which counts the quantisers too, from that of the ANN's."""

    def renumbered(found):
        place, number = found[1], int(found[2])
        if place == "classifier":
            return f"classifier.{number // 3 * 4}"  # linear, (ReLU, quantiser), dropout
        group, offset = divmod(number, 4)  # convolution, batch norm, ReLU, (quantiser), dropout
        return f"{place}.{5 * group + offset}"

    return re.sub(r"(features|pre_process|residual|classifier)\.(\d+)", renumbered, key)


@pytest.mark.parametrize("name", NAMES)
def test_a_published_lq_ann_has_its_ranges(name):
    """They lie beside the weights in its state_dict, a number [1] each."""
    state = {lq_key(key): value for key, value in group(name, "ann_w/").items()}
    for bound, field in (("min", "minimum"), ("max", "maximum")):
        ranges = group(name, f"lq_{bound}/")
        state |= {f"{path}.{field}": value for path, value in ranges.items()}
    loaded = put(build(name, models.LogQuant(2)), state)
    for mine, measured in zip(loaded.sites(), lq_ann(name, 2).sites(), strict=True):
        assert mine.ready and mine.hi.item() == pytest.approx(measured.hi.item(), rel=1e-5)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_of_the_lq_ann(name, bits):
    net = lq_ann(name, bits)
    out = net(tensor(name, "x"))
    close(out, tensor(name, f"lq{bits}_logits"), 1e-5)
    loss_of(name, out).backward()
    first = net.stages[0].synapse.map.weight
    close(first.grad, tensor(name, f"lq{bits}_grad/{FIRST[name]}.weight"), 1e-4)
    close(net.head.weight.grad, tensor(name, f"lq{bits}_grad/{LQ_HEAD[name]}.weight"), 1e-4)


# ---- SNN


def snn(name, tag, hardware=1):
    """The recorded SNN with its thetas and leaks; hardware 2: multi-hot."""
    steps, levels = SNN[tag]
    net = build(name, models.Spiking(models.NeuronConfig.vgg(levels, hardware), steps), bn=False)
    state = golden.fused_state(name)
    for field in ("threshold", "leak"):
        numbers = group(name, f"snn_{tag}_{field}/")
        state |= {f"{field}.{key}": value for key, value in numbers.items()}
    return put(net, state)


@pytest.mark.parametrize("tag", SNN)
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_the_snn(name, tag):
    net = snn(name, tag)
    close(net(tensor(name, "x")), tensor(name, f"snn_{tag}_logits"), 1e-5)
    every_step = net.readouts(tensor(name, "x")).unflatten(0, (net.act.steps, -1))
    close(every_step.transpose(0, 1), tensor(name, f"snn_{tag}_out"), 1e-5)


@pytest.mark.parametrize(
    # the published one-hot neuron of one lane has no backward; multi-hot is the same with one lane
    ("tag", "recording", "hardware"),
    [("T1_S3", "T1_S3", 1), ("T3_S1", "T3_S1_hw2", 2)],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_of_the_snn(name, tag, recording, hardware):
    net = snn(name, tag, hardware)
    loss = loss_of(name, net(tensor(name, "x")))
    loss.backward()
    assert loss.item() == pytest.approx(tensor(name, f"snn_{recording}_loss").item(), rel=1e-5)
    golden.check_gradients(net, golden.fused_state(name), group(name, f"snn_{recording}_grad/"))

    thetas = torch.stack([site.theta.grad for site in net.sites()])
    close(thetas, torch.tensor(golden.by_number(name, f"snn_{recording}_gthreshold/")), 1e-4)
    if net.act.steps > 1 and group(name, f"snn_{recording}_gleak/"):
        leaks = torch.stack([site.leak.grad for site in net.sites()])
        close(leaks, torch.tensor(golden.by_number(name, f"snn_{recording}_gleak/")), 1e-4)


# ---- building


@pytest.mark.parametrize(("size", "last"), [(32, 0.1), (224, 0.0)])
def test_vgg16_drops_what_is_not_pooled(size, last):
    with torch.device("meta"):
        net = models.build("vgg16", models.ReLU(), image_size=size, dropout=0.1, head_dropout=0.2)
    drops = [stage.drop.p for stage in net.stages if hasattr(stage, "drop")]
    convolutions = [0.1, 0, 0.1, 0, 0.1, 0.1, 0, 0.1, 0.1, 0, 0.1, 0.1, last]
    assert drops == [*convolutions, 0.2, 0.2]


def test_resnet20_drops_in_its_stem_and_inside_its_blocks():
    net = models.build("resnet20", models.ReLU(), width_mult=1 / 16, dropout=0.1)
    drops = [stage.drop.p for stage in net.stages if hasattr(stage, "drop")]
    inner = [stage.inner.drop.p for stage in net.stages if hasattr(stage, "inner")]
    assert drops == [0.1, 0.1, 0.0] and inner == [0.1] * 8


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_held_over_the_steps_of_the_activation(name):
    """One mask for all steps, whatever layer it is in."""
    for act, steps in ((models.ReLU(), 1), (models.Spiking(steps=3), 3), (models.LIF(2), 2)):
        net = models.build(name, act, width_mult=1 / 16, dropout=0.1)
        held = {m.steps for m in net.modules() if isinstance(m, models.layers.HeldDropout)}
        assert held == {steps}


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("alexnet", {}, "network must be one of .*vgg16, resnet20, sdt, vggsnn, got 'alexnet'"),
        ("resnet20", {"kernel_size": 3}, "takes num_classes"),
        ("vgg16", {"image_size": 40}, "VGG16 expects an image size that 16 divides, got 40"),
        ("resnet20", {"image_size": 40}, "ResNet20 expects an image size that 16 divides, got 40"),
        ("vgg16", {"image_size": 144}, "VGG16 expects an image size that 32 divides, got 144"),
        ("vgg16", {"kernel_size": 4}, "kernel_size must be odd, got 4"),
    ],
)
def test_build_refuses(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        models.build(name, models.ReLU(), **arguments)
