"""Rates: the learning rate of a trial, and which range tests find those that are `auto`. Pure.

A range test trains a model of its own for some steps at each of several rates, always from the same weights and on the
same batches; the one with the lowest loss is the rate. What it depends on is in its id, and what is not is set to one
value for all.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.plans.forecast import Counts, Pace, epoch_s
from orchestrator.plans.trials import Trial
from orchestrator.spec.axes import Settings, axis_path, canonical, deciding, resolve
from orchestrator.spec.networks import Networks
from orchestrator.spec.schedules import PARAMETERS, idle_fields
from orchestrator.spec.sections import AUTO, Spec, Train, is_streamed
from orchestrator.words import plain

STEPS = 32  # at each rate; the loss is the mean over the second half of them
_RULE = 1  # raise it whenever the same test would give another rate
_DECADES = {"sgd": (-4, 1), "adagrad": (-4, 1)}  # powers of ten, of the lowest and the highest rate
_OTHER_DECADES = (-5, -1)
# What one test serves all values of: arguments of the model, and fields of train that a test does not use.
_SHARED_ARGUMENTS = ("dropout", "l2")
_UNUSED = (
    *("epochs", "learning_rate", "fine_tune_learning_rate", "schedule", *PARAMETERS, "ema"),
    *("early_stopping", "checkpoint_every_s"),
)
_POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


@dataclass(frozen=True, slots=True)
class RangeTest:
    """A range test that some trials of a plan need.

    Attributes:
        id: 12 hex digits of SHA-256 over everything that decides what it finds.
        values: Batch size, optimizer, precision, and what else it is made for of the axes.
        steps: At most: it ends sooner where higher rates cannot do better.
        trials: How many trials train with what it finds.
        core_s: Forecast of the seconds that one worker takes, for all of its steps.
    """

    id: str
    values: Mapping[str, Any]
    steps: int
    trials: int
    core_s: float


def start_rate(settings: Settings) -> float:
    """The rate that a trial's optimizer starts from. Its learning_rate is a number: what a test found, where it was."""
    train = settings.train
    if settings.backbone and settings.backbone.unfreeze:
        own = train.fine_tune_learning_rate
        return _rate(train) / 10 if own is None else own * _scale(train)
    return _rate(train)


def rate_used(named: Settings, settings: Settings) -> float | None:
    """What stands for learning_rate in a trial, where the spec does not name it.

    named: its settings as in the spec. settings: the same with a number for learning_rate.
    """
    train = named.train
    return _rate(settings.train) if train.learning_rate == AUTO or train.lr_scale != "none" else None


def _rate(train: Train) -> float:
    assert not isinstance(train.learning_rate, str)
    return train.learning_rate * _scale(train)


def _scale(train: Train) -> float:
    return float((train.batch_size / train.lr_base_batch) ** _POWERS[train.lr_scale])


def tested(settings: Settings, defaults: Mapping[str, Any]) -> Settings:
    """What the range test of a trial with these settings trains.

    defaults: of the model's arguments. Of a trial that unfreezes, it is the test of the one that it branches from.
    """
    unused = {name: Train.model_fields[name].get_default() for name in _UNUSED}
    backbone = settings.backbone and settings.backbone.model_copy(update={"unfreeze": 0})
    own = {
        name: value
        for name, value in settings.model_args.items()
        if name not in _SHARED_ARGUMENTS or name not in defaults
    }
    train = settings.train.model_copy(update={**unused, "learning_rate": rates_to_try(settings.train)[0]})
    return replace(settings, backbone=backbone, train=train, model_args=own)


def rates_to_try(train: Train) -> tuple[float, ...]:
    """The rates of a test, ascending: two in each decade."""
    first, last = _DECADES.get(train.optimizer, _OTHER_DECADES)
    return tuple(_rounded(10 ** (half / 2)) for half in range(2 * first, 2 * last + 1))


def tells(losses: Sequence[float | None]) -> bool:
    """Whether higher rates need not be tried: the last one learned nothing, or fell apart, and one before did better.

    losses: of the rates so far, ascending; None: no number.
    """
    return losses[-1] is None or losses[-1] >= _capped(losses)[0] > min(_capped(losses))


