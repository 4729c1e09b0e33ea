"""Parts of the networks: held dropout, running a stage again, the order of the signal."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models import layers
from models.layers import Convolution, HeldDropout, StridedPointwise, in_signal_order
from tests.helpers import ROOT, end, start

# Steps of ResNet20s with few channels, which end the process where oneDNN overruns a buffer.
NARROW = """
import torch
import models

for width in (0.0625, 0.125, 0.1875):
    for side in (48, 160):
        net = models.build("resnet20", models.ReLU(), width_mult=width, image_size=side)
        net.to(memory_format=torch.channels_last)
        images = torch.randn(2, 3, side, side).to(memory_format=torch.channels_last)
        net(images).sum().backward()
"""


@pytest.mark.parametrize("instructions", ["DEFAULT", "AVX2"])
def test_a_narrow_network_trains_on_any_cpu(instructions, tmp_path):
    process = start(["-c", NARROW], tmp_path, PYTHONPATH=ROOT, ONEDNN_MAX_CPU_ISA=instructions)
    assert end(process) == (0, "", "")


def test_a_strided_pointwise_convolution_is_a_convolution():
    plain = nn.Conv2d(5, 7, 1, stride=2).double()
    ours = StridedPointwise(5, 7, 1, stride=2).double()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 9, 6, dtype=torch.float64, requires_grad=True)
    found = []
    for conv in (plain, ours):
        out = conv(x)
        found.append((out, *torch.autograd.grad(out.square().sum(), (x, *conv.parameters()))))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("side", [(1, 1), (2, 2), (4, 4), (5, 3)])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_by_one_product_is_a_convolution(side, size, bias, stride):
    conv = nn.Conv2d(5, 7, size, stride, padding=size // 2, bias=bias).double()
    x = torch.randn(2, 5, *side, dtype=torch.float64, requires_grad=True)
    outs = conv(x), layers.convolve_by_product(x, conv.weight, conv.bias, stride)
    found = [
        (out, *torch.autograd.grad(out.square().sum(), (x, *conv.parameters()))) for out in outs
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("amx", "amp", "side", "stride", "used"),
    [
        (True, torch.bfloat16, 4, 1, True),
        (True, torch.bfloat16, 8, 1, False),
        (True, torch.bfloat16, 8, 2, True),
        (True, torch.bfloat16, 9, 2, False),
        (True, None, 4, 1, False),
        (False, torch.bfloat16, 4, 1, False),
    ],
)
def test_few_pixels_are_convolved_by_one_product_where_that_is_faster(
    monkeypatch,
    amx,
    amp,
    side,
    stride,
    used,
):
    calls = []

    def product(*args):
        calls.append(args)
        return by_product(*args)

    by_product = layers.convolve_by_product
    monkeypatch.setattr(layers, "AMX", amx)
    monkeypatch.setattr(layers, "convolve_by_product", product)
    conv = Convolution(6, 9, 3, stride, padding=1)
    x = torch.randn(3, 6, side, side)
    with torch.autocast("cpu", amp, enabled=amp is not None):
        out = conv(x)
    assert bool(calls) == used
    expected = F.conv2d(x, conv.weight, conv.bias, stride, padding=1)
    torch.testing.assert_close(out.float(), expected, atol=0.02 if amp else 1e-6, rtol=0)
    assert out.dtype == (amp or torch.float32)


def test_a_convolution_by_one_product_is_compiled_whole(monkeypatch):
    monkeypatch.setattr(layers, "AMX", True)
    conv = Convolution(6, 9, 3, padding=1)
    x = torch.randn(3, 6, 4, 4)
    fast = torch.compile(conv, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), conv(x))


def test_double_precision_stays_so_under_autocast(monkeypatch):
    monkeypatch.setattr(layers, "AMX", True)
    conv = Convolution(6, 9, 3, padding=1).double()
    x = torch.randn(3, 6, 4, 4, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))


def test_a_dropout_mask_is_held_over_time():
    drop = HeldDropout(0.5, steps=4).train()
    out = drop(torch.ones(4 * 3, 50)).unflatten(0, (4, 3))
    assert torch.equal(out, out[:1].expand_as(out))
    assert 0.2 < (out == 0).float().mean() < 0.8
    assert set(out.unique().tolist()) == {0.0, 2.0}


def test_stochastic_depth_drops_whole_images_at_all_steps():
    drop = HeldDropout(0.5, 3, whole=True)
    out = drop(torch.ones(3 * 40, 2, 1, 1)).view(3, 40, 2)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert (out == out[:1, :, :1]).all()


def test_recomputing_keeps_little():
    """Of a stage only its input is kept for the backward."""
    kept = []
    for recompute in (False, True):
        act = models.Spiking(models.NeuronConfig.vgg(3), 4, theta=0.1)
        net = models.build("resnet20", act, bn=False, width_mult=0.0625, dropout=0.2)
        net.recompute = recompute
        sizes = []

        def pack(saved, sizes=sizes):
            sizes.append(saved.numel())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            net(torch.randn(16, 3, 32, 32))
        kept.append(sum(sizes))
    assert kept[1] < 0.4 * kept[0]


def test_recomputing_counts_a_batch_once():
    """The second forward of a stage leaves the running statistics of batch norm alone."""
    states = []
    for recompute in (False, True):
        torch.manual_seed(0)
        act = models.Spiking(models.NeuronConfig.vgg(3), 2, theta=0.1)
        net = models.build("resnet20", act, bn=True, width_mult=0.0625)
        net.recompute = recompute
        for _ in range(2):
            net(torch.randn(4, 3, 32, 32)).square().sum().backward()
        states.append(dict(net.named_buffers()))
    plain, recomputed = states
    assert {v.item() for k, v in plain.items() if k.endswith("num_batches_tracked")} == {2}
    assert all(torch.equal(value, recomputed[name]) for name, value in plain.items())


def test_a_module_may_state_the_order_of_its_signal():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.ReLU()
            self.first = nn.Sequential(nn.Identity())

        def signal(self):
            return self.first, self.last

    net = nn.Sequential(nn.Flatten(), Crossed())
    names = [type(m).__name__ for m in in_signal_order(net)]
    assert names == ["Sequential", "Flatten", "Crossed", "Sequential", "Identity", "ReLU"]


def test_after_an_evaluation_every_module_is_in_its_own_mode():
    """A batch norm that its user has frozen stays frozen."""
    net = models.build("resnet20", models.ReLU(), width_mult=1 / 16, bn=True).train()
    frozen = net.stages[0].synapse.norm.eval()
    with layers.evaluating(net):
        assert not any(module.training for module in net.modules())
    assert net.training and net.stages[1].synapse.norm.training and not frozen.training
