"""Metrics: every figure of merit that a trial records, in one table. Pure.

All code that records, ranks, compares or shows a metric, or stops by it, reads METRICS. A new metric is one row here
and, if it is computed from predictions, one function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Place = Literal["board", "table", "live"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of merit of an epoch, or of all epochs of a trial.

    Attributes:
        name: As in the spec, the history and the leaderboard.
        better: Which way is good.
        computed_from: `training` or `validation`: summed image by image inside TensorFlow's loop; `predictions`: by
            `compute`, after each epoch; `epochs`: the best value of `best_of` in any epoch.
        compute: ((images,) int labels, (images, classes) probabilities of the validation images) -> value.
        shown: `board`: a column of the leaderboard, which may rank; `table`: also on a terminal; `live`: also during
            training. Whatever an epoch records is in the history, in TensorBoard and in MLflow.
        decimals: Digits after the decimal point.
    """

    name: str
    better: Literal["higher", "lower"]
    computed_from: Literal["training", "validation", "predictions", "epochs"]
    shown: frozenset[Place] = frozenset()
    compute: Callable[[np.ndarray, np.ndarray], float] | None = None
    best_of: str | None = None
    decimals: int = 4

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1: `sign * value` grows with merit."""
        return 1 if self.better == "higher" else -1

    @property
    def recorded(self) -> str:
        """The metric of a single epoch that this one is read from: `best_of`, or itself."""
        return self.best_of or self.name

    @property
    def training_twin(self) -> str | None:
        """The same metric of the training images; None if there is none."""
        twin = self.name.removeprefix("val_")
        return twin if twin != self.name and twin in METRICS else None

    def text(self, value: float) -> str:
        """The value as every message and table shows it."""
        return f"{value:.{self.decimals}f}"


_BOARD: frozenset[Place] = frozenset({"board"})
_TABLE: frozenset[Place] = frozenset({"board", "table"})
_LIVE: frozenset[Place] = frozenset({"board", "live"})
_EVERYWHERE: frozenset[Place] = frozenset({"board", "table", "live"})

# `loss` is the mean cross-entropy alone. `objective` is what training minimises and Keras prints as the loss: with the
# penalties of the model's regularizers. Penalties of other models or other l2 do not compare, so it never ranks.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("val_accuracy", "higher", "validation", _EVERYWHERE),
        Metric("val_loss", "lower", "validation", _EVERYWHERE),
        Metric("accuracy", "higher", "training", _TABLE),
        Metric("loss", "lower", "training", _LIVE),
        Metric("best_val_accuracy", "higher", "epochs", _BOARD, best_of="val_accuracy"),
        Metric("objective", "lower", "training"),
        Metric("val_objective", "lower", "validation"),
    )
}


def recorded() -> list[str]:
    """The metrics of every epoch, in the order of the table."""
    return [metric.name for metric in METRICS.values() if not metric.best_of]


def shown(place: Place) -> list[str]:
    """The metrics that are shown in this place, in the order of the table."""
    return [metric.name for metric in METRICS.values() if place in metric.shown]


def of_column(name: str) -> Metric | None:
    """The metric whose values, deviations or intervals a column has; None for any other column."""
    for end in ("", "_std", "_low", "_high"):
        if name.endswith(end) and (found := METRICS.get(name.removesuffix(end))):
            return found
    return None
