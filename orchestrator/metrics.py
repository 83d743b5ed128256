"""Metrics: every figure of merit that a trial records, in one table. Pure.

All code that records, ranks, compares or shows a metric, or stops by it, reads METRICS. A new metric is one row here
and, if it is computed from predictions, one function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

Place = Literal["board", "table", "live"]


@dataclass(frozen=True)
class Predictions:
    """What a model says of the validation images.

    Attributes:
        labels: (images,) int, the class of each image.
        probabilities: (images, classes) float.
        predicted: (images,) int, the class that the model says.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray

    @property
    def classes(self) -> int:
        return self.probabilities.shape[1]

    @cached_property
    def confusion(self) -> np.ndarray:
        """(classes, classes) int: how many images of the row's class the model says to be of the column's."""
        cells = np.bincount(self.labels * self.classes + self.predicted, minlength=self.classes**2)
        return cells.reshape(self.classes, self.classes)

    @cached_property
    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each class, (classes,) int: images that are of it and said to be, that are of it, that are said to be."""
        return np.diagonal(self.confusion), self.confusion.sum(1), self.confusion.sum(0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of merit of an epoch, or of all epochs of a trial.

    Attributes:
        name: As in the spec, the history and the leaderboard.
        better: Which way is good.
        computed_from: `training` or `validation`: summed image by image inside TensorFlow's loop; `predictions`: by
            `compute`, after each epoch; `epochs`: the best value of `best_of` in any epoch.
        compute: What the model says of the validation images -> value, a finite number.
        shown: `board`: a column of the leaderboard, which may rank; `table`: also on a terminal; `live`: also during
            training. Whatever an epoch records is in the history, in TensorBoard and in MLflow.
        decimals: Digits after the decimal point.
        least_classes: With fewer it says nothing, and is not recorded.
    """

    name: str
    better: Literal["higher", "lower"]
    computed_from: Literal["training", "validation", "predictions", "epochs"]
    shown: frozenset[Place] = frozenset()
    compute: Callable[[Predictions], float] | None = None
    best_of: str | None = None
    decimals: int = 4
    least_classes: int = 2

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


def _balanced_accuracy(found: Predictions) -> float:
    """The mean recall of the classes that have images."""
    hits, of, _ = found.counts
    return float(_ratio(hits, of)[of > 0].mean())


def _precision(found: Predictions) -> float:
    hits, _, said = found.counts
    return _over_classes(found, _ratio(hits, said))


def _recall(found: Predictions) -> float:
    hits, of, _ = found.counts
    return _over_classes(found, _ratio(hits, of))


def _f1(found: Predictions) -> float:
    hits, of, said = found.counts
    return _over_classes(found, _ratio(2 * hits, of + said))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _over_classes(found: Predictions, values: np.ndarray) -> float:
    """Of two classes the second's value; of more, the mean over those that an image is of, or is said to be.

    values: (classes,). As scikit-learn has it, with zero_division=0.
    """
    _, of, said = found.counts
    return float(values[1] if found.classes == 2 else values[of + said > 0].mean())


def _auc(found: Predictions) -> float:
    """The area under the ROC curve of the second of two classes; of more, the mean over each class against the others.

    A class without images, or with all of them, has no such curve and is left out; 0.5 where none is left.
    """
    columns = np.ascontiguousarray(found.probabilities.T)
    counted = [1] if found.classes == 2 else range(found.classes)
    areas = [_area(columns[i], found.labels == i) for i in counted if 0 < found.counts[1][i] < len(found.labels)]
    return sum(areas) / len(areas) if areas else 0.5


def _area(scores: np.ndarray, own: np.ndarray) -> float:
    """The share of pairs, of an image of the class and another one, where the first has the higher score; ties half.

    scores: (images,). own: (images,) bool, whether an image is of the class; some are, and some are not.
    """
    ours, others = np.sort(scores[own]), np.sort(scores[~own])
    twice = np.searchsorted(others, ours, "left").sum() + np.searchsorted(others, ours, "right").sum()
    return float(twice / (2 * len(ours) * len(others)))


def _top_3_accuracy(found: Predictions) -> float:
    """The share of images with at most two classes above their own."""
    own = np.take_along_axis(found.probabilities, found.labels[:, None], axis=1)
    return float(((found.probabilities > own).sum(1) < 3).mean())


_BOARD: frozenset[Place] = frozenset({"board"})
_TABLE: frozenset[Place] = frozenset({"board", "table"})
_LIVE: frozenset[Place] = frozenset({"board", "live"})
_EVERYWHERE: frozenset[Place] = frozenset({"board", "table", "live"})

# `loss` is the mean cross-entropy alone. `objective` is what training minimises and Keras prints as the loss: with the
# weights of classes, where there are any, and the penalties of the model's regularizers. Those of other weights, models
# or l2 do not compare, so it never ranks. As in Keras, no weights are in `val_objective`.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("val_accuracy", "higher", "validation", _EVERYWHERE),
        Metric("val_loss", "lower", "validation", _EVERYWHERE),
        Metric("accuracy", "higher", "training", _TABLE),
        Metric("loss", "lower", "training", _LIVE),
        Metric("val_balanced_accuracy", "higher", "predictions", _BOARD, _balanced_accuracy),
        Metric("val_f1", "higher", "predictions", _BOARD, _f1),
        Metric("val_auc", "higher", "predictions", _BOARD, _auc),
        Metric("val_precision", "higher", "predictions", _BOARD, _precision),
        Metric("val_recall", "higher", "predictions", _BOARD, _recall),
        Metric("val_top_3_accuracy", "higher", "predictions", _BOARD, _top_3_accuracy, least_classes=4),
        Metric("best_val_accuracy", "higher", "epochs", _BOARD, best_of="val_accuracy"),
        Metric("objective", "lower", "training"),
        Metric("val_objective", "lower", "validation"),
    )
}


def measure(found: Predictions) -> dict[str, float]:
    """The metrics that are computed from predictions, by name."""
    rows = (metric for metric in METRICS.values() if found.classes >= metric.least_classes)
    return {metric.name: metric.compute(found) for metric in rows if metric.compute}


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
