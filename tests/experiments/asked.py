"""Settings of reproduce.py for a row, as its command line gives them."""

import shlex

import reproduce
from experiments import results, rows
from experiments.options import settled


def asked_for(row, words=""):
    """The settled settings of `reproduce.py <row> <words>`."""
    argv = [row.name, "--amp", "none", "--device", "cpu", *shlex.split(words)]
    return reproduce.of_row(settled(reproduce.get_parser().parse(argv)), row)


def chain_of(name, words=""):
    """The chain of a row's first seed."""
    row = rows.find(name)
    asked = asked_for(row, words)
    return results.make_chain(row, asked, asked.experiment.seeds[0])
