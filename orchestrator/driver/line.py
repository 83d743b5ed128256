"""Line: spec -> plan -> what remains -> fan-out -> board, models and page, top to bottom."""

import contextlib
import dataclasses
import json
import os
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from orchestrator.board.verdict import sentences
from orchestrator.board.views import verdict
from orchestrator.data.index import Index, build_index, check_split, describe_bad
from orchestrator.display.page import write_page
from orchestrator.display.table import as_rich
from orchestrator.driver.calibrate import read_pace
from orchestrator.driver.progress import Progress
from orchestrator.driver.signals import on_signals
from orchestrator.driver.state import RetrainingWatch, RunState
from orchestrator.errors import DONE, FAILED, INTERRUPTED, USED_UP, BadInput
from orchestrator.plan.describe import as_tree, describe
from orchestrator.plan.forecast import Counts, gpu_memory_mb
from orchestrator.plan.points import Plan, Trial, count_by_state, differences, make_plan, remaining
from orchestrator.run.context import WorkerContext
from orchestrator.run.folder import BEST, BOARD, HISTORY, REPORT, KeepModels, Run
from orchestrator.run.lease import Lease, refuse_if_held
from orchestrator.run.winner import leading_point, place_models, trained_points
from orchestrator.spec.axes import AXIS_PATHS, resolve
from orchestrator.spec.code import read_code
from orchestrator.spec.reading import load_spec, to_yaml
from orchestrator.spec.sections import Spec
from orchestrator.store import one_line, open_store
from orchestrator.terminal import make_console
from orchestrator.tracking.mlflow import check_server, log_points
from orchestrator.words import plural

if TYPE_CHECKING:
    from orchestrator.cluster import fanout


