"""Views: tables made from a board. Pure.

Some points (`where`), seeds folded (`by_config`), several runs as one (`compare_runs`), what axes do (`effects`).
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.board.comparison import compare
from orchestrator.board.effects import describe_effects, main_effects
from orchestrator.board.estimates import Configuration, configurations, draw_of
from orchestrator.board.table import COLUMNS, facts, ranges, ranked, schema
from orchestrator.board.verdict import Verdict, judge
from orchestrator.errors import BadInput
from orchestrator.metrics import METRICS
from orchestrator.runs.result import window_of
from orchestrator.spec.axes import axis_path, canonical
from orchestrator.words import plain


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


def fold(board: pa.Table, predictions: pa.Table | None = None) -> tuple[Configuration, ...]:
    """The configurations of a board, best first; see `estimates.configurations`. predictions: as table.py builds it."""
    about = facts(board)
    right = {}
    if predictions is not None and METRICS[about["metric"]].recorded == "val_accuracy":
        for row in predictions.to_pylist():
            right[row["point_id"]] = np.frombuffer(row["right"], np.uint8).astype(np.float32) / row["window"]
    return configurations(board.to_pylist(), about["axes"], about["metric"], right)


def verdict(board: pa.Table, history: pa.Table, predictions: pa.Table | None = None) -> Verdict | None:
    """The verdict on a board: which is best, and how sure that is; None if no point is ok."""
    folded, about = fold(board, predictions), facts(board)
    best = folded[0].trial_ids if folded else ()
    rows = board.select([*about["axes"], "seed", *({"fold"} & {*board.column_names})]).to_pylist()
    asked = len({tuple(row[axis] for axis in about["axes"]) for row in rows})
    draws = {draw_of(row) for row in rows}
    epochs = curves(history, best)
    return judge(folded, about["metric"], epochs, about.get("looks", 1), about.get("classes"), asked, draws)


def by_config(board: pa.Table, predictions: pa.Table | None = None) -> pa.Table:
    """One row per configuration: mean of the score over seeds or folds, standard deviation, ends of its 95% interval.

    The metric: mean over these of the epochs whose weights are the models.
    verdict: best, may be best, or behind; empty if nothing tells them apart.
    """
    about = facts(board)
    axes, metric = about["axes"], about["metric"]
    folded = fold(board, predictions)
    draws = folded[0].draws if folded else "seeds"
    compared = compare(folded, metric, about.get("looks", 1)).each if folded else ()
    rows = []
    for i, (each, beside) in enumerate(zip(folded, compared, strict=True)):
        relation = None if beside.error is None else "may be best" if beside.may_be_best else "behind"
        half_width = each.score.half_width
        rows.append(
            {
                "rank": i + 1,
                **each.values,
                "rate_used": each.rate,
                draws: each.score.count,
                "score": each.score.mean,
                "score_std": each.score.std,
                "score_low": None if half_width is None else each.score.mean - half_width,
                "score_high": None if half_width is None else each.score.mean + half_width,
                metric: math.fsum(each.figures.values()) / len(each.figures),
                "train_s": each.train_s,
                "verdict": "best" if i == 0 else relation,
            }
        )
    numbers = ["score", "score_std", "score_low", "score_high", metric, "train_s"]
    fields = {
        "rank": pa.int32(),
        **{axis: board.schema.field(axis).type for axis in axes},
        **({"rate_used": pa.float64()} if any(each.rate is not None for each in folded) else {}),
        draws: pa.int32(),
        **dict.fromkeys(numbers, pa.float64()),
        "verdict": pa.string(),
    }
    return pa.Table.from_pylist(rows, schema=schema(fields, axes, metric))


def common_rung(board: pa.Table, history: pa.Table) -> tuple[pa.Table, int | None]:
    """The board as it stood after the most epochs that all points have which a race has compared; and how many.

    What a race stops has no figures of later epochs, so effects taken at the end would be those of the better points. A
    board without stopped points stays as it is, and the number is None.
    """
    about, rows = facts(board), board.to_pylist()
    metric = METRICS[about["metric"]]
    trained = [row for row in rows if row["status"] in ("ok", "stopped") and row["epochs_trained"]]
    first = {row["trial_id"]: row for row in trained if _is_first(row, about)}
    figures = curves(history, list(first))
    if not any(row["status"] == "stopped" for row in trained) or first.keys() - figures.keys():
        return board, None
    epochs = min(row["epochs_trained"] for row in first.values())
    for trial_id, row in first.items():
        found = [epoch[metric.recorded] for epoch in figures[trial_id][:epochs]]
        last = found[-window_of(epochs, metric.name) :]
        best = metric.sign * max(metric.sign * each for each in found)
        row |= {"status": "ok", "score": best if metric.best_of else math.fsum(last) / len(last)}
    axes = [axis for axis in about["axes"] if axis != "epochs"]  # all have as many
    rows = [{name: value for name, value in row.items() if name != "epochs"} for row in first.values()]
    return ranked(rows, axes, metric.name, {"ranges": about.get("ranges", {})}), epochs


def _is_first(row: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether the row is of the seed and the fold that a race compares."""
    return row["seed"] == about.get("first_seed", row["seed"]) and not row.get("fold")


def effects(board: pa.Table, history: pa.Table) -> tuple[pa.Table, str]:
    """One row per axis and value, or quarter of a range, and a sentence on what no axis explains.

    The axis that matters most comes first.

    share: the axis' part of the variance between configurations. The metric: its mean over the other axes; _std: of the
    configurations at that value. Raises BadInput if no axis has two values with points that are ok.
    """
    about = facts(board)
    metric = about["metric"]
    board, epochs = common_rung(board, history)
    found = main_effects(fold(board), facts(board)["axes"], ranges(board))
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
    return pa.Table.from_pylist(rows, schema=schema(fields, about["axes"], metric)), describe_effects(found, epochs)


def compare_runs(names: Sequence[str], boards: Sequence[pa.Table], shared: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Several runs as one board, ranked by the first one's metric: its axes are `run` and every setting that differs.

    shared: what all trials of each run share; see Plan.shared.
    """
    rows, settings, metric = [], [], facts(boards[0])["metric"]
    for run, board, common in zip(names, boards, shared, strict=True):
        axes = [name for name in facts(board)["axes"] if name in board.column_names]
        trained = pc.max(board["epochs_trained"]).as_py()  # stands for the epochs of a run that has no such axis
        for row in board.to_pylist():
            settings.append({"train.epochs": trained, **common, **{axis_path(name): row[name] for name in axes}})
            if facts(board)["metric"] != metric:  # its score is of another
                if row["score"] is not None and row[metric] is None:
                    raise BadInput(
                        f"--compare must have runs that record {metric}, by which {names[0]} is ranked, and points of "
                        f"{run} lack it: name {run} first"
                    )
                row["score"] = row[metric]
            rows.append(
                {name: row[name] for name in COLUMNS}
                | {"run": run, "fold": row.get("fold"), "rate_used": row.get("rate_used")}
            )
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
    return ranked(rows, ["run", *differ], metric)
