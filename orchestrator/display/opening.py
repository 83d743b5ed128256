"""Opening: reads the tables of a run folder for display."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.board.table import COLUMNS, build_history, facts
from orchestrator.errors import BadInput
from orchestrator.metrics import METRICS, shown
from orchestrator.runs.folder import BOARD, DATASET, HISTORY, PREDICTIONS, Run, read_parquet
from orchestrator.store import Missing, open_store
from orchestrator.words import printable


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
    _check(board, f"{name} in {folder}")
    # an older version did not have these
    for column in ("cost_usd", "parameters", "model_mb", "ms_per_image", *shown("board")):
        if column not in board.column_names:
            kind = pa.int64() if column == "parameters" else pa.float64()
            board = board.append_column(column, pa.nulls(board.num_rows, kind))
    if "score" not in board.column_names and (metric := facts(board)["metric"]) in board.column_names:
        board = board.append_column("score", board[metric])  # older versions ranked by the last epoch
    if "stopped_because" not in board.column_names:
        board = board.append_column("stopped_because", pa.nulls(board.num_rows, pa.string()))
    if "classes" not in (about := facts(board)) and (classes := _classes(folder)):  # older versions did not say
        board = board.replace_schema_metadata({"orchestrator": json.dumps({**about, "classes": classes})})
    if missing := [column for column in COLUMNS if column not in board.column_names]:
        raise BadInput(f"{name} in {folder} must be a leaderboard, and has no column {missing[0]}")
    return board


def _check(board: pa.Table, what: str) -> None:
    """Raise BadInput for a board of which nothing could be said: somebody else's, or a newer version's."""
    try:
        metric = facts(board)["metric"]
    except (ValueError, KeyError, TypeError):
        metric = None
    if metric not in METRICS:
        raise BadInput(f"{what} must be ranked by a metric that is known here ({', '.join(METRICS)}), got {metric}")


def read_history(uri: str) -> pa.Table:
    """The history beside that leaderboard; empty if there is none. Raises BadInput."""
    with contextlib.suppress(Missing):
        return _read_table(_place(uri)[0], HISTORY)
    return build_history({})


def read_predictions(uri: str) -> pa.Table | None:
    """What the points of that leaderboard had right; None if there is nothing of it. Raises BadInput."""
    with contextlib.suppress(Missing):
        return _read_table(_place(uri)[0], PREDICTIONS)
    return None


def open_run(uri: str) -> Run:
    """The run folder with that leaderboard. Raises BadInput where there is no such folder."""
    return Run(open_store(_place(uri)[0]))


def _place(uri: str) -> tuple[str, str]:
    return (uri.rpartition("/")[0] or ".", uri.rpartition("/")[2]) if uri.endswith(".parquet") else (uri, BOARD)


def _read_table(folder: str, name: str) -> pa.Table:
    data = open_store(folder).read(name)
    try:
        return _without_nan(read_parquet(data))
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"{name} in {folder} must be a Parquet file: {printable(str(error))[:200]}; "
            f"run the grid again to write it anew"
        ) from None


def _without_nan(table: pa.Table) -> pa.Table:
    """The table with empty cells for NaN, by which other tools write them."""
    for i, field in enumerate(table.schema):
        if pa.types.is_floating(field.type) and pc.any(pc.is_nan(table[i])).as_py():
            table = table.set_column(i, field, pc.if_else(pc.is_nan(table[i]), pa.scalar(None, field.type), table[i]))
    return table


def _classes(folder: str) -> dict[str, int]:
    """Name of each class -> its validation images; none where the run folder does not say."""
    try:
        counts = json.loads(open_store(folder).read(DATASET))["classes"]
        return {str(name): int(count["validation"]) for name, count in counts.items()}
    except (Missing, ValueError, KeyError, TypeError, AttributeError):
        return {}


def run_names(runs: Sequence[str]) -> list[str]:
    """Names for the runs: those of their folders, or their whole addresses if two folders have the same name."""
    names = [run.rstrip("/").rpartition("/")[2] for run in runs]
    return names if len(set(names)) == len(names) else list(runs)


def read_shared(uri: str) -> dict[str, Any]:
    """What all trials of a run share, from its plan; digests cut short, as in messages."""
    try:
        shared = json.loads(open_store(_place(uri)[0]).read("plan.json"))["shared"]
        return {k: v[:12] if isinstance(v, str) and len(v) == 64 else v for k, v in shared.items()}
    except (Missing, ValueError, KeyError, TypeError, AttributeError):
        return {}
