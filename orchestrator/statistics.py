"""Statistics: what the board says, and how sure one can be of it. Pure: rows in, values out.

Points that differ only in their seed are one configuration. Intervals are 95% intervals of Student's t. Two
configurations are compared on the seeds that both were trained with, each pair for itself: nothing is corrected for how
many are compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from orchestrator.plan import clock, label, many

_MOST_LEVELS = 200  # of an axis, in a grid with holes
_SIGN_TEST = 6  # so many equal differences have a chance of 2^-5 in a fair game, under 5%


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of `count` values.

    Attributes:
        std: Their standard deviation, with count - 1; None for a single value.
        half_width: Half of the mean's 95% interval; None for a single value.
    """

    mean: float
    std: float | None
    half_width: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """One combination of axis values, its points folded over the seeds; only points that are ok count.

    Attributes:
        scores: Seed -> the metric.
        trial_ids: Those of its points.
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


@dataclass(frozen=True, slots=True)
class Overfitting:
    """Validation got worse while training got better.

    Attributes:
        epoch: The first after the lowest val_loss.
        lowest, last: val_loss then, and at the end.
    """

    epoch: int
    lowest: float
    last: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which configuration is best, and which others may be as good.

    Attributes:
        runner_up: The next with as many seeds; None where there is none.
        lead: How far the best is ahead of it on the same seeds; None with fewer than two such seeds.
        ties: The others that cannot be told from the best, the next first where it is one.
        cheapest: The one of them that took the least time to train; None where the best itself did.
        curve: The best one's epochs, mean over the seeds.
        left_out: How many configurations have fewer seeds than the best, and so are compared with nothing.
    """

    metric: str
    best: Configuration
    runner_up: Configuration | None
    lead: Estimate | None
    ties: tuple[Configuration, ...]
    cheapest: Configuration | None
    curve: Sequence[Mapping[str, float]]
    overfitting: Overfitting | None
    left_out: int


@dataclass(frozen=True, slots=True)
class Level:
    """What one value of an axis does. mean: over the other axes. std: of the configurations there; None for one."""

    value: Any
    mean: float
    std: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What one axis does. share: of the variance between configurations, 0 to 1."""

    axis: str
    share: float
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Effects:
    """The axes, the one that matters most first.

    Attributes:
        pairs: Pair of axes -> share of what the two do only together; empty unless exact.
        rest: Share that no axis explains by itself: pairs, higher interactions, and chance.
        exact: The configurations are a full grid, so that this is its functional analysis of variance. Otherwise the
            means are those of the additive model of least squares, and each share is its part's covariance with the
            metric.
    """

    axes: tuple[Effect, ...]
    pairs: Mapping[tuple[str, str], float]
    rest: float
    exact: bool


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and 95% interval of at least one value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, None, 1)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(mean, std, t_quantile(count - 1) * std / math.sqrt(count), count)


def t_quantile(freedom: int) -> float:
    """Within so many standard errors lies 95% of Student's t; `freedom`: its degrees, at least 1."""
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(freedom): its distribution is a finite sum
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
    """Fold the board's rows over the seeds: those with most seeds first, and among them the best mean."""
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
    sign = -1 if metric.endswith("accuracy") else 1
    return tuple(sorted(folded, key=lambda each: (-each.score.count, sign * each.score.mean)))


def lead(a: Configuration, b: Configuration, metric: str) -> Estimate | None:
    """How far `a` is ahead of `b` on the seeds of both, positive when better; None with fewer than two such seeds."""
    sign = 1 if metric.endswith("accuracy") else -1
    seeds = a.scores.keys() & b.scores.keys()
    return estimate([sign * (a.scores[seed] - b.scores[seed]) for seed in sorted(seeds)]) if len(seeds) > 1 else None


def is_apart(difference: Estimate) -> bool:
    """Whether being ahead is more than chance: the interval lies above 0.

    Differences that are all equal have an interval without width, however few they are (accuracies move in steps of one
    image): then the sign test decides, which needs six.
    """
    if difference.std is None or difference.half_width is None:
        return False
    if difference.std <= 1e-9 * abs(difference.mean):
        return difference.mean > 0 and difference.count >= _SIGN_TEST
    return difference.mean > difference.half_width


