"""Leaderboard: `python -m orchestrator.leaderboard RUN` reads a board and prints it, for people or for programs."""

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.csv
import typer
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator import statistics
from orchestrator.board import COLUMNS, build_history, by_config, compare, effects, facts, sort_board, verdict, where
from orchestrator.errors import BadInput, exit_on_bad_input, run_command
from orchestrator.run import BOARD, HISTORY, read_parquet
from orchestrator.store import Missing, open_store

_WATCH_S = 2.0  # between two looks at a running board
_TEXT_CELLS = 24  # an error wraps, and so does a long text of an axis, but not into a narrower column


def read_board(uri: str) -> pa.Table:
    """The leaderboard of a run folder, or of a Parquet file; local or in a bucket. Raises BadInput."""
    folder, name = _place(uri)
    try:
        board = _read_table(folder, name)
    except Missing:
        raise BadInput(
            f"{folder} must be a run folder, and holds no {name}: give the folder that "
            f"`python -m orchestrator.grid` printed"
        ) from None
    if "cost_usd" not in board.column_names:  # a board of 0.1.0's first days
        board = board.append_column("cost_usd", pa.nulls(board.num_rows, pa.float64()))
    if missing := [column for column in COLUMNS if column not in board.column_names]:
        raise BadInput(f"{name} in {folder} must be a leaderboard, and has no column {missing[0]}")
    return board


def read_history(uri: str) -> pa.Table:
    """The history beside that leaderboard; without a row where there is none. Raises BadInput."""
    with contextlib.suppress(Missing):
        return _read_table(_place(uri)[0], HISTORY)
    return build_history({})


def _place(uri: str) -> tuple[str, str]:
    return (uri.rpartition("/")[0] or ".", uri.rpartition("/")[2]) if uri.endswith(".parquet") else (uri, BOARD)


def _read_table(folder: str, name: str) -> pa.Table:
    data = open_store(folder).read(name)
    try:
        return read_parquet(data)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"{name} in {folder} must be a Parquet file: {_one_line(str(error))[:200]}; "
            f"run the grid again to write it anew"
        ) from None


def _names(runs: Sequence[str]) -> list[str]:
    """What tells the runs apart: the folders' own names, or their whole addresses where two are alike."""
    names = [run.rstrip("/").rpartition("/")[2] for run in runs]
    return names if len(set(names)) == len(names) else list(runs)


def _read_shared(uri: str) -> dict[str, Any]:
    """What all trials of a run share, from its plan; digests cut short, as in messages."""
    try:
        shared = json.loads(open_store(_place(uri)[0]).read("plan.json"))["shared"]
        return {k: v[:12] if isinstance(v, str) and len(v) == 64 else v for k, v in shared.items()}
    except (Missing, ValueError, KeyError, TypeError, AttributeError):
        return {}


def as_rich(board: pa.Table, width: int) -> Table | Group:
    """The columns a person looks at, as a table that fits so many terminal cells.

    Where they do not all fit, the least important ones are left out, and a line below says which; no number wraps.
    """
    shown = columns(board)
    cells = {name: [_cell(value, name) for value in board[name].to_pylist()] for name in shown}
    texts = {name for name in shown if board.schema.field(name).type == pa.string()}
    wide = {name: max(cell_len(text) for text in (name, *cells[name])) for name in shown}
    wide |= {name: min(wide[name], max(cell_len(name), _TEXT_CELLS)) for name in texts}
    left_out = []
    for name in _least_important(board, shown):
        if sum(wide.values()) + 2 * (len(wide) - 1) <= width:
            break
        del wide[name]
        left_out.append(name)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in wide:
        left = name in texts and name not in facts(board)["axes"]
        table.add_column(
            name, justify="left" if left else "right", no_wrap=name not in texts, overflow="fold", min_width=wide[name]
        )
    for row in zip(*(cells[name] for name in wide), strict=True):
        table.add_row(*map(Text, row))  # Text: a cell's [brackets] are no markup
    if not left_out:
        return table
    note = (
        f"too narrow for {', '.join(name for name in shown if name in left_out)}: widen the terminal, or --format csv"
    )
    return Group(table, Text(f"\n{note}"))


