"""Fan-out: trials -> results over the cluster. The only room that imports Ray; only workers load TensorFlow."""

import asyncio
import contextlib
import fcntl
import logging
import math
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Tune writes what nobody here reads: its own result files, its own table, its own folder per trial
os.environ |= {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
if not os.environ.get("RAY_ADDRESS"):
    # a Ray of this machine alone listens on loopback alone: the way it goes where a firewall would ask, taken anywhere
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import BadInput
from orchestrator.forecast import trials_per_gpu
from orchestrator.plan import Trial
from orchestrator.result import Epoch, Result
from orchestrator.run import Work
from orchestrator.spec import Resources

TRIES = 3
STOP_S = 8.0  # how long workers may take to write their last checkpoints


class Watch(Protocol):
    """Who is told what happens, in the order it happens, on one thread."""

    def started(self, trial_id: str) -> None: ...
    def ready(self, unreadable: dict[int, str]) -> None:
        """A worker has its node's cache open and is about to train. unreadable: row of the index -> reason."""

    def refused(self, trial: Trial, why: str) -> None:
        """A worker cannot train this trial: bad data, a model that does not fit, a full disk."""

    def may_start(self, trial: Trial, node_type: str | None, node_share: float) -> bool:
        """A worker is about to train this trial: on what, and on what fraction of that node. False leaves it."""

    def over(self) -> bool:
        """Asked several times a second: whether to stop now, whatever runs."""

    def epoch(self, trial_id: str, epoch: Epoch) -> None: ...
    def ended(self, result: Result) -> None: ...


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a trial takes and how many run at once.

    Attributes:
        slots: Trials that fit at this moment; none where the autoscaler has yet to start a node.
        most: Trials that fit once it has started all it may; at least 1.
        gpu_limit_mb: What a trial may hold of a GPU that it shares; None: all of it.
    """

    cpus_per_trial: int
    gpus_per_trial: float
    slots: int
    most: int
    gpu_limit_mb: float | None = None


@contextlib.contextmanager
def connect(resources: Resources, trial_mb: float = math.inf) -> Iterator[Cluster]:
    """Join the cluster that RAY_ADDRESS names (as in `ray job submit`), or start a Ray of this machine alone.

    trial_mb: GPU memory that the largest trial takes; as many as fit share a GPU, where gpus_per_trial is auto.
    """
    address = os.environ.get("RAY_ADDRESS")
    own = (
        {} if address else {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, resources.cpus_per_trial)}
    )
    logging.getLogger("ray").setLevel(logging.ERROR)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except SystemExit:  # how Ray answers SIGTERM, from early in its start on
        raise KeyboardInterrupt from None
    except ConnectionError as error:
        raise BadInput(
            f"RAY_ADDRESS must name a running cluster, got {address}: {str(error).splitlines()[0]}"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    try:
        has, later = ray.cluster_resources(), _workers_to_come()
        gpus = resources.gpus_per_trial
        gpu_limit_mb = None
        if gpus == "auto":
            gpus = 1.0 if has.get("GPU") or later.get("GPU") else 0.0
            if gpus and (gpu_mb := _gpu_memory_mb()) and (sharing := trials_per_gpu(gpu_mb, trial_mb)) > 1:
                gpus, gpu_limit_mb = 1 / sharing, 0.9 * gpu_mb / sharing
        if foreign := _foreign(has, gpus, resources.gpus_per_trial == "auto"):
            raise BadInput(
                f"the cluster's accelerators must be NVIDIA GPUs, which alone TensorFlow can use here; got {foreign}: "
                f"use nodes with those, or train on the CPUs with --set resources.gpus_per_trial=0"
            )
        if not address and gpus > has.get("GPU", 0):
            raise BadInput(
                f"resources.gpus_per_trial must be at most the {has.get('GPU', 0):g} GPUs here, got {gpus:g}: "
                f"leave it at auto, or run on a cluster that has them"
            )
        slots = _fitting(has, resources.cpus_per_trial, gpus)
        most = max(slots, int(later.get("nodes", 0)) * _fitting(later, resources.cpus_per_trial, gpus))
        limit = resources.max_concurrent or max(1, slots, most)
        yield Cluster(resources.cpus_per_trial, gpus, min(slots, limit), max(1, min(most, limit)), gpu_limit_mb)
    finally:
        ray.shutdown()


def _fitting(has: Mapping[str, float], cpus: int, gpus: float) -> int:
    fits = [has.get("CPU", 0) // cpus, *([has.get("GPU", 0) / gpus] if gpus else [])]
    return int(min(fits))


def _gpu_memory_mb() -> float | None:
    """Of the smallest GPU in the cluster; None where there is none yet, or its driver does not say."""

    def memories_mb() -> list[float]:
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        try:
            return [float(line) for line in subprocess.run(query, capture_output=True, check=True).stdout.split()]
        except (OSError, subprocess.CalledProcessError, ValueError):
            return []

    asked = [
        ray.remote(memories_mb)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    told = ray.get(asked)
    return min((mb for memories in told for mb in memories), default=None) if all(told) else None


def _workers_to_come() -> dict[str, float]:
    """What the autoscaler may start, if the head's Ray labels say so: nodes, and CPU and GPU of each.

    Ray itself tells a driver only of the nodes that are there: of none, where all workers are yet to be started.
    """
    labels = {k: v for node in ray.nodes() if node["Alive"] for k, v in node["Labels"].items()}
    names = {"nodes": "worker-nodes", "CPU": "worker-cpus", "GPU": "worker-gpus"}
    return {name: float(labels[label]) for name, label in names.items() if labels.get(label, "").isdigit()}


def _foreign(has: Mapping[str, float], gpus: float, auto: bool) -> str:
    """In Ray's words, what a trial would get, or should use, and TensorFlow as installed here cannot."""
    kinds = ("accelerator_type:AMD-", "accelerator_type:Intel-") if gpus else ()
    kinds += ("TPU", "HPU", "NPU", "neuron_cores") if auto and not gpus else ()
    return ", ".join(sorted(name.removeprefix("accelerator_type:") for name in has if name.startswith(kinds)))


def fan_out(
    work: Work, cluster: Cluster, trials: Sequence[Trial], watch: Watch, stop: threading.Event, kill: threading.Event
) -> None:
    """Train every trial once, in the order given, and tell `watch`; until all have ended, or `stop` or `kill` is set.

    stop: workers write their state first, for STOP_S at most. kill: they write nothing more.
    A trial whose worker dies goes on in another from its checkpoint. It has failed where TRIES workers in a row died
    without getting it any further.
    """
    from ray import tune
    from ray.tune import Callback, Stopper

    by_id = {trial.id: trial for trial in trials}
    stopper, stopping = _signal()

    def train(config: dict[str, str], work: Work, by_id: dict[str, Trial], stopping: list[Any]) -> None:
        try:
            room, node = _trial_room(work, cluster), _node(work.spec.resources, cluster)
            if room.outgrown():
                os._exit(1)  # the trial goes on in a fresh worker, as after any death
            if cluster.gpus_per_trial:
                room.check_gpu()
            result = room.run_trial(
                by_id[config["trial"]],
                work,
                # report returns when the driver has taken it, and may have stopped the trial or the run
                ready=lambda unreadable, step: tune.report(
                    {"ready": unreadable, "step": step, "trial": config["trial"], **node}
                ),
                report=lambda epoch: tune.report({"epoch": epoch.model_dump_json()}),
                stopping=lambda: bool(ray.wait(stopping, timeout=0)[0]),
                node=node,
            )
        except BadInput as error:
            tune.report({"refused": str(error)})
        else:
            tune.report({"result": result.model_dump_json()} if result else {"stopped": True})

    class Unsaved:
        """Tune pickles whatever it is given, into a file that nobody reads."""

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return object, ()

    class Tell(Unsaved, Callback):
        def __init__(self) -> None:
            self.at_work: set[str] = set()
            self.steps: dict[str, int] = {}  # where a trial's last worker took it up

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.started(trial.config["trial"])

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            trial_id = trial.config["trial"]
            if "epoch" in result:
                watch.epoch(trial_id, Epoch.model_validate_json(result["epoch"]))
            elif "ready" in result:
                if result["step"] > self.steps.get(trial_id, 0):  # the last worker died, but not for nothing
                    trial.max_failures = trial.num_failures + TRIES - 1
                self.steps[trial_id] = result["step"]
                self.at_work.add(trial_id)
                watch.ready(result["ready"])
            else:
                self.at_work.discard(trial_id)
                if "result" in result:
                    watch.ended(Result.model_validate_json(result["result"]))
                elif "refused" in result:
                    watch.refused(by_id[trial_id], result["refused"])

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.at_work.discard(trial.config["trial"])

        on_trial_complete = on_trial_recover

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.at_work.discard(trial.config["trial"])
            watch.refused(by_id[trial.config["trial"]], f"its worker died {TRIES} times: {_cause(trial)}")

    class OnStop(Unsaved, Stopper):
        deadline: float | None = None

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            if "ready" not in result:
                return False
            return not watch.may_start(by_id[result["trial"]], result["node_type"], result["node_share"])

        def stop_all(self) -> bool:
            if self.deadline is None and (stop.is_set() or watch.over()):
                stopper.set.remote()
                self.asked, self.deadline = set(tell.at_work), time.monotonic() + STOP_S
            if self.deadline is not None:
                self.asked &= tell.at_work
            if kill.is_set() or (self.deadline and (not self.asked or time.monotonic() > self.deadline)):
                raise _Ended  # Tune would wait up to 15 s for workers in mid-epoch
            return False

    tell = Tell()
    with _scratch() as scratch, contextlib.suppress(_Ended):
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(train, work=work, by_id=by_id, stopping=[stopping]),
                {"cpu": cluster.cpus_per_trial, "gpu": cluster.gpus_per_trial},
            ),
            param_space={"trial": tune.grid_search([trial.id for trial in trials])},
            tune_config=tune.TuneConfig(
                reuse_actors=True, max_concurrent_trials=cluster.most if work.spec.resources.max_concurrent else None
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                callbacks=[tell],
                stop=OnStop(),
                failure_config=tune.FailureConfig(max_failures=TRIES - 1),
            ),
        ).fit()


