"""Leaderboard: `python -m orchestrator.leaderboard RUN` reads a board and prints it, for people or for programs."""

from typing import Annotated

import typer

from orchestrator.display.leaderboard import Format, View, print_board
from orchestrator.errors import exit_on_bad_input, run_command


def main(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folder: a path or s3:// address.")],
    where_: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="CONDITION", help="Only rows with dropout=0.5, say; or != < > <= >=. Repeatable."
        ),
    ] = None,
    by_config_: Annotated[bool, typer.Option("--by-config", help="Fold the seeds: mean, deviation, interval.")] = False,
    effects_: Annotated[bool, typer.Option("--effects", help="What each axis does, and how much it matters.")] = False,
    classes_: Annotated[
        bool, typer.Option("--classes", help="What the winner does on each class: recall, precision, confusion.")
    ] = False,
    compare_: Annotated[bool, typer.Option("--compare", help="Several runs as one board, with what differs.")] = False,
    sort: Annotated[str | None, typer.Option(help="Column to order by, instead of rank.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Show only the first N rows.")] = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: see docs/json.md.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh it until the run ends, or Ctrl-C.")] = False,
) -> None:
    """Print the leaderboard of any run, a running one too."""
    view = View(tuple(where_ or ()), by_config_, effects_, classes_, compare_, sort, top)
    with exit_on_bad_input():
        print_board(runs, view, format, watch, as_json)


if __name__ == "__main__":
    run_command(main)
