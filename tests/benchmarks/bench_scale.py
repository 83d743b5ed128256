"""What the orchestrator itself costs on large grids: python tests/benchmarks/bench_scale.py [PART ...].

plan      grids of 10,000 and 1,000,000 points planned and printed; the leaderboard read: whole commands
start     where the seconds go from the command to the end of the first epoch, and in the grid of `make grid`
driver    500 and 10,000 trials that train nothing, through Ray Tune and the run folder
index     a bucket of 1,000,000 keys listed; its index in two workers
profile   where a driver's and a worker's time goes
simulate  1,000 nodes x 8 trials, on the figures of `driver`; draws docs/scale.svg

Without a part: all of them, about ten minutes. Alone on the machine, or the figures say nothing.
"""

import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent


def command(*args: str, **env: str) -> tuple[float, float, str]:
    """Run a whole process: (wall seconds, peak memory in MB of it alone, what it printed)."""
    with tempfile.TemporaryFile("w+") as out:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *args], stdout=out, env={**os.environ, **env})
        _, status, usage = os.wait4(process.pid, 0)
        took_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, args
        out.seek(0)
        return took_s, usage.ru_maxrss / 1e3, out.read()


def alone(part: str, *args: object) -> Any:
    """One measurement in a process of its own, so that no other one's memory is counted."""
    return json.loads(command(__file__, "--alone", part, *map(str, args))[2].splitlines()[-1])


