"""Tracking: the run's points as MLflow runs. The only room that imports mlflow, which is an extra: `[mlflow]`.

One MLflow run per point that is ok, in an experiment of the run's name, found again by the tag orchestrator.point: so
the same command again logs what is missing, and nothing twice.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

from orchestrator.errors import BadInput
from orchestrator.plan.points import Plan, Point
from orchestrator.run.folder import Run
from orchestrator.run.result import Result
from orchestrator.scratch import scratch
from orchestrator.store import one_line
from orchestrator.words import label

_AT_ONCE = 1000  # metrics in one request, as the server allows
POINT, TRIAL, RUN, WINNER, MODEL = (f"orchestrator.{name}" for name in ("point", "trial", "run", "winner", "model"))


def check_server(uri: str) -> None:
    """Raise BadInput where there is no mlflow, or no server answers at `uri`."""
    if importlib.util.find_spec("mlflow") is None:
        raise BadInput("--mlflow needs the package mlflow-skinny, which is not installed: pip install mlflow-skinny")
    with _client(uri) as client:
        client.search_experiments(max_results=1)


def log_points(
    uri: str,
    name: str,
    run: Run,
    plan: Plan,
    points: Sequence[Point],
    results: Mapping[str, Result],
    best: Point | None,
) -> int:
    """Log those of the `points`, which are ok, that are not logged yet, and the model of the `best`.

    name: of the experiment. Returns how many points were logged. Raises BadInput where the server fails.
    """
    with _client(uri) as client:
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        there = dict(_logged(client, experiment, run.store.uri))
        new = [point for point in points if point.id not in there]
        for point in new:
            there[point.id] = _log_point(client, experiment, run, plan, point, results[point.trial_id])
        for point_id, (run_id, tags) in there.items():
            if WINNER in tags and not (best and point_id == best.id):
                client.delete_tag(run_id, WINNER)
        if best and (facts := run.read_model("best")) and facts.point_id == best.id:
            run_id, tags = there[best.id]
            if tags.get(MODEL) != facts.weights:
                with scratch() as folder:
                    run.fetch_model("best", folder)
                    client.log_artifacts(run_id, str(folder), "model")
                client.set_tag(run_id, MODEL, facts.weights)
            if WINNER not in tags:
                client.set_tag(run_id, WINNER, "true")
    return len(new)


def _logged(
    client: "MlflowClient", experiment: str, folder: str
) -> Iterator[tuple[str, tuple[str, Mapping[str, str]]]]:
    """Point -> (MLflow run, its tags), of the points logged whole. Those half logged from this folder are deleted."""
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        for each in page:
            if (point_id := each.data.tags.get(POINT)) and each.info.status == "FINISHED":
                yield point_id, (each.info.run_id, each.data.tags)
            elif point_id and each.data.tags.get(RUN) == folder:  # another's may be at it
                client.delete_run(each.info.run_id)
        token = page.token
        if not token:
            return


def _log_point(
    client: "MlflowClient", experiment: str, run: Run, plan: Plan, point: Point, result: Result
) -> tuple[str, Mapping[str, str]]:
    from mlflow.entities import Metric, Param

    history = result.history[: point.epochs]
    ended = datetime.fromisoformat(result.finished_at).timestamp() if result.finished_at else 0.0
    at = ended - sum(epoch.train_s for epoch in history)
    tags = {POINT: point.id, TRIAL: point.trial_id, RUN: run.store.uri}
    made = client.create_run(
        experiment, start_time=int(at * 1000), tags=tags, run_name=label(point.values, point.seed)
    ).info.run_id
    values = {**plan.shared, **point.values, "seed": point.seed}
    params = [Param(name, "x".join(map(str, v)) if isinstance(v, tuple) else str(v)) for name, v in values.items()]
    client.log_batch(made, params=params)
    metrics = []
    for epoch in history:
        at += epoch.train_s
        metrics += [Metric(name, value, int(at * 1000), epoch.epoch) for name, value in epoch.figures.items()]
    for start in range(0, len(metrics), _AT_ONCE):
        client.log_batch(made, metrics=metrics[start : start + _AT_ONCE])
    client.set_terminated(made, "FINISHED", int(ended * 1000))
    return made, tags


@contextmanager
def _client(uri: str) -> "Iterator[MlflowClient]":
    for setting, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
    ):
        os.environ.setdefault(setting, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        yield MlflowClient(tracking_uri=uri)
    except (MlflowException, ImportError, OSError) as error:
        raise BadInput(
            f"--mlflow must be the address of an MLflow server that answers, got {one_line(uri)}: "
            f"{one_line(str(error))}; the same command again logs what is missing"
        ) from None
