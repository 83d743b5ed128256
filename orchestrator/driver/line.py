"""Line: spec -> plan -> trials that remain -> fan-out -> board, models and page, from top to bottom."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.data.backbone import find_networks
from orchestrator.data.features import is_made
from orchestrator.data.index import build_index
from orchestrator.display.page import write_page
from orchestrator.display.table import as_json
from orchestrator.driver.calibrate import read_pace
from orchestrator.driver.models import finish_models
from orchestrator.driver.progress import Progress
from orchestrator.driver.signals import on_signals
from orchestrator.driver.state import RunState
from orchestrator.driver.summary import dataset_facts, describe_index, say_results, skipped_files
from orchestrator.driver.watch import GridWatch
from orchestrator.errors import DONE, INTERRUPTED, BadInput
from orchestrator.plan.budget import Meter
from orchestrator.plan.describe import as_tree, describe, describe_outlook
from orchestrator.plan.forecast import Counts, gpu_memory_mb
from orchestrator.plan.points import (
    Plan,
    Trial,
    count_by_state,
    differences,
    make_plan,
    remaining,
)
from orchestrator.run.context import WorkerContext
from orchestrator.run.folder import KeepModels, Run
from orchestrator.run.lease import Lease, refuse_if_held
from orchestrator.spec.axes import resolve
from orchestrator.spec.reading import load_spec, to_yaml
from orchestrator.spec.sections import Spec
from orchestrator.store import one_line, open_store
from orchestrator.terminal import make_console
from orchestrator.tracking.mlflow import check_server, log_points
from orchestrator.words import plural

if TYPE_CHECKING:
    from orchestrator.cluster.connect import Cluster


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for in addition to the spec.

    Attributes:
        plan_only: Say what would be trained, and train nothing.
        as_json: Print the plan or the leaderboard as JSON, and everything else to stderr.
        share_epochs: Points that differ only in epochs share one trial.
        takeover: Take the lease even if another driver has it.
        mlflow: Address of the server to log to.
    """

    plan_only: bool = False
    as_json: bool = False
    share_epochs: bool = True
    takeover: bool = False
    keep: KeepModels = KeepModels.best
    mlflow: str | None = None


def read_spec(path: str | None, overrides: list[str]) -> Spec:
    """The spec in a file, or the default one, with `PATH=VALUE` overrides. Raises BadInput."""
    if path is None:
        return load_spec((files("orchestrator") / "default.yaml").read_text(), overrides, "default.yaml")
    try:
        return load_spec(Path(path).read_text(encoding="utf-8"), overrides, path)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"SPEC must be a YAML file, got {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        ) from None


def orchestrate(spec: Spec, options: Options) -> int:
    """Run the whole line. Raises BadInput.

    Returns the exit status: 0 all ok, 1 some point failed or is not trained, 3 the budget is used up, 130 interrupted.
    """
    meter = Meter(spec.budget, time.monotonic())
    context, plan = _lay_out(spec, options)
    planned_before = _points_planned_before(context.run, plan)
    console = make_console(stderr=options.as_json)
    _say_left_out(plan, planned_before, console)
    if not (options.plan_only or options.takeover):
        refuse_if_held(context.run.store, console.out)  # before the results are read: more may arrive meanwhile
    state = RunState(context, plan, context.run.read_results())
    if options.plan_only:
        _print_plan(state, count_by_state(plan, state.done, planned_before), options.as_json)
        return DONE
    if options.mlflow:
        check_server(options.mlflow)
    watch = GridWatch(state, meter)
    try:
        _complete(state, watch, options.takeover, console)
        state.raise_if_taken_over()
    except KeyboardInterrupt:  # a second signal
        watch.interrupted = True
    state.running.clear()  # even if the run folder was never taken
    if options.as_json:
        print(as_json(state.board))
    status = say_results(state, watch.budget_used_up, console, with_table=not options.as_json)
    if watch.interrupted:
        return INTERRUPTED
    if options.mlflow:
        logged = log_points(options.mlflow, spec.name, context.run, plan, state.trained, state.results, state.leader)
        console.out(f"mlflow: {plural(logged, 'point')} logged to experiment {spec.name} at {one_line(options.mlflow)}")
    return status


def _lay_out(spec: Spec, options: Options) -> tuple[WorkerContext, Plan]:
    """List the images, read the model's code, and plan. Writes nothing. Raises BadInput."""
    images = open_store(spec.data.uri)
    images.check()
    index = build_index(images, spec.data)
    networks, weights = find_networks(spec)
    counts = Counts(int((~index.validation).sum()), int(index.validation.sum()), index.packed)
    plan = make_plan(spec, counts, index.digest, networks, options.share_epochs, read_pace())
    run = Run(open_store(f"{spec.output.rstrip('/')}/{spec.name}", create=True))
    run.store.check()
    return WorkerContext(spec, index, images, run, options.keep, networks=networks, weights=weights), plan


def _points_planned_before(run: Run, plan: Plan) -> list[str]:
    """Ids of the points in the run folder's last plan. Raises BadInput if its trials share other settings."""
    before = run.read_plan()
    if before is None:
        return []
    if changed := differences(before["shared"], plan.shared):
        raise BadInput(
            f"{run.store.uri} holds a run whose trials share other settings ({'; '.join(changed)}): "
            f"give this one another --name, or set them back"
        )
    return list(before["points"])


