"""Standing: what a spec would train, and how far its run is. Nothing is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from orchestrator.cluster import own_ray
from orchestrator.data.features import is_made
from orchestrator.driver.calibrate import read_pace
from orchestrator.driver.lay_out import Options, lay_out, node_here, points_planned_before
from orchestrator.driver.state import RunState
from orchestrator.driver.summary import describe_index
from orchestrator.plans.describe import as_tree, describe, describe_outlook, forecast_tree
from orchestrator.plans.disk import describe_disk, forks_of
from orchestrator.plans.features import FeatureView
from orchestrator.plans.forecast import worker_memory_mb
from orchestrator.plans.points import Plan, count_by_state, remaining
from orchestrator.plans.precision import hint
from orchestrator.plans.rates import RangeTest
from orchestrator.plans.trials import Trial
from orchestrator.race.describe import describe_race, left_of_race, race_tree
from orchestrator.runs.checkpoints import KeepCheckpoints, checkpoint_sizes
from orchestrator.runs.folder import KeepModels
from orchestrator.runs.lease import refuse_if_held
from orchestrator.runs.rates import is_found
from orchestrator.spec.axes import Settings, resolve
from orchestrator.spec.sections import Spec
from orchestrator.words import plural


@dataclass(frozen=True, slots=True)
class Standing:
    """A plan, and how far its run is.

    Attributes:
        points: How many are done, missing and new.
    """

    state: RunState
    points: Mapping[str, int]

    def tree(self) -> dict[str, Any]:
        """As plain values, for JSON: see docs/json.md."""
        context, plan = self.state.context, self.state.plan
        slots, _ = self._at_once()
        return {
            "run": context.run.store.uri,
            "name": context.spec.name,
            "data": context.images.uri,
            **as_tree(plan, self.points),
            "forecast": forecast_tree(plan, context.spec, slots, self._todo(), read_pace(), self._missing()),
            "race": race_tree(context.spec, plan),
        }

    def lines(self) -> list[str]:
        """As a person reads it."""
        context, plan = self.state.context, self.state.plan
        spec = context.spec
        slots, why = self._at_once()
        images = describe_index(context.index, plan.counts, spec.data, context.images.uri)
        folder = f"{context.run.store.uri}: " + ", ".join(f"{count} {what}" for what, count in self.points.items())
        outlook = describe_outlook(plan, spec, slots, self._todo(), read_pace(), self._missing())
        is_new = self.points["new"] == len(plan.points)  # another precision would be another run
        faster = hint(node_here(), spec, plan.trials, plan.counts) if is_new else None
        hints = [f"  hint    {faster}"] if faster else []
        forecast = [*describe_race(spec, plan), *outlook, *hints, *([f"{slots} at once here{why}"] if why else [])]
        sizes = checkpoint_sizes(context.run).values()
        disk = describe_disk(plan, spec, len(context.index.classes), sizes, _kept(self.state))
        return describe(plan, spec, images, folder, forecast, disk)

    def outlook(self, todo: Sequence[Trial]) -> tuple[list[str], dict[str, Any]]:
        """How long these trials take, and what they cost: as lines, and as plain values."""
        slots, _ = self._at_once()
        of = (self.state.plan, self.state.context.spec, slots, todo, read_pace(), self._missing())
        return list(describe_outlook(*of)), forecast_tree(*of)

    def _at_once(self) -> tuple[int, str]:
        """How many trials a node like this machine trains at once, and why no more."""
        spec = self.state.context.spec
        slots, why = own_ray.share(spec.resources, largest_mb(spec, self.state.plan.trials, worker_memory_mb))
        return min(slots, spec.resources.max_concurrent or slots), why

    def _todo(self) -> tuple[Trial, ...]:
        """What may still be trained."""
        plan, course = self.state.plan, self.state.course
        todo = remaining(plan, self.state.done)
        return left_of_race(todo, self.state.context.spec, plan, course) if course else todo

    def _missing(self) -> list[FeatureView | RangeTest]:
        """The features and the range tests that are still to be made."""
        run, plan, todo = self.state.context.run, self.state.plan, {trial.rate_test for trial in self._todo()}
        views = [view for view in plan.features if not is_made(run.store, view.id)]
        tests = [test for test in plan.rate_tests if test.id in todo and not is_found(run, test.id)]
        return [*views, *tests]


def look(spec: Spec, options: Options, console: Console) -> Standing:
    """Lay out, plan, and see how far the run is. Raises BadInput, also where it could not be trained now."""
    context, plan = lay_out(spec, options)
    planned_before = points_planned_before(context, plan)
    _say_left_out(plan, planned_before, console)
    if not options.plan_only:
        context.run.store.check_writable()
    if not (options.plan_only or options.takeover):
        refuse_if_held(context.run.store, console.out)  # before the results are read: more may arrive meanwhile
    state = RunState(context, plan, context.run.read_results(), options.keep_checkpoints)
    state.check_metric()
    return Standing(state, count_by_state(plan, state.done, planned_before))


def largest_mb(spec: Spec, trials: Sequence[Trial], memory_mb: Callable[[Settings], float]) -> float:
    """What memory_mb says of the trial of which it says most."""
    deciding = ("model", "batch_size", "image_size")
    alike = {tuple(map(trial.values.get, deciding)): trial.values for trial in trials}
    return max(memory_mb(resolve(spec, values)) for values in alike.values())


def _say_left_out(plan: Plan, planned_before: list[str], console: Console) -> None:
    """Say that the grid was narrowed: what is trained stays, and is not on the board."""
    if left_out := len(set(planned_before) - {point.id for point in plan.points}):
        console.out(
            f"{plural(left_out, 'point')} of the last grid not in this one, and so not on the board: what is trained "
            f"stays in the run folder, and is back with the same values"
        )


def _kept(state: RunState) -> tuple[int, int]:
    """How many checkpoints and models stay when the run is over."""
    keep, trials, points = state.context.keep, state.plan.trials, len(state.plan.points)
    checkpoints = {
        KeepCheckpoints.all: len(trials) + forks_of(trials),
        KeepCheckpoints.best: 1,
        KeepCheckpoints.none: 0,
    }[state.keep_checkpoints]
    return checkpoints, {KeepModels.all: points, KeepModels.best: 1, KeepModels.none: 0}[keep]
