"""Legs: what the fan-out of a grid trains next: what remains of the plan, or what the race grants."""

from collections import deque
from collections.abc import Sequence

from orchestrator.driver.state import RunState
from orchestrator.plans.trials import Trial


class GridLegs:
    """The cluster.watch.Legs of a grid. Each leg is given out once, also where it fails.

    Attributes:
        trials: All trials of the plan.
    """

    def __init__(self, state: RunState) -> None:
        self._state = state
        self.trials: Sequence[Trial] = state.plan.trials
        self._some_wait = any(trial.epochs_of_another for trial in self.trials)
        self._waiting: deque[Trial] = deque()
        self._taken: dict[str, int] = {}  # trial id -> epochs up to which it was given out
        self._passed: dict[str, float] = {}  # trial id -> epochs that its worker has told of
        self._out: set[str] = set()  # of these, the trials whose legs have not ended

    def take(self) -> Trial | None:
        if not self._waiting:
            self._waiting.extend(self._new())
        if not self._waiting:
            return None
        leg = self._waiting.popleft()
        self._taken[leg.id] = leg.epochs
        self._out.add(leg.id)
        return leg

    def ended(self, trial_id: str, epochs: int | None = None) -> None:
        """The trial's leg has a result, or has failed, or was left out. epochs: of the leg, where it was trained."""
        if epochs is None or epochs >= self._taken.get(trial_id, 0):  # else an earlier leg, told of twice
            self._out.discard(trial_id)

    def passed(self, trial_id: str, epochs: float) -> None:
        """The trial's worker has so many epochs behind it."""
        self._passed[trial_id] = epochs

    @property
    def may_grow(self) -> bool:
        return self._state.context.spec.race is not None or (self._some_wait and bool(self._new(held=True)))

    def over(self) -> bool:
        return not (self._waiting or self._new() or (self._out and self.may_grow))

    def _new(self, held: bool = False) -> list[Trial]:
        """What may be trained and was not given out. held: those for which another trial still trains."""
        left = self._state.left
        at_work = {leg.id for leg in left if leg.id in self._out or leg.id not in self._taken}
        new = [leg for leg in left if self._taken.get(leg.id, 0) < leg.epochs]
        return [leg for leg in new if self._is_held(leg, at_work) == held]

    def _is_held(self, leg: Trial, at_work: set[str]) -> bool:
        """Whether a trial at work has yet to train the epochs with which this one begins."""
        stable = leg.stable
        return bool(stable and stable.trainer in at_work and self._passed.get(stable.trainer, 0) < stable.until)
