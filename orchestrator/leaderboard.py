"""Leaderboard: `python -m orchestrator.leaderboard RUN` reads a board and prints it, for people or for programs."""

import contextlib
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import pyarrow as pa
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from orchestrator.board.verdict import sentences
from orchestrator.board.views import by_config, compare, effects, sort_board, verdict, where
from orchestrator.display.opening import read_board, read_history, read_shared, run_names
from orchestrator.display.table import as_csv, as_json, as_markdown, as_rich
from orchestrator.errors import BadInput, exit_on_bad_input, run_command
from orchestrator.terminal import make_console

_WATCH_S = 2.0  # between two looks at a running board


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"


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
    compare_: Annotated[bool, typer.Option("--compare", help="Several runs as one board, with what differs.")] = False,
    sort: Annotated[str | None, typer.Option(help="Column to order by, instead of rank.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Show only the first N rows.")] = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh it until the run ends, or Ctrl-C.")] = False,
) -> None:
    """Print the leaderboard of any run, a running one too."""
    with exit_on_bad_input():
        if compare_ != (len(runs) > 1):
            raise BadInput(f"RUN must be one run folder, or several with --compare, got {' '.join(runs)}")
        if by_config_ and effects_:
            raise BadInput("--by-config and --effects are two views: give one of them")
        if watch and format is not Format.table:
            raise BadInput(f"--watch prints a table, got --format {format}: leave one of them out")

        def look() -> tuple[pa.Table, pa.Table, str]:
            """The board, the requested view of it, and the lines below it."""
            boards = [read_board(run) for run in runs]
            whole = compare(run_names(runs), boards, [*map(read_shared, runs)]) if compare_ else boards[0]
            board, note = where(whole, where_ or []), ""
            if effects_:
                view, note = effects(board)
            else:
                view = by_config(board) if by_config_ else board
                if format is Format.table and (
                    found := verdict(board, pa.concat_tables(map(read_history, runs), promote_options="default"))
                ):
                    note = "\n".join(sentences(found))
            view = sort_board(view, sort) if sort else view
            return whole, view.slice(0, top) if top else view, note

        if format is Format.table:
            _show(look, watch, make_console())
        else:
            print({Format.csv: as_csv, Format.json: as_json, Format.markdown: as_markdown}[format](look()[1]))


def _show(look: Callable[[], tuple[pa.Table, pa.Table, str]], watch: bool, out: Console) -> None:
    """Print what `look` finds; watch: look again until no point is pending or running, or Ctrl-C."""
    whole, view, note = look()
    if watch:
        with contextlib.suppress(KeyboardInterrupt), Live(console=out, transient=True, auto_refresh=False) as live:
            while {"pending", "running"} & set(whole["status"].to_pylist()):
                live.update(_with_note(view, note, out.width), refresh=True)
                time.sleep(_WATCH_S)
                whole, view, note = look()
    out.print(_with_note(view, note, out.width))


def _with_note(view: pa.Table, note: str, width: int) -> Group:
    return Group(as_rich(view, width), *([Text(f"\n{note}")] if note else []))


if __name__ == "__main__":
    run_command(main)
