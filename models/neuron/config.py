"""What a multi-level LIF neuron is: one frozen, validated description, and the published presets.

Every published neuron is `u = leak*v + input_gain*x`, a staircase of `u / unit`, a reset and a
surrogate gradient (docs/method.md, section 1). A *scaled* neuron is the plain one with a unit of
`theta * gain` and an output times `gain`, where `gain = 2^(1-S)`; elsewhere the gain is 1.
"""

from dataclasses import dataclass, replace
from math import inf

MAX_LEVELS = 8
RESETS = ("soft", "soft_theta", "hard")
# a kernel knows a surrogate by its place in this row
SURROGATES = ("triangle", "sigmoid", "clipped")
INNER_SLOPES = ("paper", "published")


def check_positive(name, value):
    """Raises ValueError for a number that is not positive and finite."""
    if not 0 < value < inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


@dataclass(frozen=True)
class NeuronConfig:
    """A multi-level LIF neuron of `levels` = S lanes.

    All fields are facts of a compilation; theta and the leak are tensors and none of them.

    Fields:
        levels: number of spike lanes S, 1 to 8; S = 1 is the ordinary LIF neuron.
        one_hot: True emits one of 0, 1, 2, ... 2^(S-1); False (multi-hot) one of 0, 1, 3, 7, ...
        inclusive: a boundary counts as passed at equality (`>=`), else only above it (`>`).
        input_gain: factor of the input current in the charge (1 / tau for `decay_input` neurons).
        reset: 'soft' subtracts `theta * output`, 'soft_theta' subtracts `theta` where a lane fired,
            'hard' sets 0 there.
        detach_reset: no gradient through the firing decision inside the reset; always True for
            'soft_theta', which has none.
        scaled: boundaries at `theta * 2^(s-S+1)`, outputs `2^(s-S+1)`: the top lane emits 1.
        surrogate: 'triangle' (height `gamma`) or 'sigmoid' (steepness `alpha`) at each boundary;
            'clipped' is `gamma` from 0 to where a line of that slope reaches the top output.
        relative: the surrogate's distance is `r / 2^i - 1` (True) or `r - 2^i` (False).
        inner_slope: weight of the surrogate at the inner boundaries of a one-hot neuron with
            relative distances: 'paper' takes the jump's 1/2, 'published' 3/2.
    Raises:
        ValueError: a field is out of range or two fields contradict each other.
    """

    # Charge, fire and reset.
    levels: int = 3
    one_hot: bool = True
    inclusive: bool = False
    input_gain: float = 1.0
    reset: str = "soft"
    detach_reset: bool = True
    scaled: bool = False

    # The surrogate gradient.
    surrogate: str = "triangle"
    gamma: float = 0.3
    alpha: float = 4.0
    relative: bool = True
    inner_slope: str = "published"

    def __post_init__(self):
        if not isinstance(self.levels, int) or not 1 <= self.levels <= MAX_LEVELS:
            raise ValueError(
                f"levels (lanes S) must be an integer from 1 to {MAX_LEVELS}, got {self.levels!r}"
            )
        self._check_word("reset", RESETS)
        self._check_word("surrogate", SURROGATES)
        self._check_word("inner_slope", INNER_SLOPES)
        for field in ("gamma", "alpha", "input_gain"):
            check_positive(field, getattr(self, field))
        if self.reset == "soft_theta":
            object.__setattr__(self, "detach_reset", True)  # one neuron has one description
        # (1 - o) * u, which is differentiated then, is a reset for outputs of 0 and 1 only.
        if not self.detach_reset and self.reset == "hard" and self.levels > 1:
            raise ValueError(
                "detach_reset=False with a hard reset is defined for levels=1 only "
                "(the plain LIF baseline)"
            )

    def _check_word(self, field, allowed):
        value = getattr(self, field)
        if value not in allowed:
            raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {value!r}")

    @property
    def gain(self):
        """Factor of theta and of the output: 2^(1-S) for a scaled neuron, else 1.

        It is a power of two, so that multiplying by it is exact.
        """
        return 2.0 ** (1 - self.levels) if self.scaled else 1.0

    @property
    def boundaries(self):
        """Where the staircase of r = u / unit steps up: 1, 2, 4, ..."""
        return [2.0**i for i in range(self.levels)]

    @property
    def jumps(self):
        """Height of the staircase at each boundary, before the gain."""
        # One-hot, the lane below goes silent: 2^i instead of 2^(i-1) is a jump of 2^(i-1).
        first_inner = 0.5 if self.one_hot else 1.0
        return [1.0] + [first_inner * 2.0**i for i in range(1, self.levels)]

    @property
    def slopes(self):
        """Weight c_i of the surrogate at each boundary: d o / d r = sum_i c_i * phi(d_i)."""
        if not self.relative:
            return self.jumps
        inner = 1.0  # every lane of a multi-hot neuron is a threshold by itself
        if self.one_hot:
            # Numbers of a global would be inputs of what torch.compile makes, and slow it down.
            inner = 1.5 if self.inner_slope == "published" else 0.5
        return [1.0] + [inner] * (self.levels - 1)

    @property
    def surrogate_parameters(self):
        """{name: value} of what shapes the surrogate; kernels see the names in capital letters.

        An absolute distance is measured in units of theta * gain, and alpha for theta: hence gain.
        """
        alpha = self.alpha if self.relative else self.alpha * self.gain
        return {"gamma": self.gamma, "alpha": alpha}

    @classmethod
    def vgg(
        cls,
        levels=3,
        hardware_opt=1,
        reset_to_zero=False,
        gamma=0.3,
        inner_slope="published",
        surrogate="triangle",
    ):
        """Neuron of VGG16 and ResNet20 (`snn_ddp.py`); `hardware_opt` 1 one-hot, 2 multi-hot."""
        return cls(
            levels=levels,
            one_hot=hardware_opt != 2,
            reset="hard" if reset_to_zero else "soft",
            surrogate=surrogate,
            gamma=gamma,
            inner_slope=inner_slope,
        )

    @classmethod
    def vggsnn(cls, levels=3, inner_slope="published"):
        """M-LIF neuron of VGGSNN: hard reset, gamma 1 (published with leak 0.5 and theta 1)."""
        return cls(levels=levels, reset="hard", gamma=1.0, inner_slope=inner_slope)

    @classmethod
    def lif(cls):
        """Plain LIF baseline of VGGSNN (`--multi_channel 0`); its hard reset is differentiated."""
        return replace(cls.vggsnn(levels=1), detach_reset=False)

    @classmethod
    def transformer(
        cls,
        levels=3,
        fast=False,
        soft=False,
        detach_reset=True,
        decay_input=True,
        scaled=True,
        tau=2.0,
        inner_slope="published",
    ):
        """Neuron of the spike-driven transformer: `mlif`, or `fast_mlif` with `fast=True`.

        Its leak is 1 - 1/tau.
        """
        soft_reset = "soft" if fast else "soft_theta"
        return cls(
            levels=levels,
            inclusive=fast,
            input_gain=1 / tau if decay_input else 1.0,
            reset=soft_reset if soft else "hard",
            # Only the soft reset of `fast_mlif` has a firing decision to differentiate.
            detach_reset=detach_reset or not (fast and soft),
            scaled=scaled,
            surrogate="sigmoid",
            relative=not fast,
            inner_slope=inner_slope,
        )
