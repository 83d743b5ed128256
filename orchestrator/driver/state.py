"""State: what the driver knows of a run so far, and the tables that show it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.board.sentences import so_far
from orchestrator.board.table import build_board, build_history, build_predictions
from orchestrator.board.views import verdict
from orchestrator.display.page import write_page
from orchestrator.display.table import count_points
from orchestrator.errors import BadInput
from orchestrator.plans.points import Plan, remaining
from orchestrator.plans.trials import Point, Trial
from orchestrator.race.course import Course, run_course
from orchestrator.race.describe import describe_course, sum_up
from orchestrator.runs.checkpoints import KeepCheckpoints, delete_checkpoints
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.events import Events
from orchestrator.runs.folder import BOARD, HISTORY, PREDICTIONS, KeepModels
from orchestrator.runs.lease import Lease
from orchestrator.runs.result import Result, lacks
from orchestrator.runs.winner import delete_beaten, leading_point, trained_points
from orchestrator.store import StoreError
from orchestrator.tracking.tensorboard import write_events
from orchestrator.words import plural

_TABLES_S = 2.0  # between two writes of the tables, at least
_TABLES_SHARE = 0.05  # of the driver's time, at most
_PROGRESS_S = 2.0  # between two writes of progress.json
_PAGE_S = 60.0  # and of report.html
_SHARE = 0.01  # of the driver's time, at most, for each of these two


class RunState:
    """Results as they arrive, and the tables of the run folder, which it keeps up to date.

    Attributes:
        results: Trial id -> its longest result, ok or failed.
        running: Ids of the trials that run now.
        lease: The right to write the run folder; None until it is taken, and nothing is written before.
        events: What has happened, for events.jsonl.
        leads: As the tables were last written: which configuration led, and what that is worth, in one line.
    """

    def __init__(
        self,
        context: WorkerContext,
        plan: Plan,
        results: Mapping[str, Result],
        keep_checkpoints: KeepCheckpoints = KeepCheckpoints.all,
    ) -> None:
        self.context, self.plan, self.keep_checkpoints = context, plan, keep_checkpoints
        self.results = dict(results)
        self.running: set[str] = set()
        self.lease: Lease | None = None
        self.events = Events(context.run.store)
        self.leads: tuple[str, str] | None = None
        self._course: tuple[tuple[int, ...], Course | None] = ((), None)
        self._next_write_s = self._next_progress_s = 0.0
        self._stale = False  # something has happened that the tables do not show
        self._next_page_s = time.monotonic() + _PAGE_S
        index = context.index
        counts = np.bincount(index.labels[index.judged], minlength=len(index.classes))
        self._classes = dict(zip(index.classes, counts.tolist(), strict=True))

    @property
    def done(self) -> dict[str, int]:
        """Trial id -> epochs that its result covers."""
        return {trial_id: result.epochs for trial_id, result in self.results.items() if result.status == "ok"}

    def add(self, result: Result) -> None:
        """A leg has ended, or a milestone is reached. What failed leaves what came before it as it was."""
        before = self.results.get(result.trial_id)
        if before and result.status == "failed":
            told = {name: value for name, value in result if value not in (None, [], {})}
            result = before.model_copy(update=told)
        if not (before and before.status == "ok" and result.status == "ok" and before.epochs >= result.epochs):
            self.results[result.trial_id] = result

    def check_metric(self) -> None:
        """Raise BadInput where results do not have what ranks the points."""
        metric, own = self.context.spec.metric, [trial.id for trial in self.plan.trials if trial.id in self.results]
        if lacking := sum(lacks(self.results[trial_id].history, metric) for trial_id in own):
            raise BadInput(
                f"metric {metric} must be recorded in every result, and {lacking} of {plural(len(own), 'trial')} in "
                f"{self.context.run.store.uri} lack it, as an older version trained them: rank by another, such as "
                f"--set metric=val_accuracy, or train them anew under another --name"
            )

    @property
    def course(self) -> Course | None:
        """How the race stands; None where there is none."""
        if self.context.spec.race is None:
            return None
        found = self.results.values()
        state = (len(found), sum(result.epochs for result in found), sum(result.status == "ok" for result in found))
        if self._course[0] != state:
            self._course = state, run_course(self.context.spec, self.plan, self.results)
        return self._course[1]

    @property
    def left(self) -> tuple[Trial, ...]:
        """What may be trained now, in the order in which it starts: legs of the race, or all that remains."""
        return self.course.legs if self.course else remaining(self.plan, self.done)

    @property
    def board(self) -> pa.Table:
        """The leaderboard as it stands now."""
        spec, course = self.context.spec, self.course
        about: dict[str, Any] = {"classes": self._classes}
        if course is None:
            return build_board(spec, self.plan, self.results, self.running, about=about)
        stopped = {trial_id: stop.because for trial_id, stop in course.stopped.items()}
        about |= {"race": sum_up(course, spec, self.plan), "looks": course.looks, "first_seed": spec.seeds[0]}
        return build_board(spec, self.plan, self.results, self.running, stopped, about)

    @property
    def history(self) -> pa.Table:
        """Every epoch of every result."""
        return build_history(self.results)

    @property
    def predictions(self) -> pa.Table:
        """What every point that is ok had right."""
        return build_predictions(self.context.spec, self.plan, self.results)

    def _tables(self, board: pa.Table) -> dict[str, pa.Table]:
        return {BOARD: board, HISTORY: self.history, PREDICTIONS: self.predictions}

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
        run.write_tables(self._tables(self.board))
        run.write_race(describe_course(self.course) if self.course else None)
        run.write_progress(None)
        write_events(run, self.trained, self.results, run.list_events())

    def drop_checkpoints(self, last: bool = False) -> None:
        """Delete the checkpoints of trials that are done, as far as they are not kept. last: nothing runs any more."""
        keep, done = self.keep_checkpoints, self.done
        if keep is KeepCheckpoints.all or not self.holds_lease():
            return
        open_ = {leg.id for leg in self.left} | self.running
        is_over = last and not open_  # a race stops no more, and goes on with none that it has stopped
        over = {t.id for t in self.plan.trials if t.id in done and (is_over or done[t.id] >= t.epochs)}
        over -= open_ | {trial.frozen for trial in self.plan.trials if trial.frozen and trial.id not in over}
        stable = [(trial.stable.id, trial.id in over) for trial in self.plan.trials if trial.stable]
        over |= {each for each, _ in stable} - {each for each, is_over in stable if not is_over}
        if (leader := self.leader) and not (is_over and keep is KeepCheckpoints.none):  # its model may be to be made
            over.discard(leader.trial_id)
        delete_checkpoints(self.context.run, over)

    def changed(self, say: Callable[[str], None]) -> None:
        """The tables are to show something else from now on; otherwise as `write_if_due`."""
        self._stale = True
        self.write_if_due(say)

    def write_if_due(self, say: Callable[[str], None]) -> None:
        """Write the events, and where they changed the tables; delete models that were beaten.

        Every two seconds, and in a twentieth of the driver's time, at most. say: called with the reason if that fails;
        the next write brings them up to date.
        """
        if not self.holds_lease():
            return
        self.events.write_if_due(say)
        began = time.monotonic()
        if not self._stale or began < self._next_write_s:
            return
        self._stale = False
        try:
            board = self.board
            tables = self._tables(board)
            self.context.run.write_tables(tables)
            if found := verdict(board, tables[HISTORY], tables[PREDICTIONS]):
                self.leads = found.best.label, so_far(found, count_points(board))
            if self.context.keep is KeepModels.best:
                delete_beaten(self.context.run, self.plan, self.results, leading_point(self.plan, board))
            self.drop_checkpoints()
        except StoreError as error:
            say(f"the leaderboard could not be written: {error}")
            self._stale = True
        self._next_write_s = _next(began, _TABLES_S, _TABLES_SHARE)

    def show_if_due(self, progress: Callable[[], Mapping[str, Any]], say: Callable[[str], None]) -> None:
        """Write what runs now every two seconds, and the page every minute; each in 1% of the driver's time at most.

        say: called with the reason if that fails.
        """
        began = time.monotonic()
        try:
            if began >= self._next_progress_s and self.holds_lease():
                self.context.run.write_progress(progress())
                self._next_progress_s = _next(began, _PROGRESS_S, _SHARE)
            if began >= self._next_page_s and self.holds_lease():
                write_page(self.context.run)
                self._next_page_s = _next(began, _PAGE_S, _SHARE)
        except BadInput as error:
            self._next_progress_s = _next(began, _PROGRESS_S, _SHARE)
            self._next_page_s = _next(began, _PAGE_S, _SHARE)
            say(f"the page could not be written: {error}")


def _next(began_s: float, every_s: float, share: float) -> float:
    """When to do it again that began then, and has just ended. share: of the driver's time that it may take."""
    ended_s = time.monotonic()
    return ended_s + max(every_s, (ended_s - began_s) / share)
