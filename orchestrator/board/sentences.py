"""Sentences: the verdict as a person reads it. Pure."""

import math
from collections.abc import Mapping
from typing import Literal

from orchestrator.board.chance import (
    always,
    has_learned,
    is_accuracy,
    knows_by_heart,
    say_few,
    say_images,
    say_no_better,
    say_second,
)
from orchestrator.board.estimates import Configuration, spread
from orchestrator.board.verdict import Verdict, turning_point
from orchestrator.metrics import METRICS, Metric
from orchestrator.words import clock, plural

Sign = Literal["good", "fair", "bad"]

_SEEN_IN = 3  # epochs: the lowest val_loss, and two after it
# make bench-race prints it
CALIBRATION = "calibration: such bounds held in 99% of 1,152 replays of recorded grids"


def sentences(verdict: Verdict) -> list[str]:
    """The verdict as a person reads it: the best, how sure that is, whether it overfits. One line each.

    Where nothing is better than one answer for every image, that is said in place of what would compare them.
    """
    if verdict.no_better:
        if is_accuracy(verdict.metric):
            alone = say_no_better(verdict.best.score.mean, verdict.classes)
        else:
            alone = say_second(verdict.metric, verdict.classes)
        return [_say_best(verdict), *_say_asked(verdict), *alone, *say_few(verdict.classes), *_say_curve(verdict)]
    fewer = sum(each.score.count < verdict.best.score.count for each in verdict.ranked)
    draws = verdict.best.draws
    note = f"{plural(fewer, 'configuration')} with fewer {draws} than the best: compared on those that both have"
    return [
        _say_best(verdict),
        *_say_asked(verdict),
        *_say_images(verdict),
        *_say_rivals(verdict),
        *([note] if fewer else []),
        *_say_rates(verdict),
        *say_few(verdict.classes),
        *_say_curve(verdict),
    ]


def so_far(verdict: Verdict, count: Mapping[str, int]) -> str:
    """While a run goes on: which configuration leads, and what that is worth, in one line. count: points by status."""
    others, best = len(verdict.ranked) - 1, verdict.best
    line = f"so far: {best.label}, {spread(best.score)} of {count['ok']:,} of {plural(sum(count.values()), 'point')}"
    if verdict.no_better:
        line += f"; not shown to beat {always(verdict.classes)}"
    elif others and (verdict.comparison.by_images or verdict.comparison.seeds > 1):
        line += f"; {len(verdict.rivals)} of {plural(others, 'other')} may be as good"
    stopped = f"; {count['stopped']:,} stopped" if count.get("stopped") else ""
    left = count["not_trained"]
    return f"{line}{stopped}; {left:,} not trained yet" if left else f"{line}{stopped}"


def glance(verdict: Verdict) -> list[tuple[Sign, str]]:
    """The verdict in a few words: whether the best is known to be that, and what is wrong with it."""
    others = len(verdict.ranked) - 1
    signs: list[tuple[Sign, str]] = []
    if verdict.no_better:
        signs.append(("bad", f"not shown to beat {always(verdict.classes)}"))
    elif not others:
        signs.append(("fair", "the only configuration" if verdict.asked == 1 else "the only one that is ok so far"))
    elif verdict.comparison.seeds == 1:
        signs.append(("fair", "one seed: others may order them otherwise"))
    elif verdict.rivals:
        signs.append(("fair", f"{len(verdict.rivals)} of {plural(others, 'other')} may be as good"))
    else:
        signs.append(("good", f"ahead of {'all' if others > 1 else 'the'} {plural(others, 'other')}"))
    if others and verdict.asked > len(verdict.ranked):
        signs.append(("fair", f"{verdict.asked - len(verdict.ranked):,} more are not compared"))
    if verdict.overfitting:
        signs.append(("fair", f"overfits from epoch {verdict.overfitting.epoch}"))
    return signs


