"""Opening: reads the tables of a run folder for display."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from orchestrator.board.table import COLUMNS, build_history
from orchestrator.errors import BadInput
from orchestrator.metrics import shown
from orchestrator.run.folder import BOARD, HISTORY, read_parquet
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
    for column in ("cost_usd", *shown("board")):  # an older version did not have these
        if column not in board.column_names:
            board = board.append_column(column, pa.nulls(board.num_rows, pa.float64()))
    if missing := [column for column in COLUMNS if column not in board.column_names]:
        raise BadInput(f"{name} in {folder} must be a leaderboard, and has no column {missing[0]}")
    return board


def read_history(uri: str) -> pa.Table:
    """The history beside that leaderboard; empty if there is none. Raises BadInput."""
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
            f"{name} in {folder} must be a Parquet file: {printable(str(error))[:200]}; "
            f"run the grid again to write it anew"
        ) from None


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
