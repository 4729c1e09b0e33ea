"""Small networks whose counts can be checked by hand or by another counter."""

import torch
from torch import nn

import models
from models import NeuronConfig, Spiking
from models.layers import Layer, Network, Synapse

# theta 1, soft reset, S = 2.
# Step 1: o = 0, 1, 2, 0, and the potentials 0.5, 0.5, 0.5, 0.6 remain.
# Step 2: u = 1, 2, 3, 1.2, so that o = 0, 1, 2, 1.
IMAGE = torch.tensor([[[[0.5, 1.5], [2.5, 0.6]]]])


def layer(act, *shape, **options):
    """A convolution of that shape without bias, and its neurons."""
    return Layer(Synapse(nn.Conv2d(*shape, bias=False, **options)), act.layer())


def chain(act, *middle):
    """A 1x1 convolution of weight 1, the stages `middle`, a readout of 4 inputs and 2 outputs."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    first = Layer(Synapse(conv), act.layer(first=True))
    net = Network(act, [first, *middle, nn.Flatten()], nn.Linear(4, 2, bias=False))
    conv.weight.data.fill_(1.0)
    return net


def silent_chain():
    """`chain` over two steps with a 3x3 convolution on 2x2 pixels, whose neurons never fire.

    Each input meets 4 of the 9 weights: the others fall on padding.
    """
    act = Spiking(NeuronConfig.vgg(2), 2)
    middle = layer(act, 1, 1, 3, padding=1)
    net = chain(act, middle)
    middle.synapse.map.weight.data.zero_()
    return net


def spiking(name, levels, steps, pool=nn.AvgPool2d):
    """A published network at an eighth of its width, with weights that let most layers fire."""
    torch.manual_seed(0)
    act = Spiking(NeuronConfig.vgg(levels), steps, theta=0.3)
    net = models.build(name, act, width_mult=1 / 8, bn=False).eval()
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, 0, (2 / module.weight[0].numel()) ** 0.5)
    for i, stage in enumerate(net.stages):
        if isinstance(stage, nn.AvgPool2d):
            net.stages[i] = pool(2)
    return net
