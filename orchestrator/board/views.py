"""Views: tables made from a board. Pure.

Some points (`where`), seeds folded (`by_config`), several runs as one (`compare`), what each axis does (`effects`).
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.board.effects import describe_effects, main_effects
from orchestrator.board.estimates import Configuration, configurations, is_apart, lead
from orchestrator.board.table import COLUMNS, facts, plain, ranked, schema
from orchestrator.board.verdict import Verdict, judge
from orchestrator.errors import BadInput
from orchestrator.metrics import METRICS
from orchestrator.spec.axes import axis_path, canonical


def sort_board(board: pa.Table, column: str) -> pa.Table:
    """Order by one column: from the highest if higher is better, otherwise from the lowest; empty cells last."""
    if column not in board.column_names:
        raise BadInput(f"--sort must be a column of the leaderboard ({', '.join(board.column_names)}), got {column}")
    metric = METRICS.get(column)
    falls = metric.better == "higher" if metric else column in ("images_per_s", "share")
    order = "descending" if falls else "ascending"
    return board.sort_by([(column, order)])


_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|!=|==?|<|>)\s*(.*?)\s*", re.DOTALL)
_SIGNS = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    ">": pc.greater,
    "<=": pc.less_equal,
    ">=": pc.greater_equal,
}


def where(board: pa.Table, conditions: Sequence[str]) -> pa.Table:
    """The rows that fulfil every condition, such as `dropout=0.5` or `val_accuracy>=0.9`.

    An empty cell fulfils only `!=`. Raises BadInput for a text that is not a condition, an unknown column, or a value
    that the column cannot hold.
    """
    for condition in conditions:
        if not (found := _CONDITION.fullmatch(condition)):
            raise BadInput(f"--where must look like dropout=0.5 (or !=, <, >, <=, >=), got {condition}")
        name, sign, text = found.groups()
        if name not in board.column_names:
            raise BadInput(
                f"--where must name a column of the leaderboard ({', '.join(board.column_names)}), got {name}"
            )
        fulfilled = _SIGNS[sign](board[name], _value(text, board.schema.field(name).type, name))
        board = board.filter(pc.fill_null(fulfilled, sign == "!="))
    return board


def _value(text: str, kind: pa.DataType, name: str) -> pa.Scalar:
    if pa.types.is_boolean(kind):
        if text.lower() not in ("true", "false"):
            raise BadInput(f"--where must compare {name} with true or false, got {text}")
        return pa.scalar(text.lower() == "true")
    try:
        if pa.types.is_timestamp(kind):
            moment = datetime.fromisoformat(text)
            return pa.scalar(moment if moment.tzinfo else moment.replace(tzinfo=UTC), kind)
        return pa.scalar(text if pa.types.is_string(kind) else float(text))
    except ValueError:
        what = "a time, such as 2026-01-31T12:00" if pa.types.is_timestamp(kind) else "a number"
        raise BadInput(f"--where must compare {name} with {what}, got {text}") from None


def curves(history: pa.Table, trial_ids: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Trial id -> its epochs, ascending; only of these trials, if they are given."""
    if trial_ids is not None:
        history = history.filter(pc.is_in(history["trial_id"], pa.array(trial_ids, pa.string())))
    epochs_by_trial: dict[str, list[dict[str, Any]]] = {}
    for epoch in history.sort_by("epoch").to_pylist():
        epochs_by_trial.setdefault(epoch["trial_id"], []).append(epoch)
    return epochs_by_trial


def fold(board: pa.Table) -> tuple[Configuration, ...]:
    """The configurations of a board, best first; see `estimates.configurations`."""
    about = facts(board)
    return configurations(board.to_pylist(), about["axes"], about["metric"])


def verdict(board: pa.Table, history: pa.Table) -> Verdict | None:
    """The verdict on a board: which is best, and how sure that is; None if no point is ok."""
    folded = fold(board)
    best = folded[0].trial_ids if folded else ()
    return judge(folded, facts(board)["metric"], curves(history, best))