def orchestrate(
    spec: Spec, plan_only: bool, as_json: bool, share_epochs: bool, takeover: bool, keep: KeepModels, mlflow: str | None
) -> int:
    """The whole line. Raises BadInput.

    Returns the exit status: 0 all ok, 1 some point failed or was left, 3 the budget was used up, 130 interrupted.
    """
    images = open_store(spec.data.uri)
    images.check()
    index = build_index(images, spec.data)
    code = read_code(spec.model, [axis for axis in spec.axes if axis not in AXIS_PATHS])
    counts = Counts(int((~index.validation).sum()), int(index.validation.sum()), index.packed)
    pace = read_pace()
    plan = make_plan(spec, counts, index.digest, code, share_epochs, pace)

    run = Run(open_store(f"{spec.output.rstrip('/')}/{spec.name}", create=True))
    run.store.check()
    before = run.read_plan()
    if before and (changed := differences(before["shared"], plan.shared)):
        raise BadInput(
            f"{run.store.uri} holds a run whose trials share other settings ({'; '.join(changed)}): "
            f"give this one another --name, or set them back"
        )
    console = make_console(stderr=as_json)
    if not (plan_only or takeover):
        refuse_if_held(run.store, console.out)  # before the results are read: some may come until then
    gathered = RunState(run, plan, run.read_results(), spec, keep)
    stands = count_by_state(plan, gathered.done, before["points"] if before else ())
    if plan_only:
        cores = max(1, (os.cpu_count() or 1) // spec.resources.cpus_per_trial)
        slots = min(cores, spec.resources.max_concurrent or cores)
        todo = remaining(plan, gathered.done)
        about = _describe_index(index, counts, images.uri)
        text = describe(plan, spec, about, run.store.uri, stands, slots, todo, pace)
        print(json.dumps(as_tree(plan, stands), indent=1) if as_json else text)
        return DONE

    if mlflow:
        check_server(mlflow)
    interrupted = False
    work = WorkerContext(spec, index, images, run, keep)
    try:
        if remaining(plan, gathered.done):
            interrupted = _train(work, plan, gathered, takeover, console)
        else:
            lease = Lease(run.store, gathered.kill.set, takeover, console.out)
            with on_signals(gathered.interrupt), lease as gathered.lease:
                _take(run, keep, gathered.lease, console)
                run.write_plan(to_yaml(spec), plan.shared, [point.id for point in plan.points])
                _finish(work, plan, gathered, None, console)
            interrupted = gathered.interrupted
        gathered.refuse_if_lost()
    except KeyboardInterrupt:  # the second time
        interrupted = True
    gathered.running.clear()  # even where the run folder was never taken
    status = _report(gathered.board(), gathered.history(), run, spec, interrupted, gathered.left_out, as_json)
    if mlflow and not interrupted:
        points, best = trained_points(plan, gathered.results), leading_point(plan, gathered.board())
        logged = log_points(mlflow, spec.name, run, plan, points, gathered.results, best)
        console.out(f"mlflow: {plural(logged, 'point')} logged to experiment {spec.name} at {one_line(mlflow)}")
    return status


def _train(work: WorkerContext, plan: Plan, gathered: RunState, takeover: bool, console: Console) -> bool:
    """Train what remains, and write the tables while results land. Returns whether it was interrupted."""
    from orchestrator.cluster import fanout  # here, so that --plan and a finished run load no Ray

    todo = remaining(plan, gathered.done)
    alike = {(trial.values.get("batch_size"), trial.values.get("image_size")): trial.values for trial in todo}
    trial_mb = max(gpu_memory_mb(resolve(work.spec, values), plan.counts) for values in alike.values())
    with fanout.connect(work.spec.resources, trial_mb) as cluster, contextlib.ExitStack() as held:
        console.out(
            f"{work.spec.name}: {plural(len(plan.points), 'point')}, {plural(len(todo), 'trial')} of "
            f"{len(plan.trials)} to train, {_at_once(cluster.slots, cluster.most)}; run folder {work.run.store.uri}"
        )

        def begin(unreadable: Mapping[int, str]) -> None:
            """The data and the model will do: take the run folder."""
            skipped = _skipped(work.index, unreadable, work.spec)
            gathered.lease = held.enter_context(Lease(work.run.store, gathered.kill.set, takeover, console.out))
            _take(work.run, work.keep, gathered.lease, console)
            before = len(gathered.done)
            gathered.take(work.run.read_results())  # another driver may have been at work until now
            if found := len(gathered.done) - before:
                console.out(f"{plural(found, 'trial')} done by another driver meanwhile: not trained again")
            work.run.write_plan(to_yaml(work.spec), plan.shared, [point.id for point in plan.points])
            work.run.write_dataset(_facts(work.index, unreadable, work.spec))
            if skipped:
                work.run.write_skipped(skipped)
                console.out(f"{plural(len(skipped), 'file')} left out: listed in skipped.json")

        gathered.begin = begin
        held.enter_context(on_signals(gathered.interrupt))
        gathered.progress = held.enter_context(Progress(plan, todo, work.spec.metric, max(1, cluster.slots), console))
        try:
            fanout.fan_out(work, cluster, todo, gathered, gathered.stop, gathered.kill)
        except BadInput as error:  # Ray is gone: what there is goes into the tables
            gathered.refusal = str(error)
            gathered.stop.set()
        gathered.take_folder({})  # where no trial came to its first step, their failures are rows all the same
        if gathered.lease and gathered.lease.holds():
            _finish(work, plan, gathered, cluster, console)
        elif gathered.lease and gathered.lease.trouble and not gathered.lease.lost:
            raise gathered.lease.trouble  # the tables are as they were, and nobody may take them for the end
        if gathered.refusal:
            raise BadInput(gathered.refusal)
    return gathered.interrupted


def _take(run: Run, keep: KeepModels, lease: Lease, console: Console) -> None:
    """The run folder is ours: put it in order, and say what the person should know of it."""
    if not lease.exclusive:
        console.out(
            f"{run.store.uri} knows no conditional writes that hold: see to it that only one driver at a time writes it"
        )
    for aside in run.tidy(keep):
        console.out(f"a table was damaged, and is made anew; what was there is in {aside}")


def _finish(
    work: WorkerContext, plan: Plan, gathered: RunState, cluster: "fanout.Cluster | None", console: Console
) -> None:
    """Nothing runs any more: the tables, the winner's model, and the page that shows both."""
    gathered.write()
    _place_models(work, plan, gathered, cluster, console)
    write_page(work.run)


def _place_models(
    work: WorkerContext, plan: Plan, gathered: RunState, cluster: "fanout.Cluster | None", console: Console
) -> None:
    """Leave the models in the run folder that are to be kept; what lies nowhere is trained again, exactly."""

    def place() -> tuple[Trial, ...]:
        first = leading_point(plan, gathered.board())
        return place_models(work.run, plan, gathered.results, first, work.spec, work.keep)

    if not (todo := place()) or gathered.stop.is_set():
        return
    console.out(f"models: {plural(len(todo), 'trial')} to train again, for weights that are not in the run folder")
    from orchestrator.cluster import fanout  # here, so that a finished run loads no Ray

    with contextlib.nullcontext(cluster) if cluster else fanout.connect(work.spec.resources) as cluster:
        again, models_only = RetrainingWatch(gathered.results, console), dataclasses.replace(work, models_only=True)
        try:
            fanout.fan_out(models_only, cluster, todo, again, gathered.stop, gathered.kill)
        except BadInput as error:  # the board is whole without
            console.out(f"models: {error}")
    if not gathered.stop.is_set() and gathered.lease.holds() and (left := place()):
        console.out(f"models: still without one: {', '.join(point for trial in left for point in trial.points)}")


def _at_once(slots: int, most: int) -> str:
    if slots == most:
        return f"{slots} at once"
    return f"{slots} at once now, up to {most} as nodes join" if slots else f"up to {most} at once as nodes join"


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


def _describe_index(index: Index, counts: Counts, uri: str) -> str:
    sizes = ", ".join(f"{name} {count}" for name, count in zip(index.classes, np.bincount(index.labels), strict=True))
    left_out = "".join(
        f"; {count} {what}" for count, what in ((len(index.bad), "skipped"), (index.ignored, "ignored")) if count
    )
    return (
        f"{len(index)} of {len(index.classes)} classes ({sizes}) in {uri}: {counts.training} train, "
        f"{counts.validation} validate{left_out}"
    )


def _skipped(index: Index, unreadable: Mapping[int, str], spec: Spec) -> list[tuple[str, str]]:
    """All files left out, as (key, reason). Raises BadInput where none may be, or where too few are left."""
    paths = index.paths if unreadable else []
    bad = [(paths[row], reason) for row, reason in sorted(unreadable.items())]
    if bad and spec.data.on_bad_image == "fail":
        raise BadInput(describe_bad(bad))
    good = np.ones(len(index), bool)
    good[list(unreadable)] = False
    check_split(index, good, spec.data.uri)
    return [*index.bad, *bad]


def _facts(index: Index, unreadable: Mapping[int, str], spec: Spec) -> dict[str, Any]:
    """What the run trains on, for dataset.json."""
    good = np.ones(len(index), bool)
    good[list(unreadable)] = False
    parts = {"training": ~index.validation & good, "validation": index.validation & good}
    counts = {part: np.bincount(index.labels[rows], minlength=len(index.classes)) for part, rows in parts.items()}
    return {
        "uri": spec.data.uri,
        "classes": {name: {part: int(counts[part][i]) for part in parts} for i, name in enumerate(index.classes)},
        "image_size": spec.data.image_size,
        "skipped": len(index.bad) + len(unreadable),
        "ignored": index.ignored,
        "packed": index.packed,
    }


def _report(
    board: pa.Table, history: pa.Table, run: Run, spec: Spec, interrupted: bool, left_out: bool, as_json: bool
) -> int:
    if as_json:
        print(as_json(board))
    console = make_console(stderr=as_json)
    count = {status: board["status"].to_pylist().count(status) for status in ("ok", "failed")}
    left = board.num_rows - count["ok"] - count["failed"]
    if not as_json:
        console.print(as_rich(board.slice(0, 10), console.width))
    found = verdict(board, history)
    lines = ["", *sentences(found)] if found else []
    also = [f"{count['failed']} failed" if count["failed"] else "", f"{left} not trained" if left else ""]
    console.out("\n".join(lines))
    console.out(
        f"\n{count['ok']} of {board.num_rows} points ok{''.join(f', {text}' for text in also if text)}. "
        f"{BOARD}, {HISTORY}, {REPORT} and all results: {run.store.uri}\n"
        f"python -m orchestrator.leaderboard {shlex.quote(run.store.uri)}"
    )
    if count["ok"]:
        best = run.read_model(BEST)
        there = best is not None and best.point_id == board["point_id"][0].as_py()
        console.out(
            f"python -m orchestrator.predict {shlex.quote(run.store.uri)} IMAGES"
            if there
            else "no model of the winner in models/: the same command makes it, unless with --export-models none"
        )
    if interrupted:
        return INTERRUPTED
    if left and left_out:
        limits = " and ".join(f"budget.{name} {value:g}" for name, value in spec.budget if value is not None)
        console.out(
            f"the budget is used up ({limits}): {left} of {plural(board.num_rows, 'point')} not trained. "
            f"The same command goes on from here, with as much again"
        )
        return FAILED if count["failed"] else USED_UP
    return FAILED if count["failed"] or left else DONE
