"""Trials: points of a grid, and the training runs that serve them. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.words import label


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of axis values and a seed; exactly one leaderboard row.

    Attributes:
        values: Axis name -> value, in the order of the spec's axes.
        epochs: Its figures are read after this many epochs.
        fold: In which fold of the images it validates; 0 where there is one.
    """

    id: str
    trial_id: str
    values: Mapping[str, Any]
    seed: int
    epochs: int
    fold: int = 0


@dataclass(frozen=True, slots=True)
class Stable:
    """The epochs of a wsd trial before its rate falls, which trials that differ in epochs have in common.

    Attributes:
        id: 12 hex digits, like a trial's: the states at the forks are kept under it.
        until: How many epochs.
        forks: After how many of them trials of the plan leave it, this one last, ascending.
        trainer: Id of the trial that trains these epochs; None: this one does.
    """

    id: str
    until: int
    forks: tuple[int, ...] = ()
    trainer: str | None = None


@dataclass(frozen=True, slots=True)
class Refit:
    """What a trial repeats of a winner, on other images.

    Attributes:
        steps: How many the winner's weights took in all. The refit ends after as many, within an epoch if need be.
        steps_per_epoch, epochs, val_losses: What the winner's learning rates followed. epochs: as many as its schedule
            counted on. val_losses: after each epoch until its weights were taken.
    """

    steps: int
    steps_per_epoch: int
    epochs: int
    val_losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run on one worker.

    Attributes:
        id: 12 hex digits of SHA-256 over everything that decides its weights, so the same trial has one id everywhere.
        values: Axis values without epochs.
        milestones: After how many epochs the figures of a point are read, ascending.
        epochs: After how many epochs it ends: the last milestone, or sooner in a leg.
        forecast_s: Predicted worker time in seconds; trials start longest first. In trials that `remaining` returns,
            only of the epochs that are left.
        points: Id of the point at each milestone.
        frozen: Id of the trial that this one branches from, where it unfreezes its backbone: the same, but frozen. Such
            a trial has one milestone, and goes on for as many epochs as the frozen one has then.
        fold: In which fold of the images it validates; 0 where there is one.
        rate_test: Id of the range test that finds its learning rate; None where the spec gives it.
        stable: What it shares with longer or shorter ones, where its schedule is wsd. Such a trial has one milestone.
        refit: What it repeats on training and validation images together; None: it trains on the training images.
    """

    id: str
    values: Mapping[str, Any]
    seed: int
    milestones: tuple[int, ...]
    epochs: int
    forecast_s: float
    points: tuple[str, ...]
    frozen: str | None = None
    fold: int = 0
    stable: Stable | None = None
    rate_test: str | None = None
    refit: Refit | None = None

    @property
    def epochs_of_another(self) -> int:
        """With how many epochs of another trial of the plan it begins."""
        return self.stable.until if self.stable and self.stable.trainer else 0

    @property
    def draw(self) -> tuple[int, int]:
        """Its seed and its fold: what tells it from the other trials of its configuration."""
        return self.seed, self.fold

    @property
    def label(self) -> str:
        """The values, the seed and the fold that identify it, for a person."""
        return label(self.values, self.seed, self.fold)

    def left_s(self, epochs_done: float) -> float:
        """Worker time left after so many epochs, in seconds. Only for a trial whose forecast_s is for all epochs."""
        return self.forecast_s * (1 - epochs_done / self.epochs)

    def leg(self, until: int) -> "Trial":
        """The same trial, but it ends after `until` epochs, at most its last milestone, and may go on from there."""
        return replace(self, epochs=until, forecast_s=self.forecast_s * until / self.epochs)


def points_of(trial: Trial, axes: Collection[str]) -> tuple[Point, ...]:
    """The points that a trial serves, equal to those of the plan, in the order of its milestones."""
    return tuple(
        Point(
            point_id, trial.id, {name: trial.values.get(name, epochs) for name in axes}, trial.seed, epochs, trial.fold
        )
        for epochs, point_id in zip(trial.milestones, trial.points, strict=True)
    )
