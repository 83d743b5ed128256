"""metrics that are computed from predictions: against their definitions, by hand, and against Keras."""

import math
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.metrics import Predictions, measure


def predictions(labels: list[int], probabilities: list[list[float]]) -> Predictions:
    """The class that is said as training has it: of two the second above one half, else the first of the highest."""
    p = np.array(probabilities, np.float32)
    said = (p[:, 1] > 0.5).astype(int) if p.shape[1] == 2 else p.argmax(1)
    return Predictions(np.array(labels, np.int32), p, said)


@st.composite
def drawn(draw: st.DrawFn) -> Predictions:
    """Up to 12 images of 2 to 5 classes, of which some may be empty, with probabilities coarse enough for ties."""
    classes, images = draw(st.integers(2, 5)), draw(st.integers(1, 12))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images))
    parts = st.lists(st.integers(0, 4), min_size=classes, max_size=classes).filter(any)
    rows = draw(st.lists(parts, min_size=images, max_size=images))
    return predictions(labels, [[part / sum(row) for part in row] for row in rows])


def by_definition(found: Predictions) -> dict[str, float]:
    """Every metric in plain Python, image by image and pair by pair."""
    labels, said, p = found.labels.tolist(), found.predicted.tolist(), found.probabilities.tolist()
    classes = range(found.classes)
    recalls, precisions, f1s, areas = {}, {}, {}, {}
    for k in classes:
        right = sum(a == b == k for a, b in zip(labels, said, strict=True))
        of, named = labels.count(k), said.count(k)
        recalls[k], precisions[k] = right / of if of else 0.0, right / named if named else 0.0
        total = recalls[k] + precisions[k]
        f1s[k] = 2 * recalls[k] * precisions[k] / total if total else 0.0
        mine = [row[k] for row, label in zip(p, labels, strict=True) if label == k]
        others = [row[k] for row, label in zip(p, labels, strict=True) if label != k]
        if mine and others:
            areas[k] = statistics.fmean((a > b) + (a == b) / 2 for a in mine for b in others)

    def over(values: dict[int, float]) -> float:
        if found.classes == 2:
            return values[1]
        return statistics.fmean(values[k] for k in classes if k in labels or k in said)

    counted = [areas[k] for k in ([1] if found.classes == 2 else classes) if k in areas]
    top = [sum(other > row[label] for other in row) < 3 for row, label in zip(p, labels, strict=True)]
    return {
        "val_balanced_accuracy": statistics.fmean(recalls[k] for k in classes if k in labels),
        "val_f1": over(f1s),
        "val_auc": statistics.fmean(counted) if counted else 0.5,
        "val_precision": over(precisions),
        "val_recall": over(recalls),
        **({"val_top_3_accuracy": statistics.fmean(top)} if found.classes > 3 else {}),
    }


@settings(max_examples=300)
@given(found=drawn())
def test_every_metric_is_what_its_definition_says(found: Predictions) -> None:
    """With ties, classes without images, and classes that are never said: always a number, and never another one."""
    assert measure(found) == pytest.approx(by_definition(found), abs=1e-12)


def test_by_hand() -> None:
    """One rare class among 10 images: what accuracy hides, these show."""
    second = [0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.7, 0.4, 0.8]
    names = ["val_balanced_accuracy", "val_f1", "val_auc", "val_precision", "val_recall"]
    two = measure(predictions([0] * 8 + [1] * 2, [[1 - p, p] for p in second]))
    pairs = 8 + 5 + 2 / 2  # the second of 0.8 is above all 8, the one of 0.4 above 5 and beside 2
    assert [two[name] for name in names] == pytest.approx([(7 / 8 + 1 / 2) / 2, 1 / 2, pairs / 16, 1 / 2, 1 / 2])
    never = measure(predictions([0, 0, 1], [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]))
    assert [never[name] for name in names] == [0.5, 0, 1, 0, 0]
    one_class = measure(predictions([0, 0], [[0.9, 0.1], [0.8, 0.2]]))
    assert one_class["val_auc"] == 0.5
    assert all(map(math.isfinite, one_class.values()))


def test_top_3_needs_a_fourth_class() -> None:
    """With three it would be 1 whatever the model says."""
    third, last = [0.3, 0.3, 0.2, 0.2], [0.4, 0.3, 0.2, 0.1]
    assert measure(predictions([2, 3], [third, last]))["val_top_3_accuracy"] == 0.5
    assert "val_top_3_accuracy" not in measure(predictions([2], [[0.5, 0.3, 0.2]]))


def says_keras(labels: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """F1 and top 3 of these probabilities, and the area of them rounded to sixteenths."""
    import keras

    classes = p.shape[1]
    own, of = np.eye(classes)[labels], slice(1, None) if classes == 2 else slice(None)
    between = [(i + 0.5) / 16 for i in range(16)]
    f1 = keras.metrics.F1Score("macro", 0.5 if classes == 2 else None)
    area = keras.metrics.AUC(thresholds=between, multi_label=classes > 2)
    top = keras.metrics.TopKCategoricalAccuracy(3)
    for metric, scores in ((f1, p), (area, np.round(p * 16) / 16), (top, p)):
        part = slice(None) if metric is top else of
        metric.update_state(own[:, part], scores[:, part])
    found = {"val_f1": f1, "val_auc": area, "val_top_3_accuracy": top}
    return {name: float(metric.result()) for name, metric in found.items()}


def test_keras_says_the_same() -> None:
    """Where it is exact: its areas are sums over thresholds, so the scores here lie between these, with ties."""
    random = np.random.default_rng(0)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for classes in (2, 5):
            labels = random.integers(0, classes, 200)
            p = random.dirichlet(np.ones(classes), 200)
            p[::2] = (p[::2] + np.eye(classes)[labels[::2]]) / 2
            ours = measure(predictions(labels.tolist(), p.tolist()))
            ours["val_auc"] = measure(predictions(labels.tolist(), (np.round(p * 16) / 16).tolist()))["val_auc"]
            theirs = pool.submit(says_keras, labels, p.astype(np.float32)).result()
            assert ours == pytest.approx(ours | {name: theirs[name] for name in theirs if name in ours}, abs=1e-6)
            assert 0.5 < ours["val_auc"] < 1
