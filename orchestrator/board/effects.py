"""Effects: what each axis does to the metric, and its share of the variance. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from orchestrator.board.estimates import Configuration
from orchestrator.spec.ranges import Range

_TIE = 1e-9
_MOST_LEVELS = 200  # in a grid with holes, axes of more values are left out


@dataclass(frozen=True, slots=True)
class Level:
    """The metric at one value of an axis. mean: over the other axes. std: of its configurations; None for one."""

    value: Any
    mean: float
    std: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What one axis does. share: of the variance between configurations, 0 to 1.

    by_chance: what that share is on average where no axis does anything: (values - 1) / (configurations - 1).
    """

    axis: str
    share: float
    by_chance: float
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Effects:
    """The axes, the one that matters most first.

    Attributes:
        pairs: Pair of axes -> share that belongs to the two only together; empty unless exact.
        rest: Share that no axis explains by itself: pairs, higher interactions, and chance.
        tie: All configurations have the same score, so there is no variance to share out.
        quartered: Axes of a range, whose levels are its quarters.
        exact: The configurations are a full grid, and this is its functional analysis of variance. Otherwise, the means
            come from an additive least-squares model, and a share is the covariance of the axis' part with the metric.
    """

    axes: tuple[Effect, ...]
    pairs: Mapping[tuple[str, str], float]
    rest: float
    tie: bool
    quartered: tuple[str, ...]
    exact: bool


def main_effects(
    ranked: Sequence[Configuration], axes: Sequence[str], ranges: Mapping[str, Range] | None = None
) -> Effects | None:
    """What each axis does to the mean over the seeds; None where no axis has two values.

    ranges: of the axes that a sample drew from; of these, a level is a quarter of the range.
    If the configurations are not a full grid, axes of more than 200 values are left out.
    """
    found = {axis: values_of(ranked, axis, ranges or {}) for axis in axes}
    levels = {axis: list(dict.fromkeys(values[i] for i in in_order(ranked, axis))) for axis, values in found.items()}
    varied = [axis for axis in axes if len(levels[axis]) > 1]
    quartered = tuple(axis for axis in varied if axis in (ranges or {}) and (ranges or {})[axis].edges)
    exact = not quartered and len(ranked) == math.prod(len(levels[axis]) for axis in varied)
    if not exact:  # with holes in the grid, a single value of so many means nothing
        varied = [axis for axis in varied if len(levels[axis]) <= _MOST_LEVELS]
    if not varied:
        return None
    score = np.array([each.score.mean for each in ranked])
    numbers = {axis: {value: number for number, value in enumerate(levels[axis])} for axis in varied}
    codes = {axis: np.array([numbers[axis][value] for value in found[axis]]) for axis in varied}
    centred = score - score.mean()
    total = float(centred @ centred)
    if total <= len(score) * _TIE**2:  # a sum of equal figures may differ in its last digit
        total, centred = 0.0, np.zeros_like(centred)
    axis_effects, share = [], {}
    for axis, part in zip(varied, _additive([codes[axis] for axis in varied], centred, exact), strict=True):
        code = codes[axis]
        part -= part[code].mean()
        share[axis] = _share(float(part[code] @ centred), total)
        count = np.bincount(code)
        squares = np.bincount(code, (score - (np.bincount(code, score) / count)[code]) ** 2)
        axis_effects.append(
            Effect(
                axis,
                share[axis],
                (len(levels[axis]) - 1) / (len(ranked) - 1),
                tuple(
                    Level(
                        value,
                        float(score.mean() + part[i]),
                        float((squares[i] / (count[i] - 1)) ** 0.5) if count[i] > 1 else None,
                        int(count[i]),
                    )
                    for i, value in enumerate(levels[axis])
                ),
            )
        )
    pairs = {}
    for a, b in combinations(varied, 2) if exact else ():
        both = codes[a] * len(levels[b]) + codes[b]
        means = np.bincount(both, centred) / np.bincount(both)
        pairs[a, b] = max(0.0, _share(float(means[both] @ centred), total) - share[a] - share[b])
    axis_effects.sort(key=lambda effect: -effect.share)
    rest = max(0.0, 1.0 - sum(share.values())) if total else 0.0
    return Effects(tuple(axis_effects), pairs, rest, not total, quartered, exact)


def _additive(codes: Sequence[np.ndarray], centred: np.ndarray, exact: bool) -> list[np.ndarray]:
    """For each axis, what each of its values adds to the score, by least squares.

    codes: for each axis, the values of all configurations, as numbers. On a full grid the result is the marginal means,
    and their covariances with the score are the exact shares.
    """
    if exact:
        return [np.bincount(code, centred) / np.bincount(code) for code in codes]
    ends = np.cumsum([code.max() + 1 for code in codes])
    columns = [code + end - (code.max() + 1) for code, end in zip(codes, ends, strict=True)]
    together = np.zeros((ends[-1], ends[-1]))  # how often two values occur in one configuration
    for a, b in product(columns, columns):
        np.add.at(together, (a, b), 1.0)
    sums = np.concatenate([np.bincount(code, centred) for code in codes])
    return np.split(np.linalg.lstsq(together, sums, rcond=None)[0], ends[:-1])


def _share(part: float, total: float) -> float:
    return min(max(part / total, 0.0), 1.0) if total > 0 else 0.0


def values_of(ranked: Sequence[Configuration], axis: str, ranges: Mapping[str, Range]) -> list[Any]:
    """The value of each configuration, or the quarter of the axis' range in which it lies."""
    values = [each.values[axis] for each in ranked]
    return [ranges[axis].part(value) for value in values] if axis in ranges else values


def in_order(ranked: Sequence[Configuration], axis: str) -> list[int]:
    """The places of all configurations: by their numbers ascending, anything else in the order of its appearance."""
    values = [each.values[axis] for each in ranked]
    places = list(range(len(ranked)))
    numbers = all(isinstance(value, int | float) for value in values)
    return sorted(places, key=values.__getitem__) if numbers else places


def describe_effects(found: Effects, epochs: int | None = None) -> str:
    """A sentence on the shares: what no axis explains, and whether they are exact.

    epochs: after how many they were taken, where a race has stopped some points then.
    """
    when = f"after {epochs} epochs, as far as the stopped points went; " if epochs else ""
    when += f"of {', '.join(found.quartered)}, quarters of the range; " if found.quartered else ""
    if found.tie:
        return f"{when}all configurations score the same: no axis explains anything"
    pair, share = max(found.pairs.items(), key=lambda each: each[1], default=((), 0.0))
    together = f", most of it to {' with '.join(pair)} ({share:.0%})" if share >= 0.005 else ""
    how = (
        "exact: the configurations are a full grid"
        if found.exact
        else "approximate: the configurations are no full grid, so means and shares are those of a least-squares fit"
    )
    rest = f"{found.rest:.0%} belongs to no single axis{together}"
    chance = ", ".join(f"{each.axis} {each.by_chance:.0%}" for each in found.axes)
    luck = f"where no axis did anything, shares would be about {chance}, by chance"
    return f"{when}shares are of the variance between configurations; {luck}; {rest}; {how}"
