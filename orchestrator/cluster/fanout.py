"""Fan-out: trials -> results over the cluster. The only room that imports Ray; only workers load TensorFlow."""

import asyncio
import collections
import contextlib
import functools
import gc
import logging
import math
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from orchestrator.errors import BadInput
from orchestrator.plan.forecast import trials_per_gpu
from orchestrator.plan.points import Trial
from orchestrator.run.context import WorkerContext
from orchestrator.run.result import Epoch, Result
from orchestrator.scratch import scratch, sweep
from orchestrator.spec.sections import Resources
from orchestrator.words import label

# Tune writes what nobody here reads: its own result files, its own table, its own folder per trial
os.environ |= {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
if not os.environ.get("RAY_ADDRESS"):
    # a Ray of this machine alone listens on loopback alone: the way it goes where a firewall would ask, taken anywhere
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import ray
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

TRIES = 3
STOP_S = 8.0  # how long workers may take to write their last checkpoints
# how long the head may be silent: after twice that, Ray ends the driver
HEAD_S = float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", 60)) / 2  # noqa: SIM112
REPORT_S = 0.02  # times the trials at once: how far apart a trial reports its epochs, so that the driver keeps up
CAUSES = {  # what Ray says of a death: what we say
    "low on memory": "its node ran out of memory",
    "node has died": "its node was lost",
    "The actor died unexpectedly": "killed, as when memory runs out, or crashed",
}
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


class Watch(Protocol):
    """Who is told what happens, in the order it happens, on one thread, which is not the caller's of fan_out."""

    def started(self, trial_id: str) -> None: ...
    def ready(self, trial_id: str, behind: float) -> None:
        """A worker that may start is about to train on, after the epochs that lie behind the trial."""

    def refused(self, trial: Trial, why: str) -> None:
        """A worker cannot train this trial: bad data, a model that does not fit, a full disk."""

    def may_start(
        self, trial: Trial, behind: float, unreadable: dict[int, str], node_type: str | None, node_share: float
    ) -> bool:
        """A worker has its node's cache open: after which epochs, on what node and what fraction of it it would train.

        unreadable: row of the index -> reason. False leaves the trial.
        """

    def over(self) -> bool:
        """Asked several times a second: whether to stop now, whatever runs."""

    def say(self, line: str) -> None:
        """What a worker has to say to a person."""

    def epoch(self, trial_id: str, epoch: Epoch) -> None: ...
    def ended(self, result: Result) -> None: ...


_ray_is_gone = threading.Event()  # or some of it does not answer: it is neither asked any more nor shut down


class Part(NamedTuple):
    """A part of Ray that the driver cannot do without: where it listens, and how long it may be silent."""

    name: str
    host: str
    port: int
    silent_s: float

    def answers(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True


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
    gpu_limit_mb: float | None
    parts: tuple[Part, ...]


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
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # trials that failed: rows say so
    ray_worker.print_to_stdstream = lambda *_, **__: None  # dead workers, on stdout amid this command's lines or JSON
    ray_utils.set_sigterm_handler = lambda handler: None  # this command's own stays
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except ConnectionError as error:
        raise BadInput(
            f"RAY_ADDRESS must name a running cluster, got {address}: {str(error).splitlines()[0]}"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # Ray's C++ has put one in its place
    parts = ()
    try:
        parts = _parts()
        has, later = ray.cluster_resources(), _workers_to_come()
        gpus = resources.gpus_per_trial
        if gpus == "auto":
            gpus = 1.0 if has.get("GPU") or later.get("GPU") else 0.0
        gpu_mb = _gpu_memory_mb(later) if gpus else None
        if gpu_mb and resources.gpus_per_trial == "auto":
            gpus = 1 / min(trials_per_gpu(gpu_mb, trial_mb), _cpu_shares_per_gpu(later, resources.cpus_per_trial))
        gpu_limit_mb = 0.9 * gpu_mb * gpus if gpu_mb and gpus < 1 else None
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
        cpus, slots, most = resources.cpus_per_trial, min(slots, limit), max(1, min(most, limit))
        yield Cluster(cpus, gpus, slots, most, gpu_limit_mb, parts)
    finally:
        if not _ray_is_gone.is_set() and all(part.answers() for part in parts):
            ray.shutdown()
        else:
            _ray_is_gone.set()


def _parts() -> tuple[Part, ...]:
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    node = _this_node()
    return (
        Part("the cluster's head", host.strip("[]"), int(port), HEAD_S),
        Part("this node's Ray", node["NodeManagerAddress"], node["NodeManagerPort"], 1.0),
    )


def _this_node() -> dict[str, Any]:
    here = ray.get_runtime_context().get_node_id()
    return next(node for node in ray.nodes() if node["NodeID"] == here)


def _fitting(has: Mapping[str, float], cpus: int, gpus: float) -> int:
    fits = [has.get("CPU", 0) // cpus, *([has.get("GPU", 0) / gpus] if gpus else [])]
    return int(min(fits))


def _gpu_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]


def _cpu_shares_per_gpu(later: Mapping[str, float], cpus: int) -> int:
    """How many trials of so many CPUs a node's CPUs allow for each of its GPUs, where they allow fewest; at least 1."""
    each = [node["Resources"] for node in _gpu_nodes()] or [later]
    return max(1, min(int(has.get("CPU", 0) // cpus / has["GPU"]) for has in each))


def _gpu_memory_mb(later: Mapping[str, float]) -> float | None:
    """Of the smallest GPU in the cluster, or of those to come where there is none; None where nobody says."""

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
        for node in _gpu_nodes()
    ]
    if not asked:
        return later.get("GPU MB")
    told = ray.get(asked)
    return min((mb for memories in told for mb in memories), default=None) if all(told) else None


def _workers_to_come() -> dict[str, float]:
    """What the autoscaler may start, if the head's Ray labels say so: nodes, CPU and GPU of each, and MB of each GPU.

    Ray itself tells a driver only of the nodes that are there: of none, where all workers are yet to be started.
    """
    labels = {k: v for node in ray.nodes() if node["Alive"] for k, v in node["Labels"].items()}
    names = {"nodes": "worker-nodes", "CPU": "worker-cpus", "GPU": "worker-gpus", "GPU MB": "worker-gpu-mb"}
    return {name: float(labels[label]) for name, label in names.items() if labels.get(label, "").isdigit()}


def _foreign(has: Mapping[str, float], gpus: float, auto: bool) -> str:
    """In Ray's words, what a trial would get, or should use, and TensorFlow as installed here cannot."""
    kinds = ("accelerator_type:AMD-", "accelerator_type:Intel-") if gpus else ()
    kinds += ("TPU", "HPU", "NPU", "neuron_cores") if auto and not gpus else ()
    return ", ".join(sorted(name.removeprefix("accelerator_type:") for name in has if name.startswith(kinds)))


def fan_out(
    work: WorkerContext,
    cluster: Cluster,
    trials: Sequence[Trial],
    watch: Watch,
    stop: threading.Event,
    kill: threading.Event,
) -> None:
    """Train every trial once, in the order given, and tell `watch`; until all have ended, or `stop` or `kill` is set.

    stop: workers write their state first, for STOP_S at most. kill: they write nothing more.
    A trial whose worker dies goes on in another from its checkpoint. It has failed where TRIES workers in a row died
    without getting it any further. Raises BadInput where a part of Ray is gone without which nothing can go on.
    """
    watch, done, errors = _While(watch, kill), threading.Event(), []

    def run() -> None:
        try:
            _tune(work, cluster, trials, watch, stop, kill)
        except _Ended:
            pass
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    # on a thread of its own: no signal is heard while Ray waits for a part of it that is gone
    threading.Thread(target=run, daemon=True).start()
    try:
        _wait(done, cluster.parts, stop, kill)
    finally:
        watch.leave()
        if not done.wait(1):
            _ray_is_gone.set()
            gc.disable()  # Tune's objects call Ray when they are collected, on whatever thread: it would wait as well
        sweep()
    if errors:
        gone = [part for part in cluster.parts if not part.answers()]
        raise _gone(gone[0]) if gone else errors[0]


def _wait(done: threading.Event, parts: Sequence[Part], stop: threading.Event, kill: threading.Event) -> None:
    """Until Tune is done, or late to stop. Raises BadInput where a part of Ray is gone."""
    silent: dict[Part, float] = {}  # since when
    asked = math.inf
    while not done.wait(1):
        now = time.monotonic()
        silent = {part: silent.get(part, now) for part in parts if not part.answers()}
        if stop.is_set() or kill.is_set():
            asked = min(asked, now)
            deaf = any(now > since for since in silent.values())  # Tune may never come back
            if now > asked + (3 if deaf else STOP_S + 2):
                return
        elif gone := [part for part, since in silent.items() if now >= since + part.silent_s]:
            raise _gone(gone[0])


def _gone(part: Part) -> BadInput:
    return BadInput(f"{part.name} must answer, and has ended or cannot be reached: the same command goes on from here")


class _While:
    """Passes on what a watch is told until `kill` is set, or fan_out has left: whoever goes on telling is ended."""

    def __init__(self, watch: Watch, kill: threading.Event) -> None:
        self._watch, self._kill = watch, kill
        self._telling, self._left = threading.Lock(), False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def tell(*args: Any) -> Any:
            with self._telling:
                self.go_on()
                return getattr(self._watch, name)(*args)

        return tell

    def go_on(self) -> None:
        if self._kill.is_set() or self._left:
            raise _Ended

    def leave(self) -> None:
        """Once the watch was told what it is being told, or after five seconds."""
        told = self._telling.acquire(timeout=5)
        self._left = True
        if told:
            self._telling.release()


def _tune(
    work: WorkerContext,
    cluster: Cluster,
    trials: Sequence[Trial],
    watch: "_While",
    stop: threading.Event,
    kill: threading.Event,
) -> None:
    """What fan_out does, through Ray Tune. Raises _Ended where it is stopped."""
    from ray import tune
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.tune import Callback, Stopper, registry
    from ray.tune.execution import class_cache
    from ray.tune.experiment import trial as tune_trial
    from ray.tune.schedulers import FIFOScheduler

    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(KEYS)  # or Ray would write them into its logs
    # or Tune would fetch and unpickle the same for each trial, again and again: a third of the driver's time
    tune_trial.get_trainable_cls = functools.cache(registry.get_trainable_cls)
    RayActorManager._actor_task_failed = _as_death(RayActorManager._actor_task_failed)
    by_id = {trial.id: trial for trial in trials}
    shared = ray.put((work, by_id))

    def train(config: dict[str, str], refs: list[Any]) -> None:
        shared, stopping, keys = refs
        work, by_id = _once(ray.get, shared)
        if found := _once(ray.get, keys):  # they go before the node's own, as Tune would have it
            for name in KEYS:
                os.environ.pop(name, None)
            os.environ.update(found)
        mail = _Mail(REPORT_S * min(cluster.most, len(by_id)))
        try:
            room, node = _trial_room(work, cluster), _once(_node, work.spec.resources.node_type, cluster)
            _once(sweep)
            if room.outgrown():
                tune.report({"outgrown": True})
                os._exit(1)  # the trial goes on in a fresh worker, as after any death
            if cluster.gpus_per_trial:
                room.check_gpu()
            result = room.run_trial(
                by_id[config["trial"]],
                work,
                # report returns when the driver has taken it, and may have stopped the trial or the run
                ready=lambda unreadable, behind: mail.send(
                    ready=unreadable, behind=behind, trial=config["trial"], **node
                ),
                report=mail.add,
                stopping=lambda: _told_to_stop(stopping),
                node=node,
                say=mail.lines.append,
            )
        except BadInput as error:
            mail.send(refused=str(error))
        else:
            mail.send(**({"result": result.model_dump_json()} if result else {"stopped": True}))

    class Unsaved:
        """Tune pickles whatever it is given, into a file that nobody reads."""

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return object, ()

    class Tell(Unsaved, Callback):
        def __init__(self) -> None:
            self.at_work: set[str] = set()
            self.outgrown: set[str] = set()
            self.behind: dict[str, float] = {}  # where a trial's last worker took it up

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.started(trial.config["trial"])

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            trial_id = trial.config["trial"]
            for line in result.get("lines", ()):
                watch.say(line)
            for epoch in result.get("epochs", ()):
                watch.epoch(trial_id, Epoch.model_validate_json(epoch))
            if "ready" in result:
                if result["behind"] > self.behind.get(trial_id, 0):  # the last worker died, but not for nothing
                    trial.max_failures = trial.num_failures + TRIES - 1
                self.behind[trial_id] = result["behind"]
                self.at_work.add(trial_id)
                watch.ready(trial_id, result["behind"])
            elif "outgrown" in result:
                trial.max_failures += 1  # the death to come is not the trial's
                self.outgrown.add(trial_id)
            elif "result" in result or "refused" in result or "stopped" in result:
                self.at_work.discard(trial_id)
                if "result" in result:
                    watch.ended(Result.model_validate_json(result["result"]))
                elif "refused" in result:
                    watch.refused(by_id[trial_id], result["refused"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.at_work.discard(trial.config["trial"])

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            trial_id = trial.config["trial"]
            self.at_work.discard(trial_id)
            if trial_id in self.outgrown:
                self.outgrown.discard(trial_id)
            else:
                name = label(by_id[trial_id].values, by_id[trial_id].seed)
                watch.say(f"{name} goes on in another worker, as its last one died: {_cause(trial)}")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            trial_id = trial.config["trial"]
            self.at_work.discard(trial_id)
            why = f"its worker died {TRIES} times: {_cause(trial).splitlines()[-1][:300]}"
            watch.ended(Result(trial_id=trial_id, status="failed", epochs=by_id[trial_id].milestones[-1], error=why))

    class OnStop(Unsaved, Stopper):
        deadline: float | None = None

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            if "ready" not in result:
                return False
            trial = by_id[result["trial"]]
            node_type, node_share = result["node_type"], result["node_share"]
            return not watch.may_start(trial, result["behind"], result["ready"], node_type, node_share)

        def stop_all(self) -> bool:
            watch.go_on()
            if self.deadline is None and (stop.is_set() or watch.over()):
                stopper.answer.remote(True)
                self.asked, self.deadline = set(tell.at_work), time.monotonic() + STOP_S
            if self.deadline is not None:
                self.asked &= tell.at_work
            if self.deadline and (not self.asked or time.monotonic() > self.deadline):
                raise _Ended  # Tune would wait up to 15 s for workers in mid-epoch
            return False

    class InOrder(Unsaved, FIFOScheduler):
        """Tune would put a trial whose worker died last, and give a free worker to any of those that are next."""

        def choose_trial_to_run(self, controller: Any) -> Any:
            tune = controller._tune_controller
            waiting = tune._pending_trials - tune._resetting_trials
            return min(waiting, key=lambda trial: places[trial.config["trial"]], default=None)

        def on_trial_error(self, controller: Any, trial: Any) -> None:
            controller._resetting_trials.discard(trial)  # or it waits for ever, if a worker dies as it takes it over

    places = {trial.id: i for i, trial in enumerate(trials)}
    tell = Tell()
    with scratch() as folder, _signal(kill) as (stopper, stopping, keys):
        tune.Tuner(
            tune.with_resources(
                # in a list, or Tune would fetch what they stand for once more for every trial
                tune.with_parameters(train, refs=[shared, stopping, keys]),
                {"cpu": cluster.cpus_per_trial, "gpu": cluster.gpus_per_trial},
            ),
            param_space={"trial": tune.grid_search([trial.id for trial in trials])},
            tune_config=tune.TuneConfig(
                reuse_actors=True, max_concurrent_trials=work.spec.resources.max_concurrent, scheduler=InOrder()
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(folder),
                verbose=0,
                callbacks=[tell],
                stop=OnStop(),
                failure_config=tune.FailureConfig(max_failures=TRIES - 1),
            ),
        ).fit()


def _as_death(failed: Callable[..., None]) -> Callable[..., None]:
    """What Tune has not heard of would end the driver, as where Ray ends a worker for its memory: all are deaths."""

    def task_failed(*args: Any, exception: Exception, **kwargs: Any) -> None:
        known = isinstance(exception, (ray.exceptions.RayActorError, ray.exceptions.RayTaskError))
        death = exception if known else ray.exceptions.RayActorError(error_msg=str(exception))
        failed(*args, exception=death, **kwargs)

    return task_failed


class _Mail:
    """In a worker: what is on its way to the driver: each epoch at once, or some together where many trials run."""

    def __init__(self, apart_s: float) -> None:
        self.lines: collections.deque[str] = collections.deque()  # for a person; any thread may add some
        self._epochs: list[str] = []
        self._apart_s, self._next = apart_s, 0.0

    def add(self, epoch: Epoch) -> None:
        self._epochs.append(epoch.model_dump_json())
        if time.monotonic() >= self._next:
            self.send()
            self._next = time.monotonic() + self._apart_s

    def send(self, **more: Any) -> None:
        from ray import tune

        epochs, self._epochs = self._epochs, []
        tune.report({"epochs": epochs, "lines": [self.lines.popleft() for _ in range(len(self.lines))], **more})


class _Ended(BaseException):
    """Leaves Tune's loop at once, as a second Ctrl-C would; the workers end with the connection."""


@contextlib.contextmanager
def _signal(kill: threading.Event) -> Iterator[tuple[Any, Any, Any]]:
    """An actor on this node, whether workers are to stop (ready once its method `answer` was called), and KEYS' values.

    At the end it is answered as well: they are, unless `kill` is set.
    An actor's small answers stay in memory: the object store may write what is put into it to a disk.
    """

    class Signal:
        def __init__(self, keys: dict[str, str]) -> None:
            self._answered, self._stop, self._keys = asyncio.Event(), False, keys

        async def keys(self) -> dict[str, str]:
            return self._keys

        async def stopping(self) -> bool:
            await self._answered.wait()
            return self._stop

        async def answer(self, stop: bool) -> None:
            self._stop = self._stop or stop
            self._answered.set()

    found = {name: os.environ[name] for name in KEYS if name in os.environ}
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lasting = {"max_restarts": -1, "max_task_retries": -1}  # or its death would look like a stop to the workers
    actor = ray.remote(Signal).options(num_cpus=0, scheduling_strategy=here, **lasting).remote(found)
    stopping, keys = actor.stopping.remote(), actor.keys.remote()
    try:
        yield actor, stopping, keys
    finally:  # a call left open Ray would make anew as it ends, and complain on stderr
        calls = [stopping, keys, actor.answer.remote(not kill.is_set())]
        if ray.wait(calls, num_returns=len(calls), timeout=5)[1]:
            _ray_is_gone.set()


def _told_to_stop(stopping: Any) -> bool:
    """In a worker: whether it is to stop, as where its driver has died."""
    try:
        return bool(ray.wait([stopping], timeout=0)[0]) and ray.get(stopping)
    except ray.exceptions.RayError:
        return True


@functools.lru_cache(maxsize=6)
def _once(function: Callable[..., Any], *args: Any) -> Any:
    """What the function gives, asked once in this worker: the next trials find it here."""
    return function(*args)


def _node(default_type: str | None, cluster: Cluster) -> dict[str, Any]:
    """In a worker: what the node's Ray label `node-type` says it is, and the fraction of it that a trial holds."""
    node = _this_node()
    fitting = max(1, _fitting(node["Resources"], cluster.cpus_per_trial, cluster.gpus_per_trial))
    return {"node_type": node["Labels"].get("node-type") or default_type, "node_share": 1 / fitting}


def _trial_room(work: WorkerContext, cluster: Cluster) -> Any:
    """The trial module, in a worker: TensorFlow is imported here, once per process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"  # or the next trial fails where the last one's thread is slow
    from orchestrator.train import trial

    trial.use_device(work.spec.resources.cpus_per_trial, cluster.gpu_limit_mb)
    return trial


def _cause(trial: Any) -> str:
    """Why the trial's last worker died: a few words, or, where it was an error of ours, the whole of its traceback."""
    told = Path(trial.error_file).read_text().rpartition("Failure # ")[2].partition("\n")[2].strip()
    return next((words for sign, words in CAUSES.items() if sign in told), told or "no word of why")
