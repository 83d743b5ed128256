"""Leaderboard: plan and results -> the ranked table of points. `python -m orchestrator.leaderboard RUN` reads it.

The core is pure: `build_board` and `build_history` make the tables, `rank` orders them.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.errors import BadInput, exit_on_bad_input
from orchestrator.forecast import price
from orchestrator.plan import Plan, Point
from orchestrator.result import Epoch, Result
from orchestrator.run import BOARD
from orchestrator.spec import EarlyStopping, Resources
from orchestrator.store import Missing, open_store

SCHEMA_VERSION = 1
_TIME = pa.timestamp("s", tz="UTC")
_BEFORE = {"rank": pa.int32(), "point_id": pa.string(), "trial_id": pa.string(), "status": pa.string()}
_AFTER = {
    "seed": pa.int64(),
    "val_accuracy": pa.float64(),
    "val_loss": pa.float64(),
    "accuracy": pa.float64(),
    "loss": pa.float64(),
    "best_epoch": pa.int32(),
    "best_val_accuracy": pa.float64(),
    "epochs_trained": pa.int32(),
    "steps_per_epoch": pa.int32(),
    "train_s": pa.float64(),
    "images_per_s": pa.float64(),
    "cost_usd": pa.float64(),
    "peak_memory_mb": pa.float64(),
    "device": pa.string(),
    "node": pa.string(),
    "error": pa.string(),
    "started_at": _TIME,
    "finished_at": _TIME,
}
COLUMNS = (*_BEFORE, *_AFTER)


def build_board(
    plan: Plan,
    results: Mapping[str, Result],
    running: set[str],
    metric: str,
    stopping: EarlyStopping | None = None,
    resources: Resources | None = None,
) -> pa.Table:
    """One row per point: those that are ok, best `metric` first, then failed, running and pending ones.

    results: trial id -> result, ok or failed. running: trial ids at work now. resources: what a node costs.
    """
    rows = [
        _row(point, results.get(point.trial_id), point.trial_id in running, stopping, resources or Resources())
        for point in plan.points
    ]
    sign = -1 if metric.endswith("accuracy") else 1
    order = {"ok": 0, "failed": 1, "running": 2, "pending": 3}
    rows.sort(key=lambda row: (order[row["status"]], sign * row[metric] if row["status"] == "ok" else 0.0))
    for i, row in enumerate(rows):
        row["rank"] = i + 1 if row["status"] == "ok" else None
    axes = {name: _type([point.values[name] for point in plan.points]) for name in plan.axes}
    schema = pa.schema(
        {**_BEFORE, **axes, **_AFTER},
        metadata={
            "orchestrator": json.dumps({"schema_version": SCHEMA_VERSION, "axes": list(plan.axes), "metric": metric})
        },
    )
    return pa.Table.from_pylist(rows, schema=schema)


def build_history(results: Mapping[str, Result]) -> pa.Table:
    """One row per trial and epoch."""
    schema = pa.schema(
        {
            "trial_id": pa.string(),
            "epoch": pa.int32(),
            **{name: pa.float64() for name in Epoch.model_fields if name != "epoch"},
        }
    )
    rows = [
        {"trial_id": result.trial_id, **epoch.model_dump()} for result in results.values() for epoch in result.history
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def _row(
    point: Point, result: Result | None, running: bool, stopping: EarlyStopping | None, resources: Resources
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "point_id": point.id,
        "trial_id": point.trial_id,
        "seed": point.seed,
        "status": "running" if running else "pending" if result is None else result.status,
        **{name: _plain(value) for name, value in point.values.items()},
    }
    if result is None or running:
        return row
    if result.status == "ok" and result.epochs < point.epochs:  # trained for fewer epochs than this point now asks for
        return row | {"status": "pending"}
    row |= {name: getattr(result, name) for name in ("steps_per_epoch", "peak_memory_mb", "device", "node", "error")}
    row |= {
        name: datetime.fromisoformat(text) if (text := getattr(result, name)) else None
        for name in ("started_at", "finished_at")
    }
    history = result.history[: point.epochs]
    if not history or result.status != "ok":
        return row
    read_off = min(history, key=lambda epoch: epoch.val_loss) if stopping and stopping.restore_best else history[-1]
    best = max(history, key=lambda epoch: epoch.val_accuracy)
    train_s = sum(epoch.train_s for epoch in history)
    worker_s = train_s + sum(epoch.validate_s for epoch in history)
    usd = price(resources, result.node_type)
    row |= {name: getattr(read_off, name) for name in ("val_accuracy", "val_loss", "accuracy", "loss")}
    return row | {
        "best_epoch": best.epoch,
        "best_val_accuracy": best.val_accuracy,
        "epochs_trained": len(history),
        "train_s": train_s,
        "images_per_s": sum(epoch.images_per_s * epoch.train_s for epoch in history) / train_s if train_s else None,
        "cost_usd": None if usd is None else worker_s / 3600 * usd * (result.node_share or 1.0),
    }


def _plain(value: Any) -> Any:
    return "x".join(map(str, value)) if isinstance(value, tuple) else value


def _type(values: Sequence[Any]) -> pa.DataType:
    kinds = {type(_plain(value)) for value in values if value is not None}
    if kinds <= {int}:
        return pa.int64()
    if kinds <= {int, float}:
        return pa.float64()
    return pa.bool_() if kinds == {bool} else pa.string()


def read_board(uri: str) -> pa.Table:
    """The leaderboard of a run folder, or of a Parquet file; local or in a bucket. Raises BadInput."""
    folder, name = (uri.rpartition("/")[0] or ".", uri.rpartition("/")[2]) if uri.endswith(".parquet") else (uri, BOARD)
    try:
        data = open_store(folder).read(name)
    except Missing:
        raise BadInput(
            f"{folder} must be a run folder, and holds no {name}: give the folder that "
            f"`python -m orchestrator.grid` printed"
        ) from None
    try:
        # not read_table: its threads may still hold `data` when Python ends, which aborts the process now and then
        board = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"{name} in {folder} must be a Parquet file: {_one_line(str(error))[:200]}; "
            f"run the grid again to write it anew"
        ) from None
    if "cost_usd" not in board.column_names:  # a board of 0.1.0's first days
        board = board.append_column("cost_usd", pa.nulls(board.num_rows, pa.float64()))
    if missing := [column for column in COLUMNS if column not in board.column_names]:
        raise BadInput(f"{name} in {folder} must be a leaderboard, and has no column {missing[0]}")
    return board


def sort_board(board: pa.Table, column: str) -> pa.Table:
    """Order by one column: accuracies from the highest, everything else from the lowest; empty ones last."""
    if column not in board.column_names:
        raise BadInput(f"--sort must be a column of the leaderboard ({', '.join(board.column_names)}), got {column}")
    order = "descending" if column.endswith("accuracy") or column == "images_per_s" else "ascending"
    return board.sort_by([(column, order)])


def facts(board: pa.Table) -> dict[str, Any]:
    """What the table says of itself: schema_version, axes, metric; told from its columns if another tool wrote it."""
    if text := (board.schema.metadata or {}).get(b"orchestrator"):
        return json.loads(text)
    axes = [name for name in board.column_names if name not in COLUMNS]
    return {"schema_version": SCHEMA_VERSION, "axes": axes, "metric": "val_accuracy"}


def as_rich(board: pa.Table, title: str | None = None) -> Table:
    """The columns a person looks at, as a table for a terminal."""
    about = facts(board)
    axes = [name for name in about["axes"] if name in board.column_names]
    several_seeds = len(set(board["seed"].to_pylist())) > 1
    shown = [
        "rank",
        *axes,
        *(["seed"] if several_seeds else []),
        "val_accuracy",
        "val_loss",
        "accuracy",
        "best_epoch",
        "train_s",
        "images_per_s",
        *(["cost_usd"] if any(board["cost_usd"].to_pylist()) else []),
        "status",
    ]
    if about["metric"] not in shown:
        shown.insert(shown.index("val_accuracy"), about["metric"])
    failed = any(board["error"].to_pylist())
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in [*shown, *(["error"] if failed else [])]:
        table.add_column(
            name, justify="left" if name in ("status", "error") else "right", no_wrap=name != "error", overflow="fold"
        )
    for row in board.to_pylist():
        cells = [*(_cell(row[name], name) for name in shown), *([_one_line(row["error"] or "")] if failed else [])]
        table.add_row(*map(Text, cells))  # Text: a cell's [brackets] are no markup
    return table


def _cell(value: Any, name: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        if name in ("images_per_s", "peak_memory_mb"):
            return f"{value:.0f}"
        return (
            f"{value:.1f}"
            if name == "train_s"
            else f"{value:.4f}"
            if name == "cost_usd"
            else f"{value:.4f}"
            if name.endswith(("accuracy", "loss"))
            else f"{value:g}"
        )
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


def _rows(board: pa.Table) -> list[dict[str, Any]]:
    return [{k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()} for row in board.to_pylist()]


def as_json(board: pa.Table) -> str:
    return json.dumps(_rows(board), indent=1)


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"


def main(
    run: Annotated[str, typer.Argument(help="Run folder: a path or s3:// address.")],
    sort: Annotated[str | None, typer.Option(help="Column to order by, instead of rank.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Show only the first N rows.")] = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
) -> None:
    """Print the leaderboard of any run, a running one too."""
    with exit_on_bad_input():
        board = read_board(run)
        board = sort_board(board, sort) if sort else board
    board = board.slice(0, top) if top else board
    if format is Format.table:
        console().print(as_rich(board))
    else:
        print({Format.csv: as_csv, Format.json: as_json, Format.markdown: as_markdown}[format](board))


def console(stderr: bool = False) -> Console:
    """A terminal's own width; wide and without colours where output goes to a file or a job log."""
    stream = sys.stderr if stderr else sys.stdout
    plain = {} if stream.isatty() else {"width": 200, "color_system": None, "force_terminal": False}
    return Console(file=stream, highlight=False, markup=False, **plain)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
