"""Line: spec -> plan -> trials that remain -> fan-out -> board, models and page, from top to bottom."""

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.data.changes import remember
from orchestrator.display.page import write_page
from orchestrator.display.serving import serving
from orchestrator.documents import document
from orchestrator.driver.ending import address_to_tell, ending, record_beginning
from orchestrator.driver.lay_out import Options
from orchestrator.driver.models import finish_models
from orchestrator.driver.outcome import Outcome, outcome, run_tree
from orchestrator.driver.progress import Progress
from orchestrator.driver.refit import refit_winner
from orchestrator.driver.sheet import write_sheet
from orchestrator.driver.signals import on_signals
from orchestrator.driver.standing import largest_mb, look
from orchestrator.driver.state import RunState
from orchestrator.driver.suggesting import suggest
from orchestrator.driver.summary import dataset_facts, say_results, skipped_files
from orchestrator.driver.test_set import open_test_set
from orchestrator.driver.watch import GridWatch
from orchestrator.errors import DONE, BadInput
from orchestrator.plans.budget import Meter
from orchestrator.plans.forecast import gpu_memory_mb, worker_memory_mb
from orchestrator.plans.points import remaining
from orchestrator.plans.precision import as_asked
from orchestrator.plans.trials import Trial
from orchestrator.race.describe import describe_race
from orchestrator.runs.lease import Lease
from orchestrator.spec.reading import to_yaml
from orchestrator.spec.sections import Spec
from orchestrator.store import one_line
from orchestrator.terminal import make_console, write
from orchestrator.tracking.mlflow import check_server, log_points
from orchestrator.words import plural

if TYPE_CHECKING:
    from orchestrator.cluster.connect import Cluster

Ending = contextlib.AbstractContextManager[None]


def orchestrate(spec: Spec, options: Options) -> int:
    """Run the whole line, as the command does. Raises BadInput.

    Returns the exit status: 0 all ok or stopped by a race, 1 some point failed or is not trained, 3 the budget is used
    up, 130 interrupted.
    """
    console = make_console(stderr=options.as_json)
    if options.suggest:
        found = suggest(spec, options, console)
        write(document("suggestion", **found.tree()) if options.as_json else found.text)
        return DONE
    if options.plan_only:
        planned = look(spec, options, console)
        if options.as_json:
            write(document("plan", **planned.tree()))
        else:
            console.out(*planned.lines())
        if options.show:
            write_sheet(planned.state.context, options.show)
            console.out(f"training images as the first epochs change them: {options.show}")
        return DONE
    state, watch = train_grid(spec, options, console)
    say_results(state, watch.budget_used_up, console)
    how = outcome(state.board, watch.budget_used_up, watch.interrupted)
    if how is not Outcome.interrupted:
        log_to_mlflow(state, options.mlflow, console)
    if options.as_json:
        write(document("grid", **run_tree(state, how)))
    return how.exit_status


def train_grid(spec: Spec, options: Options, console: Console) -> tuple[RunState, GridWatch]:
    """Train what remains, and bring the run folder up to date. Raises BadInput."""
    meter = Meter(spec.budget, time.monotonic())
    url = address_to_tell(spec.notify)
    state = look(spec, options, console).state
    if options.mlflow:
        check_server(options.mlflow)
    watch = GridWatch(state, meter)
    record_beginning(state)
    try:
        _complete(state, watch, ending(state, watch, spec.notify, url, console), options, console)
        state.raise_if_taken_over()
    except KeyboardInterrupt:  # a second signal
        watch.interrupted = True
    state.running.clear()  # even if the run folder was never taken
    return state, watch


def log_to_mlflow(state: RunState, server: str | None, console: Console) -> None:
    """Log every point that is ok; None: to no server."""
    if server:
        name, run = state.context.spec.name, state.context.run
        logged = log_points(server, name, run, state.plan, state.trained, state.results, state.leader)
        console.out(f"mlflow: {plural(logged, 'point')} logged to experiment {name} at {one_line(server)}")


def _complete(state: RunState, watch: GridWatch, end: Ending, options: Options, console: Console) -> None:
    """Train what remains, if anything does, and then bring tables, models and page up to date.

    end: around all that is done while the run folder is held.
    """
    if todo := state.left:
        _train(state, watch, end, todo, options, console)
        return
    with on_signals(watch.interrupt), contextlib.ExitStack() as held:
        _take_folder(state, watch, end, options.takeover, held, console)
        _finish(state, watch, None, options, console)


