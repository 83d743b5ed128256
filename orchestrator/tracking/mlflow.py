"""MLflow: the points of a run as MLflow runs. The only file that imports mlflow, which is an extra: `[mlflow]`.

One MLflow run per point that is ok, in an experiment with the run's name. The tag orchestrator.point identifies it, so
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
from orchestrator.plans.points import Plan
from orchestrator.plans.trials import Point
from orchestrator.runs.folder import Run
from orchestrator.runs.result import Result
from orchestrator.scratch import scratch
from orchestrator.store import one_line
from orchestrator.words import label, plain

_AT_ONCE = 1000  # the most metrics that a server takes in one request
POINT, TRIAL, RUN, WINNER, MODEL = (f"orchestrator.{name}" for name in ("point", "trial", "run", "winner", "model"))


def check_server(uri: str) -> None:
    """Raise BadInput if mlflow is not installed, or no server answers at `uri`."""
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
    """Log the points that are not logged yet, and the model of the `best`.

    name: of the experiment. points: those that are ok. Returns how many were logged now. Raises BadInput if the server
    fails.
    """
    with _client(uri) as client:
        existing = client.get_experiment_by_name(name)
        experiment = existing.experiment_id if existing else client.create_experiment(name)
        logged = dict(_logged(client, experiment, run.store.uri))
        new = [point for point in points if point.id not in logged]
        for point in new:
            logged[point.id] = _log_point(client, experiment, run, plan, point, results[point.trial_id])
        for point_id, (run_id, tags) in logged.items():
            if WINNER in tags and not (best and point_id == best.id):
                client.delete_tag(run_id, WINNER)
        if best and (facts := run.read_model("best")) and facts.point_id == best.id:
            run_id, tags = logged[best.id]
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
    """(point, (MLflow run, its tags)) for all points logged completely; the others of this folder are deleted."""
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        for mlflow_run in page:
            if (point_id := mlflow_run.data.tags.get(POINT)) and mlflow_run.info.status == "FINISHED":
                yield point_id, (mlflow_run.info.run_id, mlflow_run.data.tags)
            elif point_id and mlflow_run.data.tags.get(RUN) == folder:  # another run folder's may be in progress
                client.delete_run(mlflow_run.info.run_id)
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
    created = client.create_run(
        experiment, start_time=int(at * 1000), tags=tags, run_name=label(point.values, point.seed, point.fold)
    ).info.run_id
    fold = {"fold": point.fold} if plan.shared.get("data.folds") else {}
    rate = {} if result.rate_used is None else {"rate_used": result.rate_used}
    values = {**plan.shared, **point.values, "seed": point.seed, **fold, **rate}
    params = [Param(name, str(plain(value))) for name, value in values.items()]
    client.log_batch(created, params=params)
    metrics = []
    for epoch in history:
        at += epoch.train_s
        metrics += [Metric(name, value, int(at * 1000), epoch.epoch) for name, value in epoch.figures.items()]
    for start in range(0, len(metrics), _AT_ONCE):
        client.log_batch(created, metrics=metrics[start : start + _AT_ONCE])
    client.set_terminated(created, "FINISHED", int(ended * 1000))
    return created, tags


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
