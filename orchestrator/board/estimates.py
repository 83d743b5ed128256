"""Estimates: seeds -> means, intervals and paired differences. Pure.

Points that differ only in their seed are one configuration. Intervals are 95% intervals of Student's t. Two
configurations are compared on the seeds that both were trained with. Each pair is compared on its own: there is no
correction for the number of comparisons.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.metrics import METRICS
from orchestrator.words import label

_SIGN_TEST = 6  # by chance, six differences have one sign with a probability of 2^-5, under 5%


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
        scores: Seed -> the metric.
        trial_ids: The trials of its points.
        epochs: The most epochs that any of its points trained for.
        train_s: Mean worker time of one point, in seconds; None where the board holds none.
    """

    values: Mapping[str, Any]
    scores: Mapping[int, float]
    score: Estimate
    trial_ids: tuple[str, ...]
    epochs: int
    train_s: float | None

    @property
    def label(self) -> str:
        return label(self.values, 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and 95% interval of at least one value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, None, 1)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(mean, std, t_quantile(count - 1) * std / math.sqrt(count), count)


def t_quantile(freedom: int) -> float:
    """The t for which 95% of Student's t lies within -t and t. freedom: degrees of freedom, at least 1."""
    low, high = 0.0, math.pi / 2  # bounds of atan(t / sqrt(freedom)), by which the distribution is a finite sum
    while high - low > 1e-15:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < 0.95 else (low, middle)
    return math.sqrt(freedom) * math.tan(high)


def _t_within(angle: float, freedom: int) -> float:
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for i in range(1 + odd, freedom, 2):
        total += term
        term *= i / (i + 1) * math.cos(angle) ** 2
    return (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total


def configurations(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], metric: str) -> tuple[Configuration, ...]:
    """Fold the board's rows over the seeds: most seeds first, and for as many seeds the best mean first."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok" and row[metric] is not None:
            groups.setdefault(tuple(row[axis] for axis in axes), []).append(row)
    folded = []
    for values, points in groups.items():
        times = [point["train_s"] for point in points if point["train_s"] is not None]
        folded.append(
            Configuration(
                values=dict(zip(axes, values, strict=True)),
                scores={point["seed"]: point[metric] for point in points},
                score=estimate([point[metric] for point in points]),
                trial_ids=tuple(point["trial_id"] for point in points),
                epochs=int(max(point["epochs_trained"] or 0 for point in points)),
                train_s=math.fsum(times) / len(times) if times else None,
            )
        )
    sign = METRICS[metric].sign
    return tuple(sorted(folded, key=lambda each: (-each.score.count, -sign * each.score.mean)))


def lead(a: Configuration, b: Configuration, metric: str) -> Estimate | None:
    """How far `a` is ahead of `b` on the seeds that both have; positive if `a` is better, None for fewer than two."""
    sign = METRICS[metric].sign
    seeds = a.scores.keys() & b.scores.keys()
    return estimate([sign * (a.scores[seed] - b.scores[seed]) for seed in sorted(seeds)]) if len(seeds) > 1 else None


def is_apart(difference: Estimate) -> bool:
    """Whether a lead is more than chance: its interval lies above 0.

    If all differences are equal, their interval has no width, however few they are (accuracy moves in steps of one
    image). Then the sign test decides, which needs six.
    """
    if difference.std is None or difference.half_width is None:
        return False
    if difference.std <= 1e-9 * abs(difference.mean):
        return difference.mean > 0 and difference.count >= _SIGN_TEST
    return difference.mean > difference.half_width


def spread(value: Estimate) -> str:
    """`0.9125 ± 0.0100`, or the mean alone for a single value, which has no interval."""
    return f"{value.mean:.4f}" + ("" if value.half_width is None else f" ± {value.half_width:.4f}")
