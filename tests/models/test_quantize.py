"""The quantiser against recorded numbers, its gradient and its calibration."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import models
from models.quantize import quantize
from tests.helpers import GOLDEN
from tests.models.golden import close

NUMBERS = np.load(GOLDEN / "A4_quantize.npz")


def numbers(key):
    return torch.from_numpy(NUMBERS[key])


@pytest.mark.parametrize("key", [key for key in NUMBERS.files if key.startswith("q_")])
def test_levels(key):
    """As published inside [lo, hi]; outside, where the published code lets values through, ours
    saturate, and what is so small that its 0 < y <= 1e-9 become the largest level there is 0."""
    _, which, scheme, bits, data = key.split("_")
    lo, hi = numbers(f"range_{which}")
    x, want = numbers(data), numbers(key)
    kept = x.clone()
    got = quantize(x, lo, hi, int(bits[1:]), scheme)
    assert torch.equal(x, kept)

    y = (x - lo) / (hi - lo)
    if scheme == "uniform":
        inside = (y >= 0) & (y <= 1)
    else:
        inside = (y > 2e-9) & (torch.round(torch.log2(y)) <= 0)
    assert inside.sum() > 10
    assert torch.allclose(got[inside], want[inside], atol=1e-6)
    assert torch.all(got[x >= hi] >= hi * (1 - 1e-6)) and got.max() <= hi * (1 + 1e-6)
    assert torch.all(got[x <= lo] == lo) and got.min() >= lo - 1e-6


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.float16, 4), (torch.float32, 7), (torch.bfloat16, 7)]
)
def test_zero_is_the_zero_level_in_every_precision(dtype, bits):
    zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    assert quantize(zero, zero, one, bits, "log") == 0


@pytest.mark.parametrize("scheme", ["log", "lvl", "uniform"])
def test_what_is_not_a_number_stays_none(scheme):
    """A training that diverges is noticed."""
    x = torch.tensor([float("nan"), 1.0])
    found = quantize(x, torch.zeros(()), torch.ones(()), 2, scheme)
    assert found.isnan().tolist() == [True, False]


def test_the_gradient_is_straight_through():
    weight = numbers("ste_w").clone().requires_grad_()
    x = numbers("xr").clone().requires_grad_()
    quant = models.QuantReLU(2)
    lo, hi = numbers("range_a")
    quant.load_state_dict({"lo": lo, "hi": hi})
    out = F.linear(quant(x), weight)
    close(out, numbers("ste_out"), 1e-5)
    (out * numbers("gout")).sum().backward()
    close(weight.grad, numbers("ste_gw"), 1e-5)
    close(x.grad, numbers("ste_gx"), 1e-5)


def test_the_range_widens_over_the_batches():
    quant = models.QuantReLU(2, percent=99.7)
    quant.start()
    for i in range(3):
        quant(numbers(f"cal99.7_x{i}"))
        assert quant.lo == numbers(f"cal99.7_min{i}")
        assert quant.hi == numbers(f"cal99.7_max{i}")


def test_the_range_of_negative_values():
    quant = models.QuantReLU(2)
    quant.start()
    quant.observe(numbers("xr"))
    assert quant.lo == numbers("cal_neg_min") and quant.hi == numbers("cal_neg_max")


def test_an_uncalibrated_quantiser_refuses_to_run():
    with pytest.raises(RuntimeError, match="no range yet"):
        models.QuantReLU(2)(torch.zeros(3))


def test_ranges_of_no_image_or_some_are_none():
    net = torch.nn.Sequential(models.QuantReLU(2)).train()
    with pytest.raises(ValueError, match="a batch of images, got none"):
        models.calibrate(net, [])

    def interrupted():
        yield torch.ones(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.calibrate(net, interrupted())
    assert net.training
    with pytest.raises(RuntimeError, match="no range yet"):
        net(torch.ones(3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2, "logs"), "quant_id must be one of log, lvl, uniform, got 'logs'"),
        ((0,), "got 0 and 99.7"),
        ((2, "log", 101), "got 2 and 101"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(ValueError, match=words):
        models.QuantReLU(*arguments)


@pytest.mark.parametrize("percent", [99.7, 90, 50, 100])
def test_percentile_is_the_published_rank(percent):
    x = torch.randn(1001)
    wanted = x.sort().values[round(percent / 100 * 1000)]
    assert models.statistics.percentile(x, percent) == wanted
    for floor in (wanted - 0.1, wanted, wanted + 0.1):
        assert models.statistics.percentile(x, percent, floor) == max(floor, wanted)
