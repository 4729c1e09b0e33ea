"""The MACs that become additions: their measured share, and the gradient of the neurons."""

import copy
import gc
import weakref

import pytest
import torch

import models
from analysis.energy import Counter, measure
from models import transformer, vggsnn
from models.layers import Layer, Network, Synapse
from models.neuron.reference import surrogate
from models.rates import Additions, sources, weighted


def network(steps=1, scale=False, **more):
    act = models.Spiking(models.NeuronConfig.vgg(3), steps, theta=0.05, scale=scale)
    return models.build("resnet20", act, bn=False, width_mult=0.0625, **more)


def measured(energy):
    """The share of the MACs of all weighted layers but the first."""
    _, *rows = energy.layers
    return sum(row.rate * row.macs for row in rows) / sum(row.macs for row in rows)


@pytest.mark.parametrize("steps, scale", [(1, False), (3, True)])
def test_the_value_is_the_measured_share(steps, scale):
    net, images = network(steps, scale), torch.randn(8, 3, 32, 32)
    for site in net.sites() if scale else []:
        site.scale.data.fill_(1.7)
    share = Additions(net)
    net.train()(images)
    energy = measure(net, [images])
    net(images)  # the measurement ran the network, too
    found = share().item()
    assert found == pytest.approx(measured(energy), rel=1e-5)
    # what energy targets aim at
    fixed, full = energy.fixed_and_full_uj()
    assert fixed + found * full == pytest.approx(energy.total_uj, rel=1e-5)
    assert sum(energy.lane_rates_per_layer["stages.0.act"]) > 0.05


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_dropped_spikes_are_no_energy_that_is_saved(name, scale):
    """The measured network has no dropout: what counts are the spikes before it."""
    act = models.Spiking(models.NeuronConfig.vgg(3), theta=0.05, scale=scale)
    sizes = {"bn": False, "width_mult": 0.125, "dropout": 0.5}
    net = models.build(name, act, **sizes).train()
    dropped = [m for m in net.modules() if isinstance(m, Layer) and m.drop.p]
    read, before, paid, macs = sources(net), {}, [], []

    def fired(site, args, out):
        before[site] = out

    def bill(module, args, out):
        if module in read:
            # what dropout has not touched is read as it is, pooled or not
            spikes = before.get(read[module], args[0])
            macs.append(out[0].numel() * module.weight[0].numel())
            paid.append((spikes != 0).float().mean() * macs[-1])

    share = Additions(net)
    for layer in dropped:
        layer.act.register_forward_hook(fired)
    for module in weighted(net):
        module.register_forward_hook(bill)
    net(torch.randn(64, 3, 32, 32))
    assert len(before) > 5
    assert share().item() == pytest.approx(sum(paid).item() / sum(macs), rel=0.02)


@pytest.mark.parametrize("name", ["mlif", "fast_mlif", "lif", "vggsnn"])
def test_every_layer_of_every_network_counts(name):
    """A training step of the transformer in its modes, and of VGGSNN; what lies before a counted
    layer learns.
    """
    if name == "vggsnn":
        net = models.build("vggsnn", vggsnn.activation(2, 3), width_mult=1 / 16)
        images = torch.randint(0, 4, (2, 3, 2, 48, 48)).float()
    else:
        act = transformer.activation(name, 1 if name == "lif" else 3, 2)
        net = models.build("sdt", act, dim=16, depth=1)
        images = torch.randn(4, 3, 32, 32)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(m.weight, 3.0)

    additions = Additions(net)
    with Counter(net.train()) as counter:
        net(images)
    price = additions()
    energy = counter.energy()
    assert price.item() == pytest.approx(measured(energy), rel=1e-5)
    fixed, full = energy.fixed_and_full_uj()
    assert fixed + price.item() * full == pytest.approx(energy.total_uj, rel=1e-5)
    assert price > 0.02

    price.backward()
    untouched = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    # the head emits no spikes, and batch norm takes a bias before it out again
    assert {n for n in untouched if not n.startswith("head.") and "map.bias" not in n} == set()


def toy(scale=False):
    """Neurons behind a convolution that changes nothing, then a linear layer: [B, 3, 4, 4]."""
    act = models.Spiking(models.NeuronConfig.vgg(3), theta=0.7, scale=scale)
    same = torch.nn.Conv2d(3, 3, 1, bias=False)
    torch.nn.init.dirac_(same.weight)
    stages = [Layer(Synapse(same), act.layer()), torch.nn.Flatten()]
    net = Network(act, stages, torch.nn.Linear(48, 5, bias=False))
    torch.nn.init.dirac_(same.weight)
    net.built = {"image_size": 4}
    return net