def _say_best(verdict: Verdict) -> str:
    best, metric = verdict.best, verdict.metric
    averaged = any(best.figures[seed] != score for seed, score in best.scores.items())
    notes = ["mean over the last fifth of its epochs"] if averaged else []
    if best.score.half_width is not None:
        notes.append(f"95% interval of {best.score.count} {best.draws}")
    if verdict.unchosen is not None:
        notes.append(f"{METRICS[metric].text(verdict.unchosen)} on {best.draws} that did not choose it")
    line = f"best: {best.label}, {metric} {spread(best.score)}" + (f" ({'; '.join(notes)})" if notes else "")
    if averaged:
        figures = ", ".join(METRICS[metric].text(value) for value in list(best.figures.values())[:3])
        line += f"; its model alone {figures}{', …' if len(best.figures) > 3 else ''}"
    return line if verdict.asked > 1 else f"{line}; the only configuration"


def _say_asked(verdict: Verdict) -> list[str]:
    """That there are others, of which nothing can be said: pending, failed, or stopped."""
    if (ranked := len(verdict.ranked)) == verdict.asked:
        return []
    who = "is the only one" if ranked == 1 else f"is the best of {ranked:,}"
    return [f"that {who} of {verdict.asked:,} configurations with a point that is ok: the others are not compared"]


def _say_images(verdict: Verdict) -> list[str]:
    """What they can tell apart is left out where a bound on the cost says as much, or there is nothing to compare."""
    if not is_accuracy(verdict.metric):
        return []
    return say_images(verdict.ranked, verdict.classes, len(verdict.ranked) > 1 and verdict.comparison.costs is None)


def _say_rivals(verdict: Verdict) -> list[str]:
    found, others = verdict.comparison, len(verdict.ranked) - 1
    if not others:
        return []
    next_one = verdict.ranked[1]
    behind = f"the next, {next_one.label}, is {_difference(found.each[1].behind_by, verdict.metric)} behind"
    same = sum(_is_tie(verdict.best, other) for other in verdict.ranked[1:])
    if _is_tie(verdict.best, next_one):
        behind = f"the next, {next_one.label}, scores the same" + (f", and so do {same} in all" if same > 1 else "")
    if found.seeds == 1:
        alike = f"by these images alone {len(verdict.rivals)} of {plural(others, 'other')} may be as good; "
        return [f"{behind}; {alike * found.by_images}{_say_one_seed(verdict)}"]
    if not verdict.rivals:
        return [f"ahead of all others that were trained to the end, at 95%: {behind}"]
    names = "; ".join(each.label for each in verdict.rivals[:2]) + ("; …" if len(verdict.rivals) > 2 else "")
    line = f"may be as good: {len(verdict.rivals)} of {plural(others, 'other')} ({names})"
    line += f", of which {same} {'score' if same > 1 else 'scores'} the same" if same else ""
    bounds = [(found.costs, "on images like these"), (found.costs_here, "on these very images")]
    costs = [(_difference(cost, verdict.metric), where) for cost, where in bounds if cost is not None]
    if len({cost for cost, _ in costs}) < len(costs):
        costs = [(costs[0][0], "on these images and on others like them")]
    said = ", ".join(f"{cost} {where}" for cost, where in costs)
    lines = [f"{line}; choosing the best costs at most {said} (95%)" if said else line]
    if found.costs is not None and found.by_images:
        lines.append(CALIBRATION)
    if found.mostly_images:
        lines.append(
            "most of that is the images, not the seeds: four times as many validation images would about halve it"
        )
    if verdict.cheapest and verdict.cheapest.train_s is not None and verdict.best.train_s is not None:
        lines.append(
            f"nearly as good and cheaper: {verdict.cheapest.label}, "
            f"{_time(verdict.cheapest.train_s)} of training instead of {_time(verdict.best.train_s)}"
        )
    return lines


def _is_tie(one: Configuration, other: Configuration) -> bool:
    """Whether their scores differ by no more than the rounding of a sum."""
    return one.score.count == other.score.count and abs(one.score.mean - other.score.mean) < 1e-9


