"""Estimates: seeds -> means and their intervals. Pure.

Points that differ only in seed and fold are one configuration. Intervals are 95%: Student's t, or Wilson's for shares.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.metrics import METRICS
from orchestrator.words import label

Draw = tuple[int, int]  # seed and fold
Z = 1.959963984540054  # the normal distribution has 95% within this many standard deviations


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of `count` values.

    Attributes:
        std: Their standard deviation, with count - 1; None for a single value.
        half_width: Half the width of the mean's 95% interval; None for a single value.
    """

    mean: float
    std: float | None
    half_width: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """One combination of axis values, with its points of all seeds; only points that are ok count.

    Attributes:
        scores: Draw -> what its point is ranked by: a mean of the metric over its last epochs.
        figures: Draw -> the metric of the epoch whose weights are the model.
        right: Draw -> (validation images,) float32, in what part of these epochs each was right; empty where the run
            folder does not hold it, or the metric is not val_accuracy.
        trial_ids: The trials of its points.
        epochs: The most epochs that any of its points trained for.
        train_s: Mean worker time of one point, in seconds; None where the board holds none.
        rate: What stood for its learning_rate, where that is auto or scaled.
    """

    values: Mapping[str, Any]
    scores: Mapping[Draw, float]
    score: Estimate
    figures: Mapping[Draw, float]
    right: Mapping[Draw, np.ndarray]
    trial_ids: tuple[str, ...]
    epochs: int
    train_s: float | None
    rate: float | None = None

    @property
    def draws(self) -> str:
        """What its scores differ in: seeds or folds."""
        return "folds" if len({fold for _, fold in self.scores}) > 1 else "seeds"

    @property
    def label(self) -> str:
        return label(self.values)


def estimate(values: Sequence[float], folds: int = 1) -> Estimate:
    """Mean, standard deviation and 95% interval of at least one value.

    folds: how many of the values' images overlap in training: see `overlap`.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, None, 1)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(mean, std, t_quantile(count - 1) * std * math.sqrt(1 / count + overlap(folds)), count)


def overlap(folds: int) -> float:
    """What is added to 1 / folds in the variance of a mean over folds, as any two of them train on shared images.

    Nadeau and Bengio, 2003, Inference for the generalization error.
    """
    return 1 / (folds - 1) if folds > 1 else 0.0


def t_quantile(freedom: int, part: float = 0.95) -> float:
    """The t for which this part of Student's t lies within -t and t. freedom: degrees of freedom, at least 1."""
    low, high = 0.0, math.pi / 2  # bounds of atan(t / sqrt(freedom)), by which the distribution is a finite sum
    while high - low > 1e-15:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < part else (low, middle)
    return math.sqrt(freedom) * math.tan(high)


def _t_within(angle: float, freedom: int) -> float:
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for i in range(1 + odd, freedom, 2):
        total += term
        term *= i / (i + 1) * math.cos(angle) ** 2
    return (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total


def wilson(right: float, count: float) -> tuple[float, float]:
    """Ends of the 95% interval (Wilson's) of a share, where `right` of `count` are; (0, 1) where there are none."""
    if not count:
        return 0.0, 1.0
    share, square = right / count, Z**2 / count
    middle, half = share + square / 2, Z * math.sqrt(share * (1 - share) / count + square / count / 4)
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def configurations(
    rows: Sequence[Mapping[str, Any]],
    axes: Sequence[str],
    metric: str,
    right: Mapping[str, np.ndarray] | None = None,
) -> tuple[Configuration, ...]:
    """Fold the board's rows over the seeds: most seeds first, and for as many seeds the best mean first.

    right: point id -> Configuration.right of its seed. Boards without a score are ranked by the metric.
    """
    known = right or {}
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok" and row[metric] is not None:
            groups.setdefault(tuple(row[axis] for axis in axes), []).append(row)
    folded = []
    for values, points in groups.items():
        scores = {draw_of(point): _score(point, metric) for point in points}
        times = [point["train_s"] for point in points if point["train_s"] is not None]
        folded.append(
            Configuration(
                values=dict(zip(axes, values, strict=True)),
                scores=scores,
                score=estimate(list(scores.values()), len({fold for _, fold in scores})),
                figures={draw_of(point): point[metric] for point in points},
                right={draw_of(p): known[p["point_id"]] for p in points if known and p["point_id"] in known},
                trial_ids=tuple(point["trial_id"] for point in points),
                epochs=int(max(point["epochs_trained"] or 0 for point in points)),
                train_s=math.fsum(times) / len(times) if times else None,
                rate=points[0].get("rate_used"),
            )
        )
    sign = METRICS[metric].sign
    return tuple(sorted(folded, key=lambda each: (-each.score.count, -sign * each.score.mean)))


def draw_of(row: Mapping[str, Any]) -> Draw:
    """Seed and fold of a row; fold 0 where there are none."""
    return row["seed"], row.get("fold") or 0


def _score(row: Mapping[str, Any], metric: str) -> float:
    found = row.get("score")
    return float(row[metric] if found is None else found)


def spread(value: Estimate) -> str:
    """`0.9125 ± 0.0100`, or the mean alone for a single value, which has no interval."""
    return f"{value.mean:.4f}" + ("" if value.half_width is None else f" ± {value.half_width:.4f}")
