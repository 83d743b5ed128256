"""Progress: a live table on a terminal and in a notebook, plain lines in a job log. Shows what the fan-out reports."""

import itertools
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from orchestrator.metrics import METRICS, shown
from orchestrator.plans.points import Plan
from orchestrator.plans.trials import Trial
from orchestrator.runs.result import Epoch, Result
from orchestrator.terminal import live
from orchestrator.words import clock, now, plural

_LINES = 12  # trials shown at once, however many run
_LINE_S = 5.0  # between two lines on features
_CURVES = 200  # running trials whose epochs a page shows, however many run


class Progress:
    """Shows a run while it goes on. Use as a context manager around the fan-out.

    todo: as plan.remaining gives it. metric: the spec's. slots: trials that run at once. stopped: ids of those
    that a race has stopped.
    """

    def __init__(
        self,
        plan: Plan,
        todo: Collection[Trial],
        metric: str,
        slots: int,
        console: Console,
        stopped: Collection[str] = (),
    ) -> None:
        self._trials = {trial.id: trial for trial in plan.trials}
        self._todo = {trial.id: trial for trial in todo}  # longest first
        self._todo_s = sum(trial.forecast_s for trial in todo)
        self._metric, self._slots, self._console = METRICS[metric], slots, console
        self._running: dict[str, list[Epoch]] = {}
        self._epochs_done: dict[str, float] = {}  # of running trials
        self._ended = self._failed = 0
        self._stopped = set(stopped)
        self._last_stop = ""
        self._best: tuple[float, str] | None = None
        self._leader = self._so_far = ""
        self._features: dict[str, tuple[float, int]] = {}  # since when a trial's worker tells of them, and of how many
        self._preparing: dict[str, str] = {}  # what is shown of trials whose workers make features
        self._next_line_s = 0.0
        self._began = time.monotonic()
        self._pace = 1.0  # measured time / forecast time
        self._measured_s = self._forecast_s = 0.0
        self._live = live(console, self._table)

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.__exit__(None, None, None)

    def started(self, trial_id: str) -> None:
        self._running[trial_id] = []
        self._stopped.discard(trial_id)  # a race may let it go on
        if trial_id not in self._todo:  # or give a configuration another seed
            self._await(self._trials[trial_id])
        self._slots = max(self._slots, len(self._running))  # nodes may have joined

    def preparing(self, trial_id: str, backbone: str, done: int, images: int, made: int) -> None:
        """The trial's worker makes features: those of `done` of so many images are there; it made `made` itself."""
        now = time.monotonic()
        since_s, before = self._features.setdefault(trial_id, (now, made))
        left = f", {clock((now - since_s) / (made - before) * (images - done))} left" if made > before else ""
        line = f"features of {backbone}: {done:,} of {plural(images, 'image')}{left if done < images else ''}"
        self._preparing[trial_id] = line
        if done == images:  # of this view; another one may follow
            del self._features[trial_id], self._preparing[trial_id]
        if done == images or now >= self._next_line_s:
            self._next_line_s = now + _LINE_S
            self.say(line)

    def ready(self, trial_id: str, epochs_done: float) -> None:
        """A worker took the trial up, of which so many epochs are done."""
        self._epochs_done[trial_id] = epochs_done

    def epoch(self, trial_id: str, epoch: Epoch) -> None:
        trial = self._trials[trial_id]
        self._running.setdefault(trial_id, []).append(epoch)
        self._epochs_done[trial_id] = epoch.epoch
        self._measured_s += epoch.train_s + epoch.validate_s
        self._forecast_s += trial.forecast_s / trial.epochs
        self._pace = self._measured_s / self._forecast_s if self._forecast_s else 1.0
        value = epoch.metrics[self._metric.recorded]
        if self._best is None or self._metric.sign * value > self._metric.sign * self._best[0]:
            self._best = (value, f"{trial.label} epoch {epoch.epoch}")
        self.say(
            f"epoch {epoch.epoch}/{trial.epochs}  {trial.label}  "
            f"{'  '.join(f'{name} {_text(epoch, name)}' for name in shown('live'))}  {epoch.images_per_s:.0f} images/s"
        )

    def ended(self, result: Result) -> None:
        trial = self._trials[result.trial_id]
        self.put_back(result.trial_id)
        self._forget(result.trial_id)
        if result.status == "ok" and result.epochs < trial.epochs:  # a leg of a race, which may go on
            self._await(replace(trial, forecast_s=trial.left_s(result.epochs)))
            self.say(f"rung {result.epochs}/{trial.epochs}  {trial.label}")
            return
        self._ended += 1
        self._failed += result.status == "failed"
        what = f"failed: {result.error}" if result.status == "failed" else "ok"
        self.say(f"trial {self._count()} {what}  {trial.label}  {clock(self._left_s())} left")

    def stopped(self, trial_id: str, because: str) -> None:
        """The race gives the trial no more epochs."""
        if self._forget(trial_id):  # others were never counted in
            self._stopped.add(trial_id)
            trial = self._trials[trial_id]
            self._last_stop = f"stopped last: {trial.label}, {because}"
            line = f"trial {self._count()} stopped, {because}"
            self.say(f"{line}  {trial.label}  {clock(self._left_s())} left")

    def leads(self, leader: str, line: str) -> None:
        """The verdict so far. leader: the configuration that it names; a log has the line where that is another one."""
        if leader != self._leader:
            self.say(line)
        self._leader, self._so_far = leader, line

    def _await(self, trial: Trial) -> None:
        self._todo[trial.id] = trial
        self._todo_s += trial.forecast_s

    def _forget(self, trial_id: str) -> bool:
        left = self._todo.pop(trial_id, None)
        self._todo_s -= left.forecast_s if left else 0.0
        return left is not None

    def _count(self) -> str:
        done = self._ended + len(self._stopped)
        return f"{done}/{done + len(self._todo)}"

    def put_back(self, trial_id: str) -> None:
        """The trial does not run any more."""
        self._running.pop(trial_id, None)
        self._features.pop(trial_id, None)
        self._preparing.pop(trial_id, None)
        self._epochs_done.pop(trial_id, None)

    def expected_s(self, leg: Trial, epochs_done: float) -> float:
        """Worker time that a leg still needs after so many epochs, in seconds, at the pace of the epochs so far."""
        return self._trials[leg.id].leg(leg.epochs).left_s(epochs_done) * self._pace

    def _left_s(self) -> float:
        """Seconds until everything is trained: the worker time left, spread over the slots, or the longest trial.

        The time that this takes grows with the trials that run, not with those that wait.
        """
        longest_s, done_s = 0.0, 0.0
        for trial_id in list(self._running):
            if todo := self._todo.get(trial_id):  # else it has just ended, in the other thread
                epochs_done = self._epochs_done.get(trial_id)
                left_s = todo.forecast_s if epochs_done is None else self._trials[trial_id].left_s(epochs_done)
                done_s += todo.forecast_s - left_s
                longest_s = max(longest_s, left_s)
        first = list(itertools.islice(self._todo, len(self._running) + 1))  # one of these waits, if any does
        if waiting := next((trial_id for trial_id in first if trial_id not in self._running), None):
            longest_s = max(longest_s, todo.forecast_s if (todo := self._todo.get(waiting)) else 0.0)
        return max((self._todo_s - done_s) / self._slots, longest_s) * self._pace

    def as_tree(self) -> dict[str, Any]:
        """How far the run is, as plain values, for a page: what runs, with its epochs so far, and the time left."""
        running = {
            trial_id: {
                "epochs": self._trials[trial_id].epochs,
                "history": [{"epoch": each.epoch, **each.figures} for each in epochs] if i < _CURVES else [],
            }
            for i, (trial_id, epochs) in enumerate(self._running.items())
        }
        waiting = sum(trial_id not in self._running for trial_id in self._todo)
        return {
            "written": now(),
            "left_s": self._left_s(),
            "waiting": waiting,
            "running": running,
            "preparing": list(self._preparing.values()),
        }

    def say(self, line: str) -> None:
        """Print a line into a job log; a terminal has the table instead."""
        if not self._live:
            self._console.out(line)

    def warn(self, line: str) -> None:
        """Print a line that a person should read in any case; on a terminal, it is above the table."""
        self._console.out(line)

    def _table(self) -> Group:
        """What a terminal shows; called four times a second, from another thread."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        names = shown("live")
        for name in ("trial", "epoch", *names, "images/s"):
            table.add_column(name, justify="left" if name == "trial" else "right")
        for trial_id, epochs in list(self._running.items())[:_LINES]:
            trial, epoch = self._trials[trial_id], epochs[-1] if epochs else None
            cells = (
                (
                    f"{epoch.epoch}/{trial.epochs}",
                    *(_text(epoch, name) for name in names),
                    f"{epoch.images_per_s:.0f}",
                )
                if epoch
                else (f"0/{trial.epochs}", *("-" for _ in names), "-")
            )
            table.add_row(trial.label, *cells)
        more = len(self._running) - _LINES
        best = self._so_far
        if self._best and not best:
            best = f"best epoch so far: {self._metric.recorded} {self._metric.text(self._best[0])} ({self._best[1]})"
        status = (
            f"{plural(self._ended, 'trial')} done, {f'{len(self._stopped)} stopped, ' if self._stopped else ''}"
            f"{len(self._running)} running, "
            f"{len(self._todo) - len(self._running)} waiting"
            f"{f', {self._failed} failed' if self._failed else ''}  {clock(time.monotonic() - self._began)} gone, "
            f"about {clock(self._left_s())} left"
        )
        stop = [self._last_stop] if self._last_stop else []
        status = "\n".join([*list(self._preparing.values())[:_LINES], *stop, status])
        return Group(table, *([Text(f"and {more} more")] if more > 0 else []), Text(best), Text(status))


def _text(epoch: Epoch, metric: str) -> str:
    return METRICS[metric].text(epoch.metrics[metric])
