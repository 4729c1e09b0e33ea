"""Reproduce a row of the published tables: its whole chain by the public scripts, measured beside
published.

python reproduce.py --list
python reproduce.py cifar10-resnet20-mlif --schedule fast --width_mult 0.25
python reproduce.py --report
"""

from dataclasses import replace
from pathlib import Path

from cli.parser import Parser
from engine.errors import UseError, guard
from experiments import results, rows, tables
from experiments.arithmetic import ROOT
from experiments.options import RowSettings, settled
from experiments.verdict import verdict


def get_parser():
    """Its command line."""
    about = "Run a row of the published tables, measured beside published."
    return Parser("reproduce.py", about, RowSettings)


def of_row(asked: RowSettings, row: rows.Row):
    """The settings with the width of the row: the one that is asked for, else the schedule's."""
    network = asked.network
    if network.width_mult is None:
        # the transformers have one width
        narrow = asked.row.schedule == "smoke" and "Transformer" not in row.network
        network = replace(network, width_mult=0.25 if narrow else 1.0)
    return replace(asked, network=network)


def dry_run(row: rows.Row, asked: RowSettings):
    """Print the commands of a row."""
    # a comment, so that the output is a script
    print(f"# {row.name}")
    first, *_ = asked.experiment.seeds
    chain = results.make_chain(row, asked, first)
    for stage in chain.stages.values():
        stage.parsed()
        print(stage.command(stage.words))


def run(row: rows.Row, asked: RowSettings, folder):
    """Run what is missing of a row for all seeds, write the result and print the verdict."""
    path = results.result_file(row, asked, folder)
    result = results.run(row, asked, path)
    print(f"\n{verdict(row, result)}\nwritten to {path}")


def dry_run_all(asked: RowSettings):
    """Print the commands of all rows, and which have none."""
    for row in rows.table().values():
        try:
            dry_run(row, of_row(asked, row))
        except UseError as error:
            print(f"# none: {error}")


def main(argv=None):
    """Run the command line argv (None: this process's)."""
    asked = get_parser().parse(argv)
    what = asked.experiment
    schedule = asked.row.schedule
    folder = Path(what.results or ROOT / "results" / "rows")
    if what.list:
        print(tables.listing(folder))
        return
    if what.report:
        # the README tells of the results that are part of the repository
        page = folder / "table.md" if what.results else ROOT / "README.md"
        print(f"{tables.report(folder, page)}\n\nwritten to {page} and {folder}/rows.png")
        return
    if not asked.row.row and not asked.row.dry_run:
        raise UseError("name a row; --list shows all")

    # published recipes are as printed, without autocast
    asked = settled(asked, "none" if schedule == "published" else None)
    if not asked.row.row:
        dry_run_all(asked)
        return
    row = rows.find(asked.row.row)
    asked = of_row(asked, row)
    if asked.row.dry_run:
        dry_run(row, asked)
        return
    # what a smoke run says is not kept beside results
    if schedule == "smoke" and not what.results:
        folder = Path(asked.run.output_dir) / "results"
    run(row, asked, folder)


if __name__ == "__main__":
    guard(main)
