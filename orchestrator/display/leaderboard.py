"""Leaderboard: which boards to read, which view of them to show, and printing it once or again and again."""

import contextlib
import time
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from orchestrator.board.classes import for_reading
from orchestrator.board.sentences import sentences
from orchestrator.board.table import facts
from orchestrator.board.verdict import Verdict
from orchestrator.board.views import by_config, compare_runs, effects, sort_board, verdict, where
from orchestrator.display.opening import open_run, read_board, read_history, read_predictions, read_shared, run_names
from orchestrator.display.table import as_csv, as_markdown, as_rich, board_tree
from orchestrator.display.winner import read_test, read_winner, say_test
from orchestrator.documents import document
from orchestrator.errors import BadInput
from orchestrator.runs.folder import VALIDATION
from orchestrator.runs.lease import Vigil
from orchestrator.terminal import make_console, write
from orchestrator.words import plural, printable

_REFRESH_S = 2.0


class Format(StrEnum):
    table = "table"
    csv = "csv"
    markdown = "markdown"


@dataclass(frozen=True, slots=True)
class View:
    """What to show of one run, or of several as one board.

    Attributes:
        where: Conditions that every row must meet.
        by_config: One row for all seeds. effects: one row per axis and value. classes: one row per class.
        sort: Column to order by, in place of the rank.
        top: Show only so many rows.
    """

    where: tuple[str, ...] = ()
    by_config: bool = False
    effects: bool = False
    classes: bool = False
    compare: bool = False
    sort: str | None = None
    top: int | None = None


def print_board(runs: list[str], view: View, format: Format, watch: bool, as_json: bool = False) -> None:
    """Print the board of these runs. as_json: as one document, whatever the format.

    watch: again and again until no point is pending or running, no driver is at work on them, or Ctrl-C.

    Raises BadInput.
    """
    if view.compare != (len(runs) > 1):
        raise BadInput(f"RUN must be one run folder, or several with --compare, got {' '.join(runs)}")
    options = {"--by-config": view.by_config, "--effects": view.effects, "--classes": view.classes}
    if len(given := [name for name, is_given in options.items() if is_given]) > 1:
        raise BadInput(f"{given[0]} and {given[1]} are two views: give one of them")
    if view.classes and (view.compare or watch):
        raise BadInput(f"--classes is of the winner of one run: leave {'--watch' if watch else '--compare'} out")
    if as_json and format is not Format.table:
        raise BadInput(f"--json and --format {format} are two formats: give one of them")
    if watch and (as_json or format is not Format.table):
        got = "--json" if as_json else f"--format {format}"
        raise BadInput(f"--watch prints a table, got {got}: leave one of them out")
    if as_json:
        write(_document(runs, view))
    elif format is Format.table:
        _print_table(runs, view, watch, make_console())
    else:
        _, table, _, _ = _look(runs, view, with_verdict=False)
        write({Format.csv: as_csv, Format.markdown: as_markdown}[format](table))


def _document(runs: list[str], view: View) -> str:
    whole, table, found, notes = _look(runs, view)
    test = None if view.compare else read_test(open_run(runs[0]), whole)
    return document(
        "leaderboard",
        runs=[open_run(run).store.uri for run in runs],
        view=next((name for name in ("by_config", "effects", "classes") if getattr(view, name)), "points"),
        **board_tree(whole, table, found, notes, test),
    )


def _look(
    runs: list[str], view: View, with_verdict: bool = True
) -> tuple[pa.Table, pa.Table, Verdict | None, list[str]]:
    """The whole board, the view of it, the verdict on the points that it is of, and what else stands below it."""
    boards = [read_board(run) for run in runs]
    if view.classes:
        return _look_at_classes(runs[0], boards[0], view)
    whole = compare_runs(run_names(runs), boards, [*map(read_shared, runs)]) if view.compare else boards[0]
    chosen, notes, found = where(whole, view.where), list[str](), None
    if view.effects:
        table, line = effects(chosen, pa.concat_tables(map(read_history, runs), promote_options="default"))
        notes = [line]
    else:
        predictions = None if view.compare else read_predictions(runs[0])  # other runs may have other images
        table = by_config(chosen, predictions) if view.by_config else chosen
    if with_verdict and not view.effects:
        history = pa.concat_tables(map(read_history, runs), promote_options="default")
        found = verdict(chosen, history, predictions)
        race = _other_images(runs) if view.compare else facts(boards[0]).get("race", [])
        test = [] if view.compare else say_test(open_run(runs[0]), boards[0])
        notes = [*race, *test] if found else []
    table = sort_board(table, view.sort) if view.sort else table
    return whole, table.slice(0, view.top) if view.top else table, found, notes


def _other_images(runs: list[str]) -> list[str]:
    """That the runs were not judged by the same images, where that is so."""
    judged_by = {(shared.get("index"), shared.get("split")) for shared in map(read_shared, runs)}
    if len(judged_by) == 1:
        return []
    return ["these runs have other images, or another split of them: their figures compare as far as these are alike"]


def _look_at_classes(run: str, board: pa.Table, view: View) -> tuple[pa.Table, pa.Table, None, list[str]]:
    winner = read_winner(open_run(run))
    if winner is None:
        raise BadInput(
            f"--classes needs the predictions of the winner's model, and {run} has no {VALIDATION}, which a run writes "
            f"when it ends: run the grid again, without --export-models none"
        )
    table = where(winner.table(board), view.where)
    table = (sort_board(table, view.sort) if view.sort else table).slice(0, view.top)
    return board, table, None, winner.says(board)


def _print_table(runs: list[str], view: View, watch: bool, console: Console) -> None:
    vigil = Vigil([open_run(run).store for run in runs])
    over = vigil.is_over()  # before the board is read: a driver that has ended has written its last one
    whole, table, lines = _look_for_people(runs, view)
    if watch:
        with contextlib.suppress(KeyboardInterrupt), Live(console=console, transient=True, auto_refresh=False) as live:
            while _left(whole) and not over:
                live.update(_with_lines(table, lines, console.width), refresh=True)
                time.sleep(_REFRESH_S)
                over = vigil.is_over()
                whole, table, lines = _look_for_people(runs, view)
    if over and (left := _left(whole)):
        lines = [*lines, f"no driver is at work on it: the same grid command trains the {plural(left, 'point')} left"]
    console.print(_with_lines(table, lines, console.width))


def _look_for_people(runs: list[str], view: View) -> tuple[pa.Table, pa.Table, list[str]]:
    """The whole board, the view of it, and the lines below it."""
    whole, table, found, notes = _look(runs, view)
    return whole, for_reading(table) if view.classes else table, [*(sentences(found) if found else []), *notes]


def _left(board: pa.Table) -> int:
    """How many points are pending or running."""
    return sum(status in ("pending", "running") for status in board["status"].to_pylist())


def _with_lines(table: pa.Table, lines: list[str], width: int) -> Group:
    return Group(as_rich(table, width), *(Text(printable(line)) for line in ["", *lines] if lines))
