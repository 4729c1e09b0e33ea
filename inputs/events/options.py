"""Which prepared recordings are meant, and how they become input: what their preparation and the
training both obey. Nothing here imports torch, see `prepare`.
"""

from dataclasses import dataclass

from engine.settings import machine_option, nonnegative_float, number, option

from .formats import FRAMES


@dataclass(frozen=True)
class CodingOptions:
    """prepared recordings"""

    prepared: str = machine_option(
        "",
        "folder of the prepared recordings; default: neuromorphic_tasks/data/dvs-cifar10/prepared/"
        "<split>",
    )
    split: str | None = option(
        None, "name of the split; default: first900, or what --prepared holds"
    )
    T_prime: int = option(
        10,
        f"frames T_F that a recording is reduced to, 0: all {FRAMES}; Q_F = T_F / 2^(S-1) "
        "timesteps, rounded up",
        number(int, low=0, high=FRAMES),
    )
    resize: str = option(
        "plain",
        "published: as grey and alpha channel, which loses OFF events where there is no ON event",
        choices=("plain", "published"),
    )
    cache_gb: float = machine_option(
        4.0,
        "memory for coded recordings per process; at T_F = 80 all take 3.7 with 1 or 2 lanes, 1.8 "
        "with 3, 0.9 with 4; with less, recordings are coded in every epoch",
        nonnegative_float,
        unit="GB",
    )

    def __post_init__(self):
        # 0 and 80 mean one thing, wherever they come from: a command line or an older run
        object.__setattr__(self, "T_prime", self.T_prime or FRAMES)
