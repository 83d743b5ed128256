"""Verdict: which configuration is best, how sure that is, and whether it overfits. Pure."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.board.chance import beats_always, has_learned, is_accuracy, knows_by_heart, of_one_answer
from orchestrator.board.comparison import Comparison, compare
from orchestrator.board.estimates import Configuration, Draw
from orchestrator.metrics import METRICS, recorded

_CHEAPER = 0.9  # of the time that the best takes; less is no difference to speak of


@dataclass(frozen=True, slots=True)
class Overfitting:
    """Validation got worse while training got better.

    Attributes:
        epoch: The first one after the lowest val_loss.
        lowest, last: val_loss then, and at the end.
    """

    epoch: int
    lowest: float
    last: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which configuration is best, and which others may be as good.

    Attributes:
        ranked: All configurations, best first.
        comparison: Each of them beside the best.
        cheapest: The one that took the least time to train, of those whose distance from the best is below its standard
            error; None if none took less than the best.
        unchosen: What the configuration that the other seeds choose reaches on the seed that is left out, averaged over
            the seeds of the best; None for one seed, or one configuration.
        curve: The epochs of the best, averaged over its seeds.
        overfitting: None too for a model that has learned nothing, of its training images either.
        classes: Name of each class -> its validation images; empty where the board does not say.
        asked: How many configurations the board holds, of which only those with a point that is ok are ranked.
        draws: Every seed and fold of the board.
    """

    metric: str
    ranked: tuple[Configuration, ...]
    comparison: Comparison
    cheapest: Configuration | None
    unchosen: float | None
    curve: Sequence[Mapping[str, float]]
    overfitting: Overfitting | None
    classes: Mapping[str, int]
    asked: int
    draws: Collection[Draw]

    @property
    def best(self) -> Configuration:
        return self.ranked[0]

    @property
    def rivals(self) -> tuple[Configuration, ...]:
        """The others that may be the best."""
        pairs = zip(self.ranked[1:], self.comparison.each[1:], strict=True)
        return tuple(other for other, compared in pairs if compared.may_be_best)

    def tree(self) -> dict[str, Any]:
        """As plain values, for JSON: see docs/json.md."""
        pairs = zip(self.ranked, self.comparison.each, strict=True)
        return {
            "best": self._tree(self.best, 0.0),
            "may_be_best": [self._tree(each, by.behind_by) for each, by in pairs if by.may_be_best][1:],
            "costs_at_most": self.comparison.costs,
            "costs_at_most_here": self.comparison.costs_here,
            "no_better_than_one_answer": self.no_better,
            "overfits_from_epoch": self.overfitting.epoch if self.overfitting else None,
            "one_rate_for_all_batch_sizes": self.one_rate,
            "rate_used": self.best.rate,
            "configurations": self.asked,
        }

    def _tree(self, each: Configuration, behind_by: float) -> dict[str, Any]:
        score = {"score": each.score.mean, "score_half_width": each.score.half_width, "behind_by": behind_by}
        return {"values": dict(each.values), **score, "draws": each.score.count, "epochs": each.epochs}

    @property
    def one_rate(self) -> bool:
        """Whether several batch sizes were trained, and all at one learning rate."""
        sizes = {each.values.get("batch_size") for each in self.ranked}
        named = "learning_rate" in self.best.values or any(each.rate is not None for each in self.ranked)
        return len(sizes) > 1 and not named

    @property
    def no_better(self) -> bool:
        """Whether the best is not shown to be better than one answer for every image."""
        second = of_one_answer(self.metric, self.classes)
        if second is not None:
            return self.best.score.mean <= second + 1e-9
        known = is_accuracy(self.metric) and any(self.classes.values())
        return known and not beats_always(self.best.score.mean, self.classes)


def judge(
    ranked: Sequence[Configuration],
    metric: str,
    history: Mapping[str, Sequence[Mapping[str, float]]],
    looks: int = 1,
    classes: Mapping[str, int] | None = None,
    asked: int = 0,
    draws: Collection[Draw] = (),
) -> Verdict | None:
    """The verdict on ranked configurations; None if there are none.

    history: trial id -> its epochs. looks: how many times a race may compare them. classes, asked, draws: see Verdict;
    by default, there are no others than those that are ranked.
    """
    if not ranked:
        return None
    best, comparison = ranked[0], compare(ranked, metric, looks)
    near = [
        other
        for other, compared in zip(ranked, comparison.each, strict=True)
        if other.train_s is not None and compared.error is not None and compared.behind_by <= compared.error
        if best.train_s is None or other.train_s <= _CHEAPER * best.train_s or other is best
    ]
    cheapest = min(near, key=lambda each: each.train_s or 0.0, default=best)
    curve, counts = mean_curve([history.get(trial_id, ())[: best.epochs] for trial_id in best.trial_ids]), classes or {}
    fits = bool(curve) and (has_learned(curve[-1], counts) or knows_by_heart(curve[-1], counts))
    return Verdict(
        metric=metric,
        ranked=tuple(ranked),
        comparison=comparison,
        cheapest=None if cheapest is best else cheapest,
        unchosen=_unchosen(ranked, metric),
        curve=curve,
        overfitting=overfitting(curve) if fits else None,
        classes=counts,
        asked=max(asked, len(ranked)),
        draws=draws,
    )


def _unchosen(ranked: Sequence[Configuration], metric: str) -> float | None:
    """See Verdict. The best of many has had luck with the seeds that made it the best."""
    seeds, sign = tuple(ranked[0].scores), METRICS[metric].sign
    whole = [each for each in ranked if set(each.scores) >= set(seeds)]
    if len(seeds) < 2 or len(whole) < 2:
        return None
    chosen = [max(whole, key=lambda each: sign * sum(each.scores[s] for s in seeds if s != left)) for left in seeds]
    return math.fsum(each.scores[left] for each, left in zip(chosen, seeds, strict=True)) / len(seeds)


def mean_curve(curves: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """The epochs of several trials, averaged; as long as the shortest of them that has any."""
    curves = [curve for curve in curves if curve]
    names = [name for name in recorded() if all(epoch.get(name) is not None for curve in curves for epoch in curve)]
    return [
        {"epoch": i + 1, **{name: math.fsum(epoch[name] for epoch in epochs) / len(epochs) for name in names}}
        for i, epochs in enumerate(zip(*curves, strict=False))
    ]


def overfitting(curve: Sequence[Mapping[str, float]]) -> Overfitting | None:
    """Where val_loss began to rise for good although loss went on falling; None if it did not.

    At least two epochs must follow the lowest val_loss, and half of them must lie above it by more than the curve's
    usual step (the median change from one epoch to the next). A smaller rise is noise.
    """
    lowest, rose = turning_point(curve)
    if not rose or curve[-1]["loss"] >= curve[lowest]["loss"]:
        return None
    return Overfitting(lowest + 2, curve[lowest]["val_loss"], curve[-1]["val_loss"])


def turning_point(curve: Sequence[Mapping[str, float]]) -> tuple[int, bool]:
    """The place of the lowest val_loss, and whether it rose for good after it."""
    losses = [epoch["val_loss"] for epoch in curve]
    lowest = min(range(len(losses)), key=lambda i: (losses[i], -i), default=0)
    after = losses[lowest + 1 :]
    if len(after) < 2:
        return lowest, False
    return lowest, bool(np.median(after) - losses[lowest] > np.median(np.abs(np.diff(losses))))
