"""Packages that only some commands need: those of requirements-export.txt, and NeuroBench."""

import importlib

from .errors import UseError

EXPORT = "-r requirements-export.txt"
OTHERS = {"neurobench": "--no-deps -r requirements-neurobench.txt"}


def need(name):
    """The module `name`, of one of these packages.

    Raises:
        UseError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        # it may be what that package itself imports
        package, *_ = (error.name or name).split(".")
        files = OTHERS.get(package, EXPORT)
        raise UseError(f"{name} is missing ({error}): pip install {files}") from None