def by_config(board: pa.Table) -> pa.Table:
    """One row per configuration: mean of the metric over the seeds, standard deviation, and ends of its 95% interval.

    verdict: best, ties (the distance from the best may be chance) or behind; empty if there are too few common seeds.
    """
    about = facts(board)
    axes, metric = about["axes"], about["metric"]
    folded = fold(board)
    rows = []
    for i, each in enumerate(folded):
        difference = lead(folded[0], each, metric) if each.score.count == folded[0].score.count else None
        relation = None if difference is None else "behind" if is_apart(difference) else "ties"
        half_width = each.score.half_width
        rows.append(
            {
                "rank": i + 1,
                **each.values,
                "seeds": each.score.count,
                metric: each.score.mean,
                f"{metric}_std": each.score.std,
                f"{metric}_low": None if half_width is None else each.score.mean - half_width,
                f"{metric}_high": None if half_width is None else each.score.mean + half_width,
                "train_s": each.train_s,
                "verdict": "best" if i == 0 else relation,
            }
        )
    numbers = [metric, f"{metric}_std", f"{metric}_low", f"{metric}_high", "train_s"]
    fields = {
        "rank": pa.int32(),
        **{axis: board.schema.field(axis).type for axis in axes},
        "seeds": pa.int32(),
        **dict.fromkeys(numbers, pa.float64()),
        "verdict": pa.string(),
    }
    return pa.Table.from_pylist(rows, schema=schema(fields, axes, metric))


def effects(board: pa.Table) -> tuple[pa.Table, str]:
    """One row per axis and value, the axis that matters most first; and a sentence on what no axis explains.

    share: the axis' part of the variance between configurations. The metric: its mean over the other axes; _std: of the
    configurations at that value. Raises BadInput if no axis has two values with points that are ok.
    """
    about = facts(board)
    metric = about["metric"]
    found = main_effects(fold(board), about["axes"])
    if found is None:
        raise BadInput("--effects must have an axis with two values whose points are ok, and this board has none")
    rows = [
        {
            "axis": effect.axis,
            "share": effect.share,
            "value": str(level.value),
            metric: level.mean,
            f"{metric}_std": level.std,
            "configurations": level.count,
        }
        for effect in found.axes
        for level in effect.levels
    ]
    fields = {
        "axis": pa.string(),
        "share": pa.float64(),
        "value": pa.string(),
        metric: pa.float64(),
        f"{metric}_std": pa.float64(),
        "configurations": pa.int32(),
    }
    return pa.Table.from_pylist(rows, schema=schema(fields, about["axes"], metric)), describe_effects(found)


def compare(names: Sequence[str], boards: Sequence[pa.Table], shared: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Several runs as one board, ranked by the first one's metric: its axes are `run` and every setting that differs.

    shared: what all trials of each run share; see Plan.shared.
    """
    rows, settings = [], []
    for run, board, common in zip(names, boards, shared, strict=True):
        axes = [name for name in facts(board)["axes"] if name in board.column_names]
        trained = pc.max(board["epochs_trained"]).as_py()  # stands for the epochs of a run that has no such axis
        for row in board.to_pylist():
            settings.append({"train.epochs": trained, **common, **{axis_path(name): row[name] for name in axes}})
            rows.append({name: row[name] for name in COLUMNS} | {"run": run})
    paths = dict.fromkeys(path for each in settings for path in each)
    differ = {
        path.rpartition(".")[2].replace(" ", "_"): path
        for path in paths
        if len({canonical(plain(each.get(path))) for each in settings}) > 1
    }
    for name, path in differ.items():
        values = [plain(each.get(path)) for each in settings]
        mixed = len({float if type(value) is int else type(value) for value in values if value is not None}) > 1
        for row, value in zip(rows, values, strict=True):
            row[name] = canonical(value) if value is not None and (mixed or isinstance(value, dict)) else value
    return ranked(rows, ["run", *differ], facts(boards[0])["metric"])
