"""threshold: from which probability on the second class is said: the best for the metric, unless that may be luck."""

import numpy as np
import pytest

from orchestrator.metrics import METRICS, Predictions
from orchestrator.runs.threshold import FORMULAS, choose_threshold


def two(second: np.ndarray) -> np.ndarray:
    """Probabilities of both classes."""
    return np.stack([1 - second, second], axis=1)


def by_hand(metric: str, labels: np.ndarray, says: np.ndarray) -> float:
    """From the definitions, class by class."""
    if metric == "val_accuracy":
        return float((labels == says).mean())
    recalls = [(says[labels == each] == each).mean() for each in (0, 1)]
    if metric == "val_balanced_accuracy":
        return float(np.mean(recalls))
    precision, recall = labels[says == 1].mean() if says.any() else 0.0, recalls[1]
    return float(2 * precision * recall / (precision + recall) if precision + recall else 0.0)


@pytest.mark.parametrize("metric", FORMULAS)
def test_no_other_threshold_is_better(metric: str):
    """Of all that there are; and the two values that are told are those of the definitions. Many probabilities tie."""
    random = np.random.default_rng(1)
    for _ in range(20):
        labels = (random.random(300) < 0.2).astype(int)
        second = np.round(0.3 * labels + random.uniform(0, 0.4, 300), 2)
        value, why = choose_threshold(metric, labels, two(second))
        values = {cut: by_hand(metric, labels, (second > cut).astype(int)) for cut in [0.0, *second, 0.999]}
        assert value is not None
        assert why.at_threshold == pytest.approx(max(values.values()))
        assert why.at_threshold == pytest.approx(by_hand(metric, labels, (second > value).astype(int)))
        assert why.at_half == pytest.approx(by_hand(metric, labels, (second > 0.5).astype(int)))


@pytest.mark.parametrize("metric", ["val_balanced_accuracy", "val_f1"])
def test_a_metric_is_what_its_own_function_says(metric: str):
    """The value at one half is the one that training records."""
    random = np.random.default_rng(2)
    labels = (random.random(300) < 0.2).astype(int)
    second = 0.3 * labels + random.uniform(0, 0.4, 300)
    _, why = choose_threshold(metric, labels, two(second))
    found = Predictions(labels, two(second), (second > 0.5).astype(int))
    assert why.at_half == pytest.approx(METRICS[metric].compute(found))


def test_of_equals_the_stretch_next_to_one_half_and_its_middle():
    """It has as few digits as it takes; decisions as far from both neighbours as can be."""
    labels = np.array([0] * 50 + [1] * 50)
    value, _ = choose_threshold("val_accuracy", labels, two(np.array([0.1] * 50 + [0.42] * 50)))
    assert value == 0.26
    second = np.array([0.1] * 30 + [0.3] * 10 + [0.2] * 10 + [0.42] * 50)  # cuts at 0.3 and above are equal
    value, _ = choose_threshold("val_accuracy", labels, two(second))
    assert 0.3 <= value < 0.42


def test_luck_moves_nothing():
    """Where one half is best, another threshold is chosen in few runs; one image that it would gain is never enough."""
    random, moved = np.random.default_rng(0), 0
    for _ in range(300):
        second = random.random(240)
        labels = (random.random(240) < second).astype(int)
        moved += choose_threshold("val_accuracy", labels, two(second))[0] is not None
    assert moved < 60
    second = np.array([0.1] * 50 + [0.45] + [0.9] * 49)
    assert choose_threshold("val_accuracy", np.array([0] * 50 + [1] * 50), two(second)) == (None, None)


@pytest.mark.parametrize("metric", ["val_loss", "val_auc", "val_precision", "val_recall"])
def test_a_metric_that_it_does_not_change_or_that_would_say_one_class_always_leaves_one_half(metric: str):
    """So do three classes."""
    labels, second = np.array([0] * 50 + [1] * 50), np.array([0.1] * 50 + [0.4] * 50)
    assert choose_threshold(metric, labels, two(second)) == (None, None)
    assert choose_threshold("val_accuracy", labels, np.full((100, 3), 1 / 3)) == (None, None)
    assert choose_threshold("best_val_accuracy", labels, two(second))[0] == 0.25


def test_a_hundred_thousand_images_take_no_time():
    """It is a sort, not a comparison of every threshold with every image: that would take minutes."""
    random = np.random.default_rng(0)
    labels = (random.random(100_000) < 0.1).astype(int)
    second = 0.2 * labels + 0.4 * random.random(100_000)
    value, why = choose_threshold("val_balanced_accuracy", labels, two(second))
    assert (value is not None, why.images) == (True, 100_000)
