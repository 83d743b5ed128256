"""Board: plan and results -> the ranked table of points, and what can be read from it. Pure: tables in, tables out.

Every view is a table again: points chosen (`where`), seeds folded (`by_config`), several runs as one (`compare`), what
each axis does (`effects`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator import statistics
from orchestrator.errors import BadInput
from orchestrator.forecast import price
from orchestrator.plan import Plan, Point
from orchestrator.result import Epoch, Result, read_off
from orchestrator.spec import EarlyStopping, Resources, axis_path, canonical

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
    return _ranked(rows, plan.axes, metric)


def _ranked(rows: list[dict[str, Any]], axes: Sequence[str], metric: str) -> pa.Table:
    sign = -1 if metric.endswith("accuracy") else 1
    order = {"ok": 0, "failed": 1, "running": 2, "pending": 3}
    # of equals, the one that took fewer epochs; as result.merit has it
    rows.sort(key=lambda row: (order[row["status"]], sign * (row.get(metric) or 0.0), row.get("epochs_trained") or 0))
    for i, row in enumerate(rows):
        row["rank"] = i + 1 if row["status"] == "ok" else None
    types = {name: _type([row[name] for row in rows]) for name in axes}
    return pa.Table.from_pylist(rows, schema=_schema({**_BEFORE, **types, **_AFTER}, axes, metric))


def _schema(fields: Mapping[str, pa.DataType], axes: Sequence[str], metric: str) -> pa.Schema:
    about = {"schema_version": SCHEMA_VERSION, "axes": list(axes), "metric": metric}
    return pa.schema(fields, metadata={"orchestrator": json.dumps(about)})


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
    shown = read_off(history, bool(stopping and stopping.restore_best))
    best = max(history, key=lambda epoch: epoch.val_accuracy)
    train_s = sum(epoch.train_s for epoch in history)
    worker_s = train_s + sum(epoch.validate_s for epoch in history)
    usd = price(resources, result.node_type)
    row |= {name: getattr(shown, name) for name in ("val_accuracy", "val_loss", "accuracy", "loss")}
    return row | {
        "best_epoch": best.epoch,
        "best_val_accuracy": best.val_accuracy,
        "epochs_trained": len(history),
        "train_s": train_s,
        "images_per_s": sum(epoch.images_per_s * epoch.train_s for epoch in history) / train_s if train_s else None,
        "cost_usd": None if usd is None else worker_s / 3600 * usd * (result.node_share or 1.0),
    }


def _plain(value: Any) -> Any:
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else value


def _type(values: Sequence[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int}:
        return pa.int64()
    if kinds <= {int, float}:
        return pa.float64()
    return pa.bool_() if kinds == {bool} else pa.string()


def sort_board(board: pa.Table, column: str) -> pa.Table:
    """Order by one column: accuracies from the highest, everything else from the lowest; empty ones last."""
    if column not in board.column_names:
        raise BadInput(f"--sort must be a column of the leaderboard ({', '.join(board.column_names)}), got {column}")
    order = "descending" if column.endswith("accuracy") or column in ("images_per_s", "share") else "ascending"
    return board.sort_by([(column, order)])


def facts(board: pa.Table) -> dict[str, Any]:
    """What the table says of itself: schema_version, axes, metric; told from its columns if another tool wrote it."""
    if text := (board.schema.metadata or {}).get(b"orchestrator"):
        return json.loads(text)
    axes = [name for name in board.column_names if name not in COLUMNS]
    return {"schema_version": SCHEMA_VERSION, "axes": axes, "metric": "val_accuracy"}


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
    """The rows that fulfil every condition, such as `dropout=0.5` or `val_accuracy>=0.9`; an empty cell `!=` alone.

    Raises BadInput for a condition that is none, an unknown column, or a value that the column cannot hold.
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
    """Trial id -> its epochs, ascending; of these trials alone, if they are given."""
    if trial_ids is not None:
        history = history.filter(pc.is_in(history["trial_id"], pa.array(trial_ids, pa.string())))
    found: dict[str, list[dict[str, Any]]] = {}
    for epoch in history.sort_by("epoch").to_pylist():
        found.setdefault(epoch["trial_id"], []).append(epoch)
    return found


