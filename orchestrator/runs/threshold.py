"""Threshold: from which probability of the second of two classes on a model says it. Pure.

It is chosen on the validation images, for the metric that ranks the run. One half stays unless the best threshold gains
more than two standard errors: of chance alone, the best of many thresholds always gains a little.
"""

from collections.abc import Callable, Mapping

import numpy as np

from orchestrator.metrics import METRICS
from orchestrator.runs.result import Threshold

HALF = 0.5
# Where one half is best, one standard error moved the threshold in 45 to 73% of simulated runs, and two in 7 to 16%.
_ERRORS = 2.0


def _accuracy(right: np.ndarray, wrong: np.ndarray, right_2: np.ndarray, wrong_2: np.ndarray) -> np.ndarray:
    return _ratio(right + right_2, right + wrong + right_2 + wrong_2)


def _balanced_accuracy(right: np.ndarray, wrong: np.ndarray, right_2: np.ndarray, wrong_2: np.ndarray) -> np.ndarray:
    return (_ratio(right, right + wrong) + _ratio(right_2, right_2 + wrong_2)) / 2


def _f1(right: np.ndarray, wrong: np.ndarray, right_2: np.ndarray, wrong_2: np.ndarray) -> np.ndarray:
    return _ratio(2 * right_2, 2 * right_2 + wrong + wrong_2)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)


# The metrics that a threshold changes and that can be maximised alone. Precision and recall cannot: it would be best to
# say one class always, or hardly ever.
FORMULAS: Mapping[str, Callable[..., np.ndarray]] = {
    "val_accuracy": _accuracy,
    "val_balanced_accuracy": _balanced_accuracy,
    "val_f1": _f1,
}


def choose_threshold(
    metric: str, labels: np.ndarray, probabilities: np.ndarray
) -> tuple[float, Threshold] | tuple[None, None]:
    """The threshold that makes a metric best on these images, and what it gains; None twice where one half stays.

    labels: (images,) 0 or 1. probabilities: (images, classes). One half stays too for other than two classes, and for a
    metric that is not in FORMULAS. Of thresholds that are equally good, the middle of the stretch next to one half.
    """
    formula = FORMULAS.get(METRICS[metric].recorded if metric in METRICS else metric)
    if formula is None or probabilities.ndim != 2 or probabilities.shape[1] != 2 or not len(labels):
        return None, None
    labels, second = np.asarray(labels).astype(bool), probabilities[:, 1].astype(np.float64)
    cuts, values = _sweep(formula, labels, second)
    value = _nearest_stretch(cuts, values)
    cells = _cells(labels, second, value)
    at_half, here = _gain_of(formula, cells)
    if here - at_half <= _ERRORS * _error(formula, cells):
        return None, None
    return value, Threshold(metric=metric, at_half=at_half, at_threshold=here, images=len(labels))


def _sweep(formula: Callable[..., np.ndarray], labels: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every cut between two probabilities, and the metric with it.

    Returns (cuts + 1,) ends of the stretches in which no decision changes, from 0 to 1, and (cuts,) values.
    """
    order = np.argsort(second, kind="stable")
    found = np.unique(second)
    below = np.concatenate([[0], np.searchsorted(second[order], found, side="right")])  # images not above each cut
    ones = np.concatenate([[0], np.cumsum(labels[order])])[below]
    zeros = below - ones
    values = formula(zeros, len(labels) - labels.sum() - zeros, labels.sum() - ones, ones)
    return np.concatenate([[0.0], found, [1.0]]), values


def _nearest_stretch(ends: np.ndarray, values: np.ndarray) -> float:
    """The middle of the best stretch next to one half, with as few digits as it takes to stay within."""
    best = values >= values.max() - 1e-12
    first = np.flatnonzero(best & ~np.concatenate([[False], best[:-1]]))
    last = np.flatnonzero(best & ~np.concatenate([best[1:], [False]]))
    stretches = [(ends[a], ends[b + 1]) for a, b in zip(first, last, strict=True) if ends[b + 1] > ends[a]]
    low, high = min(stretches, key=lambda each: max(each[0] - HALF, HALF - each[1], 0.0), default=(HALF, HALF))
    middle = (low + high) / 2
    width = high - low
    rounded = (round(float(middle), digits) for digits in range(2, 18))
    return next((each for each in rounded if abs(each - middle) <= width / 4), float(middle))


def _cells(labels: np.ndarray, second: np.ndarray, value: float) -> np.ndarray:
    """(2, 2, 2) how many images have this label, are said to be of the second class at one half, and at the value."""
    cells = np.zeros((2, 2, 2))
    np.add.at(cells, (labels.astype(int), (second > HALF).astype(int), (second > value).astype(int)), 1)
    return cells


def _gain_of(formula: Callable[..., np.ndarray], cells: np.ndarray) -> tuple[float, float]:
    """The metric at one half, and at the value."""
    at_half, here = (float(formula(c[0, 0], c[0, 1], c[1, 1], c[1, 0])) for c in (cells.sum(2), cells.sum(1)))
    return at_half, here


def _error(formula: Callable[..., np.ndarray], cells: np.ndarray) -> float:
    """Standard error of the gain, for other images: a jackknife, in which all images of a cell are alike."""
    count, gains, weights = cells.sum(), [], []
    for place in np.argwhere(cells > 0):
        without = cells.copy()
        without[tuple(place)] -= 1
        at_half, here = _gain_of(formula, without)
        gains.append(here - at_half)
        weights.append(cells[tuple(place)])
    mean = np.average(gains, weights=weights)
    return float(np.sqrt((count - 1) / count * np.dot(weights, (np.array(gains) - mean) ** 2)))
