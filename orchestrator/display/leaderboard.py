"""Leaderboard: which boards to read, which view of them to show, and printing it once or again and again."""

import contextlib
import time
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from orchestrator.board.verdict import sentences
from orchestrator.board.views import by_config, compare, effects, sort_board, verdict, where
from orchestrator.display.opening import read_board, read_history, read_shared, run_names
from orchestrator.display.table import as_csv, as_json, as_markdown, as_rich
from orchestrator.errors import BadInput
from orchestrator.terminal import make_console

_REFRESH_S = 2.0


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"


@dataclass(frozen=True, slots=True)
class View:
    """What to show of one run, or of several as one board.

    Attributes:
        where: Conditions that every row must meet.
        by_config: One row for all seeds. effects: one row per axis and value.
        sort: Column to order by, in place of the rank.
        top: Show only so many rows.
    """

    where: tuple[str, ...] = ()
    by_config: bool = False
    effects: bool = False
    compare: bool = False
    sort: str | None = None
    top: int | None = None


def print_board(runs: list[str], view: View, format: Format, watch: bool) -> None:
    """Print the board of these runs. watch: again and again until no point is pending or running, or Ctrl-C.

    Raises BadInput.
    """
    if view.compare != (len(runs) > 1):
        raise BadInput(f"RUN must be one run folder, or several with --compare, got {' '.join(runs)}")
    if view.by_config and view.effects:
        raise BadInput("--by-config and --effects are two views: give one of them")
    if watch and format is not Format.table:
        raise BadInput(f"--watch prints a table, got --format {format}: leave one of them out")
    if format is Format.table:
        _print_table(runs, view, watch, make_console())
    else:
        _, table, _ = _look(runs, view, with_verdict=False)
        print({Format.csv: as_csv, Format.json: as_json, Format.markdown: as_markdown}[format](table))


def _look(runs: list[str], view: View, with_verdict: bool = True) -> tuple[pa.Table, pa.Table, str]:
    """The whole board, the view of it, and what to say below it."""
    boards = [read_board(run) for run in runs]
    whole = compare(run_names(runs), boards, [*map(read_shared, runs)]) if view.compare else boards[0]
    chosen, note = where(whole, view.where), ""
    if view.effects:
        table, note = effects(chosen)
    else:
        table = by_config(chosen) if view.by_config else chosen
    if with_verdict and not view.effects:
        history = pa.concat_tables(map(read_history, runs), promote_options="default")
        found = verdict(chosen, history)
        note = "\n".join(sentences(found)) if found else ""
    table = sort_board(table, view.sort) if view.sort else table
    return whole, table.slice(0, view.top) if view.top else table, note


def _print_table(runs: list[str], view: View, watch: bool, console: Console) -> None:
    whole, table, note = _look(runs, view)
    if watch:
        with contextlib.suppress(KeyboardInterrupt), Live(console=console, transient=True, auto_refresh=False) as live:
            while {"pending", "running"} & set(whole["status"].to_pylist()):
                live.update(_with_note(table, note, console.width), refresh=True)
                time.sleep(_REFRESH_S)
                whole, table, note = _look(runs, view)
    console.print(_with_note(table, note, console.width))


def _with_note(table: pa.Table, note: str, width: int) -> Group:
    return Group(as_rich(table, width), *([Text(f"\n{note}")] if note else []))
