"""Weights: what an image of each class counts for in training. Pure."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from orchestrator.errors import BadInput
from orchestrator.spec.notation import show
from orchestrator.spec.ranges import ends
from orchestrator.spec.sections import Spec
from orchestrator.words import did_you_mean

_LISTED = 20  # names in a message, at most

Setting = str | Mapping[str, float]  # train.class_weight


def class_weights(setting: Setting, classes: Sequence[str], labels: np.ndarray) -> np.ndarray | None:
    """(classes,) float32, what an image of each class counts for; None where all count alike.

    setting: train.class_weight. labels: (images,) int, positions in `classes` of the images that train.
    `balanced` is scikit-learn's: images / (classes * images of the class), of the classes that have any.
    """
    if setting == "none":
        return None
    if isinstance(setting, Mapping):
        return np.array([setting.get(name, 1.0) for name in classes], np.float32)
    counts = np.bincount(labels, minlength=len(classes))
    return (len(labels) / (np.count_nonzero(counts) * np.maximum(1, counts))).astype(np.float32)


def check_class_weights(spec: Spec, classes: Sequence[str]) -> None:
    """Raise BadInput where the spec weighs a class that the data do not have. classes: their names."""
    for path, setting in _settings(spec):
        for name in setting if isinstance(setting, Mapping) else ():
            if name not in classes:
                more = f" and {len(classes) - _LISTED} more" if len(classes) > _LISTED else ""
                raise BadInput(
                    f"{path} must name classes of the data ({', '.join(classes[:_LISTED])}{more}), "
                    f"got {show(name)}{did_you_mean(name, classes)}: name one of them, or leave it out"
                )


def _settings(spec: Spec) -> Iterator[tuple[str, Setting]]:
    """Every value of class_weight in the spec, and where it stands."""
    yield "train.class_weight", spec.train.class_weight
    for i, value in enumerate(ends(spec.grid.get("class_weight", []))):
        yield f"grid.class_weight[{i}]", value
    for i, point in enumerate(spec.points):
        if "class_weight" in point:
            yield f"points[{i}].class_weight", point["class_weight"]
