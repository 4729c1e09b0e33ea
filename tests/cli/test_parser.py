"""A command line from typed groups: dashes, spellings, the nearest option, configurations."""

from dataclasses import dataclass

import pytest

from cli.parser import Parser, read_conf, refuse_idle
from engine import settings
from engine.errors import UseError
from engine.settings import Settings, group, option


@dataclass(frozen=True)
class MealOptions:
    """A meal.

    What is eaten.
    """

    main_dish: str = option("soup", "what is eaten", str.lower, spellings=("-d", "--meal"))
    portions: int = option(2, "how many of them", settings.positive_int, unit="bowls")
    side: str = option("bread", "what is eaten beside", choices=("bread", "rice"))
    spices: tuple = option((0.1, 0.2), "shares of two spices", settings.pair)
    guests: tuple = option((), "who comes", nargs="*")
    hot_plate: bool = option(False, "heat the plate")
    fresh: bool = option(True, "true or false", settings.boolean, nargs="?", const=True)
    secret: int | None = option(None, None, int)


@dataclass(frozen=True)
class PlaceOptions:
    """Where it is eaten"""

    place: str = option("", "room of the house", positional=True, nargs="?")


@dataclass(frozen=True)
class Supper(Settings):
    """Everything."""

    meal: MealOptions = group()
    where: PlaceOptions = group()


@pytest.fixture
def parser():
    return Parser("supper.py", "Cook a supper.", Supper)


@pytest.fixture
def refused(parser):
    """refused(argv): the one line with which the parser refuses it."""

    def run(argv):
        with pytest.raises(UseError) as error:
            parser.parse(argv.split())
        return str(error.value)

    return run


# ---- values


def test_without_words_everything_is_at_its_default(parser):
    asked = parser.parse([])
    assert asked == settings.make(Supper, {})
    assert asked.given == frozenset()


@pytest.mark.parametrize(
    "argv",
    [
        "--main_dish Stew",
        "-main_dish Stew",
        "--main-dish Stew",
        "-main-dish Stew",
        "--main_dish=Stew",
        "-main-dish=Stew",
        "-d Stew",
        "--d Stew",
        "--meal Stew",
        "-meal=Stew",
    ],
)
def test_every_spelling_with_every_dash(parser, argv):
    asked = parser.parse(argv.split())
    assert asked.meal.main_dish == "stew"
    assert asked.given == {"main_dish"}


def test_a_negative_number_is_a_value(parser):
    assert parser.parse(["--secret", "-3"]).meal.secret == -3


def test_a_flag_is_switched_on_by_its_name(parser):
    assert parser.parse(["-hot-plate"]).meal.hot_plate


def test_a_short_option_may_have_its_value_attached(parser):
    assert parser.parse(["-dStew"]).meal.main_dish == "stew"


@pytest.mark.parametrize("argv, value", [("--fresh", True), ("--fresh false", False), ("", True)])
def test_true_and_false_are_said(parser, argv, value):
    assert parser.parse(argv.split()).meal.fresh is value


def test_a_word_without_a_name(parser):
    asked = parser.parse(["kitchen", "--portions", "3"])
    assert asked.where.place == "kitchen"
    assert asked.given == {"place", "portions"}


def test_several_words(parser):
    assert parser.parse(["--guests", "Ann", "Ben", "--side", "rice"]).meal.guests == ("Ann", "Ben")


def test_what_repeats_the_default_is_given_all_the_same(parser):
    assert parser.parse(["--portions", "2", "--side", "bread"]).given == {"portions", "side"}


def test_the_last_of_two_counts(parser):
    assert parser.parse(["--portions", "2", "-portions=5"]).meal.portions == 5


def test_an_option_without_help_is_accepted(parser):
    assert parser.parse(["--secret=1"]).meal.secret == 1


# ---- refusals


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--portoins 3", "unrecognized arguments: --portoins; did you mean --portions?"),
        ("-hot_plat", "unrecognized arguments: -hot_plat; did you mean --hot_plate?"),
        ("-dish", "unrecognized arguments: -dish; did you mean --main_dish?"),  # not -d ish
        ("--hot-plat", "did you mean --hot_plate?"),
        ("--portoins=3", "did you mean --portions?"),
        ("--zzz", "--help lists the options"),
        ("--port 3", "unrecognized arguments: --port;"),  # no abbreviations
        ("--portions 0", "argument --portions: expected a number >= 1, got 0"),
        ("--portions", "argument --portions: expected one argument"),
        ("--side pasta", "invalid choice: 'pasta' (choose from"),
        ("--spices 0.1", "expected two numbers such as 0.9,0.999, got '0.1'"),
        ("kitchen garden", "unrecognized arguments: garden"),
    ],
)
def test_a_refusal_is_one_line(refused, argv, words):
    line = refused(argv)
    assert words in line
    assert "\n" not in line


