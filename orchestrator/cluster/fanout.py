"""Fan-out: legs of trials -> results over the cluster."""

import functools
import math
import threading
import time
from collections.abc import Callable, Sequence

from orchestrator.cluster import patches
from orchestrator.cluster.connect import Cluster, Part
from orchestrator.cluster.stop_signal import STOP_S
from orchestrator.cluster.watch import GuardedWatch, LeaveTune, Legs, Watch
from orchestrator.errors import BadInput
from orchestrator.runs.context import WorkerContext
from orchestrator.scratch import sweep


def fan_out(
    context: WorkerContext,
    cluster: Cluster,
    legs: Legs,
    watch: Watch,
    stop: threading.Event,
    kill: threading.Event,
) -> None:
    """Train every leg, in the order given, and tell `watch`; until all have ended, or `stop` or `kill` is set.

    stop: workers write their state first, for STOP_S seconds at most. kill: they write nothing more.
    A trial whose worker dies goes on from its checkpoint in another worker. It fails where three workers in a row died
    without getting it any further. Raises BadInput where a part of Ray is gone that nothing can go on without.
    """
    guarded = GuardedWatch(watch, kill)
    run_tune = functools.partial(_run_tune, context, cluster, legs, guarded, stop, kill)
    _on_a_thread(run_tune, guarded.close, cluster.parts, stop, kill)


def judge_test_images(
    context: WorkerContext, cluster: Cluster, stop: threading.Event, kill: threading.Event
) -> bytes | None:
    """What the run's winner says of each test image, found out by a worker: Parquet, see train/judge.py.

    None where `stop` or `kill` is set meanwhile. Raises BadInput where the worker cannot, or a part of Ray is gone.
    """
    found: list[bytes] = []

    def ask() -> None:
        from orchestrator.cluster.worker import ask_a_worker

        found.extend(ask_a_worker(context, cluster, stop, kill))

    _on_a_thread(ask, lambda: None, cluster.parts, stop, kill)
    return found[0] if found else None


def _on_a_thread(
    run: Callable[[], None],
    close: Callable[[], None],
    parts: Sequence[Part],
    stop: threading.Event,
    kill: threading.Event,
) -> None:
    """Run what calls Ray, until it ends, is told to stop, or a part of Ray is gone. close: called then."""
    thread = _RayThread(run)
    thread.start()
    try:
        _wait(thread.ended, parts, stop, kill)
    finally:
        patches.stop_collecting_garbage()
        close()
        if thread.ended.wait(1) and all(part.answers() for part in parts):
            patches.collect_garbage_again()
        else:
            patches.abandon_ray()
        sweep()
    if thread.error:
        gone = [part for part in parts if not part.answers()]
        raise _gone(gone[0]) if gone else thread.error


class _RayThread(threading.Thread):
    """A thread for what calls Ray, because Ray hears no signal while it waits for a part of it that is gone."""

    def __init__(self, call_ray: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._call_ray = call_ray

    def run(self) -> None:
        try:
            self._call_ray()
        except LeaveTune:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()


def _run_tune(
    context: WorkerContext,
    cluster: Cluster,
    legs: Legs,
    watch: GuardedWatch,
    stop: threading.Event,
    kill: threading.Event,
) -> None:
    from orchestrator.cluster import tune  # here, because importing Ray Tune takes a second

    tune.train_all(context, cluster, legs, watch, stop, kill)


def _wait(ended: threading.Event, parts: Sequence[Part], stop: threading.Event, kill: threading.Event) -> None:
    """Until Tune has ended, or is late to stop. Raises BadInput where a part of Ray is gone."""
    silent_since: dict[Part, float] = {}
    asked_to_stop = math.inf
    while not ended.wait(1):
        now = time.monotonic()
        silent_since = {part: silent_since.get(part, now) for part in parts if not part.answers()}
        if stop.is_set() or kill.is_set():
            asked_to_stop = min(asked_to_stop, now)
            may_hang = any(now > since for since in silent_since.values())
            if now > asked_to_stop + (3 if may_hang else STOP_S + 2):
                return
        elif gone := [part for part, since in silent_since.items() if now >= since + part.silent_s]:
            raise _gone(gone[0])


def _gone(part: Part) -> BadInput:
    return BadInput(f"{part.name} must answer, and has ended or cannot be reached: the same command goes on from here")