def grid_of(points: int) -> str:
    """`grid=…` with that many points, 10,000 or more, a tenth as many trials."""
    axes = {
        "batch_size": list(range(1, 101)),
        "epochs": list(range(1, 11)),
        "dropout": [i / 100 for i in range(10)],
        "learning_rate": [i / 10**6 for i in range(1, points // 10_000 + 1)],
    }
    return f"grid={json.dumps(axes)}"


# --- plan -------------------------------------------------------------------------------------------------------------


def plan() -> None:
    print(f"{'planned and printed, whole command':<52}{'wall':>8}{'peak':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for points in (10_000, 1_000_000):
            spec = Path(folder) / f"{points}.yaml"
            spec.write_text(f"name: big\ndata: {{uri: 'sample://shirts'}}\n{grid_of(points).replace('=', ': ', 1)}\n")
            _row(f"grid --plan, {points:,} points", *command("-m", "orchestrator.grid", str(spec), "--plan")[:2])
        _row("grid --plan, the default grid", *command("-m", "orchestrator.grid", "--plan")[:2])
        command("-m", "orchestrator.grid", "--set", "grid={epochs: [1]}", "--output", folder)
        _row("leaderboard, 1 point", *command("-m", "orchestrator.leaderboard", f"{folder}/shirts")[:2])


def _row(what: str, wall_s: float, peak_mb: float) -> None:
    print(f"{what:<52}{wall_s:>7.2f}s{peak_mb:>7.0f} MB", flush=True)


# --- start ------------------------------------------------------------------------------------------------------------


STRETCHES = (  # what ends a stretch -> what takes the time until then
    ("run.began", "the command's imports; its plan"),
    ("trials", "Ray"),
    ("trial.started", "Tune; the first worker's process, and its imports but TensorFlow"),
    ("trial.ready", "TensorFlow; images and model"),
    ("trial.epoch", "the first epoch, its graphs included"),
    ("trial.done", "the rest of the trials"),
    ("end", "tables, models, page; Ray ends"),
)
ONE_EPOCH = ("--set", "grid={batch_size: [32], epochs: [1]}")  # of 30 steps


def start() -> None:
    """Where the seconds go: medians of three, after a first call, as a user has it: bytecode and cache are there."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for arguments in (ONE_EPOCH, ()):
            stretches(f"{folder}/first", *arguments)
            taken = [stretches(f"{folder}/{len(arguments)}-{i}", *arguments) for i in range(3)]
            found.append({end: statistics.median(each[end] for each in taken) for end in taken[0]})
    print(f"{'seconds':<72}{'one epoch':>10}{'make grid':>10}")
    for end, what in STRETCHES:
        print(f"{what:<72}{found[0][end]:>10.2f}{found[1][end]:>10.2f}")
    for end, what in (("first", "from the command to the end of the first epoch"), ("all", "in all")):
        print(f"{what:<72}{found[0][end]:>10.2f}{found[1][end]:>10.2f}", flush=True)


def stretches(folder: str, *arguments: str) -> dict[str, float]:
    """Seconds of each stretch of a grid on the sample, by what ends it; until the `first` epoch ends, and of `all`."""
    line = (sys.executable, "-m", "orchestrator.grid", *arguments, "--output", folder)
    at = [time.time()]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    at_line = next(time.time() for line in process.stdout if line.startswith("shirts: "))
    process.communicate()
    ended = time.time()
    events = [json.loads(line) for line in Path(folder, "shirts", "events.jsonl").read_text().splitlines()]
    when = {"trials": at_line, "end": ended}
    for event in reversed(events):  # the first of each; of what ends trials, the last
        name = event["event"]
        if name != "trial.done" or name not in when:
            when[name] = datetime.fromisoformat(event["time"]).timestamp()
    at += [when[end] for end, _ in STRETCHES]
    took = dict(zip((end for end, _ in STRETCHES), map(float.__sub__, at[1:], at), strict=True))
    return took | {"first": when["trial.epoch"] - at[0], "all": ended - at[0]}


# --- driver -----------------------------------------------------------------------------------------------------------


def nothing_to_train(work: Any, cluster: Any) -> Any:
    """Stands for the trial room, in a worker: no TensorFlow; result, candidate and events are written as ever."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from orchestrator.plans.trials import points_of
    from orchestrator.runs.folder import CANDIDATES, versions
    from orchestrator.runs.result import Epoch, Exported, Result
    from orchestrator.tracking.tensorboard import write_events
    from orchestrator.words import now

    columns = {"path": ["p"], "label": ["a"], "predicted": ["a"], "probabilities": [[1.0, 0.0]], "thumbnail": [None]}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    predictions = out.getvalue()

    def run_trial(trial: Any, work: Any, reporter: Any, node: Any) -> Any:
        started_at = now()
        reporter.ready({}, 0)
        score = int(trial.id[:8], 16) / 2**32
        figures = {"loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": score}
        epochs = trial.milestones[-1]
        history = [Epoch(epoch=1 + i, **figures, train_s=0.001, images_per_s=1.0) for i in range(epochs)]
        for epoch in history:
            reporter.epoch(epoch)
        reporter.stopping()
        result = Result(
            trial_id=trial.id,
            status="ok",
            epochs=epochs,
            history=history,
            digests={epochs: trial.id},
            steps_per_epoch=1,
            started_at=started_at,
            finished_at=now(),
            device="CPU",
            peak_memory_mb=anonymous_mb(),
            **node,
        )
        (point,) = points_of(trial, work.spec.axes)
        facts = Exported(
            classes=["a", "b"],
            image_size=(28, 28),
            resize="bilinear",
            scale=1 / 255,
            point_id=point.id,
            trial_id=trial.id,
            values=dict(point.values),
            seed=trial.seed,
            epochs=epochs,
            epoch=epochs,
            metric="val_accuracy",
            metrics=figures,
            weights=trial.id,
            index_digest=work.index.digest,
            spec={},
            versions=versions(),
        )
        work.run.write_model(f"{CANDIDATES}{point.id}", b"model", predictions, facts)
        work.run.write_result(result)
        write_events(work.run, [point], {trial.id: result}, {})
        return result

    return SimpleNamespace(has_grown=lambda: False, run_trial=run_trial)


def anonymous_mb() -> float:
    """Memory that this process shares with nobody."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1e3


def train_nothing(trials: int, folder: str, epochs: int = 1, data: str = "sample://shirts") -> None:
    """A grid of so many trials, each of which says that it trained so many epochs."""
    axes = {"learning_rate": [i / 10**6 for i in range(1, trials + 1)]}
    run_grid(nothing_to_train, folder, axes, f"train.epochs={epochs}", f"data.uri={data}")


def run_grid(room: Callable[..., Any], folder: str, axes: dict[str, list], *overrides: str) -> None:
    """The main command, in this process; `room` stands for the trial room in its workers."""
    from orchestrator.cluster import worker
    from orchestrator.driver.lay_out import Options
    from orchestrator.driver.line import orchestrate
    from orchestrator.spec.reading import read_spec

    worker.load_trial_module = room
    spec = read_spec(None, [f"grid={json.dumps(axes)}", f"output={folder}", *overrides])
    assert orchestrate(spec, Options()) == 0


def measure_driver(trials: str, folder: str, epochs: str = "1") -> dict[str, float]:
    """epochs: of each trial. A single one goes with its result, as where trials are this short; more, one by one."""
    from orchestrator.cluster import tune
    from orchestrator.driver.state import RunState
    from orchestrator.driver.watch import GridWatch

    if int(epochs) > 1:
        tune.REPORT_INTERVAL_S = tune.REPORT_LEAST_S = 0.0

    written = []
    write = RunState.write_if_due

    def timed(self: Any, say: Callable[[str], None]) -> None:
        began = time.perf_counter()
        write(self, say)
        written.append(time.perf_counter() - began)

    RunState.write_if_due = timed
    marks: list[float] = []
    ended = GridWatch.ended

    def marked(self: Any, result: Any) -> None:
        marks.append(time.perf_counter())
        ended(self, result)

    GridWatch.ended = marked
    cpu_s = time.process_time()
    train_nothing(int(trials), folder, int(epochs))
    cpu_s = time.process_time() - cpu_s
    began = time.perf_counter()
    train_nothing(int(trials), folder, int(epochs))
    again_s = time.perf_counter() - began
    run = Path(folder) / "shirts"
    status = Path("/proc/self/status").read_text()
    return {
        # the first trials wait for workers to start
        "trial_ms": 1e3 * (marks[-1] - marks[50]) / (len(marks) - 51),
        "driver_cpu_ms": 1e3 * cpu_s / int(trials),
        "again_s": again_s,
        "tables_s": sum(written),
        "tables": sum(took > 1e-3 for took in written),
        "driver_mb": int(status.split("VmHWM:")[1].split()[0]) / 1e3,
        "board_kb": (run / "leaderboard.parquet").stat().st_size / 1e3,
        "history_kb": (run / "history.parquet").stat().st_size / 1e3,
        "report_mb": (run / "report.html").stat().st_size / 1e6,
    }


FIGURES = {
    "trial_ms": "ms a trial, 2 workers",
    "driver_cpu_ms": "ms of the driver's CPU a trial, start and end included",
    "again_s": "s for the same command again, which trains nothing",
    "tables_s": "s for tables and beaten models, in all",
    "tables": "times that they were written",
    "driver_mb": "MB, the driver's most memory",
    "board_kb": "kB, leaderboard.parquet",
    "history_kb": "kB, history.parquet",
    "report_mb": "MB, report.html",
}


def driver() -> None:
    found = {}
    for trials in (500, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            found[trials] = alone("measure_driver", trials, folder)
    few, many = found.values()
    print(f"{'trials that train nothing':<58}{500:>10,}{10_000:>10,}{'ratio':>8}")
    for name, what in FIGURES.items():
        print(f"{what:<58}{few[name]:>10.1f}{many[name]:>10.1f}{many[name] / few[name]:>8.2f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        longer = alone("measure_driver", 500, folder, 41)
    report_ms = (longer["driver_cpu_ms"] - few["driver_cpu_ms"]) / 41
    print(f"ms of the driver's CPU for one report of an epoch: {report_ms:.2f}")
    for slots, ms in alone("measure_waiting").items():
        print(
            f"ms to wait for one of {int(slots):>6,} trials at work, as Tune does for each report: {ms:.2f}", flush=True
        )


def measure_waiting() -> dict[int, float]:
    """Median ms of CPU to shuffle so many pending calls and wait for the first that ends."""
    import random

    import ray

    class Calls:
        def __init__(self) -> None:
            self.ends: dict[int, Any] = {}

        async def call(self, number: int) -> None:
            import asyncio

            await self.ends.setdefault(number, asyncio.Event()).wait()

        async def end(self, number: int) -> None:
            import asyncio

            self.ends.setdefault(number, asyncio.Event()).set()

    found = {}
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=40, _temp_dir=folder)
        for slots in (2, 1000, 8000):
            actor = ray.remote(Calls).options(num_cpus=0, max_concurrency=2 * slots).remote()
            pending = [actor.call.remote(number) for number in range(slots)]
            took_s = []
            for number in range(min(slots, 50)):
                ray.get(actor.end.remote(number))
                began = time.process_time()
                shuffled = list(pending)
                random.shuffle(shuffled)
                ready, _ = ray.wait(shuffled, num_returns=1)
                took_s.append(time.process_time() - began)
                pending.remove(ready[0])
            found[slots] = 1e3 * statistics.median(took_s)
            ray.kill(actor)
        ray.shutdown()
    return found


# --- index ------------------------------------------------------------------------------------------------------------

KEYS = 1_000_000


def measure_listing(uri: str) -> dict[str, float]:
    import pickle
    import resource

    from orchestrator.data.indexing import build_index
    from orchestrator.spec.sections import Data
    from orchestrator.store import open_store

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    began = time.perf_counter()
    index = build_index(open_store(uri), Data(uri=uri))
    took_s = time.perf_counter() - began
    buffers: list[pickle.PickleBuffer] = []
    size = len(pickle.dumps(index, protocol=5, buffer_callback=buffers.append)) + sum(len(b.raw()) for b in buffers)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before
    return {"images": len(index), "s": took_s, "peak_mb": peak_mb, "index_mb": size / 1e6}


def measure_spread(folder: str, uri: str) -> dict[str, Any]:
    """40 trials on that index: memory that each worker shares with nobody, by trial."""
    train_nothing(40, folder, data=uri)
    held = {}
    for path in sorted((Path(folder) / "shirts" / "trials").glob("*.json"), key=lambda path: path.stat().st_mtime):
        held.setdefault("mb", []).append(json.loads(path.read_text())["peak_memory_mb"])
    return {"first": held["mb"][:2], "last": held["mb"][-2:]}


def index() -> None:
    from listing import serving

    with serving(KEYS) as env, tempfile.TemporaryDirectory() as folder:
        os.environ.update(env)
        found = alone("measure_listing", "s3://photos/")
        print(
            f"{found['images']:,} keys listed and split in {found['s']:.1f} s, at most {found['peak_mb']:.0f} MB more"
        )
        print(f"their index, as it goes to the workers: {found['index_mb']:.0f} MB")
        small = alone("measure_spread", f"{folder}/small", "sample://shirts")
        large = alone("measure_spread", f"{folder}/large", "s3://photos/")
        for name, each in (("1,200 images", small), (f"{KEYS:,} images", large)):
            first, last = (", ".join(f"{mb:.0f}" for mb in each[which]) for which in ("first", "last"))
            print(f"MB of each worker's own with {name}: {first} in the first trials, {last} in the last", flush=True)


# --- profile ----------------------------------------------------------------------------------------------------------


def profiled(room: Callable[..., Any], folder: str) -> Callable[..., Any]:
    """The room, each of whose trials leaves a profile in the folder."""

    def profiled_room(work: Any, cluster: Any) -> Any:
        found = room(work, cluster)

        def run_trial(*args: Any, **options: Any) -> Any:
            profile = cProfile.Profile()
            try:
                return profile.runcall(found.run_trial, *args, **options)
            finally:
                profile.dump_stats(f"{folder}/{time.time_ns()}.prof")

        return SimpleNamespace(has_grown=found.has_grown, run_trial=run_trial)

    return profiled_room


def measure_profile(folder: str) -> None:
    """Leaves driver.prof, and in worker/ a profile of each of 24 small trials that do train."""
    from orchestrator.cluster.worker import load_trial_module

    profile = cProfile.Profile()
    profile.runcall(train_nothing, 500, f"{folder}/nothing")  # on this thread alone, which is Tune's
    profile.dump_stats(f"{folder}/driver.prof")
    os.makedirs(f"{folder}/worker")
    axes = {"batch_size": [10, 16, 32], "dropout": [0.0, 0.25, 0.5, 0.75], "l2": [0.0, 0.01], "epochs": [2, 4]}
    run_grid(profiled(load_trial_module, f"{folder}/worker"), f"{folder}/real", axes)


def profile() -> None:
    with tempfile.TemporaryDirectory() as folder:
        alone("measure_profile", folder)
        _costs("the driver, 500 trials that train nothing", [f"{folder}/driver.prof"])
        _costs("the workers, 24 trials that train", sorted(map(str, Path(folder, "worker").glob("*.prof"))))


def _costs(what: str, files: list[str]) -> None:
    """Where the time goes: by function, without what it calls; and what our own functions take with what they call."""
    stats = pstats.Stats(*files)
    print(f"\n{what}: {stats.total_tt:.1f} s")
    own = sorted(stats.stats.items(), key=lambda row: -row[1][2])[:10]
    ours = [row for row in stats.stats.items() if "/orchestrator/" in row[0][0]]
    whole = sorted(ours, key=lambda row: -row[1][3])[:12]
    for title, rows, column in (("by itself", own, 2), ("with what it calls", whole, 3)):
        print(title)
        for (file, line, name), figures in rows:
            place = "/".join(Path(file).parts[-2:])
            share = figures[column] / stats.total_tt
            print(f"{figures[column]:>8.2f}s {share:>5.0%} {figures[1]:>9,} calls  {name} ({place}:{line})", flush=True)


def simulate() -> None:
    import simulate as simulation

    simulation.main()


PARTS = {part.__name__: part for part in (plan, start, driver, index, profile, simulate)}


def main() -> None:
    if sys.argv[1:2] == ["--alone"]:
        print("\n" + json.dumps(globals()[sys.argv[2]](*sys.argv[3:])))
        return
    if unknown := set(sys.argv[1:]) - set(PARTS):
        sys.exit(f"PART must be one of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    for name in sys.argv[1:] or PARTS:
        print(f"\n== {name}", flush=True)
        PARTS[name]()


if __name__ == "__main__":
    main()
