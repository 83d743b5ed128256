"""Rungs: after how many epochs trials are compared, who goes on, and who can no longer win. Pure."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.metrics import METRICS
from orchestrator.plans.trials import Trial
from orchestrator.runs.result import Result, score, what_ranks
from orchestrator.spec.axes import canonical
from orchestrator.spec.sections import MOST_GUARDED, Race, Spec

# Chosen by make bench-race, which says what others would do:
_NOISE = 5.0  # standard errors by which a beaten point must be behind
_ACCURACY = 2.0  # what a unit of accuracy weighs beside one of cross-entropy


def rungs(race: Race, milestones: Collection[int]) -> tuple[int, ...]:
    """After how many epochs trials are compared before their end, ascending.

    They are absolute, so that a grid which gains epochs gains rungs at the end and keeps the others; and a rung near a
    milestone is moved there, so that what stops is a point in full.
    """
    last, found, rung = max(milestones), [], float(race.first)
    while rung <= last / math.sqrt(race.factor):
        near = min(milestones, key=lambda each: abs(math.log(each / rung)))
        moved = near < last and abs(math.log(near / rung)) <= math.log(3) / 2
        found.append(near if moved else round(rung))
        rung *= race.factor
    return tuple(sorted({each for each in found if each < last}))


def quota(race: Race, trials: int, rung: int) -> int:
    """How many of so many trials go on at the n-th rung, counted from 0, in any case."""
    least = max(2, min(8, trials // 3))
    return max(least, math.ceil(trials / race.factor ** (rung + 1)))


@dataclass(frozen=True, eq=False)
class Runner:
    """A trial in a race, and how far it is.

    Attributes:
        result: Its longest one; None if there is none.
        restore_best: Whether its figures are those of its lowest val_loss.
    """

    trial: Trial
    result: Result | None
    restore_best: bool

    @property
    def failed(self) -> bool:
        return self.result is not None and self.result.status == "failed"

    def covers(self, epochs: int) -> bool:
        """Whether its result is one for so many epochs."""
        return self.result is not None and self.result.covers(epochs)

    def arrived(self, epochs: int) -> bool:
        """Whether it has been trained for so many epochs, or is at its end."""
        result = self.result
        if result is None or not result.history:
            return False
        ended_early = not self.failed and len(result.history) < result.epochs
        return ended_early or len(result.history) >= min(epochs, self.trial.epochs)

    @property
    def is_at_end(self) -> bool:
        """Whether no more epochs can come."""
        return self.arrived(self.trial.epochs)

    def score(self, epochs: int, metric: str) -> float:
        """Its score after so many epochs, if it has `arrived` there."""
        assert self.result is not None
        return score(self.result.history[:epochs], self.restore_best, metric)

    def right(self, epochs: int, metric: str) -> np.ndarray | None:
        """(validation images,) float32: in what part of the epochs that rank it each was right; None if not known."""
        assert self.result is not None
        if METRICS[metric].recorded != "val_accuracy":
            return None
        found = what_ranks(self.result, epochs, self.restore_best, metric)
        if found is None:
            return None
        return np.frombuffer(found.unpacked(), np.uint8).astype(np.float32) / found.window

    def place(self, epochs: int) -> tuple[float, str]:
        """Where it stands after so many epochs; the lowest is first.

        By the mean of val_loss, the plain cross-entropy, and val_accuracy over the last half of them, whatever the
        metric: early on that says more of the end than the metric then does.
        """
        assert self.result is not None
        history = self.result.history[:epochs]
        last = history[-max(1, len(history) // 2) :]
        figures = [epoch.metrics["val_loss"] - _ACCURACY * epoch.metrics["val_accuracy"] for epoch in last]
        return math.fsum(figures) / len(figures), self.trial.id


def guarded_values(race: Race, spec: Spec, trials: Sequence[Trial]) -> dict[str, list[str]]:
    """Axis -> values, in canonical form, of which the best point goes on at every rung."""
    if race.guard == "all":
        axes: Sequence[str] = [axis for axis in spec.axes if axis != "epochs"]
    else:
        axes = [] if race.guard == "none" else race.guard
    values = {axis: list(dict.fromkeys(canonical(trial.values[axis]) for trial in trials)) for axis in axes}
    return {axis: found for axis, found in values.items() if 1 < len(found) <= MOST_GUARDED}


def divide(
    here: Sequence[Runner],
    epochs: int,
    least: int,
    guarded: Collection[str],
    may_come: Sequence[Trial],
    is_kept: Callable[[Trial], bool],
) -> tuple[list[Runner], list[Runner], list[Runner]]:
    """Who goes on from a rung, who is stopped there, and of whom neither is certain yet.

    here: those that have arrived. least: the quota. may_come: others that will arrive here, or may.
    is_kept: whether a trial is never stopped.
    All say the same, whichever arrived first: a trial is stopped for those before it, and none of these goes away.
    """
    ordered = sorted(here, key=lambda runner: runner.place(epochs))
    seen: set[tuple[str, str]] = set()
    coming = {(axis, canonical(trial.values[axis])) for trial in may_come for axis in guarded}
    on, stopped, open_ = [], [], []
    for before, runner in enumerate(ordered):
        values = {(axis, canonical(runner.trial.values[axis])) for axis in guarded}
        unseen = values - seen
        seen |= values
        if is_kept(runner.trial) or runner.trial.epochs <= epochs or unseen - coming or before + len(may_come) < least:
            on.append(runner)
        elif unseen or before < least:
            open_.append(runner)
        else:
            stopped.append(runner)
    return on, stopped, open_


def why_beaten(runner: Runner, epochs: int, leader: float, gain: float, images: int, metric: str) -> str | None:
    """Why a point that was stopped can no longer win; None if it can, or if nobody knows.

    leader: the best score of those at their end. gain: the most that any of these gained from here to there.
    images: that validate. Only accuracies have an error that is known.
    """
    if METRICS[metric].recorded != "val_accuracy":
        return None
    own = runner.score(epochs, metric)
    noise = _NOISE * math.sqrt(max(0.0, 2 - own - leader) / 2 / max(1, images))
    if own + max(0.0, gain) + noise >= leader:
        return None
    return f"would have to gain {leader - own:.3f}, and the most that any gained from there is {max(0.0, gain):.3f}"


def is_kept(race: Race, values: Mapping[str, Any]) -> bool:
    """Whether race.keep names these values."""
    rules = ({name: canonical(value) for name, value in rule.items()} for rule in race.keep)
    return any(all(name in values and canonical(values[name]) == text for name, text in rule.items()) for rule in rules)