class _Ended(BaseException):
    """Leaves Tune's loop at once, as a second Ctrl-C would; the workers end with the connection."""


def _signal() -> tuple[Any, Any]:
    """An actor on this node, and what its workers wait on: ready once its method `set` was called."""

    class Signal:
        def __init__(self) -> None:
            self._event = asyncio.Event()

        async def wait(self) -> None:
            await self._event.wait()

        async def set(self) -> None:
            self._event.set()

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Signal).options(num_cpus=0, scheduling_strategy=here).remote()
    return actor, actor.wait.remote()


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A temporary folder, gone at the end; and so are those that killed drivers left behind."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-") as scratch, _locked(scratch):
        for other in Path(scratch).parent.glob("orchestrator-*"):
            with contextlib.suppress(OSError), _locked(other):  # its driver holds it as long as it lives
                shutil.rmtree(other, ignore_errors=True)
        yield scratch


@contextlib.contextmanager
def _locked(folder: str | Path) -> Iterator[None]:
    """Hold a lock on the folder that ends with this process. Raises OSError where another holds it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _node(resources: Resources, cluster: Cluster) -> dict[str, Any]:
    """In a worker: what the node's Ray label `node-type` says it is, and the fraction of it that a trial holds."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    fitting = max(1, _fitting(node["Resources"], cluster.cpus_per_trial, cluster.gpus_per_trial))
    return {"node_type": node["Labels"].get("node-type") or resources.node_type, "node_share": 1 / fitting}


def _trial_room(work: Work, cluster: Cluster) -> Any:
    """The trial module, in a worker: TensorFlow is imported here, once per process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"  # or the next trial fails where the last one's thread is slow
    from orchestrator import trial

    trial.use_device(work.spec.resources.cpus_per_trial, cluster.gpu_limit_mb)
    return trial


def _cause(trial: Any) -> str:
    lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
    return (lines[-1] if lines else "no word of why")[:300]
