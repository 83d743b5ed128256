"""Points: which points the grid has, and which trials train them. Pure."""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.plan.forecast import FIRST_GUESS, Counts, Pace, epoch_s
from orchestrator.spec.axes import AXIS_PATHS, axis_path, canonical, resolve, shared_settings
from orchestrator.spec.code import Code
from orchestrator.spec.sections import Spec, is_streamed


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of axis values and a seed; exactly one leaderboard row.

    Attributes:
        values: Axis name -> value, in the order of the spec's axes.
        epochs: Its figures are read after this many epochs.
    """

    id: str
    trial_id: str
    values: Mapping[str, Any]
    seed: int
    epochs: int


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run on one worker.

    Attributes:
        id: 12 hex digits of SHA-256 over everything that decides its weights, so the same trial has one id everywhere.
        values: Axis values without epochs.
        milestones: After how many epochs the figures of a point are read, ascending; the trial ends with the last.
        forecast_s: Predicted worker time in seconds; trials start longest first. In trials that `remaining` returns,
            only of the epochs that are left.
        points: Id of the point at each milestone.
    """

    id: str
    values: Mapping[str, Any]
    seed: int
    milestones: tuple[int, ...]
    forecast_s: float
    points: tuple[str, ...]

    def left_s(self, epochs_done: float) -> float:
        """Worker time left after so many epochs, in seconds. Only for a trial whose forecast_s is for all epochs."""
        return self.forecast_s * (1 - epochs_done / self.milestones[-1])


@dataclass(frozen=True)
class Plan:
    """All points, and the trials that train them, longest first.

    Attributes:
        axes: Names of the axes, in the order of the spec.
        shared: What all trials share that affects their weights: settings, the model's defaults and source, the index.
    """

    axes: tuple[str, ...]
    points: tuple[Point, ...]
    trials: tuple[Trial, ...]
    counts: Counts
    shared: Mapping[str, Any]

    @property
    def epochs_asked(self) -> int:
        """Epochs that training every point alone would take."""
        return sum(point.epochs for point in self.points)

    @property
    def epochs_trained(self) -> int:
        """Epochs that the trials take."""
        return sum(trial.milestones[-1] for trial in self.trials)


def make_plan(
    spec: Spec, counts: Counts, index_digest: str, code: Code, share_epochs: bool = True, pace: Pace = FIRST_GUESS
) -> Plan:
    """List every point of the spec and the trials that train them.

    A point that does not name an axis gets its default, as in a spec without that axis. So a grid can gain an axis and
    keep what is trained.

    share_epochs: points that differ only in epochs share one trial, which has a milestone for each of them.
    Raises BadInput for a point listed twice, an exclusion that removes nothing, or an empty grid.
    """
    model_args = {
        axis_path(name): value
        for name, value in code.defaults.items()
        if name not in spec.axes and name not in AXIS_PATHS
    }
    shared = {**shared_settings(spec), **model_args, "index": index_digest, "model source": code.digest}
    points = tuple(_points(spec, _defaults(spec, code), _TrialHashes(spec, counts, shared, share_epochs)))
    if not points:
        raise BadInput("exclude takes out every point of the grid: nothing is left to train")
    return Plan(spec.axes, points, _trials(points, spec, counts, pace), counts, shared)


class _TrialHashes:
    """Hashes of everything that decides a trial's weights; points that share a trial share its hash."""

    def __init__(self, spec: Spec, counts: Counts, shared: Mapping[str, Any], share_epochs: bool) -> None:
        self._spec, self._counts, self._share_epochs = spec, counts, share_epochs
        self._paths = {name: axis_path(name) for name in spec.axes}
        self._fixed = sorted(f"{path}={canonical(value)}" for path, value in shared.items())
        self._made: dict[tuple[Any, ...], Any] = {}
        self._streams: dict[Any, bool] = {}  # by image size

    def of(self, values: Mapping[str, Any], texts: Mapping[str, str], seed: int, epochs: int) -> Any:
        """The hash of the trial that has these values. texts: the values in canonical form."""
        own_texts = (text for name, text in texts.items() if name != "epochs")
        key = (*own_texts, seed, None if self._share_epochs else epochs)
        found = self._made.get(key)
        if found is None:
            own = [f"{self._paths[name]}={text}" for name, text in texts.items() if name != "epochs"]
            own += [f"seed={seed}"] + ([] if self._share_epochs else [f"alone={epochs}"])
            own += ["streamed=True"] * self._streams_shards(values)
            found = self._made[key] = hashlib.sha256("\n".join(sorted([*self._fixed, *own])).encode())
        return found

    def _streams_shards(self, values: Mapping[str, Any]) -> bool:
        """Whether shards are streamed: then they are shuffled in windows, and the trial gets other weights."""
        if not self._counts.packed:
            return False
        size = values.get("image_size")
        if size not in self._streams:
            images = self._counts.training + self._counts.validation
            self._streams[size] = is_streamed(resolve(self._spec, values).data, images)
        return self._streams[size]


def _points(spec: Spec, defaults: Mapping[str, Any], hashes: _TrialHashes) -> Iterator[Point]:
    """Every point of the spec. Raises BadInput for one that is listed twice."""
    seen: dict[str, str] = {}
    for values, texts, where in _combinations(spec, defaults):
        epochs = values.get("epochs", spec.train.epochs)
        for seed in spec.seeds:
            of_trial = hashes.of(values, texts, seed, epochs)
            of_point = of_trial.copy()
            of_point.update(f"\ntrain.epochs={epochs}".encode())
            point_id = _short(of_point)
            if point_id in seen:
                raise BadInput(
                    f"{where} is the same as {seen[point_id]}: each point must stand once; remove one of them"
                )
            seen[point_id] = where
            yield Point(point_id, _short(of_trial), values, seed, epochs)


