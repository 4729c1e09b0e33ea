"""The spike-driven transformer against recorded numbers, published sizes and SpikingJelly."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import models
from analysis.energy import Counter
from analysis.pricing import E_AC, E_MAC
from models import published, transformer
from models.published import Misfit
from models.rates import macs_of
from tests.helpers import GOLDEN
from tests.models.golden import check_gradients

NUMBERS = np.load(GOLDEN / "B3_sdt_dim64_L1.npz")
STATE = {k[2:]: torch.from_numpy(NUMBERS[k]) for k in NUMBERS.files if k.startswith("w/")}
RECORDED = {
    "mlif_channels": 3,
    "time_steps": 2,
    "scaled": True,
    "dim": 64,
    "depth": 1,
}
BOTH = pytest.mark.parametrize("mode", ["mlif", "fast_mlif"])


def numbers(key):
    return torch.from_numpy(NUMBERS[key])


def recorded(mode="mlif", **arguments):
    """The recorded network, and the tag of its numbers."""
    net = timm.create_model("sdt", spike_mode=mode, **RECORDED, **arguments)
    published.fit(net, published.rename(net, STATE), new=("theta", "leak"))
    return net, f"{mode}_T2_S3_sc1"


def small(mode="mlif", steps=2, **arguments):
    act = transformer.activation(mode, 1 if mode in transformer.ONE_LANE else 3, steps)
    return models.build("sdt", act, **{"dim": 16, "depth": 1} | arguments)


# ---- recorded numbers


@BOTH
def test_logits(mode):
    net, tag = recorded(mode)
    with torch.no_grad():
        out = net.eval()(numbers("x"))
    assert (out - numbers(f"{tag}_eval_logits")).abs().max() <= 1e-5


def test_readout_of_every_step():
    net, tag = recorded(tet=True)
    with torch.no_grad():
        out = net.eval()(numbers("x"))
    assert (out - numbers(f"{tag}_eval_TET_logits")).abs().max() <= 1e-5


@BOTH
def test_a_training_step(mode):
    net, tag = recorded(mode)
    out = net.train()(numbers("x"))
    assert (out - numbers(f"{tag}_train_logits")).abs().max() <= 1e-5
    nn.functional.cross_entropy(out, numbers("target").long()).backward()
    prefix = f"{tag}_grad/"
    keys = [key for key in NUMBERS.files if key.startswith(prefix)]
    gradients = {key.removeprefix(prefix): numbers(key) for key in keys}
    own = {k: v for k, v in STATE.items() if "talking_heads" not in k}
    check_gradients(net, own, gradients)


@BOTH
def test_counted_rates_and_operations(mode):
    """The nonzero rate of every counted layer at each step, and its MACs."""
    net, tag = recorded(mode)
    with torch.no_grad(), Counter(net.eval()) as counter:
        net(numbers("x"))
    # 0 the image, 1 to 4 embedding, 5 to 7 q, k and v, which share one counted input, then the rest
    layers = counter.energy().layers
    rows = [*layers[:6], *layers[8:]]
    prefix = f"{tag}_hooknztrue/"
    hooks = [key.removeprefix(prefix) for key in NUMBERS.files if key.startswith(prefix)]
    for row, hook in zip(rows, hooks, strict=True):
        assert row.step_rates == pytest.approx(numbers(prefix + hook).tolist(), abs=1e-6)
        together = 3 if "kqv_conv" in hook and "after" not in hook else 1
        assert row.macs * together == NUMBERS[f"hookflops/{hook}"]


@pytest.mark.parametrize(
    ("name", "macs", "key"),
    [
        ("sdt_2_512_cifar", 1_234_899_968, "sdt_2_512_cifar10"),
        ("sdt_8_512_imagenet", 8_256_671_744, "sdt_8_512_imagenet"),
    ],
)
def test_published_macs(name, macs, key):
    net = timm.create_model(name, time_steps=1).to("meta").eval()
    counted = []
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            m.register_forward_hook(lambda m, args, out: counted.append(macs_of(m, out)))
    net(torch.empty(1, *net.default_cfg["input_size"], device="meta"))
    assert sum(counted) == macs == np.load(GOLDEN / "D_macs.npz")[f"{key}_flops_i64"].sum()


# ---- parts


@pytest.mark.parametrize("depth", [1, 3])
def test_seven_neurons_a_block(depth):
    """Four in the embedding, five in an attention, two in an MLP, one before the head."""
    assert len(small(depth=depth).sites()) == 4 + (5 + 2) * depth + 1


def test_the_attentions_neuron_has_half_the_threshold():
    act = models.Spiking(models.NeuronConfig.transformer(3), theta=0.8, learn=False)
    net = models.build("sdt", act, dim=16, depth=1)
    thetas = [site.theta.item() for site in net.sites()]
    gate = 4 + 3  # after the embedding: the attention's input, k and v
    assert thetas.pop(gate) == pytest.approx(0.4)
    assert thetas == [pytest.approx(0.8)] * 11


def test_drop_path_grows_with_depth():
    drops = [net.drop.p for net in small(drop_path=0.2, depth=3).stages if hasattr(net, "out")]
    assert drops == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2])


def test_energy_is_billed_as_published():
    """The first layer at 4.6 pJ by the image's own nonzero rate at every step, all others at 0.9 pJ
    by the spikes' rate."""
    net = small(steps=3).eval()
    x = torch.randn(2, 3, 32, 32)
    x[:, :, :16] = 0
    with torch.no_grad(), Counter(net) as counter:
        net(x)
    energy = counter.energy()
    first, *rest = energy.layers
    assert first.step_rates == [0.5] * 3
    assert first.energy_uj == pytest.approx(E_MAC * 1.5 * first.macs * 1e-6)
    additions = sum(E_AC * row.rate * row.macs for row in rest) * 1e-6
    assert energy.total_uj == pytest.approx(first.energy_uj + additions)


