"""NeuronConfig: what it refuses."""

import math

import pytest

from models import NeuronConfig


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"levels": 0}, "levels .* must be an integer from 1 to 8, got 0"),
        ({"levels": 9}, "levels .* must be an integer from 1 to 8, got 9"),
        ({"levels": 2.0}, "levels .* must be an integer from 1 to 8, got 2.0"),
        ({"reset": "none"}, "reset must be one of soft, soft_theta, hard, got 'none'"),
        ({"surrogate": "atan"}, "surrogate must be one of triangle, .*got 'atan'"),
        ({"inner_slope": "x"}, "inner_slope must be one of paper, published, got 'x'"),
        ({"gamma": 0}, "gamma must be positive and finite, got 0"),
        ({"gamma": math.nan}, "gamma must be positive and finite, got nan"),
        ({"alpha": -1.0}, "alpha must be positive and finite, got -1.0"),
        ({"alpha": math.inf}, "alpha must be positive and finite, got inf"),
        ({"input_gain": 0.0}, "input_gain must be positive and finite, got 0.0"),
        ({"reset": "hard", "detach_reset": False}, "hard reset is defined for levels=1 only"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        NeuronConfig(**arguments)


def test_a_reset_by_theta_has_nothing_to_differentiate():
    """`soft_theta` is the reset of `mlif`: there detach_reset=False changes nothing."""
    attached = NeuronConfig(reset="soft_theta", detach_reset=False)
    assert attached == NeuronConfig(reset="soft_theta")


def test_presets_differentiate_no_more_than_their_reset_has():
    """Only the soft reset of `fast_mlif` knows detach_reset=False."""
    for fast in (False, True):
        for soft in (False, True):
            config = NeuronConfig.transformer(3, fast=fast, soft=soft, detach_reset=False)
            assert config.detach_reset == (not (fast and soft))
