"""Table: plan and results -> the ranked table of points, the history, and what points had right. Pure."""

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from orchestrator.metrics import METRICS, recorded, shown
from orchestrator.plans.forecast import price
from orchestrator.plans.points import Plan
from orchestrator.plans.trials import Point
from orchestrator.runs.result import Epoch, Result, best_epoch, ranked_by, read_off, restores_best, score, what_ranks
from orchestrator.spec.axes import canonical
from orchestrator.spec.ranges import Range, read_tree
from orchestrator.spec.sections import Spec
from orchestrator.words import plain

SCHEMA_VERSION = 2
_WEIGHT_BYTES = 4  # weights are float32, whatever the precision is
_TIME = pa.timestamp("s", tz="UTC")
_BEFORE = {"rank": pa.int32(), "point_id": pa.string(), "trial_id": pa.string(), "status": pa.string()}
_AFTER = {
    "seed": pa.int64(),
    "score": pa.float64(),
    **{name: pa.float64() for name in shown("board") if not METRICS[name].best_of},
    "best_epoch": pa.int32(),
    **{name: pa.float64() for name in shown("board") if METRICS[name].best_of},
    "epochs_trained": pa.int32(),
    "steps_per_epoch": pa.int32(),
    "train_s": pa.float64(),
    "images_per_s": pa.float64(),
    "parameters": pa.int64(),
    "model_mb": pa.float64(),
    "ms_per_image": pa.float64(),
    "cost_usd": pa.float64(),
    "peak_memory_mb": pa.float64(),
    "device": pa.string(),
    "node": pa.string(),
    "error": pa.string(),
    "stopped_because": pa.string(),
    "started_at": _TIME,
    "finished_at": _TIME,
}
COLUMNS = (*_BEFORE, *_AFTER)
_FOLDS = {"seed": pa.int64(), "fold": pa.int32()}  # where the images are split in folds
_RATE = {"rate_used": pa.float64()}  # where the learning rate is auto or scaled