def _say_one_seed(verdict: Verdict) -> str:
    """That one seed says little, and what to do; where others are asked for, they come or have failed."""
    others = len({*verdict.draws, *verdict.best.scores}) - 1
    draw = "fold" if len({fold for _, fold in verdict.draws}) > 1 else "seed"
    line = f"one {draw} cannot tell whether another would order them alike"
    if others:
        return f"{line}, and of the best no other of {others + 1} is trained to the end"
    first, _ = min(verdict.best.scores)
    return f'{line}: train others with --set "seeds={[*range(first, first + 3)]}"'


def _say_rates(verdict: Verdict) -> list[str]:
    """Google's tuning playbook: a batch size has a best rate of its own."""
    if verdict.one_rate:
        why = "all batch sizes were trained with one learning_rate, which does not suit all of them"
        return [f"{why}: set it to auto, make it an axis too, or set lr_scale"]
    if (rate := verdict.best.rate) is None:
        return []
    return [f"the best was trained at a learning rate of {rate:g}: a spec can name it as train.learning_rate"]


def _difference(value: float, metric: str) -> str:
    """How far two figures are apart: in points, hundredths of the whole, where the metric is a part of 1."""
    if METRICS[metric].better != "higher":
        return METRICS[metric].text(value)
    return f"{100 * value:.1f} points" if not 0 < value < 0.0005 else "less than 0.1 points"


def _say_curve(verdict: Verdict) -> list[str]:
    if not verdict.curve:
        return []
    last, (turn, up) = verdict.curve[-1], turning_point(verdict.curve)
    gap = _say_gap(verdict, METRICS[METRICS[verdict.metric].recorded])
    if found := verdict.overfitting:
        rose = f"val_loss rose from {found.lowest:.4f} to {found.last:.4f} while loss fell"
        return [f"overfitting from epoch {found.epoch}: {rose}; {gap}"]
    if not has_learned(last, verdict.classes):  # it cannot overfit yet, and more of the same may not help
        return [gap] if verdict.no_better else [f"not shown to beat {always(verdict.classes)}; {gap}"]
    if up:  # in training as well
        losses = f"loss and val_loss rose after epoch {turn + 1}, to {last['loss']:.4f} and {last['val_loss']:.4f}"
        return [f"training fell apart: {losses}; try a smaller learning_rate; {gap}"]
    if knows_by_heart(last, verdict.classes):
        cure = "more images, augment, dropout or l2 may help"
        return [f"it knows the training images far better than others, although val_loss rose little: {cure}; {gap}"]
    epochs = len(verdict.curve)
    if turn == epochs - 1 and epochs > 1:
        return [f"no overfitting: val_loss was lowest in the last epoch, {epochs}, {_say_longer(verdict)}; {gap}"]
    if epochs < _SEEN_IN:
        return [f"{plural(epochs, 'epoch')} cannot show overfitting; {gap}"]
    return [f"no overfitting seen in {plural(epochs, 'epoch')}; {gap}"]


def _say_longer(verdict: Verdict) -> str:
    """What more epochs may do: other points of the same values tell, where there are any."""
    own = {name: value for name, value in verdict.best.values.items() if name != "epochs"}
    tried = [
        each.values["epochs"]
        for each in verdict.ranked
        if each.score.count == verdict.best.score.count
        and each.values.get("epochs", 0) > verdict.best.values.get("epochs", 0)
        and own == {name: value for name, value in each.values.items() if name != "epochs"}
    ]
    return f"but {min(tried)} epochs did not score better" if tried else "so more epochs may help"


def _say_gap(verdict: Verdict, metric: Metric) -> str:
    """The metric for training and validation images after the last epoch; accuracy, if it is known only for one.

    The epoch is named where the models are those of another one.
    """
    last, figures = verdict.curve[-1], verdict.best.figures.values()
    of_models = math.fsum(figures) / len(figures)
    when = "" if abs(last.get(metric.name, of_models) - of_models) < 1e-9 else f" after epoch {last['epoch']}"
    if metric.training_twin not in last:
        metric = METRICS["val_accuracy"]
    training = metric.training_twin or metric.name
    in_training = f"{training} {metric.text(last[training])} in training"
    return f"{in_training}, {metric.text(last[metric.name])} in validation{when}"


def _time(seconds: float) -> str:
    return clock(seconds) if seconds >= 60 else f"{seconds:.1f} s"
