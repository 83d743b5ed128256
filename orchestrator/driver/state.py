"""State: what the driver knows of a run so far, and the tables that show it."""

import time
from collections.abc import Callable, Mapping

import pyarrow as pa

from orchestrator.board.table import build_board, build_history
from orchestrator.errors import BadInput
from orchestrator.plan.points import Plan, Point
from orchestrator.run.context import WorkerContext
from orchestrator.run.folder import KeepModels
from orchestrator.run.lease import Lease
from orchestrator.run.result import Result
from orchestrator.run.winner import delete_beaten, leading_point, trained_points
from orchestrator.store import StoreError
from orchestrator.tracking.tensorboard import write_events


class RunState:
    """Results as they arrive, and the tables of the run folder, which it keeps up to date.

    Attributes:
        results: Trial id -> its longest result, ok or failed.
        running: Ids of the trials that run now.
        lease: The right to write the run folder; None until it is taken, and nothing is written before.
    """

    def __init__(self, context: WorkerContext, plan: Plan, results: Mapping[str, Result]) -> None:
        self.context, self.plan = context, plan
        self.results = dict(results)
        self.running: set[str] = set()
        self.lease: Lease | None = None
        self._next_write_s = 0.0

    @property
    def done(self) -> dict[str, int]:
        """Trial id -> epochs that its result covers."""
        return {trial_id: result.epochs for trial_id, result in self.results.items() if result.status == "ok"}

    @property
    def board(self) -> pa.Table:
        """The leaderboard as it stands now."""
        spec = self.context.spec
        stopping = spec.train.early_stopping
        return build_board(self.plan, self.results, self.running, spec.metric, stopping, spec.resources)

    @property
    def history(self) -> pa.Table:
        """Every epoch of every result."""
        return build_history(self.results)

    @property
    def leader(self) -> Point | None:
        """The point that ranks first; None while none is ok."""
        return leading_point(self.plan, self.board)

    @property
    def trained(self) -> list[Point]:
        """The points that are ok."""
        return trained_points(self.plan, self.results)

    def holds_lease(self) -> bool:
        """Whether this process may write the run folder now."""
        return self.lease is not None and self.lease.holds()

    def raise_if_taken_over(self) -> None:
        if self.lease and self.lease.lost:
            uri = self.context.run.store.uri
            raise BadInput(f"another process took {uri} over: this one has stopped, and writes nothing more")

    def write_last(self) -> None:
        """When nothing runs any more: write the tables, and TensorBoard's events that no worker has written."""
        self.running.clear()
        run = self.context.run
        run.write_tables(self.board, self.history)
        write_events(run, self.trained, self.results, run.list_events())

    def write_if_due(self, say: Callable[[str], None]) -> None:
        """Write the tables, and delete models that were beaten, in at most a tenth of the driver's time.

        say: called with the reason if that fails; the next write brings the tables up to date.
        """
        if time.monotonic() < self._next_write_s or not self.holds_lease():
            return
        began = time.monotonic()
        try:
            board = self.board
            self.context.run.write_tables(board, self.history)
            if self.context.keep is KeepModels.best:
                delete_beaten(self.context.run, self.plan, self.results, leading_point(self.plan, board))
        except StoreError as error:
            say(f"the leaderboard could not be written: {error}")
        self._next_write_s = time.monotonic() + 9 * (time.monotonic() - began)
