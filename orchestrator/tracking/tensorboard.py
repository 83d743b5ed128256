"""TensorBoard: what it reads in RUN/events/<point>/, the scalars of each epoch and a row of the HParams tab.

Events are written to a local file and then copied, so that a run folder in a bucket has them too. tensorboardX writes
them, without TensorFlow.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

from orchestrator.plans.trials import Point
from orchestrator.runs.folder import Run
from orchestrator.runs.result import Epoch, Result
from orchestrator.scratch import scratch
from orchestrator.words import plain


def write_events(
    run: Run, points: Collection[Point], results: Mapping[str, Result], there: Mapping[str, Collection[str]]
) -> None:
    """Write the events of these points, unless the run folder has them. points: those that are ok.

    there: as Run.list_events gives it. A file's name depends on the axes: if the grid has gained one, it is replaced.
    """
    for point in points:
        result = results[point.trial_id]
        axes = hashlib.sha256(repr(sorted(point.values)).encode()).hexdigest()[:8]
        name = f"events.out.tfevents.{axes}"
        old = there.get(point.id, ())
        if set(old) != {name}:
            ended = datetime.fromisoformat(result.finished_at).timestamp() if result.finished_at else 0.0
            data = encode(hyperparameters(point), result.history[: point.epochs], ended)
            run.replace_events(point.id, old, name, data)


def hyperparameters(point: Point) -> dict[str, Any]:
    """Axis values, seed and fold, sizes as HEIGHTxWIDTH."""
    fold = {"fold": point.fold} if point.fold else {}
    return {**{name: plain(value) for name, value in point.values.items()}, "seed": point.seed, **fold}


def encode(values: Mapping[str, Any], history: Collection[Epoch], ended: float) -> bytes:
    """An event file. values: for the HParams tab. ended: when the last epoch ended, in seconds since 1970."""
    from tensorboardX.record_writer import RecordWriter

    with scratch() as folder:
        path = folder / "events"
        writer = RecordWriter(str(path))
        for event in _events(values, history, ended):
            writer.write(event.SerializeToString())
        writer.close()
        return path.read_bytes()


def _events(values: Mapping[str, Any], history: Collection[Epoch], ended: float) -> Iterator[Any]:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import hparams, scalar

    wall_time = ended - sum(epoch.train_s for epoch in history)
    yield Event(wall_time=wall_time, file_version="brain.Event:2")
    # the experiment's summary is left out: TensorBoard then collects axes and metrics from all the points
    _, start, end = hparams(dict(values), {})
    yield Event(wall_time=wall_time, summary=start)
    for epoch in history:
        wall_time += epoch.train_s
        for name, value in epoch.figures.items():
            yield Event(wall_time=wall_time, step=epoch.epoch, summary=scalar(name, value))
    yield Event(wall_time=wall_time, summary=end)
