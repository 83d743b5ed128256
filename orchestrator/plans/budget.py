"""Budget: how many of its hours and dollars a command has used, and what still fits. Pure: the caller reads the clock.

Every `now_s` is in seconds, from one clock that never jumps, such as time.monotonic().
"""

from dataclasses import dataclass

from orchestrator.spec.sections import Budget


@dataclass(slots=True)
class _Run:
    since_s: float
    until_s: float  # forecast
    usd_per_s: float


class Meter:
    """Counts the time since the command began, and the cost of the nodes while trials run on them."""

    def __init__(self, budget: Budget, now_s: float) -> None:
        self._budget, self._began_s = budget, now_s
        self._usd = 0.0  # cost of trials that have ended
        self._running: dict[str, _Run] = {}

    def start(self, trial_id: str, now_s: float, takes_s: float, usd_per_s: float) -> bool:
        """Start a trial that is forecast to take `takes_s`, unless that would exceed the budget.

        What running trials are forecast to cost until they end counts as spent. Returns whether the trial started.
        """
        max_hours, max_usd = self._budget.max_hours, self._budget.max_usd
        if max_hours is not None and now_s + takes_s > self._began_s + max_hours * 3600:
            return False
        committed_usd = sum(max(0.0, run.until_s - now_s) * run.usd_per_s for run in self._running.values())
        if max_usd is not None and self.usd(now_s) + committed_usd + takes_s * usd_per_s > max_usd:
            return False
        self.end(trial_id, now_s)  # in case its worker died and this is another try
        self._running[trial_id] = _Run(now_s, now_s + takes_s, usd_per_s)
        return True

    def end(self, trial_id: str, now_s: float) -> None:
        if run := self._running.pop(trial_id, None):
            self._usd += (now_s - run.since_s) * run.usd_per_s

    def usd(self, now_s: float) -> float:
        """What trials have cost so far."""
        return self._usd + sum((now_s - run.since_s) * run.usd_per_s for run in self._running.values())

    def used_up(self, now_s: float) -> bool:
        """Whether running trials must stop, however far they are."""
        hours, usd = self._budget.max_hours, self._budget.max_usd
        late = hours is not None and now_s >= self._began_s + hours * 3600
        return late or (usd is not None and self.usd(now_s) >= usd)
