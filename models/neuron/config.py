"""What a multi-level LIF neuron is: one frozen, validated description, and the published presets.

Every published neuron is `u = leak*v + input_gain*x`, a staircase of `u / theta`, a reset and a surrogate
(SPEC section 1). A *scaled* neuron is the plain one with `theta * gain` and output `* gain`, `gain = 2^(1-S)`.
"""

from dataclasses import dataclass, replace

MAX_LEVELS = 8


@dataclass(frozen=True)
class NeuronConfig:
    """A multi-level LIF neuron with `levels` = S lanes; all fields are compile-time facts, theta and leak are not.

    Fields:
        levels: number of spike lanes S, 1 to 8; S = 1 is the ordinary LIF neuron.
        one_hot: True emits one of 0, 1, 2, ... 2^(S-1); False (multi-hot) one of 0, 1, 3, ... 2^S - 1.
        inclusive: an edge counts as passed at `u == edge` (`>=`), else only above it (`>`).
        input_gain: factor of the input current in the charge (1 / tau for `decay_input` neurons).
        reset: 'soft' subtracts `theta * output`, 'soft_theta' subtracts `theta` where a lane fired, 'hard' sets 0.
        detach_reset: no gradient through the firing decision inside the reset.
        scaled: edges at `theta * 2^(s-S+1)`, outputs `2^(s-S+1)`, so that the top lane emits 1.
        surrogate: 'triangle' (height `gamma`) or 'sigmoid' (steepness `alpha`).
        relative: surrogate distance `r / 2^i - 1` (True) or `r - 2^i` (False).
        edge: weight of the surrogate's inner edges: 'paper' the jump's 1/2, 'published' 3/2 (one-hot, relative only).
    Raises:
        ValueError: a field is out of range or two fields contradict each other.
    """

    levels: int = 3
    one_hot: bool = True
    inclusive: bool = False
    input_gain: float = 1.0
    reset: str = "soft"
    detach_reset: bool = True
    scaled: bool = False
    surrogate: str = "triangle"
    gamma: float = 0.3
    alpha: float = 4.0
    relative: bool = True
    edge: str = "published"

    def __post_init__(self):
        if not isinstance(self.levels, int) or not 1 <= self.levels <= MAX_LEVELS:
            raise ValueError(
                f"levels (lanes S) must be an integer from 1 to {MAX_LEVELS}, got {self.levels!r}"
            )
        for field, allowed in (
            ("reset", ("soft", "soft_theta", "hard")),
            ("surrogate", ("triangle", "sigmoid")),
            ("edge", ("paper", "published")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}"
                )
        if self.gamma <= 0 or self.alpha <= 0 or self.input_gain <= 0:
            raise ValueError(
                f"gamma, alpha and input_gain must be positive, got "
                f"{self.gamma}, {self.alpha}, {self.input_gain}"
            )
        if not self.detach_reset and self.reset == "hard" and self.levels > 1:
            raise ValueError(
                "detach_reset=False with a hard reset is defined for levels=1 only (the plain LIF baseline)"
            )

    @property
    def gain(self):
        """Factor of theta and of the output: 2^(1-S) for a scaled neuron, else 1. A power of two, so exact."""
        return 2.0 ** (1 - self.levels) if self.scaled else 1.0

    @property
    def edges(self):
        """Staircase edges of r = u / (theta * gain): 1, 2, 4, ..."""
        return [2.0**i for i in range(self.levels)]

    @property
    def jumps(self):
        """Height of the staircase at each edge, before the gain; the lanes' sum is the merged output."""
        return [1.0] + [2.0 ** (i - 1) if self.one_hot else 2.0**i for i in range(1, self.levels)]

    @property
    def slopes(self):
        """Surrogate weight c_i of each edge: d o / d r = sum_i c_i * phi(d_i), before the gain."""
        if not self.relative:
            return self.jumps
        inner = 1.0 if not self.one_hot else {"paper": 0.5, "published": 1.5}[self.edge]
        return [1.0] + [inner] * (self.levels - 1)

    @classmethod
    def vgg(cls, levels=3, hardware_opt=1, reset_to_zero=False, gamma=0.3, edge="published"):
        """Neuron of VGG16 and ResNet20 (`snn_ddp.py`); `hardware_opt` 1 one-hot, 2 multi-hot."""
        return cls(
            levels=levels,
            one_hot=hardware_opt != 2,
            reset="hard" if reset_to_zero else "soft",
            gamma=gamma,
            edge=edge,
        )

    @classmethod
    def vggsnn(cls, levels=3, edge="published"):
        """M-LIF neuron of VGGSNN: leak (`tau`) 0.5, theta 1, hard reset, gamma 1."""
        return cls(levels=levels, reset="hard", gamma=1.0, edge=edge)

    @classmethod
    def lif(cls):
        """Plain LIF baseline of VGGSNN (`--multi_channel 0`), whose hard reset is differentiated."""
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
        edge="published",
    ):
        """Neuron of the spike-driven transformer: `mlif`, or `fast_mlif` with `fast=True`. Its leak is 1 - 1/tau."""
        reset = ("soft" if fast else "soft_theta") if soft else "hard"
        return cls(
            levels=levels,
            inclusive=fast,
            input_gain=1 / tau if decay_input else 1.0,
            reset=reset,
            detach_reset=detach_reset or not (fast and soft),
            scaled=scaled,
            surrogate="sigmoid",
            relative=not fast,
            edge=edge,
        )
