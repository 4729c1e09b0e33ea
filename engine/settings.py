"""Options as typed, frozen groups, each option declared once, beside the code that obeys it.

A *group* is a frozen dataclass whose fields are made by `option`; a command's `Settings` is a
frozen dataclass whose fields are groups, made by `group`. `cli.parser` builds the command line from
them; the first line of a group's docstring is its title in --help. A function takes the group that
it needs, so its signature tells what it depends on.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache, partial
from typing import Any

RESULT = "result"  # changes what is computed: a resumed run may not change it
RUN = "run"  # says what is shown, stored or measured: a resumed run may change it
# belongs to this machine (devices, folders): may change, and is no part of what a result is
MACHINE = "machine"


@dataclass(frozen=True)
class Option:
    """One option as a command has it.

    name: field of its group. spellings: further names on the command line. help: what it is,
    without the default; None hides it. unit: of the value. governs: RESULT, RUN or MACHINE. type:
    text -> value, raising ValueError. nargs, const, metavar: as argparse has them. positional: a
    word without a name.
    """

    name: str
    default: Any
    help: str | None
    type: Callable | None = None
    spellings: tuple = ()
    choices: tuple | None = None
    unit: str = ""
    governs: str = RESULT
    nargs: str | int | None = None
    const: Any = None
    metavar: Any = None
    positional: bool = False

    @property
    def flag(self):
        """Whether naming the option switches it on, without a value."""
        # with a type, true and false are said: a published habit
        return isinstance(self.default, bool) and self.type is None

    @property
    def keys(self):
        """Every name under which a file of settings may hold the option."""
        return [self.name, *(spelling.lstrip("-") for spelling in self.spellings)]

    def check(self, stored):
        """Refuse a stored value that the option cannot have.

        Raises:
            ValueError: says what was expected.
        """
        if stored == self.default:
            return
        if isinstance(stored, (list, tuple)):
            several = self.nargs or isinstance(self.default, tuple)
            if not several or not all(isinstance(one, (int, float, str)) for one in stored):
                raise ValueError("expected other values")
        elif self.flag and not isinstance(stored, bool):
            raise ValueError("expected true or false")
        elif stored is None or isinstance(stored, dict):
            raise ValueError("expected a single value")
        elif self.type is None and self.choices is None and not isinstance(stored, (bool, str)):
            raise ValueError("expected a text")
        else:
            value = self.type(str(stored)) if self.type else stored
            if self.choices is not None and value not in self.choices:
                raise ValueError(f"expected one of {', '.join(map(str, self.choices))}")

    def value(self, stored):
        """What a stored value means: text goes through `type`, lists become tuples."""
        # an older spelling of the value, such as torch/cifar10, is read as on the command line
        if isinstance(stored, str) and self.type is not None:
            return self.type(stored)
        return tuple(stored) if isinstance(stored, list) else stored


def option(default, help, type=None, **more):
    """A field of a group, an option that changes the result; `more`: see `Option`."""
    return field(default=default, metadata={"help": help, "type": type, **more})


# options of the other two kinds
run_option = partial(option, governs=RUN)
machine_option = partial(option, governs=MACHINE)


def group(only=None, hidden=(), **changes):
    """A field of a command's `Settings` that holds a group.

    only: names of the options that the command has (None: all but `hidden`); the others keep their
    defaults. changes: {name of an option: another default, or a dictionary of what differs, such as
    {"help": ...}}.
    """
    return field(default=None, metadata={"only": only, "hidden": hidden, "changes": changes})


@dataclass(frozen=True)
class CommonOptions:
    """general"""

    debug: bool = run_option(False, "show the traceback of an error")


@dataclass(frozen=True)
class Settings:
    """What a command was asked to do: its groups, and `given`, the names of the options that the
    command line named.
    """

    common: CommonOptions = group()
    given: frozenset = frozenset()


@cache
def groups(cls):
    """{name of a group: (its class, the options that the command has)} of a `Settings` class."""
    # a field without metadata, such as `given`, is no group
    found = {}
    for own in fields(cls):
        if own.metadata:
            found[own.name] = own.type, list(_shown(own))
    return found


def _shown(own):
    """The options of one group that the command has; own: the field that `group` made."""
    only, hidden, changes = (own.metadata[key] for key in ("only", "hidden", "changes"))
    for declared in fields(own.type):
        name = declared.name
        if name in hidden or (only and name not in only):
            continue
        change = changes.get(name, {})
        if not isinstance(change, dict):
            change = {"default": change}
        yield Option(name, **{"default": declared.default, **declared.metadata, **change})


def options(cls):
    """{name: `Option`} of everything that a command has."""
    return {option.name: option for _, shown in groups(cls).values() for option in shown}


def stored_name(cls):
    """{name in a file of settings: name of the option}, further spellings included."""
    return {key: name for name, option in options(cls).items() for key in option.keys}


def make(cls, values, given=()):
    """The `Settings` of {name: value}; what is missing is at its default."""
    # what a command does not show is at the default that its group declares
    made = {
        name: kind(
            **{o.name: o.value(values.get(o.name, o.default)) for o in shown},
        )
        for name, (kind, shown) in groups(cls).items()
    }
    return cls(**made, given=frozenset(given))


def flat(settings: Settings):
    """{name: plain value} of every option of the command, for files; the inverse of `make`."""
    found = {}
    for name, (_, shown) in groups(type(settings)).items():
        group = getattr(settings, name)
        for one in shown:
            value = getattr(group, one.name)
            found[one.name] = list(value) if isinstance(value, tuple) else value
    return found


# ---- types of options: text -> value, or ValueError with what was expected ----

LARGEST = 2**31 - 1  # whole number
INSIDE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


def number(kind, low=None, high=None, above=None, below=None):
    """Type of a number of `kind` within [low, high] and (above, below); a float must be finite."""
    limits = {">=": low, ">": above, "<=": high, "<": below}
    limits = {sign: limit for sign, limit in limits.items() if limit is not None}
    return partial(_number, kind=kind, limits=limits)


def _number(text, kind, limits):
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"expected {kind.__name__}, got {text!r}") from None
    if kind is int and abs(value) > LARGEST:
        raise ValueError(f"expected a number <= {LARGEST}, got {text}")
    # NaN is inside no limits
    inside = all(INSIDE[sign](value, limit) for sign, limit in limits.items())
    if inside and (kind is int or math.isfinite(value)):
        return value
    expected = " and ".join(f"{sign} {limit}" for sign, limit in limits.items())
    raise ValueError(f"expected a number {expected or 'that is finite'}, got {text}")


def fractions(text):
    """Type of fractions of the epochs in (0, 1], separated by spaces or commas."""
    return tuple(fraction(part) for part in text.replace(",", " ").split())


def boolean(text):
    """Type of true or false."""
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"expected true or false, got {text!r}")
    return text.lower() in ("true", "1")


def pair(text):
    """Type of two comma-separated numbers in [0, 1)."""
    values = tuple(number(float, low=0, below=1)(part) for part in text.split(","))
    if len(values) != 2:
        raise ValueError(f"expected two numbers such as 0.9,0.999, got {text!r}")
    return values


fraction = number(float, above=0, high=1)
share = number(float, low=0, high=1)
positive_int = number(int, low=1)
natural = seed = number(int, low=0)
nonnegative_float = number(float, low=0)
positive_float = number(float, above=0)
finite = number(float)
whole = number(int)
width = number(float, above=0, high=16)