def columns(board: pa.Table, more: Sequence[str] = ()) -> list[str]:
    """All of a view; of a board with its points what a person looks at, and `more`."""
    if "point_id" not in board.column_names:
        return board.column_names
    about = facts(board)
    several_seeds = len(set(board["seed"].to_pylist())) > 1
    metrics = ["val_accuracy", "val_loss", "accuracy"]
    return [
        "rank",
        *(name for name in about["axes"] if name in board.column_names),
        *(["seed"] if several_seeds else []),
        *([] if about["metric"] in metrics else [about["metric"]]),
        *metrics,
        *("best_epoch", "train_s", "images_per_s", *more),
        *(["cost_usd"] if any(board["cost_usd"].to_pylist()) else []),
        "status",
        *(["error"] if any(board["error"].to_pylist()) else []),
    ]


def _least_important(board: pa.Table, shown: Sequence[str]) -> list[str]:
    """In which order columns go; rank and metric never do."""
    about = facts(board)
    settled = ["status"] if set(board["status"].to_pylist() if "status" in shown else []) <= {"ok"} else []
    metrics = ["accuracy", "val_loss", "val_accuracy"]
    spreads = [name for name in shown if name.endswith(("_std", "_low", "_high"))]
    axes = [name for name in about["axes"] if name in shown]
    order = ["images_per_s", "best_epoch", *settled, "configurations", *metrics, *spreads, "train_s", "error", "status"]
    order += ["seeds", "verdict"]
    order += [name for name in axes if len(set(board[name].to_pylist())) == 1]  # it tells no point from another
    order += [*reversed(axes), "seed"]
    return [name for name in dict.fromkeys(order) if name in shown and name != about["metric"]]


def _cell(value: Any, name: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        if name in ("images_per_s", "peak_memory_mb"):
            return f"{value:.0f}"
        if name == "share":
            return f"{value:.1%}"
        if name.endswith(("accuracy", "loss", "_std", "_low", "_high")) or name == "cost_usd":
            return f"{value:.4f}"
        return f"{value:.1f}" if name == "train_s" else f"{value:g}"
    return _one_line(str(value))


def _one_line(text: str) -> str:
    """Without line breaks and what else moves a terminal's cursor or changes its colours."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)


def as_markdown(board: pa.Table) -> str:
    names = [name for name in board.column_names if name not in ("point_id", "trial_id", "node", "device")]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in board.select(names).to_pylist():
        cells = (re.sub(r"([\\|<\[*`])", r"\\\1", _cell(row[name], name)) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_csv(board: pa.Table) -> str:
    """Texts stand in quotes, line breaks and all; an empty cell does not."""
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(board, sink)
    return sink.getvalue().to_pybytes().decode().removesuffix("\n")


def as_json(board: pa.Table) -> str:
    rows = [{k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()} for row in board.to_pylist()]
    return json.dumps(rows, indent=1)


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
    watch: Annotated[bool, typer.Option("--watch", help="Follow a running one until it ends, or Ctrl-C.")] = False,
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
            """The board, the view of it that is wanted, and what is said below it."""
            boards = [read_board(run) for run in runs]
            whole = compare(_names(runs), boards, [*map(_read_shared, runs)]) if compare_ else boards[0]
            board, note = where(whole, where_ or []), ""
            if effects_:
                view, note = effects(board)
            else:
                view = by_config(board) if by_config_ else board
                if format is Format.table and (
                    found := verdict(board, pa.concat_tables(map(read_history, runs), promote_options="default"))
                ):
                    note = "\n".join(statistics.sentences(found))
            view = sort_board(view, sort) if sort else view
            return whole, view.slice(0, top) if top else view, note

        if format is Format.table:
            _show(look, watch, console())
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


def console(stderr: bool = False) -> Console:
    """A terminal's own width; wide and without colours where output goes to a file or a job log."""
    stream = sys.stderr if stderr else sys.stdout
    plain = {} if stream.isatty() else {"width": 200, "color_system": None, "force_terminal": False}
    return Console(file=stream, highlight=False, markup=False, **plain)


if __name__ == "__main__":
    run_command(main)
