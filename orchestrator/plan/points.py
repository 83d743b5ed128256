"""Points: which points the grid holds, and which trials train them. Pure: no I/O, no TensorFlow, no Ray."""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
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
        epochs: After how many epochs it is read off.
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
        id: 12 hex digits of SHA-256 over all that decides its weights: the same trial has the same id everywhere.
        values: Axis values but epochs.
        milestones: Epoch counts at which a point is read off, ascending; the last is how long it trains.
        forecast_s: Predicted worker time in seconds; trials start longest first. Of what `remaining` gives: of the
            epochs that are left.
        points: Id of the point at each milestone.
    """

    id: str
    values: Mapping[str, Any]
    seed: int
    milestones: tuple[int, ...]
    forecast_s: float
    points: tuple[str, ...]

    def left_s(self, behind: float) -> float:
        """Worker time of a whole trial that is left after so many epochs, in seconds."""
        return self.forecast_s * (1 - behind / self.milestones[-1])


@dataclass(frozen=True)
class Plan:
    """All points, and the trials that train them, longest first.

    Attributes:
        axes: Names of the axes, in the order of the spec.
        shared: What every trial shares and that decides its weights; see spec.shared_settings.
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
    """Lay out every point of the spec and the trials that train them.

    An axis that a single point leaves out stands at its default, as it does in a spec without that axis: so a grid can
    gain an axis and keep what is trained.

    share_epochs: points that differ only in epochs share one trial, which is read off at each of them.
    Raises BadInput for a point listed twice, an exclusion that takes nothing out, or an empty grid.
    """
    axes = spec.axes
    paths = {name: axis_path(name) for name in axes}
    defaults = _defaults(spec, code)
    model_args = {
        axis_path(name): value for name, value in code.defaults.items() if name not in axes and name not in AXIS_PATHS
    }
    shared = {**shared_settings(spec), **model_args, "index": index_digest, "model source": code.digest}
    fixed = sorted(f"{path}={canonical(value)}" for path, value in shared.items())
    points: list[Point] = []
    seen: dict[str, str] = {}
    milestones: dict[str, dict[int, str]] = {}  # trial -> epochs -> point
    owners: dict[str, tuple[Mapping[str, Any], int]] = {}
    named: dict[tuple[Any, ...], Any] = {}  # what decides a trial's weights -> the hash of all that does
    streams: dict[Any, bool] = {}  # by image size
    for values, texts, where in _combinations(spec, defaults):
        epochs = values.get("epochs", spec.train.epochs)
        for seed in spec.seeds:
            key = (*(text for name, text in texts.items() if name != "epochs"), seed, None if share_epochs else epochs)
            trained = named.get(key)
            if trained is None:
                own = [f"{paths[name]}={text}" for name, text in texts.items() if name != "epochs"]
                own += [f"seed={seed}"] + ([] if share_epochs else [f"alone={epochs}"])
                if counts.packed:
                    size = values.get("image_size")
                    if size not in streams:
                        streams[size] = is_streamed(resolve(spec, values).data, counts.training + counts.validation)
                    own += ["streamed=True"] * streams[size]  # shards that are streamed are shuffled in windows
                named[key] = trained = hashlib.sha256("\n".join(sorted([*fixed, *own])).encode())
            trial_id = _short(trained)
            of_point = trained.copy()
            of_point.update(f"\ntrain.epochs={epochs}".encode())
            point_id = _short(of_point)
            if point_id in seen:
                raise BadInput(
                    f"{where} is the same as {seen[point_id]}: each point must stand once; remove one of them"
                )
            seen[point_id] = where
            points.append(Point(point_id, trial_id, values, seed, epochs))
            if trial_id not in owners:
                owners[trial_id] = {k: v for k, v in values.items() if k != "epochs"}, seed
                milestones[trial_id] = {}
            milestones[trial_id][epochs] = point_id
    if not points:
        raise BadInput("exclude takes out every point of the grid: nothing is left to train")
    forecast_s: dict[tuple[Any, ...], float] = {}  # of an epoch, by the values that it depends on
    trials = []
    for trial_id, points_at in milestones.items():
        values, seed = owners[trial_id]
        key = tuple(values.get(name) for name in ("batch_size", "image_size", "precision"))
        if key not in forecast_s:
            forecast_s[key] = epoch_s(resolve(spec, values), counts, pace)
        epochs = tuple(sorted(points_at))
        ids = tuple(points_at[each] for each in epochs)
        trials.append(Trial(trial_id, values, seed, epochs, forecast_s[key] * epochs[-1], ids))
    trials.sort(key=lambda trial: -trial.forecast_s)
    return Plan(axes, tuple(points), tuple(trials), counts, shared)


