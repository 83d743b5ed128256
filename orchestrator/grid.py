"""Grid: the main command. Spec -> plan -> what remains -> fan-out -> leaderboard, top to bottom."""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C among the imports ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import pyarrow as pa
import typer
from rich.console import Console

from orchestrator import leaderboard, report, statistics, tracking, winner
from orchestrator.board import build_board, build_history, verdict
from orchestrator.budget import Meter
from orchestrator.calibrate import read_pace
from orchestrator.dataset.index import Index, build_index, check_split, describe_bad
from orchestrator.errors import BadInput, exit_at_once, exit_on_bad_input
from orchestrator.events import write_events
from orchestrator.forecast import gpu_memory_mb, price
from orchestrator.lease import Lease, refuse_if_held
from orchestrator.model import read_code
from orchestrator.plan import Counts, Plan, Trial, as_tree, describe, differences, make_plan, many, remaining, standing
from orchestrator.progress import Progress
from orchestrator.result import Epoch, Result
from orchestrator.run import BEST, BOARD, HISTORY, REPORT, Keep, Run, Work
from orchestrator.spec import AXIS_PATHS, Spec, load_spec, settle, to_yaml
from orchestrator.store import StoreError, one_line, open_store

if TYPE_CHECKING:
    from orchestrator.fanout import Cluster

DONE, FAILED, USED_UP, INTERRUPTED = 0, 1, 3, 130


def main(
    spec: Annotated[
        str | None, typer.Argument(help="YAML file; without one, a small grid on images that come with the package.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change one field of the spec; VALUE is YAML. Repeatable."),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="URI", help="Images: a folder or s3:// address.")] = None,
    output: Annotated[str | None, typer.Option(metavar="URI", help="Where the run folder goes.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run and its folder.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be trained, and train nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan or the leaderboard as JSON.")] = False,
    share_epochs: Annotated[bool, typer.Option(help="Points that differ only in epochs share one trial.")] = True,
    takeover: Annotated[bool, typer.Option("--takeover", help="Drive this run though another process does.")] = False,
    keep: Annotated[Keep, typer.Option("--export-models", help="Whose trained models are kept.")] = Keep.best,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="MLflow server to log every point to.")] = None,
) -> None:
    """Train every point of a grid once and rank them. The same command again finishes what is missing."""
    shortcuts = {"data.uri": data, "output": output, "name": name}
    overrides = [
        *(set_ or []),
        *(f"{path}={json.dumps(value)}" for path, value in shortcuts.items() if value is not None),
    ]

    def say_how_to_go_on() -> None:
        again = shlex.join(["python", "-m", "orchestrator.grid", *sys.argv[1:]])
        print(f"interrupted: {again}  goes on from here", file=sys.stderr if as_json else sys.stdout)

    def leave() -> None:
        """Before anything is written, and after: an exception would come up amid some library, which may swallow it."""
        try:
            leaderboard.console(stderr=as_json).show_cursor()  # that of the live table
            say_how_to_go_on()
        finally:  # also where nobody reads it, where it came amid another line, or at a second signal
            exit_at_once(INTERRUPTED)

    with exit_on_bad_input(), _signals(leave):
        status = orchestrate(read_spec(spec, overrides), plan, as_json, share_epochs, takeover, keep, mlflow)
        if status == INTERRUPTED:
            say_how_to_go_on()
        raise SystemExit(status)


