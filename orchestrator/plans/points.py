"""Points: which points the grid has, and which trials train them. Pure."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.plans.combinations import Combination, Rest, drawn, product, rest_of, single
from orchestrator.plans.features import FeatureView, feature_views
from orchestrator.plans.forecast import EPOCH_DEPENDS_ON, FIRST_GUESS, Counts, Pace, epoch_s
from orchestrator.plans.identity import TrialHashes, short
from orchestrator.plans.order import in_rounds
from orchestrator.plans.precision import Precision
from orchestrator.plans.rates import RangeTest, range_tests
from orchestrator.plans.trials import Point, Stable, Trial
from orchestrator.spec.axes import AXIS_PATHS, LATER, axis_path, canonical, models, resolve, shared_settings
from orchestrator.spec.backbones import shows
from orchestrator.spec.networks import Networks
from orchestrator.spec.sections import Spec
from orchestrator.words import label

# What `differences` says of the images
IMAGES, SPLIT = "the images have changed", "what the images are for has changed"
_CHANGED = {"index": IMAGES, "split": SPLIT, "model source": "the code of the model has changed"}


@dataclass(frozen=True)
class Plan:
    """All points, and the trials that train them, in the order in which they start.

    Attributes:
        axes: Names of the axes, in the order of the spec.
        shared: What all trials share that affects their weights: settings, the model's defaults and source, the index.
        order: longest or balanced: see Spec.
        features: What is to be made of the images before trials with a backbone can train.
        rate_tests: The range tests that trials need whose learning rate is auto.
        precision: What train.precision auto became; None where the spec names one.
        cosine_epochs: How many epochs points with a cosine take more than if they could share trials.
    """

    axes: tuple[str, ...]
    points: tuple[Point, ...]
    trials: tuple[Trial, ...]
    counts: Counts
    shared: Mapping[str, Any]
    features: tuple[FeatureView, ...] = ()
    rate_tests: tuple[RangeTest, ...] = ()
    order: str = "longest"
    cosine_epochs: int = 0
    precision: Precision | None = None

    def in_order(self, legs: Collection[Trial]) -> tuple[Trial, ...]:
        """Trials of this plan, or legs of them, in the order in which they start."""
        if self.order == "longest":
            return _longest_first(legs)
        place = {trial.id: number for number, trial in enumerate(self.trials)}
        return tuple(sorted(legs, key=lambda leg: place[leg.id]))

    @property
    def epochs_asked(self) -> int:
        """Epochs that training every point alone would take."""
        return sum(point.epochs for point in self.points)

    @property
    def epochs_trained(self) -> int:
        """Epochs that the trials take."""
        return sum(trial.epochs - trial.epochs_of_another for trial in self.trials)


def make_plan(
    spec: Spec,
    counts: Counts,
    index_digest: str,
    networks: Networks,
    share_epochs: bool = True,
    pace: Pace = FIRST_GUESS,
) -> Plan:
    """List every point of the spec and the trials that train them.

    A point that does not name an axis gets its default, as in a spec without that axis. So a grid can gain an axis and
    keep what is trained.

    share_epochs: points that differ only in epochs share one trial, which has a milestone for each of them.
    Raises BadInput for a point listed twice, an exclusion that removes nothing, an empty grid, or images that are too
    small for a backbone, or too few.
    """
    shared = {**shared_settings(spec), "index": index_digest} | ({"split": counts.split} if counts.split else {})
    if "backbone" not in spec.axes:
        own = networks.backbone_lines if "model" in spec.axes else lambda s: networks.lines(s, spec.axes)
        lines = own(resolve(spec, {}))
        shared |= {name: value for name, value in lines.items() if name not in map(axis_path, spec.axes)}
    elif "model" not in spec.axes and len(found := models(spec)) == 1:
        shared |= {"model": found[0], "model source": networks.codes[found[0]].digest}
    hashes = TrialHashes(spec, counts, shared, networks, share_epochs)
    points = tuple(_points(spec, rest_of(spec, networks), hashes))
    if not points:
        raise BadInput("exclude takes out every point of the grid: nothing is left to train")
    trials = _trials(points, spec, counts, hashes, networks, pace)
    test_of, rate_tests = range_tests(trials, spec, networks, (index_digest, counts), pace)
    trials = [replace(trial, rate_test=test_of[trial.id]) if trial.id in test_of else trial for trial in trials]
    ordered = _balanced(trials, spec) if spec.order == "balanced" else _longest_first(trials)
    index = (index_digest, counts.images)
    features = feature_views(trials, spec, networks.backbones, index, pace)
    more = _cosine_epochs(trials, spec) if share_epochs else 0
    return Plan(spec.axes, points, ordered, counts, shared, features, rate_tests, spec.order, more)


def _points(spec: Spec, rest: Rest, hashes: TrialHashes) -> Iterator[Point]:
    """Every point of the spec. Raises BadInput for one that is listed twice."""
    seen: dict[str, tuple[str, Mapping[str, Any]]] = {}

    def point(values: Mapping[str, Any], texts: Mapping[str, str], draw: tuple[int, int]) -> Point:
        epochs = values.get("epochs", spec.train.epochs)
        of_trial = hashes.of(values, texts, draw, epochs)
        of_point = of_trial.copy()
        of_point.update(f"\ntrain.epochs={epochs}".encode())
        return Point(short(of_point), short(of_trial), values, draw[0], epochs, draw[1])

    listed = single(spec, rest) if spec.sample else ()
    named = {point(each.values, each.texts, spec.draws[0]).id for each in listed}

    def is_new(each: Combination) -> bool:
        return (found := point(each.values, each.texts, spec.draws[0]).id) not in seen and found not in named

    of_grid = drawn(spec, rest, is_new) if spec.sample else product(spec, rest)
    for each in itertools.chain(of_grid, single(spec, rest)):
        for of in spec.draws:
            found = point(each.values, each.texts, of)
            if found.id in seen:
                raise BadInput(_say_same(each.where, each.values, *seen[found.id]))
            seen[found.id] = each.where, each.values
            yield found


def _say_same(where: str, values: Mapping[str, Any], seen: str, other: Mapping[str, Any]) -> str:
    """That a point, at its place in the spec, trains just what the one `seen` before does."""
    if values == other:
        return f"{where} is the same as {seen}: each point must stand once; remove one of them"
    differs = [name for name in values if canonical(values[name]) != canonical(other[name])]
    one, another = (label({name: each[name] for name in differs}, 0) for each in (values, other))
    rule = canonical({name: values[name] for name in values if name in differs or name == "backbone"})
    return (
        f"{where} with {one} trains the same as one with {another}: each must stand once; remove one of them, "
        f"for example with exclude: [{rule}]"
    )


def _trials(
    points: Sequence[Point], spec: Spec, counts: Counts, hashes: TrialHashes, networks: Networks, pace: Pace
) -> list[Trial]:
    """The trials that train these points."""
    served: dict[str, list[Point]] = {}
    for point in points:
        served.setdefault(point.trial_id, []).append(point)
    forecast_s: dict[tuple[Any, ...], float] = {}  # of one epoch, by the values that it depends on
    trials = []
    for trial_id, own in served.items():
        own.sort(key=lambda point: point.epochs)
        values = {name: value for name, value in own[0].values.items() if name != "epochs"}
        key = tuple(values.get(name) for name in EPOCH_DEPENDS_ON)
        if key not in forecast_s:
            settings = resolve(spec, values)
            forecast_s[key] = epoch_s(settings, counts, pace, networks.backbone(settings))
        epochs, ids = tuple(point.epochs for point in own), tuple(point.id for point in own)
        seed, fold, ends = own[0].seed, own[0].fold, epochs[-1]
        frozen = hashes.of_frozen(own[0].values, (seed, fold), own[0].epochs)
        found = hashes.of_stable(own[0].values, (seed, fold), own[0].epochs)
        stable = Stable(*found) if found else None
        trials.append(Trial(trial_id, values, seed, epochs, ends, forecast_s[key] * ends, ids, frozen, fold, stable))
    return _with_trainers(trials)


def _with_trainers(trials: Sequence[Trial]) -> list[Trial]:
    """Where trials have a stable part in common, the one with the most of it trains it, and the others begin there."""
    alike: dict[str, list[tuple[int, str]]] = {}
    for trial in trials:
        if trial.stable:
            alike.setdefault(trial.stable.id, []).append((trial.stable.until, trial.id))
    found = []
    for trial in trials:
        if trial.stable:
            forks = tuple(sorted({until for until, _ in alike[trial.stable.id] if until <= trial.stable.until}))
            trainer = max(alike[trial.stable.id])[1]
            stable = replace(trial.stable, forks=forks, trainer=None if trainer == trial.id else trainer)
            trial = replace(trial, stable=stable)
        found.append(trial)
    return found


def _cosine_epochs(trials: Collection[Trial], spec: Spec) -> int:
    """How many epochs trials with a cosine, which differ only in these, have more than the longest of them."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for trial in trials:
        if trial.values.get("schedule", spec.train.schedule) == "cosine" and trial.frozen is None:
            alike.setdefault((*map(canonical, trial.values.values()), trial.draw), []).append(trial.epochs)
    return sum(sum(epochs) - max(epochs) for epochs in alike.values())