def points_of(trial: Trial, axes: Collection[str]) -> tuple[Point, ...]:
    """The points that a trial serves, as the plan has them, in the order of its milestones."""
    return tuple(
        Point(point_id, trial.id, {name: trial.values.get(name, epochs) for name in axes}, trial.seed, epochs)
        for epochs, point_id in zip(trial.milestones, trial.points, strict=True)
    )


def remaining(plan: Plan, done: Mapping[str, int]) -> tuple[Trial, ...]:
    """Trials still to train, longest first. done: trial id -> epochs that its result covers."""
    left = [
        replace(trial, forecast_s=trial.left_s(done.get(trial.id, 0)))
        for trial in plan.trials
        if done.get(trial.id, 0) < trial.milestones[-1]
    ]
    return tuple(sorted(left, key=lambda trial: -trial.forecast_s))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two plans' shared settings disagree on, one `field: old -> new` each.

    A field that is an axis in one of the two is left out: there its value is part of each trial's id.
    """
    return [
        f"{name}: {_brief(old[name])} -> {_brief(new[name])}"
        for name in old
        if name in new and canonical(old[name]) != canonical(new[name])
    ]


def count_by_state(plan: Plan, done: Mapping[str, int], before: Collection[str]) -> dict[str, int]:
    """How many points are done, missing (planned before, not done) and new. before: ids in the last plan."""
    finished = {p.id for p in plan.points if done.get(p.trial_id, 0) >= p.epochs}
    new = {p.id for p in plan.points if p.id not in finished and p.id not in before}
    return {"done": len(finished), "missing": len(plan.points) - len(finished) - len(new), "new": len(new)}


def _combinations(spec: Spec, defaults: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, str], str]]:
    """Every point but for its seed: axis -> value, the same in canonical texts, and where in the spec it stands.

    An axis that a point leaves out stands at its default.
    """
    excluded = [{name: canonical(value) for name, value in rule.items()}.items() for rule in spec.exclude]
    used = [False] * len(excluded)

    def taken_out(texts: Mapping[str, str]) -> bool:
        hits = [rule <= texts.items() for rule in excluded]
        for i, hit in enumerate(hits):
            used[i] = used[i] or hit
        return any(hits)

    others = [name for name in spec.axes if name not in spec.grid]
    if spec.grid:
        rest = _fill(others, defaults, "a point of the grid", spec)
        rest_texts = {name: canonical(value) for name, value in rest.items()}
        as_texts = ([canonical(value) for value in values] for values in spec.grid.values())
        pairs = zip(itertools.product(*spec.grid.values()), itertools.product(*as_texts), strict=True)
        for values, texts in pairs:
            told = dict(zip(spec.grid, texts, strict=True))
            if not (excluded and taken_out(told)):
                yield dict(zip(spec.grid, values, strict=True)) | rest, told | rest_texts, "a point of the grid"
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
    """What these axes stand at in a point that leaves them out."""
    for name in names:
        if name not in defaults:
            raise BadInput(f"{where} must name {name}, to which the model {spec.model} gives no plain default")
    return {name: defaults[name] for name in names}


def _defaults(spec: Spec, code: Code) -> dict[str, Any]:
    """What an axis stands at in a point that leaves it out."""
    return code.defaults | {name: getattr(getattr(spec, part), field) for name, (part, field) in AXIS_PATHS.items()}


def _short(digest: Any) -> str:
    return digest.hexdigest()[:12]


def _brief(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
