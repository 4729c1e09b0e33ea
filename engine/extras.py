"""Packages that only some commands need: those of requirements-export.txt."""

import importlib

from .errors import UseError


def need(name):
    """The module `name`, of requirements-export.txt.

    Raises:
        UseError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UseError(
            f"{name} is missing ({error}): pip install -r requirements-export.txt"
        ) from None