def _say_left_out(plan: Plan, planned_before: list[str], console: Console) -> None:
    """Say that the grid was narrowed: what is trained stays, and is not on the board."""
    if left_out := len(set(planned_before) - {point.id for point in plan.points}):
        console.out(
            f"{plural(left_out, 'point')} of the last grid not in this one, and so not on the board: what is trained "
            f"stays in the run folder, and is back with the same values"
        )


def _print_plan(state: RunState, points_by_state: Mapping[str, int], as_json: bool) -> None:
    """points_by_state: how many are done, missing and new."""
    if as_json:
        print(json.dumps(as_tree(state.plan, points_by_state), indent=1))
        return
    context, plan = state.context, state.plan
    resources = context.spec.resources
    cores = max(1, (os.cpu_count() or 1) // resources.cpus_per_trial)
    slots = min(cores, resources.max_concurrent or cores)
    images = describe_index(context.index, plan.counts, context.images.uri)
    folder = f"{context.run.store.uri}: " + ", ".join(f"{count} {what}" for what, count in points_by_state.items())
    missing = [view for view in plan.features if not is_made(context.run.store, view.id)]
    outlook = describe_outlook(plan, context.spec, slots, remaining(plan, state.done), read_pace(), missing)
    print(describe(plan, context.spec, images, folder, outlook))


def _complete(state: RunState, watch: GridWatch, takeover: bool, console: Console) -> None:
    """Train what remains, if anything does, and then bring tables, models and page up to date."""
    if todo := remaining(state.plan, state.done):
        _train(state, watch, todo, takeover, console)
        return
    with on_signals(watch.interrupt), contextlib.ExitStack() as held:
        _take_folder(state, watch, takeover, held, console)
        _finish(state, watch, None, console)


def _train(state: RunState, watch: GridWatch, todo: tuple[Trial, ...], takeover: bool, console: Console) -> None:
    """Train these trials, and write the tables while results arrive."""
    from orchestrator.cluster.connect import connect  # here, so that --plan and a finished run load no Ray
    from orchestrator.cluster.fanout import fan_out

    context, plan, spec = state.context, state.plan, state.context.spec
    with connect(spec.resources, _largest_trial_mb(spec, plan, todo)) as cluster, contextlib.ExitStack() as held:
        console.out(
            f"{spec.name}: {plural(len(plan.points), 'point')}, {plural(len(todo), 'trial')} of {len(plan.trials)} "
            f"to train, {_at_once(cluster.slots, cluster.most)}; run folder {context.run.store.uri}"
        )

        def take_folder(unreadable: Mapping[int, str]) -> None:
            skipped = skipped_files(context.index, unreadable, spec)
            _take_folder(state, watch, takeover, held, console)
            context.run.write_dataset(dataset_facts(context.index, unreadable, spec))
            if skipped:
                context.run.write_skipped(skipped)
                console.out(f"{plural(len(skipped), 'file')} left out: listed in skipped.json")

        watch.before_first_trial(take_folder)
        held.enter_context(on_signals(watch.interrupt))
        watch.progress = held.enter_context(Progress(plan, todo, spec.metric, max(1, cluster.slots), console))
        try:
            fan_out(context, cluster, todo, watch, watch.stop, watch.kill)
        except BadInput as error:  # Ray is gone: the results so far still go into the tables
            watch.refusal = str(error)
            watch.stop.set()
        watch.ensure_folder({})  # if no trial reached its first step, the failures still become rows
        if state.holds_lease():
            _finish(state, watch, cluster, console)
        elif state.lease and state.lease.trouble and not state.lease.lost:
            raise state.lease.trouble  # the tables stay as they were, and nobody should take them for final
        if watch.refusal:
            raise BadInput(watch.refusal)


def _take_folder(
    state: RunState, watch: GridWatch, takeover: bool, held: contextlib.ExitStack, console: Console
) -> None:
    """Take the lease, put the folder in order, and read what another driver has done meanwhile."""
    run, plan = state.context.run, state.plan
    lease = held.enter_context(Lease(run.store, watch.kill.set, takeover, console.out))
    if not lease.exclusive:
        console.out(
            f"{run.store.uri} knows no conditional writes that hold: see to it that only one driver at a time writes it"
        )
    for aside in run.tidy(state.context.keep):
        console.out(f"a table was damaged, and is made anew; what was there is in {aside}")
    done_before = len(state.done)
    state.results.update(run.read_results())
    if done_meanwhile := len(state.done) - done_before:
        console.out(f"{plural(done_meanwhile, 'trial')} done by another driver meanwhile: not trained again")
    run.write_plan(to_yaml(state.context.spec), plan.shared, [point.id for point in plan.points])
    state.lease = lease


def _finish(state: RunState, watch: GridWatch, cluster: "Cluster | None", console: Console) -> None:
    """When nothing runs any more: write the tables, the models, and the page that shows both."""
    state.write_last()
    finish_models(state, watch, cluster, console)
    write_page(state.context.run)


def _largest_trial_mb(spec: Spec, plan: Plan, todo: tuple[Trial, ...]) -> float:
    """Forecast of the GPU memory that the largest of these trials takes."""
    alike = {(trial.values.get("batch_size"), trial.values.get("image_size")): trial.values for trial in todo}
    return max(gpu_memory_mb(resolve(spec, values), plan.counts) for values in alike.values())


def _at_once(slots: int, most: int) -> str:
    if slots == most:
        return f"{slots} at once"
    return f"{slots} at once now, up to {most} as nodes join" if slots else f"up to {most} at once as nodes join"
