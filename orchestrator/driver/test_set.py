"""Test set: when a run ends, its winner, and nothing else, is shown the images that nothing was chosen by."""

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from rich.console import Console

from orchestrator.board.tested import judge_test
from orchestrator.driver.state import RunState
from orchestrator.driver.watch import GridWatch
from orchestrator.errors import BadInput
from orchestrator.runs.folder import BEST, TEST, WEIGHTS, read_parquet
from orchestrator.runs.result import Exported
from orchestrator.words import plural

if TYPE_CHECKING:
    from orchestrator.cluster.connect import Cluster


def open_test_set(state: RunState, watch: GridWatch, cluster: "Cluster | None", console: Console) -> None:
    """Show the winner the test images, unless it has seen them, or trials are still to be trained.

    cluster: None: one is started if needed. What it reaches stands in best.json, and each look in test.json.
    """
    context, run, leader = state.context, state.context.run, state.leader
    if leader is None or not context.index.tests.any() or watch.stop.is_set():
        return
    if left := [trial for trial in state.left if trial.id not in state.results]:
        console.out(f"the test images stay closed until {plural(len(left), 'trial')} more are trained")
        return
    facts = run.read_model(BEST)
    if facts is None or facts.point_id != leader.id:
        console.out("the test images stay closed: models/ holds no model of the winner")
        return
    looks, judged, new = run.read_looks(), _judged(run.read_if_there(TEST), facts), None
    if judged is None:
        new = _look(state, watch, cluster, console)
        judged = _judged(new, facts)
    last = looks[-1] if looks else None
    if judged is None or (facts.test and last and not new and facts.test.metric == facts.metric):
        return
    tested = judge_test(judged, facts, len({look.weights for look in looks} | {facts.weights}))
    earlier = looks[:-1] if last and last.weights == facts.weights else looks
    run.write_look([*earlier, tested], new, facts.model_copy(update={"test": tested}))


def _judged(data: bytes | None, facts: Exported) -> pa.Table | None:
    """What the winner's weights say of the test images; None where that is damaged, or what others say."""
    try:
        judged = read_parquet(data) if data else None
    except (pa.ArrowException, OSError):
        return None
    return (
        judged if judged is not None and (judged.schema.metadata or {}).get(WEIGHTS) == facts.weights.encode() else None
    )


def _look(state: RunState, watch: GridWatch, cluster: "Cluster | None", console: Console) -> bytes | None:
    """What the winner says of the test images, as Parquet; None where that could not be found out."""
    from orchestrator.cluster.connect import connect  # here, so that a finished run does not load Ray
    from orchestrator.cluster.fanout import judge_test_images

    context = state.context
    console.out(f"test: the winner is shown {int(np.count_nonzero(context.index.tests)):,} images")
    with contextlib.nullcontext(cluster) if cluster else connect(context.spec.resources) as cluster:
        try:
            return judge_test_images(context, cluster, watch.stop, watch.kill)
        except BadInput as error:
            console.out(f"test: {error}")
            return None
