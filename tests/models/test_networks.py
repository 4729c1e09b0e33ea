"""Networks, quantiser and thresholds against golden numbers of the published code at an eighth of the width."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import models
from engine import checkpoint
from engine.errors import UseError
from models import convert
from tests.helpers import GOLDEN

FILES = {
    "vgg16": np.load(GOLDEN / "B1_vgg16_w8.npz"),
    "resnet20": np.load(GOLDEN / "B2_resnet20_w8.npz"),
}
SNN = {"T1_S3": (1, 3), "T3_S1": (3, 1)}


def tensor(name, key):
    return torch.from_numpy(FILES[name][key])


def group(name, prefix):
    return {
        k.removeprefix(prefix): tensor(name, k) for k in FILES[name].files if k.startswith(prefix)
    }


def build(name, act, **arguments):
    extra = {"head_dropout": 0.0} if name == "vgg16" else {}
    return models.build(name, act, width_mult=1 / 8, **extra, **arguments).eval()


def put(net, state, new=()):
    checkpoint.load_into(net, {"format": "published", "model": state}, "golden", new=new)
    return net


def ann(name):
    return put(build(name, models.ReLU()), group(name, "ann_w/"))


def fused_state(name):
    """Published names of the fused weights; B1's are recomputed from the ANN."""
    if name == "resnet20":
        return group(name, "fused_w/")
    fused = convert.fuse_bn(ann(name), torch.randn(4, 3, 32, 32))[0]
    weights = [m.map for m in fused.modules() if hasattr(m, "map")] + [fused.head]
    return {f"f.{i}.{k}": v for i, m in enumerate(weights) for k, v in m.state_dict().items()}


def close(got, want, tolerance):
    assert (got - want).abs().max() <= tolerance * want.abs().max(), (
        (got - want).abs().max() / want.abs().max()
    ).item()


def check_gradients(net, name, prefix, tolerance=1e-4):
    """Compare gradients by the position of the published module path among the weighted layers."""
    weighted, norms, *_ = checkpoint._published_modules(group(name, "ann_w/"))
    synapses = [m for m in net.modules() if hasattr(m, "map")]
    modules = dict(zip(weighted, [*(s.map for s in synapses), net.head]))
    convs = [s for s in synapses if isinstance(s.map, torch.nn.Conv2d)]
    modules |= dict(zip(norms, [s.norm for s in convs]))
    found = 0
    for key, want in group(name, prefix).items():
        path, _, field = key.rpartition(".")
        if path in modules and getattr(modules[path], field).shape == want.shape:
            close(getattr(modules[path], field).grad, want, tolerance)
            found += 1
    return found


@pytest.mark.parametrize("name", FILES)
def test_ann(name):
    net = ann(name)
    close(net(tensor(name, "x")), tensor(name, "ann_logits"), 1e-5)
    net.train()
    out = net(tensor(name, "x"))
    close(out, tensor(name, "ann_train_logits"), 1e-5)
    F.cross_entropy(out, tensor(name, "target").long()).backward()
    assert check_gradients(net, name, "ann_train_grad/") == 5


@pytest.mark.parametrize("name", FILES)
def test_fused(name):
    fused, error = convert.fuse_bn(ann(name), torch.randn(8, 3, 32, 32))
    assert error < 1e-5
    close(fused(tensor(name, "x")), tensor(name, "fused_logits"), 1e-5)
    with pytest.raises(ValueError, match="no batch norm"):
        convert.fuse_bn(fused, torch.randn(2, 3, 32, 32))
    with pytest.raises(convert.ConversionError, match="differs by"):
        convert.fuse_bn(ann(name), torch.randn(8, 3, 32, 32), tolerance=0)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("name", FILES)
def test_lq_ann(name, bits):
    net = put(build(name, models.LogQuant(bits)), group(name, "ann_w/"), new=("lo", "hi"))
    with pytest.raises(RuntimeError, match="no range yet"):
        net(tensor(name, "x"))
    models.calibrate(net, tensor(name, "x_quantcal"))
    ranges = sorted(v.item() for v in group(name, "lq_max/").values())
    assert sorted(site.hi.item() for site in net.sites()) == pytest.approx(ranges, rel=1e-5)
    out = net(tensor(name, "x"))
    close(out, tensor(name, f"lq{bits}_logits"), 1e-5)
    F.cross_entropy(out, tensor(name, "target").long()).backward()
    first = next(m for m in net.modules() if hasattr(m, "map"))
    prefix, names = (
        f"lq{bits}_grad/",
        {"vgg16": ("features.0", "classifier.8"), "resnet20": ("pre_process.0", "classifier.0")},
    )
    close(first.map.weight.grad, tensor(name, f"{prefix}{names[name][0]}.weight"), 1e-4)
    close(net.head.weight.grad, tensor(name, f"{prefix}{names[name][1]}.weight"), 1e-4)
    again = build(name, models.LogQuant(bits))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(tensor(name, "x")), out)


