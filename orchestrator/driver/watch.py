"""Watch: what the driver does when workers report: take the run folder, keep to the budget, show progress."""

import threading
import time
from collections.abc import Callable, Mapping

from orchestrator.driver.legs import GridLegs
from orchestrator.driver.progress import Progress
from orchestrator.driver.state import RunState
from orchestrator.errors import BadInput
from orchestrator.metrics import METRICS, shown
from orchestrator.plans.budget import Meter
from orchestrator.plans.forecast import price
from orchestrator.plans.trials import Trial
from orchestrator.runs.result import Epoch, Result


class GridWatch:
    """The cluster.watch.Watch of a grid.

    The run folder is taken when the first worker is ready, so that bad images and bad models are known before anything
    is written. Until then, a problem that would make every trial fail refuses the whole run.

    Attributes:
        stop: Set it to make workers save their state and stop. kill: set it to make them write nothing more.
        interrupted: Somebody pressed Ctrl-C or sent SIGTERM.
        budget_used_up: Some trial was stopped, or not started, because of the budget.
        refusal: Why the run cannot go on; None while it can.
        legs: What the fan-out trains.
        progress: Set before the fan-out begins.
    """

    progress: Progress

    def __init__(self, state: RunState, meter: Meter) -> None:
        """meter: counts from the command's start."""
        self._state, self._spec, self._meter = state, state.context.spec, meter
        self._trials, self._tell = {trial.id: trial for trial in state.plan.trials}, state.events.tell
        self.legs = GridLegs(state)
        self._stopped = frozenset(state.course.stopped) if state.course else frozenset[str]()
        self._take_folder: Callable[[Mapping[int, str]], None] | None = None
        self.stop, self.kill = threading.Event(), threading.Event()
        self.interrupted = self.budget_used_up = False
        self.refusal: str | None = None

    def before_first_trial(self, take_folder: Callable[[Mapping[int, str]], None]) -> None:
        """take_folder: called once, with what cannot be read (row of the index -> reason). May raise BadInput."""
        self._take_folder = take_folder

    def interrupt(self) -> None:
        self.interrupted = True
        self.stop.set()

    def ensure_folder(self, unreadable: Mapping[int, str]) -> None:
        """Take the run folder, unless it is taken already or the run is to stop."""
        if self._state.lease or self.stop.is_set() or self.kill.is_set() or not self._take_folder:
            return
        try:
            self._take_folder(unreadable)
        except BadInput as error:
            self._refuse(str(error))
        self._state.changed(self.say)

    def started(self, trial_id: str) -> None:
        trial = self._trials[trial_id]
        draw = {"seed": trial.seed, "fold": trial.fold}
        self._tell("trial.started", trial=trial_id, point_ids=trial.points, values=trial.values, **draw)
        self._state.running.add(trial_id)
        self._state.changed(self.say)
        self.progress.started(trial_id)

    def may_start(
        self,
        trial: Trial,
        epochs_done: float,
        unreadable: Mapping[int, str],
        node_type: str | None,
        node_share: float,
    ) -> bool:
        usd = price(self._spec.resources, node_type)
        if usd is None and self._spec.budget.max_usd is not None:
            self._refuse(
                f"budget.max_usd needs the price of a {node_type or 'node'}, and no list has it: set "
                f"resources.usd_per_hour, or budget.max_hours instead"
            )
            return False
        self.ensure_folder(unreadable)
        # a driver that had the lease before this one may have trained it meanwhile
        result = self._state.results.get(trial.id)
        if result and result.status == "ok" and result.epochs >= trial.epochs:
            self.ended(result)
            return False
        expected_s = self.progress.expected_s(trial, epochs_done)
        if not self._meter.start(trial.id, time.monotonic(), expected_s, (usd or 0.0) * node_share / 3600):
            self._leave_out(trial.id)
            return False
        return True

    def preparing(self, trial_id: str, what: str, done: int, images: int, made: int) -> None:
        self.progress.preparing(trial_id, what, done, images, made)

    def ready(self, trial_id: str, epochs_done: float) -> None:
        self._tell("trial.ready", trial=trial_id, epochs_done=epochs_done)
        self.legs.passed(trial_id, epochs_done)
        self.progress.ready(trial_id, epochs_done)

    def refused(self, trial: Trial, why: str) -> None:
        if self._state.lease is None:
            self._refuse(why)
        else:
            self.ended(Result(trial_id=trial.id, status="failed", epochs=trial.epochs, error=why))

    def over(self) -> bool:
        self._state.write_if_due(self.say)
        self._say_leads()
        self._state.show_if_due(self.progress.as_tree, self.say)
        if self.stop.is_set() or not self._meter.used_up(time.monotonic()):
            return False
        self.budget_used_up = True
        for trial_id in list(self._state.running):
            self._leave_out(trial_id)
        return True

    def say(self, line: str) -> None:
        self._tell("run.note", text=line)
        self.progress.warn(line)

    def epoch(self, trial_id: str, epoch: Epoch) -> None:
        self._tell("trial.epoch", trial=trial_id, epoch=epoch.epoch, figures=self._figures(epoch))
        self.legs.passed(trial_id, epoch.epoch)
        self.progress.epoch(trial_id, epoch)

    def reached(self, result: Result) -> None:
        self._tell("trial.reached", trial=result.trial_id, epochs=result.epochs, point_ids=self._points(result))
        self._state.add(result)
        self._state.changed(self.say)

    def ended(self, result: Result) -> None:
        how = "done" if result.epochs >= self._trials[result.trial_id].epochs else "reached"  # a rung: it may go on
        if result.status == "failed":
            self._tell("trial.failed", trial=result.trial_id, epochs=result.epochs, error=result.error)
        else:
            self._tell(f"trial.{how}", trial=result.trial_id, epochs=result.epochs, point_ids=self._points(result))
        self._state.running.discard(result.trial_id)
        self._meter.end(result.trial_id, time.monotonic())
        self._state.add(result)
        self.legs.ended(result.trial_id, result.epochs)
        self._state.changed(self.say)
        self.progress.ended(result)
        self._say_leads()
        self._say_stopped()

    def _say_leads(self) -> None:
        if self._state.leads:
            self.progress.leads(*self._state.leads)

    def _say_stopped(self) -> None:
        """Say what the race has stopped since the last result."""
        course = self._state.course
        if course is None:
            return
        for trial_id in course.stopped.keys() - self._stopped:
            self._tell("trial.stopped", trial=trial_id, because=course.stopped[trial_id].because)
            self.progress.stopped(trial_id, course.stopped[trial_id].because)
        self._stopped = frozenset(course.stopped)

    def _figures(self, epoch: Epoch) -> dict[str, float]:
        """What a terminal shows, and what the points are ranked by; history.parquet has the rest."""
        names = {*shown("live"), METRICS[self._spec.metric].recorded}
        return {name: round(value, 6) for name, value in epoch.figures.items() if name in names or name == "train_s"}

    def _points(self, result: Result) -> list[str]:
        """The points that the result covers."""
        trial = self._trials[result.trial_id]
        return [point for epochs, point in zip(trial.milestones, trial.points, strict=True) if epochs <= result.epochs]

    def _refuse(self, why: str) -> None:
        self.refusal = why
        self.kill.set()

    def _leave_out(self, trial_id: str) -> None:
        """Leave the trial out, as the budget has nothing left for it."""
        self.budget_used_up = True
        self._tell("trial.left_out", trial=trial_id, because="the budget is used up")
        self._state.running.discard(trial_id)
        self.legs.ended(trial_id)
        self.progress.put_back(trial_id)
