"""Tested: what the winner reaches on the test images, and how sure that is. Pure."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.board.estimates import wilson
from orchestrator.metrics import METRICS, Predictions
from orchestrator.runs.result import Exported, Tested
from orchestrator.words import now

_RESAMPLES = 1000
_CELLS = 50_000_000  # of probabilities, in all samples together: seconds


def judge_test(judged: pa.Table, facts: Exported, looks: int) -> Tested:
    """The winner's metric on the test images, decided as `predict` does, with its 95% interval.

    The interval is Wilson's for accuracy, and a bootstrap over the images for other metrics: for these weights.
    judged: label and probabilities of each image, as train/export.py writes them. facts: of the winner. looks: how many
    winners have seen the images, this one included.
    """
    found, metric = _predictions(judged, facts), _of_validation(facts.metric)
    images = len(found.labels)
    value, low, high = _interval(metric, found)
    chosen = facts.threshold_chosen
    return Tested(
        images=images,
        metric=facts.metric,
        value=value,
        low=low,
        high=high,
        validation=chosen.at_threshold if chosen and chosen.metric == facts.metric else facts.metrics[metric],
        looks=looks,
        weights=facts.weights,
        point_id=facts.point_id,
        opened_at=now(),
    )


def describe_test(tested: Tested) -> str:
    """What the last lines of a run, and the page, say of it."""
    metric = METRICS[_of_validation(tested.metric)]
    gap = metric.sign * (tested.validation - tested.value)
    who = "which only the winner has seen"
    if tested.looks > 1:
        who = f"opened {tested.looks} times (choose by them no more)"
    figure = _say(metric.name, (tested.value, tested.low, tested.high))
    apart = f"{metric.text(abs(gap))} {'worse' if gap > 0 else 'better'} than on the images that chose it"
    if metric.text(abs(gap)) == metric.text(0.0):
        apart = "the same as on the images that chose it"
    return f"on {tested.images:,} test images, {who}: {figure}, {apart}"


def describe_judged(judged: pa.Table, facts: Exported) -> str:
    """The accuracy, and the metric of the run, on images with labels; decided as `predict` does. judged: see above."""
    figures = judge_labelled(judged, facts)["figures"]
    said = (_say(f"val_{name}", (each["value"], each["low"], each["high"])) for name, each in figures.items())
    return f"on {judged.num_rows:,} labelled images: {'; '.join(said)}"


def judge_labelled(judged: pa.Table, facts: Exported) -> dict[str, Any]:
    """The same as plain values: how many images, and each metric with its 95% interval."""
    found = _predictions(judged, facts)
    figures = {}
    for metric in dict.fromkeys(["val_accuracy", _of_validation(facts.metric)]):
        value, low, high = _interval(metric, found)
        figures[metric.removeprefix("val_")] = {"value": value, "low": low, "high": high}
    return {"images": judged.num_rows, "figures": figures}


def _say(metric: str, figures: tuple[float, float, float]) -> str:
    """`accuracy 0.8250 (95%: 0.7719 to 0.8679)`. figures: the value, and the ends of its interval."""
    value, low, high = map(METRICS[metric].text, figures)
    return f"{metric.removeprefix('val_')} {value} (95%: {low} to {high})"


def _interval(metric: str, found: Predictions) -> tuple[float, float, float]:
    """The metric, and the ends of its 95% interval."""
    images, value = len(found.labels), _figure(metric, found)
    if metric == "val_accuracy":
        return value, *wilson(value * images, images)
    return value, *_bootstrap(found, lambda some: _figure(metric, some))


def _of_validation(metric: str) -> str:
    """The metric of images that were not trained on."""
    recorded = METRICS[metric].recorded
    return f"val_{recorded}" if METRICS[recorded].computed_from == "training" else recorded


def _predictions(judged: pa.Table, facts: Exported) -> Predictions:
    place = {name: number for number, name in enumerate(facts.classes)}
    labels = np.array([place[name] for name in judged["label"].to_pylist()])
    flat = judged["probabilities"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    probabilities = flat.reshape(len(labels), len(facts.classes))
    if len(facts.classes) == 2:
        said = (probabilities[:, 1] > (0.5 if facts.threshold is None else facts.threshold)).astype(int)
    else:
        said = probabilities.argmax(1)
    return Predictions(labels, probabilities, said)


def _bootstrap(found: Predictions, figure: Callable[[Predictions], float]) -> tuple[float, float]:
    """The ends of the 95% interval of a figure, over as many samples of the images as take seconds."""
    random, count = np.random.default_rng(0), len(found.labels)
    samples = min(_RESAMPLES, max(100, _CELLS // found.probabilities.size))
    drawn = (random.integers(0, count, count) for _ in range(samples))
    values = [figure(Predictions(found.labels[i], found.probabilities[i], found.predicted[i])) for i in drawn]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _figure(metric: str, found: Predictions) -> float:
    if compute := METRICS[metric].compute:
        return compute(found)
    if metric == "val_loss":
        of_truth = found.probabilities[np.arange(len(found.labels)), found.labels]
        return float(-np.log(np.clip(of_truth, 1e-7, 1)).mean())
    if metric != "val_accuracy":
        raise ValueError(f"{metric} cannot be computed from predictions")
    return float((found.predicted == found.labels).mean())
