"""Table: plan and results -> the ranked table of points, and the history. Pure."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from orchestrator.metrics import METRICS, recorded, shown
from orchestrator.plan.forecast import price
from orchestrator.plan.points import Plan, Point
from orchestrator.run.result import Result, best_epoch, read_off
from orchestrator.spec.sections import EarlyStopping, Resources

SCHEMA_VERSION = 1
_TIME = pa.timestamp("s", tz="UTC")
_BEFORE = {"rank": pa.int32(), "point_id": pa.string(), "trial_id": pa.string(), "status": pa.string()}
_AFTER = {
    "seed": pa.int64(),
    **{name: pa.float64() for name in shown("board") if not METRICS[name].best_of},
    "best_epoch": pa.int32(),
    **{name: pa.float64() for name in shown("board") if METRICS[name].best_of},
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

    results: trial id -> result, ok or failed. running: ids of running trials. resources: what a node costs.
    """
    rows = [
        _row(point, results.get(point.trial_id), point.trial_id in running, stopping, resources or Resources())
        for point in plan.points
    ]
    return ranked(rows, plan.axes, metric)


def ranked(rows: list[dict[str, Any]], axes: Sequence[str], metric: str) -> pa.Table:
    sign = METRICS[metric].sign
    order = {"ok": 0, "failed": 1, "running": 2, "pending": 3}

    def place(row: dict[str, Any]) -> tuple[int, bool, float, int]:
        """Of equals, the one that took fewer epochs comes first, as in result.merit."""
        value = row.get(metric)
        return order[row["status"]], value is None, -sign * (value or 0.0), row.get("epochs_trained") or 0

    rows.sort(key=place)
    for i, row in enumerate(rows):
        row["rank"] = i + 1 if row["status"] == "ok" else None
    types = {name: _type([row[name] for row in rows]) for name in axes}
    return pa.Table.from_pylist(rows, schema=schema({**_BEFORE, **types, **_AFTER}, axes, metric))


def schema(fields: Mapping[str, pa.DataType], axes: Sequence[str], metric: str) -> pa.Schema:
    about = {"schema_version": SCHEMA_VERSION, "axes": list(axes), "metric": metric}
    return pa.schema(fields, metadata={"orchestrator": json.dumps(about)})


def build_history(results: Mapping[str, Result]) -> pa.Table:
    """One row per trial and epoch."""
    schema = pa.schema(
        {
            "trial_id": pa.string(),
            "epoch": pa.int32(),
            **{name: pa.float64() for name in (*recorded(), "train_s", "images_per_s", "validate_s")},
        }
    )
    rows = [
        {"trial_id": result.trial_id, "epoch": epoch.epoch, **epoch.figures}
        for result in results.values()
        for epoch in result.history
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
        **{name: plain(value) for name, value in point.values.items()},
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
    read = read_off(history, bool(stopping and stopping.restore_best))
    train_s = sum(epoch.train_s for epoch in history)
    worker_s = train_s + sum(epoch.validate_s for epoch in history)
    usd = price(resources, result.node_type)
    for metric in map(METRICS.__getitem__, shown("board")):
        epoch = best_epoch(history, metric.best_of) if metric.best_of else read
        row[metric.name] = epoch.metrics.get(metric.recorded)
    return row | {
        "best_epoch": best_epoch(history, "val_accuracy").epoch,
        "epochs_trained": len(history),
        "train_s": train_s,
        "images_per_s": sum(epoch.images_per_s * epoch.train_s for epoch in history) / train_s if train_s else None,
        "cost_usd": None if usd is None else worker_s / 3600 * usd * (result.node_share or 1.0),
    }


def plain(value: Any) -> Any:
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else value


def _type(values: Sequence[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int}:
        return pa.int64()
    if kinds <= {int, float}:
        return pa.float64()
    return pa.bool_() if kinds == {bool} else pa.string()


def facts(board: pa.Table) -> dict[str, Any]:
    """schema_version, axes and metric: from the metadata, or from the columns if another tool wrote the table."""
    if text := (board.schema.metadata or {}).get(b"orchestrator"):
        return json.loads(text)
    axes = [name for name in board.column_names if name not in COLUMNS]
    return {"schema_version": SCHEMA_VERSION, "axes": axes, "metric": "val_accuracy"}