def _train(
    state: RunState, watch: GridWatch, end: Ending, todo: tuple[Trial, ...], options: Options, console: Console
) -> None:
    """Train these trials, and write the tables while results arrive."""
    from orchestrator.cluster.connect import connect  # here, so that --plan and a finished run load no Ray
    from orchestrator.cluster.fanout import fan_out

    context, plan, spec = state.context, state.plan, state.context.spec
    trial_mb = largest_mb(spec, todo, lambda settings: gpu_memory_mb(settings, plan.counts))
    worker_mb = largest_mb(spec, todo, worker_memory_mb)
    with connect(spec.resources, trial_mb, worker_mb) as cluster, contextlib.ExitStack() as held:
        console.out(
            f"{spec.name}: {plural(len(plan.points), 'point')}, {plural(len(todo), 'trial')} of {len(plan.trials)} "
            f"to train, {_at_once(cluster)}; run folder {context.run.store.uri}"
        )
        precision = plan.precision.describe_on(cluster.gpus_per_trial) if plan.precision else ()
        for line in (*context.index.notes, *describe_race(spec, plan), *precision):
            console.out(line.strip())

        def take_folder(unreadable: Mapping[int, str]) -> None:
            skipped = skipped_files(context.index, unreadable, spec)
            _take_folder(state, watch, end, options.takeover, held, console)
            context.run.write_dataset(dataset_facts(context.index, unreadable, spec))
            context.run.write_index(remember(context.index))
            if skipped:
                context.run.write_skipped(skipped)
                console.out(f"{plural(len(skipped), 'file')} left out: listed in skipped.json")
            if options.serve:
                console.out(f"the page, while it trains: {held.enter_context(serving(context.run))}")

        watch.before_first_trial(take_folder)
        held.enter_context(on_signals(watch.interrupt))
        first = {trial.id for trial in plan.trials if trial.draw == spec.draws[0]}
        stopped = first & state.course.stopped.keys() if state.course else set[str]()
        progress = Progress(plan, _may_be_trained(state), spec.metric, max(1, cluster.slots), console, stopped)
        watch.progress = held.enter_context(progress)
        try:
            fan_out(context, cluster, watch.legs, watch, watch.stop, watch.kill)
        except BadInput as error:  # Ray is gone: the results so far still go into the tables
            watch.refusal = str(error)
            watch.stop.set()
        watch.ensure_folder({})  # if no trial reached its first step, the failures still become rows
        if state.holds_lease():
            _finish(state, watch, cluster, options, console)
        elif state.lease and state.lease.trouble and not state.lease.lost:
            raise state.lease.trouble  # the tables stay as they were, and nobody should take them for final
        if watch.refusal:
            raise BadInput(watch.refusal)


def _may_be_trained(state: RunState) -> tuple[Trial, ...]:
    """What remains, if all of it is trained: in a race, of those that are not stopped, and of the first seed."""
    course = state.course
    if course is None:
        return state.left
    legs = {leg.id for leg in course.legs}
    first = state.context.spec.draws[0]
    left = remaining(state.plan, state.done)
    return tuple(t for t in left if t.id in legs or (t.draw == first and t.id not in course.stopped))


def _take_folder(
    state: RunState, watch: GridWatch, end: Ending, takeover: bool, held: contextlib.ExitStack, console: Console
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
    asked = as_asked(state.context.spec, plan.precision)
    run.write_plan(to_yaml(asked), plan.shared, [point.id for point in plan.points])
    state.lease = lease
    held.enter_context(end)


def _finish(state: RunState, watch: GridWatch, cluster: "Cluster | None", options: Options, console: Console) -> None:
    """When nothing runs any more: write the tables, the models, and the page that shows both."""
    state.write_last()
    finish_models(state, watch, cluster, console)
    open_test_set(state, watch, cluster, console)
    state.drop_checkpoints(last=True)
    write_page(state.context.run)
    if options.refit:
        refit_winner(state, watch, cluster, console)


def _at_once(cluster: "Cluster") -> str:
    slots, most = cluster.slots, cluster.most
    if slots == most:
        return f"{slots} at once{cluster.why}"
    if slots:
        return f"{slots} at once now, up to {most} as nodes join"
    return f"up to {most} at once as nodes join; waiting for the first with {cluster.needs}"
