"""Worker: what runs inside a worker. Only here, and only inside a function, is TensorFlow loaded.

A worker trains one trial after the other; what they share is fetched once and remembered.
"""

import functools
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster import patches
from orchestrator.cluster.connect import Cluster, this_node, trials_that_fit
from orchestrator.cluster.stop_signal import stop_signal
from orchestrator.errors import BadInput
from orchestrator.machine import has_bfloat16
from orchestrator.plans.forecast import BFLOAT16
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import Reporter, WorkerContext
from orchestrator.runs.result import Epoch, Result
from orchestrator.scratch import sweep
from orchestrator.spec.axes import resolve
from orchestrator.spec.code import look_in
from orchestrator.words import last_line

# isort: split
import ray
from ray import tune


@dataclass(frozen=True, slots=True)
class Workload:
    """What all workers of a fan-out share.

    Attributes:
        trials: By id.
        report_interval_s: A trial reports its epochs at least so many seconds apart; 0: each at once.
        load_trial_module: load_trial_module below; benchmarks give another.
    """

    context: WorkerContext
    cluster: Cluster
    trials: Mapping[str, Trial]
    report_interval_s: float
    load_trial_module: Callable[[WorkerContext, Cluster], Any]


def train(config: dict[str, Any], refs: list[Any]) -> None:
    """Train one leg of a trial: the function that Tune calls in a worker, again and again.

    config: the trial's id, and after how many epochs the leg ends. refs: Ray's references to a Workload, to whether to
    stop, and to the driver's AWS keys.
    Each report is a dict with "epochs" and "lines", and with an "event" where there is one: "preparing", "ready",
    "reached", "refused", "result", "stopped" or "worker too large".
    """
    workload_ref, stopping_ref, aws_keys_ref = refs
    workload: Workload = _fetch(workload_ref)
    _use_aws_keys(_fetch(aws_keys_ref))
    outbox = Outbox(workload.report_interval_s)
    try:
        result = _train(workload.trials[config["trial"]].leg(config["epochs"]), workload, outbox, stopping_ref)
    except BadInput as error:
        outbox.send(event="refused", why=str(error))
    else:
        outbox.send(**({"event": "result", "result": result.model_dump_json()} if result else {"event": "stopped"}))


def _train(trial: Trial, workload: Workload, outbox: "Outbox", stopping_ref: Any) -> Result | None:
    """The trial's result; None where it was stopped. Raises BadInput where the worker can train no trial."""
    context, cluster = workload.context, workload.cluster
    trial_module = workload.load_trial_module(context, cluster)
    node = _node_facts(context.spec.resources.node_type, cluster)
    _sweep_once()
    if trial_module.has_grown():
        tune.report({"event": "worker too large"})
        os._exit(1)  # the trial goes on in a fresh worker, as after any death
    if cluster.gpus_per_trial:
        trial_module.check_gpu()

    def ready(unreadable: dict[int, str], epochs_done: float) -> None:
        # returns when the driver has taken it; by then it may have stopped the trial or the run
        slow = _say_slow(cluster) if resolve(context.spec, trial.values).train.precision == BFLOAT16 else None
        facts = {"unreadable": unreadable, "epochs_done": epochs_done, "of_node": slow, **node}
        outbox.send(event="ready", trial=trial.id, until=trial.epochs, **facts)

    def preparing(what: str, done: int, images: int, made: int) -> None:
        facts = [what, done, images, made]  # not by name: Tune ends a trial that reports something as "done"
        outbox.send(event="preparing", trial=trial.id, facts=facts)

    def reached(result: Result) -> None:
        outbox.send(event="reached", result=result.model_dump_json())

    def stopping() -> bool:
        return is_told_to_stop(stopping_ref)

    reporter = Reporter(preparing, ready, outbox.add, stopping, outbox.lines.append, reached)
    result: Result | None = trial_module.run_trial(trial, context, reporter, node)
    return result


def ask_a_worker(context: WorkerContext, cluster: Cluster, stop: threading.Event, kill: threading.Event) -> list[bytes]:
    """What the run's winner says of each test image; empty where it is told to stop meanwhile. Raises BadInput."""
    with stop_signal(kill) as signal:
        refs = [ray.put((context, cluster)), signal.stopping, signal.aws_keys]
        judge = ray.remote(num_cpus=cluster.cpus_per_trial, num_gpus=cluster.gpus_per_trial, max_retries=3)(_judge)
        answer = judge.remote(refs)
        while not ray.wait([answer], timeout=1)[0]:
            if stop.is_set() or kill.is_set():
                return []
        try:
            return [ray.get(answer)]
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, BadInput) else BadInput(last_line(error))) from None


def _judge(refs: list[Any]) -> bytes:
    context, cluster = _fetch(refs[0])
    _use_aws_keys(_fetch(refs[2]))
    load_trial_module(context, cluster)
    from orchestrator.train.judge import judge_test_images

    return judge_test_images(context)


class Outbox:
    """Carries epochs and lines from a worker to the driver.

    The first epoch goes at once, and the next ones together, at least so many seconds apart: a driver of thousands of
    trials could not keep up with each alone.
    """

    def __init__(self, interval_s: float) -> None:
        self.lines: deque[str] = deque()  # for a person to read; any thread may add to them
        self._epochs: list[str] = []
        self._interval_s, self._next_s = interval_s, 0.0

    def add(self, epoch: Epoch) -> None:
        self._epochs.append(epoch.model_dump_json())
        if time.monotonic() >= self._next_s:
            self.send()
            self._next_s = time.monotonic() + self._interval_s

    def send(self, **event: Any) -> None:
        """Send all that waits, and this event. Returns when the driver has taken it."""
        epochs, self._epochs = self._epochs, []
        tune.report({"epochs": epochs, "lines": [self.lines.popleft() for _ in range(len(self.lines))], **event})


def is_told_to_stop(stopping_ref: Any) -> bool:
    """Whether this worker should stop: the driver says so, or has died. Never waits."""
    try:
        return bool(ray.wait([stopping_ref], timeout=0)[0]) and bool(ray.get(stopping_ref))
    except ray.exceptions.RayError:
        return True


def load_trial_module(context: WorkerContext, cluster: Cluster) -> Any:
    """orchestrator.train.trial, ready for use: importing it loads TensorFlow, once in a process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    from orchestrator.train import trial

    look_in(context.networks.folder)
    trial.use_device(context.spec.resources.cpus_per_trial, cluster.gpu_limit_mb)
    return trial


@functools.cache
def _fetch(ref: Any) -> Any:
    return ray.get(ref)


@functools.cache
def _sweep_once() -> None:
    sweep()


@functools.cache
def _node_facts(default_type: str | None, cluster: Cluster) -> dict[str, Any]:
    """What the node's Ray label `node-type` says it is, and the fraction of it that a trial takes."""
    node = this_node()
    fitting = max(1, trials_that_fit(node["Resources"], cluster.cpus_per_trial, cluster.gpus_per_trial))
    return {"node_type": node["Labels"].get("node-type") or default_type, "node_share": 1 / fitting}


def _say_slow(cluster: Cluster) -> str | None:
    """That this node is slow in bfloat16; None where it is not."""
    if cluster.gpus_per_trial or has_bfloat16():
        return None
    return f"the CPUs of node {platform.node()} do not multiply bfloat16 themselves: trials take longer there"


def _use_aws_keys(keys: dict[str, str]) -> None:
    """The driver's AWS keys take the place of the node's own, as they do with Tune. Where it has none, they stay."""
    if keys:
        for name in patches.AWS_KEYS:
            os.environ.pop(name, None)
        os.environ.update(keys)