def _longest_first(trials: Collection[Trial]) -> tuple[Trial, ...]:
    """First those that others need, and then the longest first.

    Needed are those that others begin from, and one of each range test: what it finds is there for the others.
    """
    needed = {trial.frozen for trial in trials} | {trial.stable.trainer for trial in trials if trial.stable}
    ordered = sorted(trials, key=lambda trial: (trial.id not in needed, -trial.forecast_s))
    first_of_test = {trial.rate_test: trial.id for trial in reversed(ordered) if trial.rate_test}
    needed.update(first_of_test.values())
    return tuple(sorted(ordered, key=lambda trial: trial.id not in needed))


def _balanced(trials: Sequence[Trial], spec: Spec) -> tuple[Trial, ...]:
    """First those that others branch from, then every value of every axis early; one seed after the other."""
    first, ordered = {trial.frozen for trial in trials}, []
    for draw in spec.draws:
        own = _longest_first([trial for trial in trials if trial.draw == draw])
        ordered += [own[place] for place in in_rounds([_values(trial, spec) for trial in own])]
    return tuple(sorted(ordered, key=lambda trial: trial.id not in first))


def _values(trial: Trial, spec: Spec) -> list[tuple[str, str]]:
    """Axis and value, or quarter of the range, on every axis but epochs."""
    ranges = spec.ranges
    return [
        (name, canonical(ranges[name].part(value) if name in ranges else value)) for name, value in trial.values.items()
    ]


