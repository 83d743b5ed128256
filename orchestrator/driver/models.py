"""Models: which ones stay in the run folder when a run ends. If weights are gone, their trials are trained again."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.driver.state import RunState
from orchestrator.driver.watch import GridWatch
from orchestrator.errors import BadInput
from orchestrator.plans.trials import Trial
from orchestrator.runs.result import Epoch, Result
from orchestrator.runs.winner import place_models
from orchestrator.words import plural

if TYPE_CHECKING:
    from orchestrator.cluster.connect import Cluster


def finish_models(state: RunState, watch: GridWatch, cluster: "Cluster | None", console: Console) -> None:
    """Make the run folder hold the models that the user keeps. cluster: None: one is started if needed."""

    def place() -> tuple[Trial, ...]:
        context = state.context
        return place_models(context.run, state.plan, state.results, state.leader, context.spec, context.keep)

    if not (todo := place()) or watch.stop.is_set():
        return
    console.out(f"models: {plural(len(todo), 'model')} to make, from checkpoints or by training again")
    from orchestrator.cluster.connect import connect  # here, so that a finished run does not load Ray
    from orchestrator.cluster.fanout import fan_out
    from orchestrator.cluster.watch import InOrder

    context = dataclasses.replace(state.context, models_only=True)
    with contextlib.nullcontext(cluster) if cluster else connect(context.spec.resources) as cluster:
        try:
            fan_out(context, cluster, InOrder(todo), RetrainingWatch(state.results, console), watch.stop, watch.kill)
        except BadInput as error:  # the board is complete without models
            console.out(f"models: {error}")
    if not watch.stop.is_set() and state.holds_lease() and (left := place()):
        console.out(f"models: still without one: {', '.join(point for trial in left for point in trial.points)}")


class RetrainingWatch:
    """A cluster.watch.Watch for trials that are trained for their models alone. The board does not change.

    Attributes:
        error: Why the last one that was not trained was not; None: all were.
    """

    def __init__(self, results: Mapping[str, Result], console: Console, what: str = "models") -> None:
        """what: how lines begin."""
        self._results, self._console, self._what = results, console, what
        self.error: str | None = None

    def started(self, trial_id: str) -> None:
        self._console.out(f"{self._what}: making that of {trial_id}")

    def may_start(
        self,
        trial: Trial,
        epochs_done: float,
        unreadable: Mapping[int, str],
        node_type: str | None,
        node_share: float,
    ) -> bool:
        return True

    def preparing(self, trial_id: str, what: str, done: int, images: int, made: int) -> None:
        pass

    def ready(self, trial_id: str, epochs_done: float) -> None:
        pass

    def over(self) -> bool:
        return False

    def say(self, line: str) -> None:
        self._console.out(line)

    def refused(self, trial: Trial, why: str) -> None:
        self.error = why
        self._console.out(f"{self._what}: {trial.id} could not be trained again: {why}")

    def epoch(self, trial_id: str, epoch: Epoch) -> None:
        self._console.out(f"{self._what}: {trial_id} epoch {epoch.epoch}")

    def reached(self, result: Result) -> None:
        pass

    def ended(self, result: Result) -> None:
        known = self._results.get(result.trial_id)
        before = known.digests if known else {}
        if result.status == "failed":
            self.error = result.error
            self._console.out(f"{self._what}: {result.trial_id} failed when it was trained again: {result.error}")
        elif any(before.get(epoch, digest) != digest for epoch, digest in result.digests.items()):
            self._console.out(
                f"models: {result.trial_id} came out with other weights than before, as it may on a GPU, another "
                f"processor or another TensorFlow: best.json has the metrics of the model that is there"
            )