def snn(name, tag, hardware=1):
    """The golden SNN with its thetas and leaks."""
    steps, levels = SNN[tag]
    net = build(name, models.Spiking(models.NeuronConfig.vgg(levels, hardware), steps), bn=False)
    state = fused_state(name)
    for field in ("threshold", "leak"):
        state |= {f"{field}.{k}": v for k, v in group(name, f"snn_{tag}_{field}/").items()}
    return put(net, state)


@pytest.mark.parametrize("tag", SNN)
@pytest.mark.parametrize("name", FILES)
def test_snn(name, tag):
    net = snn(name, tag)
    x = tensor(name, "x")
    close(net(x), tensor(name, f"snn_{tag}_logits"), 1e-5)
    close(
        net.currents(x).unflatten(0, (SNN[tag][0], 2)).transpose(0, 1),
        tensor(name, f"snn_{tag}_out"),
        1e-5,
    )
    hardware = (
        "" if tag == "T1_S3" else "_hw2"
    )  # the published one-hot S = 1 has no backward; multi-hot S = 1 is the same
    net = snn(name, tag, 2 if hardware else 1)
    loss = F.cross_entropy(net(x), tensor(name, "target").long())
    loss.backward()
    assert loss.item() == pytest.approx(float(FILES[name][f"snn_{tag}{hardware}_loss"]), rel=1e-5)
    by_index = {
        int("".join(filter(str.isdigit, k))): v
        for k, v in group(name, f"snn_{tag}{hardware}_gthreshold/").items()
    }
    wanted = torch.stack([by_index[k].reshape(()) for k in sorted(by_index)])
    close(torch.stack([site.theta.grad for site in net.sites()]), wanted, 1e-4)
    leaks = {
        int("".join(filter(str.isdigit, k))): v
        for k, v in group(name, f"snn_{tag}{hardware}_gleak/").items()
    }
    if leaks and SNN[tag][0] > 1:
        wanted = torch.stack([leaks[k].reshape(()) for k in sorted(leaks)])
        close(torch.stack([site.leak.grad for site in net.sites()]), wanted, 1e-4)
    first = next(m for m in net.modules() if hasattr(m, "map"))
    conv = {"vgg16": "features.0", "resnet20": "pre_process.0"}[name]
    head = {"vgg16": "classifier.6", "resnet20": "classifier.0"}[name]
    close(first.map.weight.grad, tensor(name, f"snn_{tag}{hardware}_grad/{conv}.weight"), 1e-4)
    close(first.map.bias.grad, tensor(name, f"snn_{tag}{hardware}_grad/{conv}.bias"), 1e-4)
    close(net.head.weight.grad, tensor(name, f"snn_{tag}{hardware}_grad/{head}.weight"), 1e-4)


@pytest.mark.parametrize("tag", SNN)
@pytest.mark.parametrize("name", FILES)
def test_thresholds(name, tag):
    """One step: exact in every layer. 100 steps: exact in the leading layers; further on, single spikes that flip in the
    last digit of the current's sum spread, so those are compared loosely. The published search keeps the last step's value
    for ResNet20's blocks instead of the maximum, which the definition asks for: there only the stem is comparable."""
    levels = SNN[tag][1]
    net = put(
        build(name, models.Spiking(models.NeuronConfig.vgg(levels)), bn=False),
        fused_state(name),
        new=("theta", "leak"),
    )
    cal = tensor(name, "x_cal")
    one = convert.balance_thresholds(net, cal, steps=1)
    assert one == pytest.approx(FILES[name][f"snn_{tag}_thr_raw_snn_cal1"].tolist(), rel=1e-5)
    wanted = FILES[name][f"snn_{tag}_thr_raw_snn_cal100"]
    exact = {"vgg16": 4, "resnet20": 3}[name]
    which = {"vgg16": "all", "resnet20": "stem"}[name]
    got = convert.balance_thresholds(net, cal, steps=100, which=which)
    assert got[:exact] == pytest.approx(wanted[:exact].tolist(), rel=1e-5)
    assert got == pytest.approx(wanted[: len(got)].tolist(), rel=0.2)
    assert [site.theta.item() for site in net.sites()[: len(got)]] == pytest.approx(got)


