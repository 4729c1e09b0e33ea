"""Weights of the published code under our names, and strict loading."""

import pytest
import torch

import models
from models import published, transformer, vggsnn
from models.published import Misfit
from tests.models import golden


def network():
    return models.build("resnet20", models.ReLU(), width_mult=1 / 8)


# ---- strict loading


def test_what_fits_is_loaded():
    net, other = network(), network()
    published.fit(net, other.state_dict())
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())


def test_what_only_the_network_may_have_stays():
    act = models.Spiking(theta=0.7)
    net = models.build("resnet20", act, width_mult=1 / 8, bn=False)
    state = {k: v for k, v in net.state_dict().items() if not k.endswith((".theta", ".leak"))}
    published.fit(net, state, new=("theta", "leak"))
    assert {site.theta.item() for site in net.sites()} == {torch.tensor(0.7).item()}
    with pytest.raises(Misfit, match=r"19 missing.* no stages\.0\.act\.leak"):
        published.fit(net, state, new=("theta",))


def test_what_only_the_weights_may_have_is_dropped():
    net = network()
    more = {"stages.0.act.lo": torch.zeros(())}
    published.fit(net, net.state_dict() | more, dropped=("lo",))
    with pytest.raises(Misfit, match=r"1 unknown.* an unknown stages\.0\.act\.lo"):
        published.fit(net, net.state_dict() | more, dropped=("hi",))


def test_a_misfit_changes_nothing():
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {k: v + 1 for k, v in before.items()} | {"head.weight": torch.zeros(3, 256)}
    with pytest.raises(Misfit, match=r"head\.weight is \(3, 256\), expected \(10, 256\)") as caught:
        published.fit(net, state)
    assert len(caught.value.resized) == 1 and not caught.value.missing
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# ---- VGG16 and ResNet20


@pytest.mark.parametrize("name", golden.CNNS)
def test_cnns_are_renamed_completely(name):
    net = golden.build(name, models.ReLU())
    state = golden.group(name, "ann_w/")
    assert sorted(golden.own_names(net, state).values()) == sorted(net.state_dict())


def test_places_in_a_block():
    """The shortcut's convolution comes after the two of the block."""
    net = golden.build("resnet20", models.ReLU())
    names = golden.own_names(net, golden.group("resnet20", "ann_w/"))
    block = "stages.6"  # three stem layers, the pooling, two blocks of the first stage
    assert names["layer2.0.residual.4.weight"] == f"{block}.synapse.map.weight"
    assert names["layer2.0.identity.0.weight"] == f"{block}.shortcut.map.weight"
    assert names["layer2.0.identity.1.running_var"] == f"{block}.shortcut.norm.running_var"


def test_thresholds_are_in_the_order_of_their_numbers():
    """Not of the letters, by which threshold.th10 comes before threshold.th9."""
    net = golden.build("resnet20", models.Spiking(), bn=False)
    state = golden.fused_state("resnet20")
    numbers = (0, 3, 6, *range(9, 25))
    for i in sorted(numbers, key=str):
        state |= {f"threshold.th{i}": torch.tensor([1.0 + i]), f"leak.le{i}": torch.tensor([0.5])}
    golden.put(net, state)
    assert [site.theta.item() for site in net.sites()] == [1.0 + i for i in numbers]
    assert {site.leak.item() for site in net.sites()} == {0.5}


def test_a_surplus_part_is_named_after_its_kind():
    net = golden.build("resnet20", models.ReLU())
    state = golden.group("resnet20", "ann_w/")
    surplus = {f"layer9.0.residual.1.{k}": torch.zeros(64) for k in ("weight", "running_mean")}
    with pytest.raises(Misfit, match=r"1 unknown.* an unknown \(batch norms\)"):
        golden.put(net, state | surplus)


def test_an_unknown_tensor_is_reported():
    net = golden.build("resnet20", models.ReLU())
    state = golden.group("resnet20", "ann_w/") | {"layer1.0.mode": torch.zeros(())}
    with pytest.raises(Misfit, match=r"1 unknown.* an unknown layer1\.0\.mode"):
        golden.put(net, state)


def test_a_file_without_weights_is_refused():
    net = golden.build("vgg16", models.ReLU())
    with pytest.raises(ValueError, match="neither this project's nor the published code's names"):
        published.rename(net, {"act.maximum": torch.zeros(4)})


def test_another_width_is_refused():
    net = models.build("resnet20", models.ReLU(), width_mult=0.25)
    with pytest.raises(Misfit, match="of another size"):
        golden.put(net, golden.group("resnet20", "ann_w/"))


# ---- the transformer


def transformers(depth=1, dim=16):
    return models.build("sdt", transformer.activation("mlif", 3, 2), depth=depth, dim=dim)


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("patch_embed.proj_conv.weight", "stages.0.synapse.map.weight"),
        ("patch_embed.proj_bn2.running_mean", "stages.4.synapse.norm.running_mean"),
        ("patch_embed.rpe_conv.weight", "stages.6.position.map.weight"),
        ("block.0.attn.q_conv.weight", "stages.7.q.synapse.map.weight"),
        ("block.1.attn.proj_bn.bias", "stages.9.out.norm.bias"),
        ("block.1.mlp.fc1_conv.bias", "stages.10.wide.synapse.map.bias"),
        ("block.0.mlp.fc2_bn.weight", "stages.8.out.norm.weight"),
        ("head.bias", "head.bias"),
        ("block.2.attn.q_conv.weight", "block.2.attn.q_conv.weight"),  # deeper than the network
        ("block.0.attn.q_lif.w", "block.0.attn.q_lif.w"),
    ],
)
def test_names_of_the_transformer(key, own):
    net = transformers(depth=2)
    assert list(published.rename(net, {key: torch.zeros(1)})) == [own]
    assert (own in net.state_dict()) == (own != key or key == "head.bias")


@pytest.mark.parametrize(
    "key", ["block.1.attn.talking_heads.weight", "block.0.attn.attn_lif.w", "classifier_ops"]
)
def test_what_is_built_and_never_used_is_left_out(key):
    assert published.rename(transformers(), {key: torch.zeros(1)}) == {}


def test_convolutions_of_one_dimension_are_adapted():
    net = transformers()
    value = torch.randn(64, 16, 1)
    (renamed,) = published.rename(net, {"block.0.mlp.fc1_conv.weight": value}).values()
    assert torch.equal(renamed, value[..., None])


def test_transposed_weights_are_not_adapted():
    net = transformers()
    state = net.state_dict() | {"head.weight": torch.zeros(16, 10)}
    with pytest.raises(Misfit, match=r"head\.weight is \(16, 10\), expected \(10, 16\)"):
        published.fit(net, published.rename(net, state))


# ---- VGGSNN


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("features.0.fwd.module.0.weight", "stages.0.synapse.map.weight"),
        ("features.7.fwd.module.1.running_var", "stages.7.synapse.norm.running_var"),
        ("classifier.module.bias", "head.bias"),
    ],
)
def test_names_of_vggsnn(key, own):
    net = models.build("vggsnn", vggsnn.activation(2, 3), width_mult=1 / 16)
    assert list(published.rename(net, {key: torch.zeros(1)})) == [own]
    assert own in net.state_dict()
