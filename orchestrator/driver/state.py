"""State: what the driver knows of a run so far, and the tables that show it."""

import threading
import time
from collections.abc import Callable, Mapping

import pyarrow as pa
from rich.console import Console

from orchestrator.board.table import build_board, build_history
from orchestrator.driver.progress import Progress
from orchestrator.errors import BadInput
from orchestrator.plan.budget import Meter
from orchestrator.plan.forecast import price
from orchestrator.plan.points import Plan, Trial
from orchestrator.run.folder import KeepModels, Run
from orchestrator.run.lease import Lease
from orchestrator.run.result import Epoch, Result
from orchestrator.run.winner import delete_beaten, leading_point, trained_points
from orchestrator.spec.sections import Spec
from orchestrator.store import StoreError
from orchestrator.tracking.tensorboard import write_events


class RetrainingWatch:
    """Watches trials that are trained again for their models: the board stays as it is."""

    def __init__(self, results: Mapping[str, Result], console: Console) -> None:
        self._results, self._console = results, console

    def started(self, trial_id: str) -> None:
        self._console.out(f"models: training {trial_id} again")

    def ready(self, trial_id: str, behind: float) -> None:
        pass

    def may_start(
        self, trial: Trial, behind: float, unreadable: Mapping[int, str], node_type: str | None, node_share: float
    ) -> bool:
        return True

    def over(self) -> bool:
        return False

    def say(self, line: str) -> None:
        self._console.out(line)

    def refused(self, trial: Trial, why: str) -> None:
        self._console.out(f"models: {trial.id} could not be trained again: {why}")

    def epoch(self, trial_id: str, epoch: Epoch) -> None:
        self._console.out(f"models: {trial_id} epoch {epoch.epoch}")

    def ended(self, result: Result) -> None:
        before = self._results[result.trial_id].digests
        if result.status == "failed":
            self._console.out(f"models: {result.trial_id} failed when it was trained again: {result.error}")
        elif any(before.get(epoch, digest) != digest for epoch, digest in result.digests.items()):
            self._console.out(
                f"models: {result.trial_id} came out with other weights than before, as it may on a GPU, another "
                f"processor or another TensorFlow: best.json has the metrics of the model that is there"
            )


class RunState:
    """What is known of the run so far: keeps the tables in the run folder up to date while results land.

    Until the first worker is ready, nothing is written: then `begin` takes the run folder, or the run is refused.
    """

    def __init__(self, run: Run, plan: Plan, results: Mapping[str, Result], spec: Spec, keep: KeepModels) -> None:
        self._run, self._plan, self._spec, self._keep = run, plan, spec, keep
        self.results = dict(results)
        self.running: set[str] = set()
        self._next_write = 0.0
        self.begin: Callable[[Mapping[int, str]], None]
        self.progress: Progress
        self.lease: Lease | None = None
        self.refusal: str | None = None
        self.stop, self.kill = threading.Event(), threading.Event()
        self.interrupted = False
        self.left_out = False
        self._meter = Meter(spec.budget, time.monotonic())

    @property
    def done(self) -> dict[str, int]:
        """Trial id -> epochs that its result covers."""
        return {trial_id: result.epochs for trial_id, result in self.results.items() if result.status == "ok"}

    def take(self, results: Mapping[str, Result]) -> None:
        self.results.update(results)

    def refuse_if_lost(self) -> None:
        if self.lease and self.lease.lost:
            raise BadInput(
                f"another process took {self._run.store.uri} over: this one has stopped, and writes nothing more"
            )

    def interrupt(self) -> None:
        self.interrupted = True
        self.stop.set()

    def started(self, trial_id: str) -> None:
        self.running.add(trial_id)
        self._write_if_due()
        self.progress.started(trial_id)

    def ready(self, trial_id: str, behind: float) -> None:
        self.progress.ready(trial_id, behind)

    def take_folder(self, unreadable: Mapping[int, str]) -> None:
        """Begin, if that is yet to be done and nobody wants it to stop."""
        if self.lease is None and not (self.stop.is_set() or self.kill.is_set()):
            try:
                self.begin(unreadable)
            except BadInput as error:
                self.refusal = str(error)
                self.kill.set()
            self._write_if_due()

    def refused(self, trial: Trial, why: str) -> None:
        if self.lease is None:
            self.refusal = why
            self.kill.set()
        else:
            self.ended(Result(trial_id=trial.id, status="failed", epochs=trial.milestones[-1], error=why))

    def may_start(
        self, trial: Trial, behind: float, unreadable: Mapping[int, str], node_type: str | None, node_share: float
    ) -> bool:
        usd = price(self._spec.resources, node_type)
        if usd is None and self._spec.budget.max_usd is not None:
            self.refusal = (
                f"budget.max_usd needs the price of a {node_type or 'node'}, and no list has it: set "
                f"resources.usd_per_hour, or budget.max_hours instead"
            )
            self.kill.set()
            return False
        self.take_folder(unreadable)
        if self.done.get(trial.id, 0) >= trial.milestones[-1]:
            self.ended(self.results[trial.id])
            return False
        rate = (usd or 0.0) * node_share / 3600
        starts = self._meter.start(trial.id, time.monotonic(), self.progress.expected_s(trial.id, behind), rate)
        if not starts:
            self._put_back(trial.id)
        return starts

    def over(self) -> bool:
        if self.stop.is_set() or not self._meter.used_up(time.monotonic()):
            return False
        self.left_out = True
        for trial_id in list(self.running):
            self._put_back(trial_id)
        return True

    def _put_back(self, trial_id: str) -> None:
        """The budget has nothing left for it."""
        self.left_out = True
        self.running.discard(trial_id)
        self.progress.put_back(trial_id)

    def say(self, line: str) -> None:
        self.progress.warn(line)

    def epoch(self, trial_id: str, epoch: Epoch) -> None:
        self.progress.epoch(trial_id, epoch)

    def ended(self, result: Result) -> None:
        self.running.discard(result.trial_id)
        self._meter.end(result.trial_id, time.monotonic())
        self.results[result.trial_id] = result
        self._write_if_due()
        self.progress.ended(result)

    def board(self) -> pa.Table:
        stopping = self._spec.train.early_stopping
        resources = self._spec.resources
        return build_board(self._plan, self.results, self.running, self._spec.metric, stopping, resources)

    def history(self) -> pa.Table:
        return build_history(self.results)

    def write(self) -> None:
        """Write the tables as they stand when nothing runs, and those of TensorBoard's events that no worker wrote."""
        self.running.clear()
        self._run.write_tables(self.board(), self.history())
        write_events(self._run, trained_points(self._plan, self.results), self.results, self._run.list_events())

    def _write_if_due(self) -> None:
        """At most a tenth of the time goes into the tables, however large, and into models that were beaten."""
        if self.lease is None or time.monotonic() < self._next_write or not self.lease.holds():
            return
        began = time.monotonic()
        try:
            board = self.board()
            self._run.write_tables(board, self.history())
            if self._keep is KeepModels.best:
                delete_beaten(self._run, self._plan, self.results, leading_point(self._plan, board))
        except StoreError as error:  # the results are safe, and the next write brings the tables up to date
            self.say(f"the leaderboard could not be written: {error}")
        self._next_write = time.monotonic() + 9 * (time.monotonic() - began)