def pick_rate(rates: Sequence[float], losses: Sequence[float | None]) -> float:
    """The rate with the lowest loss, to two digits: the lowest point of a parabola through it and its neighbours.

    The parabola is one over the logarithm of the rate. losses: see `tells`.
    """
    capped = _capped(losses)
    i = min(range(len(capped)), key=capped.__getitem__)
    if not 0 < i < len(capped) - 1:
        return rates[i]
    before, lowest, after = capped[i - 1 : i + 2]
    bend = before - 2 * lowest + after
    shift = 0.5 * (before - after) / bend if bend else 0.0
    return _rounded(rates[i] * (rates[i + 1] / rates[i]) ** shift)


def _capped(losses: Sequence[float | None]) -> list[float]:
    """The losses, none above that of the lowest rate: how much worse than no training at all tells nothing."""
    most = losses[0] if losses[0] is not None else 0.0
    return [most if loss is None else min(loss, most) for loss in losses]


def _rounded(rate: float) -> float:
    return float(f"{rate:.1e}")


def of_test(settings: Settings, values: Mapping[str, Any]) -> dict[str, Any]:
    """What tells the range test of a trial with these settings and values from others, for a person to read."""
    train = settings.train
    named = {"batch_size": train.batch_size, "optimizer": train.optimizer, "precision": train.precision}
    apart = {*_UNUSED, *_SHARED_ARGUMENTS, "unfreeze", "lr_scale", "lr_base_batch"}
    return named | {name: plain(value) for name, value in values.items() if name not in apart}


def range_tests(
    trials: Iterable[Trial], spec: Spec, networks: Networks, images: tuple[str, Counts], pace: Pace
) -> tuple[dict[str, str], tuple[RangeTest, ...]]:
    """Trial id -> the test that it needs, and every test. images: the index digest, and how many there are.

    Raises BadInput for a point whose rate is auto, and scaled too.
    """
    if spec.train.learning_rate != AUTO and "learning_rate" not in spec.axes:
        return {}, ()
    deciding_axes = [name for name in spec.axes if name not in ("epochs", "fine_tune_learning_rate", "unfreeze")]
    by_values: dict[tuple[Any, ...], str | None] = {}
    test_of: dict[str, str] = {}
    found: dict[str, RangeTest] = {}
    for trial in trials:
        key = tuple(canonical(trial.values[name]) for name in deciding_axes)
        if key not in by_values:
            test = _test(trial.values, spec, networks, images, pace)
            by_values[key] = test.id if test else None
            if test:
                found.setdefault(test.id, test)
        if (test_id := by_values[key]) is not None:
            test_of[trial.id] = test_id
            found[test_id] = replace(found[test_id], trials=found[test_id].trials + 1)
    return test_of, tuple(found.values())


def _test(
    values: Mapping[str, Any], spec: Spec, networks: Networks, images: tuple[str, Counts], pace: Pace
) -> RangeTest | None:
    """The test of a trial with these values, for no trial yet; None where its rate is a number. Raises BadInput."""
    settings = resolve(spec, values)
    train = settings.train
    if train.learning_rate != AUTO:
        return None
    if train.lr_scale != "none":
        raise BadInput(
            f"lr_scale must be none where learning_rate is auto, as each batch size then has a test of its own, got "
            f"{train.lr_scale}: leave it out, or give learning_rate a number"
        )
    defaults = networks.codes[settings.model].defaults
    (digest, counts), test = images, tested(settings, defaults)
    lines = {**deciding(test), **networks.lines(test, ()), "index": digest, "split": counts.split, "rule": _RULE}
    lines |= {axis_path(name): value for name, value in test.model_args.items()}
    lines |= {"streamed": True} if counts.packed and is_streamed(test.data, counts.images) else {}
    idle = {f"train.{name}" for name in idle_fields(test.train)}
    texts = sorted(f"{path}={canonical(value)}" for path, value in lines.items() if path not in idle)
    test_id = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
    steps = STEPS * len(rates_to_try(train))
    of_all = replace(test, data=test.data.model_copy(update={"training_images": None}))
    core_s = pace.trial_start_s + epoch_s(of_all, Counts(steps * train.batch_size, 0), pace, networks.backbone(test))
    return RangeTest(test_id, of_test(settings, values), steps, 0, core_s)