def test_thresholds_are_those_of_the_whole_network():
    """The layer-by-layer search equals measuring all layers of a 20-step network that has the found thetas."""
    name, steps = "resnet20", 20
    for neuron in (models.NeuronConfig.vgg(3), models.NeuronConfig.vgg(2, hardware_opt=2)):
        net = put(
            build(name, models.Spiking(neuron), bn=False), fused_state(name), new=("theta", "leak")
        ).double()
        cal = tensor(name, "x_cal").double()
        thetas = convert.balance_thresholds(net, cal, steps)
        whole = build(name, models.Spiking(neuron, steps), bn=False).double()
        whole.load_state_dict(net.state_dict())
        tops = []

        def top(act, args, tops=tops):
            current = args[0][None] if act.constant else args[0].unflatten(0, (steps, -1))
            tops.append(
                max(models.statistics.percentile(c, 99.7).item() for c in current)
                / 2 ** (act.config.levels - 1)
            )

        for site in whole.sites():
            site.register_forward_pre_hook(top)
        with torch.no_grad():
            whole(cal)
        assert tops == pytest.approx(thetas, rel=1e-9)


A4 = np.load(GOLDEN / "A4_quantize.npz")


@pytest.mark.parametrize("key", [k for k in A4.files if k.startswith("q_")])
def test_quantiser(key):
    _, which, scheme, bits, data = key.split("_")
    lo, hi = (torch.tensor(v) for v in A4[f"range_{which}"])
    x, want = torch.from_numpy(A4[data]), torch.from_numpy(A4[key])
    kept = x.clone()
    got = models.quantize.quantize(x, lo, hi, int(bits[1:]), scheme)
    assert torch.equal(x, kept)
    # the published code lets values outside [lo, hi] through, and turns 0 < y <= 1e-9 into the largest level; ours do not
    y = (x - lo) / (hi - lo)
    inside = (
        (y >= 0) & (y <= 1)
        if scheme == "uniform"
        else (y > 2e-9) & (torch.round(torch.log2(y)) <= 0)
    )
    assert torch.allclose(got[inside], want[inside], atol=1e-6) and inside.sum() > 10
    assert got.max() <= hi * (1 + 1e-6) and got.min() >= lo - 1e-6
    assert torch.all(got[x >= hi] >= hi * (1 - 1e-6)) and torch.all(got[x <= lo] == lo)


def test_quantiser_is_straight_through():
    weight, x = (torch.from_numpy(A4[k]).clone().requires_grad_() for k in ("ste_w", "xr"))
    quant = models.QuantReLU(2)
    quant.load_state_dict(
        {"lo": torch.tensor(A4["range_a"][0]), "hi": torch.tensor(A4["range_a"][1])}
    )
    out = F.linear(quant(x), weight)
    close(out, torch.from_numpy(A4["ste_out"]), 1e-5)
    (out * torch.from_numpy(A4["gout"])).sum().backward()
    close(weight.grad, torch.from_numpy(A4["ste_gw"]), 1e-5)
    close(x.grad, torch.from_numpy(A4["ste_gx"]), 1e-5)


def test_calibration():
    quant = models.QuantReLU(2, percent=99.7)
    quant.start()
    for i in range(3):
        quant(torch.from_numpy(A4[f"cal99.7_x{i}"]))
        assert quant.lo.item() == A4[f"cal99.7_min{i}"].item()
        assert quant.hi.item() == A4[f"cal99.7_max{i}"].item()
    quant.start()
    quant.observe(torch.from_numpy(A4["xr"]))
    assert (
        quant.lo.item() == A4["cal_neg_min"].item() and quant.hi.item() == A4["cal_neg_max"].item()
    )


@pytest.mark.parametrize("name", FILES)
def test_weights_have_the_same_names_whatever_the_activation(name):
    plain = set(build(name, models.ReLU(), bn=False).state_dict())
    assert set(build(name, models.Spiking(), bn=False).state_dict()) - plain == {
        f"{n}.{f}"
        for n, m in build(name, models.Spiking(), bn=False).named_modules()
        if isinstance(m, models.SpikingLayer)
        for f in ("theta", "leak")
    }
    assert {
        k.rpartition(".")[2]
        for k in set(build(name, models.LogQuant(), bn=False).state_dict()) - plain
    } == {"lo", "hi"}


