"""Chains that YAML files declare, checked as they are read.

every: options of every command. training: further ones of those that train. stages: {name:
{"script", "options", "label"}}. Options are those of the scripts, null removes one; `{name}` is a
value of the command that runs the chain, or the checkpoint of the stage of that name.
"""

import yaml

from cli.parser import read_yaml
from engine.errors import MALFORMED, UseError, reason

from .stage import Stage, slug

# what the values of some keys must be
KINDS = dict.fromkeys(("every", "training", "stages", "options", "questions"), dict)
KINDS |= dict.fromkeys(("script", "folder", "question", "reference"), str) | {"variants": list}


class Known(dict):
    """Values of `{name}` in a text; a name that is unknown stays, as that of a stage does."""

    def __missing__(self, name):
        return f"{{{name}}}"


def filled(content, values):
    """The content with values in the place of `{name}` in its texts; None is no text."""
    if isinstance(content, dict):
        pairs = content.items()
        return {filled(key, values): filled(value, values) for key, value in pairs}
    if not isinstance(content, str):
        return content
    try:
        text = content.format_map(Known(values))
    except MALFORMED as error:
        raise UseError(f"{content!r} is no text with names in braces: {reason(error)}") from None
    # a value that is missing leaves the option out
    return None if text == "None" else text


def read(path):
    """The content of a YAML file.

    Raises:
        UseError: it is not readable.
    """
    return read_yaml(path, yaml.SafeLoader)


def check(where, content, needed, more=()):
    """Refuse what is no mapping with the keys `needed`, and of others with `more` alone."""
    known = (*needed, *more)
    if not isinstance(content, dict):
        raise UseError(f"{where}: expected a mapping of {', '.join(known)}, got {content!r}")
    for key in (*needed, *content):
        # a key that is needed is known, so it can only be missing
        if key not in known or key not in content:
            what = "unknown" if key in content else "missing"
            raise UseError(f"{where}: {key} is {what}, expected {', '.join(known)}")
        kind = KINDS.get(key, object)
        if not isinstance(content[key], kind):
            raise UseError(f"{where}: {key} is {content[key]!r}, expected a {kind.__name__}")


def check_chain(where, content, *needed):
    """Refuse what is no declared chain; needed: further keys of the mapping."""
    check(where, content, ("every", "training", "stages", *needed))
    for name, stage in content["stages"].items():
        check(f"{where}, {name}", stage, ("script", "options"), ("label",))


def stages(content, **more):
    """The stages of a declared chain; more: options of what trains; those of a stage win."""
    found = []
    for name, own in content["stages"].items():
        stage = Stage(slug(name), own["script"], dict(content["every"]))
        if stage.trains:
            stage.given |= content["training"]
            stage.given |= more
        stage.given |= own["options"]
        found.append(stage)
    return found


def needed(stages, names):
    """The stages that are named, and those whose results they start from, in order."""
    wanted = set(names)
    # a stage starts from earlier ones alone
    for stage in reversed(stages):
        if stage.name in wanted:
            # other values are names of no stage
            wanted |= {str(value).strip("{}") for value in stage.given.values()}
    return [stage for stage in stages if stage.name in wanted]
