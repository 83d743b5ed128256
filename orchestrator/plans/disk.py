"""Disk: what the checkpoints and models of a run take in its folder. Pure."""

import math
from collections.abc import Collection
from typing import Any

from orchestrator.metrics import METRICS
from orchestrator.plans.points import Plan
from orchestrator.plans.trials import Trial
from orchestrator.spec.axes import Settings, resolve
from orchestrator.spec.sections import Spec
from orchestrator.words import plural

_SLOTS = {"adam": 2, "adamw": 2, "nadam": 2, "rmsprop": 1, "adagrad": 1, "sgd": 0}  # numbers that it keeps for a weight
_DEPENDS_ON = ("model", "image_size", "optimizer", "backbone", "unfreeze", "hidden", "momentum", "ema")


def describe_disk(plan: Plan, spec: Spec, classes: int, found: Collection[int], kept: tuple[int, int]) -> str:
    """One line on what the run folder takes.

    found: bytes of each checkpoint that is there. kept: how many checkpoints and models stay when the run is over.
    """
    checkpoints, models = kept
    alike: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in plan.trials:
        alike.setdefault(tuple(trial.values.get(name) for name in _DEPENDS_ON), []).append(trial)
    sizes: list[int | None] = []
    slots, largest = set(), 0.0
    for trials in alike.values():
        settings = resolve(spec, trials[0].values)
        slots.add(_slots(settings, spec))
        weights = _weights(settings, plan, classes)
        size_bytes = max(found, default=None) if weights is None else 4 * weights * _slots(settings, spec)
        sizes += [size_bytes] * (len(trials) + forks_of(trials))
        largest = max(largest, (size_bytes or 0) / _slots(settings, spec))
    backbone = ", each with its backbone" if plan.features and models else ""
    times = "as much as" if slots == {1} else f"{' or '.join(map(str, sorted(slots)))} times what"
    line = (
        f"{plural(checkpoints, 'checkpoint')} and {plural(models, 'model')}{backbone}; a checkpoint takes {times} "
        f"its weights take"
    )
    known = sorted((size_bytes for size_bytes in sizes if size_bytes is not None), reverse=True)
    if len(known) < len(sizes):
        return f"{line}, and the first one tells how much that is"
    total = sum(known[:checkpoints]) + (0 if plan.features else models * largest)
    return f"about {_size(total)} in the run folder: {line}"


def forks_of(trials: Collection[Trial]) -> int:
    """How many states of stable parts are kept."""
    return sum(len(trial.stable.forks) for trial in trials if trial.stable and trial.stable.trainer is None)


def _slots(settings: Settings, spec: Spec) -> int:
    """How many numbers a checkpoint holds for each weight: itself, the optimizer's, and that of the best epoch."""
    train, early = settings.train, settings.train.early_stopping
    best = bool(METRICS[spec.metric].best_of) or bool(early and early.restore_best)
    return 1 + _SLOTS[train.optimizer] + bool(train.momentum) + bool(train.ema) + best


def _weights(settings: Settings, plan: Plan, classes: int) -> int | None:
    """How many weights a model of this package has; None for any other, and where layers of a backbone are trained."""
    outputs = 1 if classes == 2 else classes
    if settings.model == "small_cnn" and settings.backbone is None:
        height, width = (((side - 2) // 2 - 2) // 2 for side in settings.data.image_size)
        return _dense(27, 32) + _dense(288, 64) + _dense(height * width * 64, 64) + _dense(64, outputs)
    widths = {view.width for view in plan.features}
    if settings.model == "head" and settings.backbone and not settings.backbone.unfreeze and len(widths) == 1:
        features = widths.pop()
        if features is None:
            return None
        hidden = int(settings.model_args.get("hidden", 0))
        return _dense(features, hidden) + _dense(hidden, outputs) if hidden else _dense(features, outputs)
    return None


def _dense(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{math.ceil(size_bytes / 1e6):,} MB"