@pytest.mark.parametrize(
    "act", [models.ReLU(), models.LogQuant(3, "lvl"), models.Spiking(models.NeuronConfig.vgg(2), 2)]
)
@pytest.mark.parametrize("name", FILES)
def test_every_parameter_learns_and_a_checkpoint_rebuilds_the_network(name, act, tmp_path):
    net = models.build(
        name, act, width_mult=1 / 16, num_classes=7, image_size=64, bn=act.kind != "spiking"
    )
    x = torch.randn(4, 3, 64, 64)
    if act.kind == "quant":
        models.calibrate(net, [x])
    for site in net.sites():
        if act.kind == "spiking":
            site.theta.data.fill_(0.05)
    net.train()(x).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    checkpoint.save(tmp_path / "net.pth", checkpoint.content(net, "x", {}, {}))
    again = checkpoint.rebuild(checkpoint.load(tmp_path / "net.pth"))
    assert torch.equal(again.eval()(x), net.eval()(x))


def test_recomputing_changes_no_gradient():
    """Same loss and gradients, held dropout included; of a stage only its input is kept."""
    results, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        act = models.Spiking(models.NeuronConfig.vgg(3), 4, theta=0.1)
        net = models.build("resnet20", act, bn=False, width_mult=0.0625, dropout=0.2)
        net.recompute = recompute
        torch.manual_seed(1)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append(t.numel()) or t, lambda t: t
        ):  # noqa: B023
            loss = net(torch.randn(16, 3, 32, 32)).square().sum()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)])
        kept.append(sum(saved))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < 0.4 * kept[0]


def test_recomputing_counts_a_batch_once():
    """The second forward of a stage leaves the running statistics of batch norm alone."""
    states = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = models.build(
            "resnet20",
            models.Spiking(models.NeuronConfig.vgg(3), 2, theta=0.1),
            bn=True,
            width_mult=0.0625,
        )
        net.recompute = recompute
        for _ in range(2):
            net(torch.randn(4, 3, 32, 32)).square().sum().backward()
        states.append(dict(net.named_buffers()))
    assert any(
        name.endswith("num_batches_tracked") and value == 2 for name, value in states[0].items()
    )
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_build_refuses():
    with pytest.raises(ValueError, match="one of vgg16, resnet20"):
        models.build("alexnet", models.ReLU())
    with pytest.raises(ValueError, match="takes num_classes"):
        models.build("resnet20", models.ReLU(), kernel_size=3)
    for name in FILES:
        with pytest.raises(ValueError, match="image size that 16 divides"):
            models.build(name, models.ReLU(), image_size=40)
    with pytest.raises(UseError, match="tensors differ"):
        put(models.build("resnet20", models.ReLU(), width_mult=0.25), group("resnet20", "ann_w/"))


def test_dropout_mask_is_held_over_time():
    drop = models.layers.HeldDropout(0.5, steps=4).train()
    out = drop(torch.ones(4 * 3, 50)).unflatten(0, (4, 3))
    assert torch.equal(out, out[:1].expand_as(out))
    assert 0.2 < (out == 0).float().mean() < 0.8 and set(out.unique().tolist()) == {0.0, 2.0}


def test_rate_coding_has_the_pixels_mean():
    act = models.Spiking(steps=400, encoding="rate")
    x = torch.rand(2, 3, 4, 4)
    spikes = act.encode(x).unflatten(0, (400, 2))
    lo, hi = x.flatten(1).amin(1), x.flatten(1).amax(1)
    assert (
        spikes.mean(0) - (x - lo.view(-1, 1, 1, 1)) / (hi - lo).view(-1, 1, 1, 1)
    ).abs().max() < 0.15


def test_thresholds_do_not_depend_on_what_is_kept(monkeypatch):
    net = put(
        build("resnet20", models.Spiking(), bn=False),
        fused_state("resnet20"),
        new=("theta", "leak"),
    )
    thetas = []
    for budget in (convert.CURRENTS, 0):
        monkeypatch.setattr(convert, "CURRENTS", budget)
        thetas.append(convert.balance_thresholds(net, tensor("resnet20", "x_cal"), steps=7))
    assert thetas[0] == thetas[1]


def test_zero_is_the_zero_level_in_every_precision():
    for dtype, bits in ((torch.float16, 4), (torch.float32, 7), (torch.bfloat16, 7)):
        zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
        assert models.quantize.quantize(zero, zero, one, bits, "log") == 0