def orchestrate(
    spec: Spec, plan_only: bool, as_json: bool, share_epochs: bool, takeover: bool, keep: Keep, mlflow: str | None
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
    console = leaderboard.console(stderr=as_json)
    if not (plan_only or takeover):
        refuse_if_held(run.store, console.out)  # before the results are read: some may come until then
    gathered = _Gathered(run, plan, run.read_results(), spec, keep)
    stands = standing(plan, gathered.done, before["points"] if before else ())
    if plan_only:
        cores = max(1, (os.cpu_count() or 1) // spec.resources.cpus_per_trial)
        slots = min(cores, spec.resources.max_concurrent or cores)
        todo = remaining(plan, gathered.done)
        about = _describe_index(index, counts, images.uri)
        text = describe(plan, spec, about, run.store.uri, stands, slots, todo, pace)
        print(json.dumps(as_tree(plan, stands), indent=1) if as_json else text)
        return DONE

    if mlflow:
        tracking.check(mlflow)
    interrupted = False
    work = Work(spec, index, images, run, keep)
    try:
        if remaining(plan, gathered.done):
            interrupted = _train(work, plan, gathered, takeover, console)
        else:
            lease = Lease(run.store, gathered.kill.set, takeover, console.out)
            with _signals(gathered.interrupt), lease as gathered.lease:
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
        points, best = winner.trained(plan, gathered.results), winner.winner(plan, gathered.board())
        logged = tracking.log(mlflow, spec.name, run, plan, points, gathered.results, best)
        console.out(f"mlflow: {many(logged, 'point')} logged to experiment {spec.name} at {one_line(mlflow)}")
    return status


def _train(work: Work, plan: Plan, gathered: "_Gathered", takeover: bool, console: Console) -> bool:
    """Train what remains, and write the tables while results land. Returns whether it was interrupted."""
    from orchestrator import fanout  # here, so that --plan and a finished run load no Ray

    todo = remaining(plan, gathered.done)
    alike = {(trial.values.get("batch_size"), trial.values.get("image_size")): trial.values for trial in todo}
    trial_mb = max(gpu_memory_mb(settle(work.spec, values), plan.counts) for values in alike.values())
    with fanout.connect(work.spec.resources, trial_mb) as cluster, contextlib.ExitStack() as held:
        console.out(
            f"{work.spec.name}: {many(len(plan.points), 'point')}, {many(len(todo), 'trial')} of {len(plan.trials)} "
            f"to train, {_at_once(cluster.slots, cluster.most)}; run folder {work.run.store.uri}"
        )

        def begin(unreadable: Mapping[int, str]) -> None:
            """The data and the model will do: take the run folder."""
            skipped = _skipped(work.index, unreadable, work.spec)
            gathered.lease = held.enter_context(Lease(work.run.store, gathered.kill.set, takeover, console.out))
            _take(work.run, work.keep, gathered.lease, console)
            before = len(gathered.done)
            gathered.take(work.run.read_results())  # another driver may have been at work until now
            if found := len(gathered.done) - before:
                console.out(f"{many(found, 'trial')} done by another driver meanwhile: not trained again")
            work.run.write_plan(to_yaml(work.spec), plan.shared, [point.id for point in plan.points])
            work.run.write_dataset(_facts(work.index, unreadable, work.spec))
            if skipped:
                work.run.write_skipped(skipped)
                console.out(f"{many(len(skipped), 'file')} left out: listed in skipped.json")

        gathered.begin = begin
        held.enter_context(_signals(gathered.interrupt))
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


def _take(run: Run, keep: Keep, lease: Lease, console: Console) -> None:
    """The run folder is ours: put it in order, and say what the person should know of it."""
    if not lease.exclusive:
        console.out(
            f"{run.store.uri} knows no conditional writes that hold: see to it that only one driver at a time writes it"
        )
    for aside in run.tidy(keep):
        console.out(f"a table was damaged, and is made anew; what was there is in {aside}")


def _finish(work: Work, plan: Plan, gathered: "_Gathered", cluster: "Cluster | None", console: Console) -> None:
    """Nothing runs any more: the tables, the winner's model, and the page that shows both."""
    gathered.write()
    _place_models(work, plan, gathered, cluster, console)
    report.write(work.run)


def _place_models(work: Work, plan: Plan, gathered: "_Gathered", cluster: "Cluster | None", console: Console) -> None:
    """Leave the models in the run folder that are to be kept; what lies nowhere is trained again, exactly."""

    def place() -> tuple[Trial, ...]:
        first = winner.winner(plan, gathered.board())
        return winner.put_in_place(work.run, plan, gathered.results, first, work.spec, work.keep)

    if not (todo := place()) or gathered.stop.is_set():
        return
    console.out(f"models: {many(len(todo), 'trial')} to train again, for weights that are not in the run folder")
    from orchestrator import fanout  # here, so that a finished run loads no Ray

    with contextlib.nullcontext(cluster) if cluster else fanout.connect(work.spec.resources) as cluster:
        again = _Again(gathered.results, console)
        try:
            fanout.fan_out(dataclasses.replace(work, again=True), cluster, todo, again, gathered.stop, gathered.kill)
        except BadInput as error:  # the board is whole without
            console.out(f"models: {error}")
    if not gathered.stop.is_set() and gathered.lease.holds() and (left := place()):
        console.out(f"models: still without one: {', '.join(point for trial in left for point in trial.points)}")


class _Again:
    """Watches trials that are trained again for their models: the board stays as it is."""

    def __init__(self, results: Mapping[str, Result], console: Console) -> None:
        self._results, self._console = results, console

    def started(self, trial_id: str) -> None:
        self._console.out(f"models: training {trial_id} again")

    def ready(self, trial_id: str, behind: float) -> None:
        pass

    def may_start(
        self, trial: Trial, behind: float, unreadable: Mapping[int, str], node_type: str | None, node_share: float
    ) -> bool:
        return True

    def over(self) -> bool:
        return False

    def say(self, line: str) -> None:
        self._console.out(line)

    def refused(self, trial: Trial, why: str) -> None:
        self._console.out(f"models: {trial.id} could not be trained again: {why}")

    def epoch(self, trial_id: str, epoch: Epoch) -> None:
        self._console.out(f"models: {trial_id} epoch {epoch.epoch}")

    def ended(self, result: Result) -> None:
        before = self._results[result.trial_id].digests
        if result.status == "failed":
            self._console.out(f"models: {result.trial_id} failed when it was trained again: {result.error}")
        elif any(before.get(epoch, digest) != digest for epoch, digest in result.digests.items()):
            self._console.out(
                f"models: {result.trial_id} came out with other weights than before, as it may on a GPU, another "
                f"processor or another TensorFlow: best.json has the metrics of the model that is there"
            )


class _Gathered:
    """What is known of the run so far: keeps the tables in the run folder up to date while results land.

    Until the first worker is ready, nothing is written: then `begin` takes the run folder, or the run is refused.
    """

    def __init__(self, run: Run, plan: Plan, results: Mapping[str, Result], spec: Spec, keep: Keep) -> None:
        self._run, self._plan, self._spec, self._keep = run, plan, spec, keep
        self.results = dict(results)
        self.running: set[str] = set()
        self._next_write = 0.0
        self.begin: Callable[[Mapping[int, str]], None]
        self.progress: Progress
        self.lease: Lease | None = None
        self.refusal: str | None = None
        self.stop, self.kill = threading.Event(), threading.Event()
        self.interrupted = False
        self.left_out = False
        self._meter = Meter(spec.budget, time.monotonic())

    @property
    def done(self) -> dict[str, int]:
        """Trial id -> epochs that its result covers."""
        return {trial_id: result.epochs for trial_id, result in self.results.items() if result.status == "ok"}

    def take(self, results: Mapping[str, Result]) -> None:
        self.results.update(results)

    def refuse_if_lost(self) -> None:
        if self.lease and self.lease.lost:
            raise BadInput(
                f"another process took {self._run.store.uri} over: this one has stopped, and writes nothing more"
            )

    def interrupt(self) -> None:
        self.interrupted = True
        self.stop.set()

    def started(self, trial_id: str) -> None:
        self.running.add(trial_id)
        self._write_if_due()
        self.progress.started(trial_id)

    def ready(self, trial_id: str, behind: float) -> None:
        self.progress.ready(trial_id, behind)

    def take_folder(self, unreadable: Mapping[int, str]) -> None:
        """Begin, if that is yet to be done and nobody wants it to stop."""
        if self.lease is None and not (self.stop.is_set() or self.kill.is_set()):
            try:
                self.begin(unreadable)
            except BadInput as error:
                self.refusal = str(error)
                self.kill.set()
            self._write_if_due()

    def refused(self, trial: Trial, why: str) -> None:
        if self.lease is None:
            self.refusal = why
            self.kill.set()
        else:
            self.ended(Result(trial_id=trial.id, status="failed", epochs=trial.milestones[-1], error=why))

    def may_start(
        self, trial: Trial, behind: float, unreadable: Mapping[int, str], node_type: str | None, node_share: float
    ) -> bool:
        usd = price(self._spec.resources, node_type)
        if usd is None and self._spec.budget.max_usd is not None:
            self.refusal = (
                f"budget.max_usd needs the price of a {node_type or 'node'}, and no list has it: set "
                f"resources.usd_per_hour, or budget.max_hours instead"
            )
            self.kill.set()
            return False
        self.take_folder(unreadable)
        if self.done.get(trial.id, 0) >= trial.milestones[-1]:
            self.ended(self.results[trial.id])
            return False
        rate = (usd or 0.0) * node_share / 3600
        starts = self._meter.start(trial.id, time.monotonic(), self.progress.expected_s(trial.id, behind), rate)
        if not starts:
            self._put_back(trial.id)
        return starts

    def over(self) -> bool:
        if self.stop.is_set() or not self._meter.used_up(time.monotonic()):
            return False
        self.left_out = True
        for trial_id in list(self.running):
            self._put_back(trial_id)
        return True

    def _put_back(self, trial_id: str) -> None:
        """The budget has nothing left for it."""
        self.left_out = True
        self.running.discard(trial_id)
        self.progress.put_back(trial_id)

    def say(self, line: str) -> None:
        self.progress.warn(line)

    def epoch(self, trial_id: str, epoch: Epoch) -> None:
        self.progress.epoch(trial_id, epoch)

    def ended(self, result: Result) -> None:
        self.running.discard(result.trial_id)
        self._meter.end(result.trial_id, time.monotonic())
        self.results[result.trial_id] = result
        self._write_if_due()
        self.progress.ended(result)

    def board(self) -> pa.Table:
        stopping = self._spec.train.early_stopping
        resources = self._spec.resources
        return build_board(self._plan, self.results, self.running, self._spec.metric, stopping, resources)

    def history(self) -> pa.Table:
        return build_history(self.results)

    def write(self) -> None:
        """Write the tables as they stand when nothing runs, and those of TensorBoard's events that no worker wrote."""
        self.running.clear()
        self._run.write_tables(self.board(), self.history())
        write_events(self._run, winner.trained(self._plan, self.results), self.results, self._run.list_events())

    def _write_if_due(self) -> None:
        """At most a tenth of the time goes into the tables, however large, and into models that were beaten."""
        if self.lease is None or time.monotonic() < self._next_write or not self.lease.holds():
            return
        began = time.monotonic()
        try:
            board = self.board()
            self._run.write_tables(board, self.history())
            if self._keep is Keep.best:
                winner.let_go(self._run, self._plan, self.results, winner.winner(self._plan, board))
        except StoreError as error:  # the results are safe, and the next write brings the tables up to date
            self.say(f"the leaderboard could not be written: {error}")
        self._next_write = time.monotonic() + 9 * (time.monotonic() - began)


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
        print(leaderboard.as_json(board))
    console = leaderboard.console(stderr=as_json)
    count = {status: board["status"].to_pylist().count(status) for status in ("ok", "failed")}
    left = board.num_rows - count["ok"] - count["failed"]
    if not as_json:
        console.print(leaderboard.as_rich(board.slice(0, 10), console.width))
    found = verdict(board, history)
    lines = ["", *statistics.sentences(found)] if found else []
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
            f"the budget is used up ({limits}): {left} of {many(board.num_rows, 'point')} not trained. "
            f"The same command goes on from here, with as much again"
        )
        return FAILED if count["failed"] else USED_UP
    return FAILED if count["failed"] or left else DONE


@contextlib.contextmanager
def _signals(act: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `act`; a second one raises KeyboardInterrupt; the next ones do what they did before."""

    def once(number: int, frame: object) -> None:
        answer(twice)
        act()

    def twice(number: int, frame: object) -> None:
        restore()
        raise KeyboardInterrupt

    def answer(handler: Callable[[int, object], None]) -> None:
        for each in old:
            signal.signal(each, handler)

    def restore() -> None:
        for each, handler in old.items():
            signal.signal(each, handler)

    old = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    answer(once)
    try:
        yield
    finally:
        restore()


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except SystemExit as end:
        if "orchestrator.fanout" in sys.modules:  # something was trained
            sys.modules["orchestrator.fanout"].exit_past_ray(end.code or 0)
        raise