def _trials(points: Sequence[Point], spec: Spec, counts: Counts, pace: Pace) -> tuple[Trial, ...]:
    """The trials that train these points, longest first."""
    served: dict[str, list[Point]] = {}
    for point in points:
        served.setdefault(point.trial_id, []).append(point)
    forecast_s: dict[tuple[Any, ...], float] = {}  # of one epoch, by the values that it depends on
    trials = []
    for trial_id, own in served.items():
        own.sort(key=lambda point: point.epochs)
        values = {name: value for name, value in own[0].values.items() if name != "epochs"}
        key = tuple(values.get(name) for name in ("batch_size", "image_size", "precision"))
        if key not in forecast_s:
            forecast_s[key] = epoch_s(resolve(spec, values), counts, pace)
        epochs, ids = tuple(point.epochs for point in own), tuple(point.id for point in own)
        trials.append(Trial(trial_id, values, own[0].seed, epochs, forecast_s[key] * epochs[-1], ids))
    return tuple(sorted(trials, key=lambda trial: -trial.forecast_s))


def points_of(trial: Trial, axes: Collection[str]) -> tuple[Point, ...]:
    """The points that a trial serves, equal to those of the plan, in the order of its milestones."""
    return tuple(
        Point(point_id, trial.id, {name: trial.values.get(name, epochs) for name in axes}, trial.seed, epochs)
        for epochs, point_id in zip(trial.milestones, trial.points, strict=True)
    )


def remaining(plan: Plan, done: Mapping[str, int]) -> tuple[Trial, ...]:
    """The trials still to train, longest first. done: trial id -> epochs that its result covers."""
    left = [
        replace(trial, forecast_s=trial.left_s(done.get(trial.id, 0)))
        for trial in plan.trials
        if done.get(trial.id, 0) < trial.milestones[-1]
    ]
    return tuple(sorted(left, key=lambda trial: -trial.forecast_s))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Where the shared settings of two plans differ, as one `field: old -> new` each.

    A field that is an axis in one of the plans is left out: there its value is part of each trial's id.
    """
    return [
        f"{name}: {_brief(old[name])} -> {_brief(new[name])}"
        for name in old
        if name in new and canonical(old[name]) != canonical(new[name])
    ]


def count_by_state(plan: Plan, done: Mapping[str, int], before: Collection[str]) -> dict[str, int]:
    """How many points are done, missing (planned before, not done) and new. before: ids of points in the last plan."""
    finished = {p.id for p in plan.points if done.get(p.trial_id, 0) >= p.epochs}
    new = {p.id for p in plan.points if p.id not in finished and p.id not in before}
    return {"done": len(finished), "missing": len(plan.points) - len(finished) - len(new), "new": len(new)}


def _combinations(spec: Spec, defaults: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, str], str]]:
    """Every combination, without seeds: axis -> value, axis -> value as canonical text, and its place in the spec.

    A point that does not name an axis gets its default.
    """
    excluded = [{name: canonical(value) for name, value in rule.items()}.items() for rule in spec.exclude]
    used = [False] * len(excluded)

    def is_excluded(texts: Mapping[str, str]) -> bool:
        hits = [rule <= texts.items() for rule in excluded]
        for i, hit in enumerate(hits):
            used[i] = used[i] or hit
        return any(hits)

    others = [name for name in spec.axes if name not in spec.grid]
    if spec.grid:
        fixed = _fill(others, defaults, "a point of the grid", spec)
        fixed_texts = {name: canonical(value) for name, value in fixed.items()}
        as_texts = ([canonical(value) for value in values] for values in spec.grid.values())
        pairs = zip(itertools.product(*spec.grid.values()), itertools.product(*as_texts), strict=True)
        for chosen, texts in pairs:
            grid_texts = dict(zip(spec.grid, texts, strict=True))
            if not (excluded and is_excluded(grid_texts)):
                yield dict(zip(spec.grid, chosen, strict=True)) | fixed, grid_texts | fixed_texts, "a point of the grid"
    for i, given in enumerate(spec.points):
        values = _fill([name for name in spec.axes if name not in given], defaults, f"points[{i}]", spec) | given
        values = {name: values[name] for name in spec.axes}
        yield values, {name: canonical(value) for name, value in values.items()}, f"points[{i}]"
    if not all(used):
        i = used.index(False)
        raise BadInput(
            f"exclude[{i}] must match at least one point of the grid, got {spec.exclude[i]}: fix or remove it"
        )


def _fill(names: Iterable[str], defaults: Mapping[str, Any], where: str, spec: Spec) -> dict[str, Any]:
    """Axis -> default, for axes that a point does not name. Raises BadInput if one has no default."""
    for name in names:
        if name not in defaults:
            raise BadInput(f"{where} must name {name}, to which the model {spec.model} gives no plain default")
    return {name: defaults[name] for name in names}


def _defaults(spec: Spec, code: Code) -> dict[str, Any]:
    """Axis -> its value in a point that does not name it."""
    return code.defaults | {name: getattr(getattr(spec, part), field) for name, (part, field) in AXIS_PATHS.items()}


def _short(digest: Any) -> str:
    return digest.hexdigest()[:12]


def _brief(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
