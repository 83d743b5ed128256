"""Table: a board for a terminal, as CSV or Markdown, or as plain values for JSON."""

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.board.sentences import sentences
from orchestrator.board.table import facts
from orchestrator.board.verdict import Verdict
from orchestrator.metrics import of_column, shown
from orchestrator.runs.result import Tested
from orchestrator.words import printable

_TEXT_CELLS = 24  # long texts wrap (errors, values of an axis), but not into a narrower column


def as_rich(board: pa.Table, width: int) -> Table | Group:
    """The columns that a person looks at, as a table that fits into `width` terminal cells.

    If not all of them fit, the least important ones are left out, and a line below says which. Numbers never wrap.
    """
    names = columns(board)
    cells = {name: [cell(value, name) for value in board[name].to_pylist()] for name in names}
    texts = {name for name in names if board.schema.field(name).type == pa.string()}
    wide = {name: max(cell_len(text) for text in (name, *cells[name])) for name in names}
    wide |= {name: min(wide[name], max(cell_len(name), _TEXT_CELLS)) for name in texts}
    left_out = []
    for name in _least_important(board, names):
        if sum(wide.values()) + 2 * (len(wide) - 1) <= width:
            break
        del wide[name]
        left_out.append(name)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in wide:
        left = name in texts and name not in facts(board)["axes"]
        table.add_column(
            printable(name),
            justify="left" if left else "right",
            no_wrap=name not in texts,
            overflow="fold",
            min_width=wide[name],
        )
    for row in zip(*(cells[name] for name in wide), strict=True):
        table.add_row(*map(Text, row))  # Text: [brackets] in a cell are not markup
    if not left_out:
        return table
    note = (
        f"too narrow for {', '.join(name for name in names if name in left_out)}: widen the terminal, or --format csv"
    )
    return Group(table, Text(""), Text(printable(note)))


def columns(board: pa.Table, more: Sequence[str] = ()) -> list[str]:
    """The columns to show: all of a view; of a board of points, those that a person looks at, and `more`."""
    if "point_id" not in board.column_names:
        return board.column_names
    about = facts(board)
    several_seeds = len(set(board["seed"].to_pylist())) > 1
    metrics = shown("table")
    return [
        "rank",
        *(name for name in about["axes"] if name in board.column_names),
        *(["rate_used"] if "rate_used" in board.column_names else []),
        *(["seed"] if several_seeds else []),
        *(["fold"] if "fold" in board.column_names else []),
        *(["score"] if board["score"].to_pylist() != board[about["metric"]].to_pylist() else []),
        *([] if about["metric"] in metrics else [about["metric"]]),
        *metrics,
        *("best_epoch", "train_s", "images_per_s", *_sizes(board), *more),
        *(["cost_usd"] if any(board["cost_usd"].to_pylist()) else []),
        "status",
        *(name for name in ("error", "stopped_because") if any(board[name].to_pylist())),
    ]


def _sizes(board: pa.Table) -> list[str]:
    """Size and speed of the models, where not all are of one size."""
    sizes = {value for value in board["parameters"].to_pylist() if value is not None}
    return ["parameters", "model_mb", "ms_per_image"] if len(sizes) > 1 else []


def _least_important(board: pa.Table, names: Sequence[str]) -> list[str]:
    """The columns in the order in which they are left out; rank and metric never are."""
    about = facts(board)
    settled = ["status"] if set(board["status"].to_pylist() if "status" in names else []) <= {"ok"} else []
    metrics = shown("table")[::-1]
    spreads = [name for name in names if name.endswith(("_std", "_low", "_high"))]
    axes = [name for name in about["axes"] if name in names]
    order = [
        "stopped_because",
        "model_mb",
        "images_per_s",
        "best_epoch",
        *settled,
        "configurations",
        *metrics,
        *spreads,
        "train_s",
        "ms_per_image",
        "parameters",
        "rate_used",
        "error",
        "status",
    ]
    order += ["seeds", "folds", "verdict"]
    order += ["most_taken_for", "precision_95", "precision", "recall_95", "images"]  # of classes
    order += [name for name in axes if len(set(map(str, board[name].to_pylist()))) == 1]  # the same for all points
    order += [*reversed(axes), "fold", "seed"]
    ranked_by = "score" if "score" in names else about["metric"]
    return [name for name in dict.fromkeys(order) if name in names and name != ranked_by]


def cell(value: Any, name: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        if name in ("images_per_s", "peak_memory_mb"):
            return f"{value:.0f}"
        if name in ("model_mb", "ms_per_image"):
            return f"{value:.3g}"
        if name == "share":
            return f"{value:.1%}"
        if metric := of_column(name):
            return metric.text(value)
        if name.partition("_")[0] == "score":
            return f"{value:.4f}"
        if name.partition("_")[0] in ("recall", "precision"):
            return f"{value:.3f}"
        if name == "cost_usd":
            return f"{value:.4f}"
        return f"{value:.1f}" if name == "train_s" else f"{value:g}"
    return printable(str(value))


def as_markdown(board: pa.Table) -> str:
    names = [name for name in board.column_names if name not in ("point_id", "trial_id", "node", "device")]
    lines = ["| " + " | ".join(map(_escaped, names)) + " |", "|" + "---|" * len(names)]
    for row in board.select(names).to_pylist():
        cells = (_escaped(cell(row[name], name)) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return re.sub(r"([\\|<\[*`])", r"\\\1", printable(text))


def as_csv(board: pa.Table) -> str:
    """The board as CSV. Texts are in quotes, with their line breaks; empty cells are not."""
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(board, sink)
    return sink.getvalue().to_pybytes().decode().removesuffix("\n")


def board_tree(
    whole: pa.Table, view: pa.Table, found: Verdict | None, notes: Sequence[str], test: Tested | None
) -> dict[str, Any]:
    """A board, or a view of one, as plain values: see docs/json.md.

    found: the verdict on it. notes: lines beside the verdict. test: what the winner reaches on the test images.
    """
    about = facts(whole)
    return {
        "metric": about["metric"],
        "axes": about["axes"],
        "points": count_points(whole),
        "verdict": {**found.tree(), "sentences": sentences(found)} if found else None,
        "test": test.model_dump() if test else None,
        "notes": [*notes],
        "rows": view.to_pylist(),
    }


def count_points(board: pa.Table) -> dict[str, int]:
    """How many points of a board are ok, stopped, failed, and not trained."""
    statuses = board["status"].to_pylist()
    counts = {status: statuses.count(status) for status in ("ok", "stopped", "failed")}
    return {**counts, "not_trained": len(statuses) - sum(counts.values())}
