"""Verdict: which configuration is best, how sure that is, and whether it overfits. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.board.estimates import Configuration, Estimate, is_apart, lead, spread
from orchestrator.metrics import METRICS, Metric, recorded
from orchestrator.words import clock, plural


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
        runner_up: The next with as many seeds; None where there is none.
        lead: How far the best is ahead of it on the same seeds; None with fewer than two such seeds.
        ties: The others whose distance from the best may be chance, in the order of their ranks.
        cheapest: The tied one that took the least time to train; None if none took less than the best.
        curve: The epochs of the best, averaged over its seeds.
        left_out: How many configurations have fewer seeds than the best, and so are not compared.
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


def judge(
    ranked: Sequence[Configuration], metric: str, history: Mapping[str, Sequence[Mapping[str, float]]]
) -> Verdict | None:
    """The verdict on ranked configurations; None if there are none. history: trial id -> its epochs."""
    if not ranked:
        return None
    best = ranked[0]
    others = [each for each in ranked[1:] if each.score.count == best.score.count]
    leads = [(other, lead(best, other, metric)) for other in others]
    ties = [other for other, difference in leads if difference and not is_apart(difference)]
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
    left_out = f"{plural(verdict.left_out, 'configuration')} left out, with fewer seeds that are ok than the best"
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
        return [f'one seed cannot tell whether that is more than chance: train others with --set "seeds={more}"']
    if not verdict.ties:
        return []
    names = ", ".join(each.label for each in verdict.ties[:2]) + (", …" if len(verdict.ties) > 2 else "")
    line = f"tied with the best on these seeds: {plural(len(verdict.ties), 'configuration')} ({names})"
    if verdict.cheapest and verdict.cheapest.train_s is not None and verdict.best.train_s is not None:
        line += (
            f"; the cheapest of these: {verdict.cheapest.label}, "
            f"{_time(verdict.cheapest.train_s)} of training instead of {_time(verdict.best.train_s)}"
        )
    return [line]


def _say_curve(verdict: Verdict) -> list[str]:
    if not verdict.curve:
        return []
    last = verdict.curve[-1]
    gap = _say_gap(last, METRICS[METRICS[verdict.metric].recorded])
    if found := verdict.overfitting:
        rose = f"val_loss rose from {found.lowest:.4f} to {found.last:.4f} while loss fell"
        return [f"overfitting from epoch {found.epoch}: {rose}; {gap}"]
    lowest = min(verdict.curve, key=lambda epoch: (epoch["val_loss"], -epoch["epoch"]))["epoch"]
    if lowest == last["epoch"] and len(verdict.curve) > 1:
        return [f"no overfitting: val_loss was lowest in the last epoch, {lowest}, so more epochs may help; {gap}"]
    return [f"no overfitting seen in {plural(len(verdict.curve), 'epoch')}; {gap}"]


def _say_gap(last: Mapping[str, float], metric: Metric) -> str:
    """The metric for training and validation images after the last epoch; accuracy, if it is known only for one."""
    if metric.training_twin not in last:
        metric = METRICS["val_accuracy"]
    training = metric.training_twin or metric.name
    return f"{training} {metric.text(last[training])} in training, {metric.text(last[metric.name])} in validation"


def _time(seconds: float) -> str:
    return clock(seconds) if seconds >= 60 else f"{seconds:.1f} s"
