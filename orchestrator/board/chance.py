"""Chance: what needs no learning on these validation images, and what so few of them cannot tell. Pure.

`classes` is always: name of a class -> how many validation images it has. Where it is not known (boards of older
versions), nothing is said.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from orchestrator.board.estimates import Configuration, Z, wilson
from orchestrator.metrics import METRICS

FEW = 30  # with fewer images, the interval of a recall may be wider than 17 points to either side
_FAR = 0.1  # so far above validation, training knows its images better than the others
_NAMED = 3
_SKEWED = 1.2  # times the share that the largest class would have if all were as large


def is_accuracy(metric: str) -> bool:
    """Whether the metric is a part of the validation images, so that a class' share of them compares with it."""
    return METRICS[metric].recorded == "val_accuracy"


def largest(classes: Mapping[str, int]) -> tuple[str, float]:
    """The class with the most validation images, and its share of them. classes: not all empty."""
    name = max(classes, key=lambda each: classes[each])
    return name, classes[name] / sum(classes.values())


def always(classes: Mapping[str, int]) -> str:
    """What needs no learning: one answer for every image."""
    name, _ = largest(classes)
    alone = sum(count == classes[name] for count in classes.values()) == 1
    return f"always answering {name if alone else 'one class'}"


def of_one_answer(metric: str, classes: Mapping[str, int]) -> float | None:
    """What saying the second of two classes to every image reaches; None for metrics where that is no trap.

    F1, precision and recall look at the second class alone, so it reaches much where that is the larger one.
    """
    if len(classes) != 2 or not sum(classes.values()):
        return None
    share = [*classes.values()][1] / sum(classes.values())
    return {"val_f1": 2 * share / (1 + share), "val_precision": share, "val_recall": 1.0}.get(metric)


def beats_always(accuracy: float, classes: Mapping[str, int]) -> bool:
    """Whether the accuracy is above the largest class' share by more than chance allows.

    The lower end of its 95% interval, for so many images, is above that share.
    """
    images = sum(classes.values())
    return wilson(accuracy * images, images)[0] > largest(classes)[1]


def has_learned(last: Mapping[str, float], classes: Mapping[str, int]) -> bool:
    """Whether the figures of an epoch show that the model tells classes apart; True where nothing is known.

    Its val_accuracy is above the largest class' share, or its val_balanced_accuracy, if that was recorded, above what
    one answer for every image has: one part in as many as there are classes. Both by more than chance allows.
    """
    if not any(classes.values()) or beats_always(last["val_accuracy"], classes):
        return True
    balanced, counts = last.get("val_balanced_accuracy"), [count for count in classes.values() if count]
    if balanced is None:
        return False
    error = math.sqrt(sum(0.25 / count for count in counts)) / len(counts)
    return balanced - Z * error > 1 / len(counts)


def knows_by_heart(last: Mapping[str, float], classes: Mapping[str, int]) -> bool:
    """Whether the accuracy is at least 10 points higher in training than in validation, by more than chance allows."""
    training, validation = last.get("accuracy"), last["val_accuracy"]
    if training is None or training - validation <= _FAR:
        return False
    images = sum(classes.values())
    return not images or wilson(validation * images, images)[1] < training


def resolution(images: int, accuracy: float, differ: float | None = None, configurations: int = 2) -> float:
    """The least difference of two accuracies that so many validation images tell apart at 95%, as a part of 1.

    Both models answer the same images, so only those count on which one is right and the other wrong. Where that is a
    part `differ` of all, the difference of the accuracies has a standard error of sqrt(differ / images), and must be
    z times that: max(z sqrt(differ / images), z^2 / images). The second is the least that can be told apart at all:
    z^2 images that only the better one has right. z is 1.96 for two configurations, and grows with their number, as
    the 5% are shared out over all ordered pairs: the quantile of 1 - 0.05 / (configurations (configurations - 1)).

    differ: if it is not known, accuracy (1 - accuracy): half of what two independent models would differ in.
    """
    if differ is None:
        differ = accuracy * (1 - accuracy)
    z = NormalDist().inv_cdf(1 - 0.05 / (configurations * (configurations - 1)))
    return max(z * math.sqrt(differ / images), z**2 / images)


def differing(ranked: Sequence[Configuration]) -> float | None:
    """The part of the images on which the first is right and another wrong or the reverse, averaged over the others.

    None where it is not known which images each had right.
    """
    first = ranked[0].right
    pairs = [(first[seed], other.right[seed]) for other in ranked[1:] for seed in first if seed in other.right]
    squares = [float(np.mean((a - b) ** 2)) for a, b in pairs if len(a) == len(b)]
    return math.fsum(squares) / len(squares) if squares else None


def say_images(ranked: Sequence[Configuration], classes: Mapping[str, int], tell_apart: bool) -> list[str]:
    """What one answer reaches on the validation images and, with `tell_apart`, what difference they can show."""
    if not (images := sum(classes.values())):
        return []
    line = f"{images:,} validation images: {always(classes)} is right in {largest(classes)[1]:.1%}"
    if tell_apart:
        points = 100 * resolution(images, ranked[0].score.mean, differing(ranked), len(ranked))
        few = f"{points:.0f} points" if points >= 1.5 else f"{points:.1f} points"
        of_these = f"of {len(ranked):,} configurations" if len(ranked) > 2 else "configurations"
        line += f"; two {of_these} must differ by about {few} to be told apart"
    return [line]


def say_no_better(accuracy: float, classes: Mapping[str, int]) -> list[str]:
    """That nothing is shown to beat one answer for every image, and what to do. To be said where that is so."""
    images, (_, share) = sum(classes.values()), largest(classes)
    if share > _SKEWED / sum(count > 0 for count in classes.values()):
        smallest = min((name for name in classes if classes[name]), key=lambda each: classes[each])
        cure = f"try metric=val_balanced_accuracy or val_f1, train.class_weight=balanced, more images of {smallest}"
    elif accuracy > share:
        cure = "only more validation images can tell"
    else:
        cure = "try another learning_rate or model, and check the labels"
    line = f"{always(classes)}, which is right in {share:.1%} of the {images:,} validation images"
    if accuracy <= share:
        return [f"nothing here beats {line}: {cure}"]
    return [f"nothing here is shown to beat {line}, as {accuracy:.1%} of so many may be chance: {cure}"]


def say_second(metric: str, classes: Mapping[str, int]) -> list[str]:
    """That nothing beats saying the second class to every image, and what to rank by. To be said where that is so."""
    first, second = classes
    reached = METRICS[metric].text(of_one_answer(metric, classes) or 0.0)
    name = metric.removeprefix("val_")
    line = f"nothing here beats always answering {second}, whose {name} is {reached}: {name} is of {second} alone"
    return [f"{line}, the second class; to judge {first} too, try metric=val_balanced_accuracy"]


def say_few(classes: Mapping[str, int]) -> list[str]:
    """The classes with fewer than 30 validation images, the smallest first, and how well their recall can be known.

    The interval is that of a recall of one half, the widest; with 30 images it is 17 points to either side.
    """
    few = sorted((count, name) for name, count in classes.items() if count < FEW)
    if not few:
        return []
    named = ", ".join(f"{name} {count} ({_recall(count)})" for count, name in few[:_NAMED])
    more = f", and {len(few) - _NAMED:,} more" if len(few) > _NAMED else ""
    return [f"too few validation images to judge a class by: {named}{more}"]


def _recall(count: int) -> str:
    low, high = wilson(count / 2, count)
    return f"recall ± {50 * (high - low):.0f} points" if count else "recall unknown"
