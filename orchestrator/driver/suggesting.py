"""Suggesting: what is in a run folder -> the next points, with their price. Nothing is trained."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from typing import Any

from rich.console import Console

from orchestrator.driver.lay_out import Options
from orchestrator.driver.standing import Standing, look
from orchestrator.driver.state import RunState
from orchestrator.errors import BadInput
from orchestrator.metrics import METRICS
from orchestrator.plans.combinations import excluded_by
from orchestrator.plans.points import Plan, make_plan
from orchestrator.spec.axes import canonical
from orchestrator.spec.notation import write
from orchestrator.spec.ranges import ends
from orchestrator.spec.reading import read_points
from orchestrator.spec.sampled import drawn_axes
from orchestrator.spec.sections import Spec
from orchestrator.store import Missing, open_store
from orchestrator.suggest import Status, Tried, check_optuna, suggestions
from orchestrator.words import now, plural

_MISSED = 1000  # suggestions in a row that are there already, or excluded


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Points to train next. text: as YAML, with how they came about and what they cost. file: where that is kept."""

    points: Sequence[Mapping[str, Any]]
    text: str
    file: str
    command: str
    learned_from: int
    forecast: Mapping[str, Any]

    def tree(self) -> dict[str, Any]:
        """As plain values, for JSON: see docs/json.md."""
        return {
            "points": self.points,
            "file": self.file,
            "command": self.command,
            "learned_from": self.learned_from,
            "forecast": self.forecast,
        }


def suggest(spec: Spec, options: Options, console: Console) -> Suggestion:
    """Suggest points of the grid from what is trained, and keep them in the run folder. Raises BadInput."""
    check_optuna()
    standing = look(spec, replace(options, plan_only=True), console)
    state = standing.state
    spec, run = state.context.spec, state.context.run
    tried = what_was_tried(state)
    learned = sum(each.status == "ok" for each in tried)
    if not learned:
        raise BadInput(
            f"--suggest must have points that are ok to learn from, and {run.store.uri} has none: train some"
        )
    points = [point for found in islice(_new(state, tried, options.share_epochs), options.suggest) for point in found]
    larger = spec.model_copy(update={"points": [*spec.points, *points]})
    plan = _plan(state, larger, options.share_epochs)
    known = {trial.id for trial in state.plan.trials}
    trials = [trial for trial in plan.trials if trial.id not in known]
    with_them = Standing(RunState(replace(state.context, spec=larger), plan, state.results), standing.points)
    lines, forecast = with_them.outlook(trials)
    epochs = sum(trial.epochs for trial in trials)
    origin = (
        f"{plural(len(points), 'point')} suggested {now()} from {plural(learned, 'combination')} that are ok in "
        f"{run.store.uri}, by optuna {version('optuna')}"
    )
    about = [
        origin,
        f"{plural(len(trials), 'trial')}, {plural(epochs, 'epoch')}",
        *(line.strip() for line in lines),
    ]
    yaml = write({"points": points})
    text = "".join(f"# {line}\n" for line in about) + yaml
    file = f"{run.store.uri}/{run.keep_suggested(text, lambda last: read_points(last, 'it') == points)}"
    command = f"{options.again} --points {shlex.quote(file)}"
    return Suggestion(points, f"{text}# to train them: {command}", file, command, learned, forecast)


def added_points(files: Sequence[str]) -> list[Mapping[str, Any]]:
    """The points in these files, which lie in folders or buckets. Raises BadInput."""
    points = []
    for file in files:
        folder, _, name = file.rpartition("/")
        try:
            text = open_store(folder or ("/" if file.startswith("/") else ".")).read(name).decode()
        except (Missing, UnicodeDecodeError):
            raise BadInput(f"--points must be a file as --suggest writes it, got {file}, which is none") from None
        points += read_points(text, file)
    return points


def what_was_tried(state: RunState) -> list[Tried]:
    """The combinations without epochs, in the order of the plan: with the best of their scores, each over its seeds."""
    sign = METRICS[state.context.spec.metric].sign
    rows = {row["point_id"]: row for row in state.board.to_pylist()}
    groups: dict[tuple[tuple[str, str], ...], list[Any]] = {}
    for point in state.plan.points:
        name = tuple((axis, canonical(value)) for axis, value in point.values.items() if axis != "epochs")
        groups.setdefault(name, []).append(point)
    found = []
    for points in groups.values():
        of_epochs: dict[int, list[float]] = {}
        statuses = {rows[point.id]["status"] for point in points}
        known: tuple[Status, ...] = ("ok", "stopped", "failed")
        status: Status = next((each for each in known if each in statuses), "pending")
        for point in points:
            row = rows[point.id]
            if row["status"] == status and status in ("ok", "stopped") and row["score"] is not None:
                of_epochs.setdefault(row["epochs_trained"], []).append(row["score"])
        means = {after: sum(scores) / len(scores) for after, scores in of_epochs.items()}
        after = max(means, key=lambda each: sign * means[each], default=0)
        values = {axis: value for axis, value in points[0].values.items() if axis != "epochs"}
        found.append(Tried(values, status if means or status != "ok" else "pending", means.get(after), after))
    return found


def _new(state: RunState, tried: Sequence[Tried], share_epochs: bool) -> Iterator[list[dict[str, Any]]]:
    """Suggestions that are new: the points of each, one for each number of epochs. Raises BadInput if none comes."""
    spec, seen, missed = state.context.spec, {point.id for point in state.plan.points}, 0
    axes = {name: spec.grid[name] for name in drawn_axes(spec.grid)}
    if not axes:
        raise BadInput("--suggest must have a grid with an axis other than epochs, whose values it may suggest")
    listed = [{"epochs": each} for each in ends(spec.grid["epochs"])] if axes.keys() < spec.grid.keys() else [{}]
    excludes = excluded_by(spec)
    for values in suggestions(axes, tried, METRICS[spec.metric].better == "higher"):
        points = [{name: {**values, **epochs}[name] for name in spec.grid} for epochs in listed]
        points = [point for point in points if not excludes({name: canonical(v) for name, v in point.items()})]
        own = spec.model_copy(update={"grid": {}, "sample": None, "exclude": [], "points": points, "race": None})
        ids = {point.id for point in _plan(state, own, share_epochs).points} if points else seen
        if ids & seen:
            missed += 1
            if missed > _MISSED:
                raise BadInput(
                    "--suggest finds no more points that are new: ask for fewer, or give ranges or more values"
                )
            continue
        seen, missed = seen | ids, 0
        yield points


def _plan(state: RunState, spec: Spec, share_epochs: bool) -> Plan:
    context = state.context
    return make_plan(spec, state.plan.counts, context.index.digest, context.networks, share_epochs)