def test_one_lane_agrees_with_spikingjelly():
    """The same weights with our neuron of one lane and with SpikingJelly's LIF: the same logits."""
    config = models.NeuronConfig.transformer(1, fast=True)
    act = models.Spiking(config, 3, theta=1.0, leak=0.5, learn=False)
    ours = models.build("sdt", act, dim=16, depth=1)
    theirs = models.build("sdt", models.LIF(3), dim=16, depth=1)
    for m in ours.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 2.0, 0.5)
    published.fit(theirs, ours.state_dict(), dropped=("theta", "leak"))
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("mode", transformer.MODES)
def test_every_parameter_learns(mode):
    net = small(mode)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.constant_(m.weight, 3.0)
    net(torch.randn(8, 3, 32, 32)).square().sum().backward()
    # batch norm takes a bias before it out again
    still = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name for name in still if not name.endswith("map.bias")} == set()


# ---- timm's registry


@pytest.mark.parametrize(
    ("name", "size", "act"),
    [
        ("sdt", (2, 512, 32, 10), models.LIF(4)),
        ("sdt_2_512_cifar", (2, 512, 32, 10), transformer.activation("mlif", 3, 4)),
        ("sdt_8_512_imagenet", (8, 512, 224, 1000), transformer.activation("fast_mlif", 3, 1)),
    ],
)
def test_registered_sizes(name, size, act):
    with torch.device("meta"):
        net = timm.create_model(name)
    assert size == tuple(net.built[k] for k in ("depth", "dim", "img_size", "num_classes"))
    assert net.act == act
    assert net.default_cfg["input_size"] == (3, net.built["img_size"], net.built["img_size"])


def test_a_registered_size_can_be_changed():
    net = timm.create_model("sdt_2_512_cifar", dim=16, num_classes=3, time_steps=1)
    assert net.head.weight.shape == (3, 16) and net.act.steps == 1


def test_there_are_no_weights_to_download():
    with pytest.raises(ValueError, match="no pretrained weights"):
        transformer.sdt(pretrained=True)


def test_a_narrow_mlp_has_a_channel():
    assert small(mlp_ratio=1e-9)(torch.zeros(1, 3, 32, 32)).isfinite().all()


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dim": 20}, "dim 20, num_heads 8"),
        ({"pooling": "012"}, "four digits"),
        ({"img_size": 34}, "multiple of 4, got 34"),
    ],
)
def test_network_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        small(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lif", 3), "lif has one lane, got mlif_channels 3"),
        (("alif",), "spike_mode must be one of lif, plif, mlif, fast_mlif, got 'alif'"),
    ],
)
def test_neurons_refuse(arguments, words):
    with pytest.raises(ValueError, match=words):
        transformer.activation(*arguments)


def test_weights_of_another_size_are_refused():
    net = small()
    with pytest.raises(Misfit, match=r"of another size\): .* is .*expected"):
        published.fit(net, published.rename(net, STATE), new=("theta", "leak"))


def test_a_missing_weight_is_named():
    state = {key: value for key, value in STATE.items() if "q_conv" not in key}
    net = small(dim=64)
    with pytest.raises(Misfit, match=r"1 missing.* no stages\.7\.q\.synapse\.map\.weight"):
        published.fit(net, published.rename(net, state), new=("theta", "leak"))
