"""Typed groups of options: what a command has of them, files of settings, types and messages."""

import dataclasses
from dataclasses import dataclass

import pytest

from engine import settings
from engine.settings import MACHINE, RESULT, RUN, Settings, group, option


@dataclass(frozen=True)
class FoodOptions:
    """food"""

    dish: str = option("soup", "what is eaten", str.lower, spellings=("-d", "--meal"))
    portions: int = option(2, "how many", settings.positive_int, unit="bowls")
    spices: tuple = option((0.1, 0.2), "shares of two spices", settings.pair)
    hot: bool = option(False, "heat the dish")
    fresh: bool = option(True, "true or false", settings.boolean)
    oven: str = option("auto", "where the dish is heated", governs=MACHINE)


@dataclass(frozen=True)
class TableOptions:
    """table"""

    seats: int | None = option(None, "chairs", settings.natural, governs=RUN)


@dataclass(frozen=True)
class Supper(Settings):
    """Everything."""

    food: FoodOptions = group()
    table: TableOptions = group()


@dataclass(frozen=True)
class Snack(Settings):
    """Parts of a group, some of them changed."""

    food: FoodOptions = group(
        hidden=("oven", "fresh"), portions=1, dish={"default": "bread", "help": "what is nibbled"}
    )


@dataclass(frozen=True)
class Drink(Settings):
    """One option of a group."""

    food: FoodOptions = group(only=("hot",))


# ---- groups


def test_a_group_without_values_is_at_its_defaults():
    food = FoodOptions()
    assert (food.dish, food.portions, food.spices, food.hot) == ("soup", 2, (0.1, 0.2), False)


def test_a_group_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FoodOptions().dish = "salad"


def test_a_command_has_the_options_of_its_groups():
    names = ["debug", "dish", "portions", "spices", "hot", "fresh", "oven", "seats"]
    assert list(settings.options(Supper)) == names


def test_hidden_options_are_not_the_commands():
    assert list(settings.options(Snack)) == ["debug", "dish", "portions", "spices", "hot"]


def test_only_the_named_options_are_the_commands():
    assert list(settings.options(Drink)) == ["debug", "hot"]


def test_a_command_changes_default_and_help():
    portions, dish = (settings.options(Snack)[name] for name in ("portions", "dish"))
    assert (portions.default, portions.help, portions.unit) == (1, "how many", "bowls")
    assert (dish.default, dish.help) == ("bread", "what is nibbled")
    assert dish.spellings == ("-d", "--meal")


def test_a_change_is_the_commands_own():
    assert settings.options(Supper)["portions"].default == 2
    assert settings.options(Supper)["dish"].help == "what is eaten"


def test_what_an_option_governs():
    options = settings.options(Supper)
    kinds = {name: options[name].governs for name in ("dish", "oven", "seats")}
    assert kinds == {"dish": RESULT, "oven": MACHINE, "seats": RUN}


def test_an_option_with_a_type_is_no_flag():
    """--fresh false is said, --hot is named or not."""
    options = settings.options(Supper)
    assert options["hot"].flag
    assert not options["fresh"].flag


# ---- make and flat


def test_what_is_missing_is_at_the_default_of_the_command():
    made = settings.make(Snack, {"hot": True})
    assert (made.food.dish, made.food.portions, made.food.hot) == ("bread", 1, True)


def test_what_is_not_shown_is_at_the_default_of_the_group():
    made = settings.make(Snack, {"oven": "big"})
    assert (made.food.oven, made.food.fresh) == ("auto", True)


def test_given_are_the_options_that_were_named():
    assert settings.make(Supper, {}).given == frozenset()
    assert settings.make(Supper, {"dish": "soup"}, ["dish"]).given == {"dish"}


def test_flat_is_plain_values_of_the_shown_options():
    assert settings.flat(settings.make(Snack, {})) == {
        "debug": False,
        "dish": "bread",
        "portions": 1,
        "spices": [0.1, 0.2],
        "hot": False,
    }


def test_make_is_the_inverse_of_flat():
    values = {"dish": "stew", "portions": 5, "spices": (0.0, 0.5), "oven": "big", "seats": 3}
    made = settings.make(Supper, values)
    assert settings.make(Supper, settings.flat(made)) == made


def test_stored_text_is_read_as_on_the_command_line():
    made = settings.make(Supper, {"dish": "STEW", "spices": [0.3, 0.4]})
    assert (made.food.dish, made.food.spices) == ("stew", (0.3, 0.4))


def test_none_is_stored_as_it_is():
    made = settings.make(Supper, {"seats": None})
    assert made.table.seats is None
    assert settings.flat(made)["seats"] is None


def test_stored_settings_are_found_by_older_spellings():
    names = settings.stored_name(Supper)
    assert names["meal"] == names["d"] == names["dish"] == "dish"
    assert names["seats"] == "seats"
    assert "table" not in names


# ---- types


@pytest.mark.parametrize(
    "kind, text, value",
    [
        (settings.positive_int, "3", 3),
        (settings.natural, "0", 0),
        (settings.nonnegative_float, "1e-3", 1e-3),
        (settings.share, "1", 1.0),
        (settings.fraction, "0.5", 0.5),
        (settings.positive_float, "0.1", 0.1),
        (settings.finite, "-2.5", -2.5),
        (settings.natural, "2147483647", 2**31 - 1),
        (settings.width, "0.125", 0.125),
        (settings.boolean, "True", True),
        (settings.boolean, "0", False),
        (settings.pair, "0.9,0.999", (0.9, 0.999)),
        (settings.fractions, "0.4 0.6,0.8", (0.4, 0.6, 0.8)),
        (settings.number(int, low=1, high=8), "8", 8),
    ],
)
def test_a_type_reads_text(kind, text, value):
    got = kind(text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    "kind, text, message",
    [
        (settings.positive_int, "0", "expected a number >= 1, got 0"),
        (settings.positive_int, "2147483648", "expected a number <= 2147483647, got 2147483648"),
        (settings.positive_int, "three", "expected int, got 'three'"),
        (settings.positive_int, "1.5", "expected int, got '1.5'"),
        (settings.natural, "-1", "expected a number >= 0, got -1"),
        (settings.nonnegative_float, "-0.1", "expected a number >= 0, got -0.1"),
        (settings.nonnegative_float, "fast", "expected float, got 'fast'"),
        (settings.nonnegative_float, "nan", "expected a number >= 0, got nan"),
        (settings.nonnegative_float, "inf", "expected a number >= 0, got inf"),
        (settings.finite, "inf", "expected a number that is finite, got inf"),
        (settings.finite, "nan", "expected a number that is finite, got nan"),
        (settings.positive_float, "0", "expected a number > 0, got 0"),
        (settings.share, "1.1", "expected a number >= 0 and <= 1, got 1.1"),
        (settings.fraction, "0", "expected a number > 0 and <= 1, got 0"),
        (settings.width, "17", "expected a number > 0 and <= 16, got 17"),
        (settings.boolean, "yes", "expected true or false, got 'yes'"),
        (settings.pair, "0.9", "expected two numbers such as 0.9,0.999, got '0.9'"),
        (settings.pair, "0.9,1", "expected a number >= 0 and < 1, got 1"),
        (settings.fractions, "0.5,1.5", "<= 1, got 1.5"),
        (settings.number(int, low=1, high=8), "9", "expected a number >= 1 and <= 8, got 9"),
    ],
)
def test_a_type_says_what_it_expected(kind, text, message):
    with pytest.raises(ValueError) as error:
        kind(text)
    assert message in str(error.value)