def remaining(plan: Plan, done: Mapping[str, int]) -> tuple[Trial, ...]:
    """The trials still to train, in the order in which they start. done: trial id -> epochs that its result covers."""
    kept: dict[str, set[int]] = {}  # stable part -> epochs after which trials that are done have left it
    for trial in plan.trials:
        if trial.stable and done.get(trial.id, 0) >= trial.epochs:
            kept.setdefault(trial.stable.id, set()).add(trial.stable.until)

    def begins(trial: Trial) -> int:
        forks = kept.get(trial.stable.id, set()) if trial.stable else set()
        own = (fork for fork in forks if trial.stable and fork <= trial.stable.until)
        return max(done.get(trial.id, 0), trial.epochs_of_another, *own)

    left = [
        replace(trial, forecast_s=trial.left_s(begins(trial)))
        for trial in plan.trials
        if done.get(trial.id, 0) < trial.epochs
    ]
    return plan.in_order(left)


def samples(plan: Plan, spec: Spec) -> tuple[Mapping[str, Any], ...]:
    """The values of one point for each way in which points change their training images, in the order of the plan."""
    found: dict[str, Mapping[str, Any]] = {}
    for point in plan.points:
        values = {name: value for name, value in point.values.items() if name != "epochs"}
        key = canonical({name: value for name, value in values.items() if axis_path(name).startswith("augment.")})
        if key not in found and shows(resolve(spec, values)):
            found[key] = values
    return tuple(found.values())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Where the shared settings of two plans differ, as one `field: old -> new` each, or in words where it is a digest.

    A field that is an axis in one of the plans is left out: there its value is part of each trial's id.
    """
    if "data.rule" in old:  # else it is of version 0.1.0, which did not know these fields
        absent = {name: value for name, value in LATER.items() if name not in map(axis_path, AXIS_PATHS)}
        old, new = {**absent, **old}, {**absent, **new}
    return [
        _CHANGED.get(name) or f"{name}: {_brief(old[name])} -> {_brief(new[name])}"
        for name in old
        if name in new and canonical(old[name]) != canonical(new[name])
    ]


def count_by_state(plan: Plan, done: Mapping[str, int], before: Collection[str]) -> dict[str, int]:
    """How many points are done, missing (planned before, not done) and new. before: ids of points in the last plan."""
    finished = {p.id for p in plan.points if done.get(p.trial_id, 0) >= p.epochs}
    new = {p.id for p in plan.points if p.id not in finished and p.id not in before}
    return {"done": len(finished), "missing": len(plan.points) - len(finished) - len(new), "new": len(new)}


def _brief(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