def build_board(
    spec: Spec,
    plan: Plan,
    results: Mapping[str, Result],
    running: Collection[str] = (),
    stopped: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> pa.Table:
    """One row per point: those that are ok, best score first, then stopped, failed, running and pending ones.

    With folds, those of a configuration stand together, and the configuration with the best mean comes first.

    score: the mean of the metric over the last fifth of a point's epochs; see run/result.py. The metric itself is that
    of the epoch whose weights are the point's model. best_epoch: the one that early stopping restores, or else the one
    with the best value of the metric. parameters, model_mb: size of the model that is trained, of a head without its
    backbone. ms_per_image: to validate an image in batches on one worker, in the fastest epoch after the first.
    results: trial id -> result, ok or failed. running: ids of running trials. stopped: trial id -> why a race gives it
    no more epochs. about: what else `facts` says of the board: see there.
    """
    why = stopped or {}
    rows = [
        _row(spec, point, results.get(point.trial_id), point.trial_id in running, why.get(point.trial_id))
        for point in plan.points
    ]
    drawn = {name: each.tree() for name, each in spec.ranges.items()}
    return ranked(rows, plan.axes, spec.metric, {**({"ranges": drawn} if drawn else {}), **(about or {})})


def ranked(
    rows: list[dict[str, Any]], axes: Sequence[str], metric: str, about: Mapping[str, Any] | None = None
) -> pa.Table:
    sign = METRICS[metric].sign
    order = {"ok": 0, "stopped": 1, "failed": 2, "running": 3, "pending": 4}

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        """Of equals, the one that took fewer epochs comes first, as in result.merit."""
        value = row.get("score")
        own = order[row["status"]], value is None, -sign * (value or 0.0), row.get("epochs_trained") or 0
        return own if row.get("fold") is None else (own[0], *mean[_values(row, axes)], row["seed"], row["fold"])

    mean = _by_fold(rows, axes, sign)
    rows.sort(key=place)
    for i, row in enumerate(rows):
        row["rank"] = i + 1 if row["status"] == "ok" else None
    types = {name: _type([row[name] for row in rows]) for name in axes}
    for row, name in itertools.product(rows, [name for name in axes if types[name] == pa.string()]):
        row[name] = _text(row[name])
    types |= _RATE if any(row.get("rate_used") is not None for row in rows) else {}
    types |= _FOLDS if any(row.get("fold") is not None for row in rows) else {}
    return pa.Table.from_pylist(rows, schema=schema({**_BEFORE, **types, **_AFTER}, axes, metric, about))


def _text(value: Any) -> str | None:
    """A value of an axis of texts, on which numbers may stand too."""
    return value if value is None or isinstance(value, str) else canonical(value)


def _values(row: Mapping[str, Any], axes: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in axes)


def _by_fold(
    rows: Sequence[Mapping[str, Any]], axes: Sequence[str], sign: int
) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Values of a configuration -> its place: folds judge other images, so only their means compare.

    First those with most folds, and of these the one with the best mean.
    """
    scores: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        own = scores.setdefault(_values(row, axes), [])
        if row["status"] == "ok" and row.get("score") is not None:
            own.append(row["score"])
    best = {values: (-len(own), -sign * sum(own) / max(1, len(own))) for values, own in scores.items()}
    return {values: (*place, number) for number, (values, place) in enumerate(best.items())}


def schema(
    fields: Mapping[str, pa.DataType], axes: Sequence[str], metric: str, about: Mapping[str, Any] | None = None
) -> pa.Schema:
    known = {"schema_version": SCHEMA_VERSION, "axes": list(axes), "metric": metric, **(about or {})}
    return pa.schema(fields, metadata={"orchestrator": json.dumps(known)})


def build_history(results: Mapping[str, Result]) -> pa.Table:
    """One row per trial and epoch."""
    schema = pa.schema(
        {
            "trial_id": pa.string(),
            "epoch": pa.int32(),
            **{name: pa.float64() for name in (*recorded(), "train_s", "images_per_s", "validate_s", "learning_rate")},
        }
    )
    rows = [
        {"trial_id": result.trial_id, "epoch": epoch.epoch, **epoch.figures}
        for result in results.values()
        for epoch in result.history
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def build_predictions(spec: Spec, plan: Plan, results: Mapping[str, Result]) -> pa.Table:
    """One row per point that is ok: `right`, a byte for each validation image, in how many epochs of `window` it was.

    The window is the one that the score is the mean of. Points whose results do not hold it have no row.
    """
    rows = []
    for point in plan.points:
        result = results.get(point.trial_id)
        if result is None or not result.covers(point.epochs):
            continue
        if right := what_ranks(result, point.epochs, restores_best(spec.train), spec.metric):
            rows.append({"point_id": point.id, "window": right.window, "right": right.unpacked()})
    fields = {"point_id": pa.string(), "window": pa.int32(), "right": pa.binary()}
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _row(spec: Spec, point: Point, result: Result | None, running: bool, stopped: str | None) -> dict[str, Any]:
    if result and result.covers(point.epochs):
        status = "ok"
    elif running:
        status = "running"
    elif result and result.status == "failed":
        status = "failed"
    else:
        status = "stopped" if stopped else "pending"
    row: dict[str, Any] = {
        "point_id": point.id,
        "trial_id": point.trial_id,
        "seed": point.seed,
        "fold": point.fold if spec.data.folds else None,
        "status": status,
        **{name: plain(value) for name, value in point.values.items()},
    }
    if status == "stopped":
        row["stopped_because"] = stopped
    if result is None or status in ("running", "pending"):
        return row
    figures = _figures(spec, point, result)
    return row | (figures if status != "ok" else {**figures, "error": None})


def _figures(spec: Spec, point: Point, result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: getattr(result, name)
        for name in ("steps_per_epoch", "rate_used", "parameters", "peak_memory_mb", "device", "node", "error")
    }
    row["model_mb"] = None if result.parameters is None else result.parameters * _WEIGHT_BYTES / 1e6
    row |= {
        name: datetime.fromisoformat(text) if (text := getattr(result, name)) else None
        for name in ("started_at", "finished_at")
    }
    history = result.history[: point.epochs]
    if not history or (result.status == "failed" and not result.covers(point.epochs)):
        return row
    restores, metric = restores_best(spec.train), METRICS[spec.metric]
    read = read_off(history, restores)
    best = ranked_by(history, restores, spec.metric) if restores else best_epoch(history, metric.recorded)
    train_s = sum(epoch.train_s for epoch in history)
    for each in map(METRICS.__getitem__, shown("board")):
        epoch = best_epoch(history, each.best_of) if each.best_of else read
        row[each.name] = epoch.metrics.get(each.recorded)
    return row | {
        "score": score(history, restores, spec.metric),
        "best_epoch": best.epoch,
        "epochs_trained": len(history),
        "train_s": train_s,
        "images_per_s": sum(epoch.images_per_s * epoch.train_s for epoch in history) / train_s if train_s else None,
        "ms_per_image": _ms_per_image(result, history),
        "cost_usd": _cost_usd(spec, result, history),
    }


def _ms_per_image(result: Result, history: Sequence[Epoch]) -> float | None:
    """How long the model takes for a validation image, in its fastest epoch; the first one also builds its graph."""
    if not result.validation_images or len(history) < 2:
        return None
    return min(epoch.validate_s for epoch in history[1:]) / result.validation_images * 1000


def _cost_usd(spec: Spec, result: Result, history: Sequence[Epoch]) -> float | None:
    usd = price(spec.resources, result.node_type)
    worker_s = sum(epoch.train_s + epoch.validate_s for epoch in history)
    return None if usd is None else worker_s / 3600 * usd * (result.node_share or 1.0)


def cost_usd(spec: Spec, plan: Plan, results: Mapping[str, Result]) -> float | None:
    """What the trials of the plan have cost so far while they trained and validated, each counted once.

    None where a node has no known price. What was trained and lost as a worker died is not in it.
    """
    own = [(trial.epochs_of_another, results[trial.id]) for trial in plan.trials if trial.id in results]
    costs = [_cost_usd(spec, result, result.history[epochs:]) for epochs, result in own]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known and len(known) == len(costs) else None


def _type(values: Sequence[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int}:
        return pa.int64()
    if kinds <= {int, float}:
        return pa.float64()
    return pa.bool_() if kinds == {bool} else pa.string()


def ranges(board: pa.Table) -> dict[str, Range]:
    """The axes that a sample drew from a range."""
    return {name: read_tree(tree) for name, tree in facts(board).get("ranges", {}).items()}


def facts(board: pa.Table) -> dict[str, Any]:
    """schema_version, axes and metric: from the metadata, or from the columns if another tool wrote the table.

    Also `classes`, name of each class -> its validation images; older boards lack it.
    Of a sample also `ranges`, axis -> the range that it drew from.
    Of a race also `race`, what it has to say; `looks`, how many times it may compare contenders; and `first_seed`.
    """
    if text := (board.schema.metadata or {}).get(b"orchestrator"):
        return json.loads(text)
    axes = [name for name in board.column_names if name not in (*COLUMNS, *_FOLDS, *_RATE)]
    return {"schema_version": SCHEMA_VERSION, "axes": axes, "metric": "val_accuracy"}
