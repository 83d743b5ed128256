"""Winner: which exported models a run folder needs, keeps and deletes. Workers write them (train/export.py).

models/best.keras                the winner's
models/<point>.keras             of every point, where all are kept
models/candidates/<point>.keras  of running trials, and of the one that leads; deleted when beaten
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.plans.points import Plan
from orchestrator.plans.trials import Point, Trial
from orchestrator.runs.folder import BEST, CANDIDATES, KeepModels, Run, read_parquet
from orchestrator.runs.result import Epoch, Exported, Result, Threshold, ranked_by, restores_best
from orchestrator.runs.threshold import choose_threshold
from orchestrator.spec.sections import Spec
from orchestrator.store import Missing


def leading_point(plan: Plan, board: pa.Table) -> Point | None:
    """The point that ranks first; None while none is ok."""
    if not board.num_rows or board["status"][0].as_py() != "ok":
        return None
    first = board["point_id"][0].as_py()
    return next(point for point in plan.points if point.id == first)


def trained_points(plan: Plan, results: Mapping[str, Result]) -> list[Point]:
    """The points that are ok."""
    return [p for p in plan.points if (result := results.get(p.trial_id)) and result.covers(p.epochs)]


def delete_beaten(run: Run, plan: Plan, results: Mapping[str, Result], leader: Point | None) -> None:
    """Delete the candidates of finished trials, except those of the trial that leads."""
    done = {p.id for p in trained_points(plan, results) if leader is None or p.trial_id != leader.trial_id}
    candidates = (name for name in run.list_models() if name.startswith(CANDIDATES))
    run.delete_models([name for name in candidates if name.removeprefix(CANDIDATES) in done])


def place_models(
    run: Run, plan: Plan, results: Mapping[str, Result], first: Point | None, spec: Spec, keep: KeepModels
) -> tuple[Trial, ...]:
    """Put the model of the point that ranks first at models/best, and, if all are kept, each point's at models/<point>.

    Returns the trials that must be trained again because no file has their weights, each with only those milestones.
    """
    if keep is KeepModels.none or first is None:
        return ()
    models = run.read_models()
    trials = {trial.id: trial for trial in plan.trials}
    lacking: dict[str, dict[str, Point]] = {}

    def find_model(point: Point, own: str) -> str | None:
        epoch = epoch_of(point, results, spec).epoch
        ids = (point.id, *trials[point.trial_id].points)  # another point of the trial may have the same weights
        names = [name for each in ids for name in (each, f"{CANDIDATES}{each}")]
        existing = (n for n in [own, *names, BEST] if n in models)
        return next((n for n in existing if (models[n].trial_id, models[n].epoch) == (point.trial_id, epoch)), None)

    for point in trained_points(plan, results) if keep is KeepModels.all else ():
        name = find_model(point, point.id)
        if name is None:
            lacking.setdefault(point.trial_id, {})[point.id] = point
        elif name != point.id:
            run.copy_model(name, point.id, _facts_for(run, name, models[name], point, spec))
    name = find_model(first, BEST)
    if name is None:
        lacking.setdefault(first.trial_id, {})[first.id] = first
    else:
        facts = _facts_for(run, name, models[name], first, spec)
        if name != BEST or facts.model_dump_json() != models[BEST].model_dump_json():
            run.copy_model(name, BEST, facts)
        delete_beaten(run, plan, results, None)
    return tuple(_retraining(trial, lacking[trial.id].values()) for trial in plan.trials if trial.id in lacking)


def epoch_of(point: Point, results: Mapping[str, Result], spec: Spec) -> Epoch:
    """The epoch whose weights are the model of a point that is ok."""
    return ranked_by(results[point.trial_id].history[: point.epochs], restores_best(spec.train), spec.metric)


def _facts_for(run: Run, name: str, facts: Exported, point: Point, spec: Spec) -> Exported:
    """The facts of the model `name`, for this point and the spec as it is now."""
    now: dict[str, Any] = {"metric": spec.metric, "spec": spec.model_dump(mode="json")}
    if facts.metric != spec.metric:
        now["threshold"], now["threshold_chosen"] = _threshold_for(run, name, facts, spec.metric)
    return facts.model_copy(update={"point_id": point.id, "values": dict(point.values), "epochs": point.epochs, **now})


def _threshold_for(run: Run, name: str, facts: Exported, metric: str) -> tuple[float, Threshold] | tuple[None, None]:
    """What the worker would have chosen for this metric. One half where the predictions cannot be read."""
    try:
        rows = read_parquet(run.store.read(f"models/{name}-validation.parquet"))
        labels = np.array([facts.classes.index(label) for label in rows["label"].to_pylist()])
        return choose_threshold(metric, labels, np.array(rows["probabilities"].to_pylist()))
    except (Missing, pa.ArrowException, OSError, ValueError, KeyError):
        return None, None


def _retraining(trial: Trial, points: Collection[Point]) -> Trial:
    ordered = sorted(points, key=lambda point: point.epochs)
    milestones = tuple(p.epochs for p in ordered)
    return replace(trial, milestones=milestones, epochs=milestones[-1], points=tuple(p.id for p in ordered))
