"""Command lines built from typed groups of options (`engine.settings`), strictly checked.

Every option is accepted with one dash or two and with `_` or `-` inside, since the published
scripts mix them.
"""

import argparse
import copy
import difflib
import os
import re
import sys

from engine import settings
from engine.errors import UseError
from engine.plain import check_plain

LARGEST_YAML = 1 << 18  # bytes; a configuration has a few hundred
NEAR = 0.6  # share of letters that a misspelled name has in common with the one that is meant


def _key(option):
    return option.lstrip("-").replace("-", "_")


def _nearest(name, known):
    """A hint that names the nearest of {name: how it is said}."""
    near = difflib.get_close_matches(name, known, 1, NEAR)
    return f"did you mean {known[near[0]]}?" if near else "--help lists the options"


def _checked(type):
    """The type of an option for argparse, which shows the text of its own error alone."""

    def convert(text):
        try:
            return type(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


class Parser(argparse.ArgumentParser):
    """The parser of a command, from the groups of its `Settings`: one-line errors, no
    abbreviations.

    kind: the class of `Settings`. description: one sentence.
    """

    def __init__(self, prog, description, kind=settings.Settings, **more):
        form = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(
            prog, description=description, allow_abbrev=False, formatter_class=form, **more
        )
        self.kind = kind
        for group, options in settings.groups(kind).values():
            # the first line of a group's docstring is its title
            shown = self.add_argument_group(group.__doc__.splitlines()[0].rstrip("."))
            for option in options:
                self._add(shown, option)

    def _add(self, group, option):
        """Declare one option to argparse."""
        # an option without help is accepted, and not shown
        words = {"default": option.default, "help": argparse.SUPPRESS}
        if option.help:
            words["help"] = option.help + (f" ({option.unit})" if option.unit else "")
        if option.flag:
            words["action"] = "store_true"
        for name in ("choices", "nargs", "const", "metavar"):
            if getattr(option, name) is not None:
                words[name] = getattr(option, name)
        if option.type:
            words["type"] = _checked(option.type)
        if option.positional:
            group.add_argument(option.name, **words)
        else:
            group.add_argument(f"--{option.name}", *option.spellings, dest=option.name, **words)

    def error(self, message):
        # argparse knows no more than that an option is unknown
        unknown = re.match(r"unrecognized arguments: (-\S*)", message)
        if unknown:
            known = {_key(option): option for option in self._option_string_actions}
            message += f"; {_nearest(_key(unknown[1].split('=')[0]), known)}"
        raise UseError(message)

    def spelled(self, argv):
        """The words of argv (None: of the command line), every option as it is declared, whatever
        its dashes.
        """
        known = {_key(o): o for o in self._option_string_actions}
        long = [key for key in known if len(key) > 1]
        for token in sys.argv[1:] if argv is None else argv:
            name, eq, value = token.partition("=")
            # -1 and -.5 are values
            if not re.fullmatch(r"--?[A-Za-z][\w-]*", name):
                yield token
                continue
            key = _key(name)
            # argparse would take -hardwareopt for -h with a value
            if key not in known and difflib.get_close_matches(key, long, 1, NEAR):
                self.error(f"unrecognized arguments: {name}")
            yield known.get(key, name) + eq + value

    def parse(self, argv):
        """The `Settings` that argv asks for.

        Raises:
            UseError: an option is unknown, or its value is not what it must be.
        """
        argv = list(self.spelled(argv))
        values = vars(self.parse_args(argv))
        return settings.make(self.kind, values, self._given(argv))

    def named(self, argv):
        """Names of the options among the words of argv, without those of a configuration file."""
        return Parser.parse(self, argv).given

    def _given(self, argv):
        """Names of the options that argv really names: without defaults no others are set."""
        # copies, since the defaults of this parser stay
        bare = copy.copy(self)
        bare._actions = [copy.copy(action) for action in self._actions]
        for action in bare._actions:
            action.default = argparse.SUPPRESS
        bare._option_string_actions = {o: a for a in bare._actions for o in a.option_strings}
        return vars(bare.parse_args(argv))


def read_yaml(path, loader):
    """The plain values that a YAML file holds, read by a loader of PyYAML's that makes no others.

    Raises:
        UseError: it is missing, not readable, too large, or unfolds to too much.
    """
    import yaml

    try:
        # PyYAML reads some 50 kB in a second
        if os.path.getsize(path) > LARGEST_YAML:
            raise ValueError(f"it has more than {LARGEST_YAML} bytes")
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=loader)
        check_plain(content)
    except FileNotFoundError:
        raise UseError(f"no configuration at {path}: check -c") from None
    # nested deeply, it exceeds Python's stack; some dates have no day
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UseError(f"{path} is not a readable YAML file: {reason}") from None
    return content


def read_conf(parser, path, gone=None):
    """The options that a YAML file of `key: value` gives, as command-line words for `parser`.

    Keys are option names, with `_` or `-`; true switches a flag on, false leaves it off. gone:
    {key: why it is refused}.
    Raises:
        UseError: the file is missing or no such mapping, or a key is unknown (the nearest is
        named), with file and key.
    """
    import yaml

    # all values stay text: the option's own type reads them
    content = read_yaml(path, yaml.BaseLoader)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UseError(f"{path} must hold lines of `key: value`, it holds a {kind}")

    # keys are long names: a one-letter key would say nothing
    actions = parser._option_string_actions
    # what a launcher alone gives its processes is hidden
    options = {
        _key(option): action
        for option, action in actions.items()
        if option.startswith("--") and action.help != argparse.SUPPRESS
    }
    words = []
    unknown = []
    for key, value in content.items():
        name = _key(str(key))
        if name in options:
            words += _words_of_key(path, key, value, options[name])
        else:
            hint = (gone or {}).get(name) or _nearest(name, {known: known for known in options})
            unknown.append(f"unknown key {key!r}; {hint}")
    # all at once, since published files have several
    if unknown:
        raise UseError(f"{path}: {', '.join(unknown)}")
    return words


def _words_of_key(path, key, value, action):
    """Command-line words of one line of a configuration."""
    option = action.option_strings[0]
    # a flag: naming the option is all there is to say
    if action.nargs == 0:
        if str(value).lower() not in ("true", "false"):
            raise UseError(f"{path}: {key} must be true or false, got {value!r}")
        return [option] if value.lower() == "true" else []
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return [option, *map(str, value)]
    if not isinstance(value, str):
        held = "a list of others" if isinstance(value, list) else "a mapping"
        raise UseError(f"{path}: {key} must be a value or a list, got {held}")
    if value in ("null", "~", "None", ""):
        return []
    # published files say of an autocast only whether there is one
    if action.choices and action.nargs == "?" and value.lower() in ("true", "false"):
        return [option] if value.lower() == "true" else []
    return [f"{option}={value}"]


def refuse_idle(given, rules):
    """Refuse options that were given but do nothing here.

    given: names of options. rules: [(names, holds, reason)]; the options in `names` need `holds`.
    Raises:
        UseError: one of them was given while its condition does not hold.
    """
    for names, holds, reason in rules:
        idle = sorted(given & set(names))
        if idle and not holds:
            raise UseError(f"--{idle[0]} does nothing here: {reason}")