def judge(
    ranked: Sequence[Configuration], metric: str, history: Mapping[str, Sequence[Mapping[str, float]]]
) -> Verdict | None:
    """The verdict over configurations in their order; None where there are none. history: trial id -> its epochs."""
    if not ranked:
        return None
    best = ranked[0]
    others = [each for each in ranked[1:] if each.score.count == best.score.count]
    leads = [(other, lead(best, other, metric)) for other in others]
    ties = [other for other, ahead in leads if ahead and not is_apart(ahead)]
    priced = [each for each in (best, *ties) if each.train_s is not None]
    cheapest = min(priced, key=lambda each: each.train_s or 0.0) if priced else best
    curve = mean_curve([history.get(trial_id, ())[: best.epochs] for trial_id in best.trial_ids])
    return Verdict(
        metric=metric,
        best=best,
        runner_up=others[0] if others else None,
        lead=leads[0][1] if leads else None,
        ties=tuple(ties),
        cheapest=None if cheapest is best else cheapest,
        curve=curve,
        overfitting=overfitting(curve),
        left_out=len(ranked) - 1 - len(others),
    )


def mean_curve(curves: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """The mean of several trials' epochs, as long as the shortest that has any."""
    curves = [curve for curve in curves if curve]
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    return [
        {"epoch": i + 1, **{name: math.fsum(epoch[name] for epoch in epochs) / len(epochs) for name in names}}
        for i, epochs in enumerate(zip(*curves, strict=False))
    ]


def overfitting(curve: Sequence[Mapping[str, float]]) -> Overfitting | None:
    """Where val_loss turned for good although loss went on falling; None where it did not.

    At least two epochs must follow the lowest val_loss, and half of them lie above it by more than the curve's usual
    step (the median change from one epoch to the next): less is how a curve wobbles.
    """
    losses = [epoch["val_loss"] for epoch in curve]
    if len(losses) < 3:
        return None
    lowest = min(range(len(losses)), key=lambda i: (losses[i], -i))
    after = losses[lowest + 1 :]
    step = np.median(np.abs(np.diff(losses)))
    if len(after) < 2 or np.median(after) - losses[lowest] <= step or curve[-1]["loss"] >= curve[lowest]["loss"]:
        return None
    return Overfitting(lowest + 2, losses[lowest], losses[-1])


def sentences(verdict: Verdict) -> list[str]:
    """The verdict as a person reads it: the best, how sure that is, whether it overfits. One line each."""
    left_out = f"{many(verdict.left_out, 'configuration')} left out: fewer seeds are ok than of the best"
    return [
        _say_best(verdict),
        *_say_ties(verdict),
        *_say_curve(verdict),
        *([left_out] if verdict.left_out else []),
    ]


def _say_best(verdict: Verdict) -> str:
    best, runner_up, metric = verdict.best, verdict.runner_up, verdict.metric
    line = f"best: {best.label}, {metric} {spread(best.score)}"
    if best.score.half_width is not None:
        line += f" (95% interval, {best.score.count} seeds)"
    if runner_up is None:
        return f"{line}; the only configuration"
    if verdict.lead and is_apart(verdict.lead):
        return f"{line}; ahead of the next, {runner_up.label}, by {spread(verdict.lead)} on the same seeds"
    behind = abs(best.score.mean - runner_up.score.mean)
    return f"{line}; the next, {runner_up.label}, is {behind:.4f} behind"


def _say_ties(verdict: Verdict) -> list[str]:
    if verdict.runner_up and verdict.lead is None:
        first = min(verdict.best.scores)
        more = [first, *range(first + 1, first + 3)]
        return [f"one seed cannot tell whether that is more than chance: train others with --set seeds={more}"]
    if not verdict.ties:
        return []
    names = ", ".join(each.label for each in verdict.ties[:2]) + (", …" if len(verdict.ties) > 2 else "")
    line = f"not to be told from the best on these seeds: {many(len(verdict.ties), 'configuration')} ({names})"
    if verdict.cheapest and verdict.cheapest.train_s is not None and verdict.best.train_s is not None:
        line += (
            f"; the cheapest that ties: {verdict.cheapest.label}, "
            f"{_time(verdict.cheapest.train_s)} of training instead of {_time(verdict.best.train_s)}"
        )
    return [line]


def _say_curve(verdict: Verdict) -> list[str]:
    if not verdict.curve:
        return []
    last = verdict.curve[-1]
    gap = f"accuracy {last['accuracy']:.4f} in training, {last['val_accuracy']:.4f} in validation"
    if found := verdict.overfitting:
        rose = f"val_loss rose from {found.lowest:.4f} to {found.last:.4f} while loss fell"
        return [f"overfitting from epoch {found.epoch}: {rose}; {gap}"]
    lowest = min(verdict.curve, key=lambda epoch: (epoch["val_loss"], -epoch["epoch"]))["epoch"]
    if lowest == last["epoch"] and len(verdict.curve) > 1:
        return [f"no overfitting: val_loss was lowest in the last epoch, {lowest}, so more epochs may help; {gap}"]
    return [f"no overfitting seen in {many(len(verdict.curve), 'epoch')}; {gap}"]


def _time(seconds: float) -> str:
    return clock(seconds) if seconds >= 60 else f"{seconds:.1f} s"


def spread(value: Estimate) -> str:
    """`0.9125 ± 0.0100`, or the mean alone where one value has no interval."""
    return f"{value.mean:.4f}" + ("" if value.half_width is None else f" ± {value.half_width:.4f}")


def effects(ranked: Sequence[Configuration], axes: Sequence[str]) -> Effects | None:
    """What each axis does to the mean over the seeds; None where no axis has two values.

    Where the configurations are no full grid, axes of more than 200 values are left out.
    """
    levels = {axis: _ordered([each.values[axis] for each in ranked]) for axis in axes}
    varied = [axis for axis in axes if len(levels[axis]) > 1]
    exact = len(ranked) == math.prod(len(levels[axis]) for axis in varied)
    if not exact:  # with holes in the grid, so many values say nothing one by one
        varied = [axis for axis in varied if len(levels[axis]) <= _MOST_LEVELS]
    if not varied:
        return None
    score = np.array([each.score.mean for each in ranked])
    numbers = {axis: {value: number for number, value in enumerate(levels[axis])} for axis in varied}
    codes = {axis: np.array([numbers[axis][each.values[axis]] for each in ranked]) for axis in varied}
    centred = score - score.mean()
    total = float(centred @ centred)
    found, share = [], {}
    for axis, part in zip(varied, _additive([codes[axis] for axis in varied], centred, exact), strict=True):
        code = codes[axis]
        part -= part[code].mean()
        share[axis] = _share(float(part[code] @ centred), total)
        count = np.bincount(code)
        apart = np.bincount(code, (score - (np.bincount(code, score) / count)[code]) ** 2)
        found.append(
            Effect(
                axis,
                share[axis],
                tuple(
                    Level(
                        value,
                        float(score.mean() + part[i]),
                        float((apart[i] / (count[i] - 1)) ** 0.5) if count[i] > 1 else None,
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
    found.sort(key=lambda effect: -effect.share)
    return Effects(tuple(found), pairs, max(0.0, 1.0 - sum(share.values())) if total else 0.0, exact)


def _additive(codes: Sequence[np.ndarray], centred: np.ndarray, exact: bool) -> list[np.ndarray]:
    """What every value adds, by least squares. codes: of each axis, every configuration's value as a number.

    On a full grid these are the marginal means, and their covariances with the score the exact shares.
    """
    if exact:
        return [np.bincount(code, centred) / np.bincount(code) for code in codes]
    ends = np.cumsum([code.max() + 1 for code in codes])
    columns = [code + end - (code.max() + 1) for code, end in zip(codes, ends, strict=True)]
    together = np.zeros((ends[-1], ends[-1]))  # how often two values stand in one configuration
    for a, b in product(columns, columns):
        np.add.at(together, (a, b), 1.0)
    sums = np.concatenate([np.bincount(code, centred) for code in codes])
    return np.split(np.linalg.lstsq(together, sums, rcond=None)[0], ends[:-1])


def _share(part: float, total: float) -> float:
    return min(max(part / total, 0.0), 1.0) if total > 0 else 0.0


def _ordered(values: Sequence[Any]) -> list[Any]:
    """Each value once: numbers ascending, anything else as it first comes."""
    once = list(dict.fromkeys(values))
    return sorted(once) if all(isinstance(value, int | float) for value in once) else once