def fold(board: pa.Table) -> tuple[statistics.Configuration, ...]:
    """The configurations of a board, best first; see `statistics.configurations`."""
    about = facts(board)
    return statistics.configurations(board.to_pylist(), about["axes"], about["metric"])


def verdict(board: pa.Table, history: pa.Table) -> statistics.Verdict | None:
    """Who is best, and how sure that is; None where no point is ok."""
    folded = fold(board)
    best = folded[0].trial_ids if folded else ()
    return statistics.judge(folded, facts(board)["metric"], curves(history, best))


def by_config(board: pa.Table) -> pa.Table:
    """One row per configuration: mean of the metric over the seeds, standard deviation, and ends of its 95% interval.

    verdict: best, ties (cannot be told from the best on the same seeds) or behind; empty where the seeds cannot tell.
    """
    about = facts(board)
    axes, metric = about["axes"], about["metric"]
    folded = fold(board)
    rows = []
    for i, each in enumerate(folded):
        ahead = statistics.lead(folded[0], each, metric) if each.score.count == folded[0].score.count else None
        standing = None if ahead is None else "behind" if statistics.is_apart(ahead) else "ties"
        half = each.score.half_width
        rows.append(
            {
                "rank": i + 1,
                **each.values,
                "seeds": each.score.count,
                metric: each.score.mean,
                f"{metric}_std": each.score.std,
                f"{metric}_low": None if half is None else each.score.mean - half,
                f"{metric}_high": None if half is None else each.score.mean + half,
                "train_s": each.train_s,
                "verdict": "best" if i == 0 else standing,
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
    return pa.Table.from_pylist(rows, schema=_schema(fields, axes, metric))


def effects(board: pa.Table) -> tuple[pa.Table, str]:
    """One row per axis and value, the axis that matters most first; and a sentence on what the axes leave unexplained.

    share: the axis' part of the variance between configurations. The metric: its mean over the other axes; _std: of the
    configurations at that value. Raises BadInput where no axis has two values that are ok.
    """
    about = facts(board)
    metric = about["metric"]
    found = statistics.effects(fold(board), about["axes"])
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
    return pa.Table.from_pylist(rows, schema=_schema(fields, about["axes"], metric)), describe(found)


def describe(found: statistics.Effects) -> str:
    """How to read the shares: what is left, and whether they are exact."""
    pair, share = max(found.pairs.items(), key=lambda each: each[1], default=((), 0.0))
    together = f", the most of it {' with '.join(pair)} ({share:.0%})" if share >= 0.005 else ""
    how = (
        "exact: the configurations are a full grid"
        if found.exact
        else "approximate: the configurations are no full grid, so means and shares are those of a least-squares fit"
    )
    return f"shares are of the variance between configurations; {found.rest:.0%} is no axis' alone{together}; {how}"


def compare(names: Sequence[str], boards: Sequence[pa.Table], shared: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Several runs as one board, ranked by the first one's metric: its axes are `run` and every setting that differs.

    shared: what all trials of each run share; see Plan.shared.
    """
    rows, settings = [], []
    for run, board, common in zip(names, boards, shared, strict=True):
        axes = [name for name in facts(board)["axes"] if name in board.column_names]
        trained = pc.max(board["epochs_trained"]).as_py()  # the epochs of a run that has no such axis
        for row in board.to_pylist():
            settings.append({"train.epochs": trained, **common, **{axis_path(name): row[name] for name in axes}})
            rows.append({name: row[name] for name in COLUMNS} | {"run": run})
    paths = dict.fromkeys(path for each in settings for path in each)
    differ = {
        path.rpartition(".")[2].replace(" ", "_"): path
        for path in paths
        if len({canonical(_plain(each.get(path))) for each in settings}) > 1
    }
    for name, path in differ.items():
        values = [_plain(each.get(path)) for each in settings]
        mixed = len({float if type(value) is int else type(value) for value in values if value is not None}) > 1
        for row, value in zip(rows, values, strict=True):
            row[name] = canonical(value) if value is not None and (mixed or isinstance(value, dict)) else value
    return _ranked(rows, ["run", *differ], facts(boards[0])["metric"])
