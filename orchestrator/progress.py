"""Progress: a live table on a terminal, plain lines in a job log. Takes what fan-out tells and shows it."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.plan import Plan, Trial, clock, label, many
from orchestrator.result import Epoch, Result

_LINES = 12  # trials shown at once, however many run


class Progress:
    """Shows a run while it goes on. Use as a context manager round the fan-out.

    metric: the spec's; slots: trials that run at once; results: what was there before.
    """

    def __init__(self, plan: Plan, todo: tuple[Trial, ...], metric: str, slots: int, console: Console) -> None:
        self._trials = {trial.id: trial for trial in plan.trials}
        self._todo = {trial.id: trial for trial in todo}
        self._metric, self._slots, self._console = metric, slots, console
        self._running: dict[str, Epoch | None] = {}
        self._ended = self._failed = 0
        self._best: tuple[float, str] | None = None
        self._began = time.monotonic()
        self._pace = 1.0  # measured over forecast
        self._measured_s = self._forecast_s = 0.0
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, trial_id: str) -> None:
        self._running[trial_id] = None
        self._slots = max(self._slots, len(self._running))  # nodes may join
        self._show()

    def epoch(self, trial_id: str, epoch: Epoch) -> None:
        trial = self._trials[trial_id]
        self._running[trial_id] = epoch
        self._measured_s += epoch.train_s + epoch.validate_s
        self._forecast_s += trial.forecast_s / trial.milestones[-1]
        self._pace = self._measured_s / self._forecast_s if self._forecast_s else 1.0
        value = getattr(epoch, self._metric.removeprefix("best_"))
        better = self._best is None or (
            value > self._best[0] if self._metric.endswith("accuracy") else value < self._best[0]
        )
        if better:
            self._best = (value, f"{label(trial.values, trial.seed)} epoch {epoch.epoch}")
        self.say(
            f"epoch {epoch.epoch}/{trial.milestones[-1]}  {label(trial.values, trial.seed)}  "
            f"val_accuracy {epoch.val_accuracy:.4f}  val_loss {epoch.val_loss:.4f}  loss {epoch.loss:.4f}  "
            f"{epoch.images_per_s:.0f} images/s"
        )

    def ended(self, result: Result) -> None:
        trial = self._trials[result.trial_id]
        self._running.pop(result.trial_id, None)
        self._todo.pop(result.trial_id, None)
        self._ended += 1
        self._failed += result.status == "failed"
        what = f"failed: {result.error}" if result.status == "failed" else "ok"
        self.say(
            f"trial {self._ended}/{self._ended + len(self._todo)} {what}  {label(trial.values, trial.seed)}  "
            f"{clock(self._left_s())} left"
        )

    def put_back(self, trial_id: str) -> None:
        """It was not begun after all."""
        self._running.pop(trial_id, None)
        self._show()

    def expected_s(self, trial: Trial) -> float:
        """Worker time of a whole trial, at the pace of the epochs so far."""
        return trial.forecast_s * self._pace

    def _left_s(self) -> float:
        """Worker time still to spend, spread over the slots."""
        done = {i: (e.epoch / self._trials[i].milestones[-1] if e else 0.0) for i, e in self._running.items()}
        left = [trial.forecast_s * (1 - done.get(i, 0.0)) * self._pace for i, trial in self._todo.items()]
        return max([sum(left) / self._slots, *left]) if left else 0.0

    def say(self, line: str) -> None:
        """A line of the job log; a terminal has its table."""
        if self._live:
            self._show()
        else:
            self._console.out(line)

    def _show(self) -> None:
        if not self._live:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("trial", "epoch", "val_accuracy", "val_loss", "images/s"):
            table.add_column(name, justify="left" if name == "trial" else "right")
        for trial_id, epoch in list(self._running.items())[:_LINES]:
            trial = self._trials[trial_id]
            cells = (
                (
                    f"{epoch.epoch}/{trial.milestones[-1]}",
                    f"{epoch.val_accuracy:.4f}",
                    f"{epoch.val_loss:.4f}",
                    f"{epoch.images_per_s:.0f}",
                )
                if epoch
                else (f"0/{trial.milestones[-1]}", "-", "-", "-")
            )
            table.add_row(label(trial.values, trial.seed), *cells)
        more = len(self._running) - _LINES
        best = (
            f"best so far: {self._metric.removeprefix('best_')} {self._best[0]:.4f} ({self._best[1]})"
            if self._best
            else ""
        )
        status = (
            f"{many(self._ended, 'trial')} done, {len(self._running)} running, "
            f"{len(self._todo) - len(self._running)} waiting"
            f"{f', {self._failed} failed' if self._failed else ''}  {clock(time.monotonic() - self._began)} gone, "
            f"about {clock(self._left_s())} left"
        )
        self._live.update(Group(table, *([Text(f"and {more} more")] if more > 0 else []), Text(best), Text(status)))