def test_a_layer_that_reads_several_layers_of_neurons_is_told():
    net = toy()

    class Both(torch.nn.Module):
        def __init__(self, act):
            super().__init__()
            self.one, self.other = act.layer(), act.layer()

        def forward(self, x):
            return torch.cat([self.one(x), self.other(x)], 1)

    net.stages.insert(1, Both(net.act))
    net.stages[2] = torch.nn.Conv2d(6, 3, 1)
    net.stages.append(torch.nn.Flatten())
    with pytest.raises(ValueError, match=r"stages\.2 reads the spikes of 2 layers"):
        sources(net)


def test_two_layers_may_read_one_pooling():
    """As a block and its shortcut do, right behind a pooling."""
    net = toy()
    pooled = torch.nn.AvgPool2d(2)

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = pooled(x)
            return self.one(x) + self.other(x)

    net.stages.insert(1, Both())
    net.head = torch.nn.Linear(12, 5, bias=False)
    found = sources(net)
    assert found[net.stages[1].one] is found[net.stages[1].other]


def test_a_layer_counts_by_its_macs():
    """Two linear layers of 48 * 2 and 2 * 6 MACs."""
    net = toy()
    net.stages.extend([torch.nn.Linear(48, 2), net.act.layer()])
    net.head = torch.nn.Linear(2, 6)
    additions = Additions(net)
    images = torch.randn(4, 3, 4, 4)
    net(images)
    with torch.no_grad():
        first = net.stages[:2](images)
        second = net.stages[2:](first)
    rates = [(spikes > 0).float().mean().item() for spikes in (first, second)]
    assert 0 < rates[0] < 1
    assert additions().item() == pytest.approx((96 * rates[0] + 12 * rates[1]) / 108)


def test_the_gradient_is_the_neurons_over_the_spike():
    net = toy(scale=True)
    (site,) = net.sites()
    site.scale.data.fill_(1.3)
    additions = Additions(net)
    x = torch.linspace(-2, 6, 48).view(1, 3, 4, 4)
    seen = []
    site.register_forward_pre_hook(lambda site, args: seen.append(args[0]))
    net(x)
    current = seen[-1]
    current.retain_grad()
    o = (site(x) / 1.3).detach()
    additions().backward()
    wanted = surrogate(x / 0.7, net.act.neuron) / 0.7 / o.clamp(min=1) / 48
    torch.testing.assert_close(current.grad, wanted)
    assert site.scale.grad.abs() < 1e-6  # the scale does not change who fires
    assert site.theta.grad < 0  # a descent step raises the threshold


@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
def test_what_a_layer_reads_is_found(name):
    """Through poolings and past blocks: its input is a multiple of that site's scale."""
    act = models.Spiking(models.NeuronConfig.vgg(2), theta=0.01, scale=True)
    net = models.build(name, act, bn=False, width_mult=0.0625).eval()
    for index, site in enumerate(net.sites()):
        site.scale.data.fill_(1 + index / 32)
    found, seen = sources(net), []

    def check(module, args):
        units = args[0] / found[module].scale * 4
        seen.append(units.any() and torch.equal(units, units.round()))

    _, *others = weighted(net)
    assert set(found) == set(others)
    for module in others:
        module.register_forward_pre_hook(check)
    net(torch.randn(2, 3, 32, 32))
    assert all(seen)
    assert len(seen) == len(others)


def test_recomputed_stages_count_once():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = network(2)
        net.recompute = recompute
        additions = Additions(net)
        for _ in range(2):
            out = net(torch.randn(4, 3, 32, 32))
            (out.square().sum() + additions()).backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_copies_of_what_is_watched_go_at_once():
    """The garbage collector, which they would wait for, knows nothing of a GPU's memory."""
    net = network(scale=True)
    Additions(net)
    gc.disable()
    try:
        for whole in (net, net.head):
            left = weakref.ref(copy.deepcopy(whole))
            assert left() is None
    finally:
        gc.enable()


def test_what_a_backward_pass_runs_again_is_not_kept():
    """Its tensors would live until the next forward, and no copy of the network could be made."""
    net = network(2)
    net.recompute = True
    additions = Additions(net)
    out = net.train()(torch.randn(4, 3, 32, 32))
    (out.square().sum() + additions()).backward()
    assert not additions.paid
    copy.deepcopy(net)