def test_what_does_nothing_is_refused():
    rules = [(["warm_up_lr", "warm_up_epochs"], False, "give --warm_up"), (["a"], True, "never")]
    refuse_idle({"a", "epochs"}, rules)
    with pytest.raises(UseError, match="--warm_up_epochs does nothing here: give --warm_up"):
        refuse_idle({"a", "warm_up_lr", "warm_up_epochs"}, rules)


# ---- help


def shown(parser):
    return " ".join(parser.format_help().split())


def test_help_has_a_paragraph_for_each_group(parser):
    """Its title is the first line of the group's docstring."""
    titles = [line for line in parser.format_help().splitlines() if line.endswith(":")]
    assert titles == ["options:", "general:", "A meal:", "Where it is eaten:"]


def test_help_says_unit_and_default(parser):
    assert "how many of them (bowls) (default: 2)" in shown(parser)


def test_help_names_all_spellings_and_choices(parser):
    text = shown(parser)
    # Python 3.13 names the value once
    assert all(spelling in text for spelling in ("--main_dish", "-d", "--meal MAIN_DISH"))
    assert "--side {bread,rice}" in text


def test_help_does_not_show_what_has_no_help(parser):
    assert "secret" not in shown(parser)


# ---- configurations


@pytest.fixture
def conf(parser, tmp_path):
    """conf(text): what the parser makes of a configuration."""

    def read(text, **more):
        path = tmp_path / "conf.yml"
        path.write_text(text)
        return parser.parse(read_conf(parser, path, **more))

    return read


def test_a_configuration_gives_values_and_flags(conf):
    asked = conf("main-dish: Stew\nportions: 3\nhot_plate: true\nspices: 0.3,0.4\n")
    meal = asked.meal
    assert (meal.main_dish, meal.portions, meal.hot_plate) == ("stew", 3, True)
    assert meal.spices == (0.3, 0.4)
    assert asked.given == {"main_dish", "portions", "hot_plate", "spices"}


def test_a_configuration_may_use_further_spellings(conf):
    assert conf("meal: Stew").meal.main_dish == "stew"


def test_a_list_is_several_words(conf):
    assert conf("guests: [Ann, Ben]").meal.guests == ("Ann", "Ben")


@pytest.mark.parametrize("text", ["hot_plate: false", "portions: null", "portions: ", "side: ''"])
def test_what_is_off_or_empty_is_left_out(conf, text):
    assert conf(text).given == frozenset()


def test_values_stay_text_until_the_option_reads_them(conf):
    """1e-3 would be a text to YAML, yes a truth."""
    assert conf("main_dish: yes").meal.main_dish == "yes"


@pytest.mark.parametrize(
    "text, words",
    [
        ("portoins: 3", "conf.yml: unknown key 'portoins'; did you mean portions?"),
        ("zzz: 3", "unknown key 'zzz'; --help lists the options"),
        ("hot_plate: 3", "conf.yml: hot_plate must be true or false, got '3'"),
        ("portions: {a: 1}", "conf.yml: portions must be a value or a list, got a mapping"),
        ("- portions", "conf.yml must hold lines of `key: value`, it holds a list"),
        ("portions: [", "conf.yml is not a readable YAML file: "),
        ("portions: 0", "expected a number >= 1, got 0"),
    ],
)
def test_a_wrong_configuration_is_refused(conf, text, words):
    with pytest.raises(UseError) as error:
        conf(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_that_has_gone_is_explained(conf):
    with pytest.raises(UseError, match="unknown key 'oven'; nothing is baked any more"):
        conf("oven: 3", gone={"oven": "nothing is baked any more"})


def test_a_missing_configuration_is_named(parser, tmp_path):
    with pytest.raises(UseError, match=r"no configuration at .*none\.yml: check -c"):
        read_conf(parser, tmp_path / "none.yml")
