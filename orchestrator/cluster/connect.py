"""Connect: join a Ray cluster or start a Ray of this machine alone, and find how many trials fit."""

import contextlib
import logging
import math
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.cluster import own_ray, patches
from orchestrator.cluster.address import named_address, wait_for
from orchestrator.errors import BadInput
from orchestrator.plans.forecast import WORKER_MB, trials_per_gpu
from orchestrator.spec.sections import Resources
from orchestrator.words import last_line, plural

# isort: split
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_NODE_GROUP = "ray.io/node-group"  # a label of nodes from `ray up` or KubeRay, whose autoscaler may bring more
_JOIN_S, _JOINING = 60.0, "join-ray"
_QUIETLY: Any = {"log_to_driver": False, "logging_level": logging.ERROR}


class Part(NamedTuple):
    """A part of Ray that the driver cannot do without: where it listens, and for how many seconds it may be silent."""

    name: str
    host: str
    port: int
    silent_s: float

    def answers(self) -> bool:
        """Whether it accepts a connection within a second."""
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a trial takes and how many run at once.

    Attributes:
        gpus_per_trial: 0: trains on the CPUs; below 1: shares a GPU.
        slots: Trials that fit at this moment; 0 where the autoscaler has yet to start a node.
        most: Trials that fit once the autoscaler has started all the nodes it may; at least 1.
        gpu_limit_mb: What a trial may hold of a GPU that it shares; None: all of it.
        needs: What one node must have for a trial, in words.
        why: Why no more run at once, where it is not the cores; or nothing.
        parts: Those of Ray that must answer while trials run.
        is_own: Whether it is a Ray of this machine alone, which this process has started.
    """

    cpus_per_trial: int
    gpus_per_trial: float
    slots: int
    most: int
    gpu_limit_mb: float | None
    needs: str
    why: str
    parts: tuple[Part, ...]
    is_own: bool


@contextlib.contextmanager
def connect(resources: Resources, trial_mb: float = math.inf, worker_mb: float = WORKER_MB) -> Iterator[Cluster]:
    """Join the cluster that RAY_ADDRESS names (as in `ray job submit`), or start a Ray of this machine alone.

    Where this process is in a Ray already, as a notebook may be, that one is used, and stays.

    trial_mb: GPU memory that the largest trial takes. Where gpus_per_trial is auto, as many share a GPU as fit.
    worker_mb: memory that its worker takes. On this machine alone, no more run at once than fit.
    Raises BadInput where there is no such cluster, or no node of it for a trial.
    """
    if any(thread.name == _JOINING for thread in threading.enumerate()):
        raise BadInput(
            "RAY_ADDRESS must name a Ray's head; what did not let this process join is still asked: wait a minute"
        )
    address, stays = named_address(), ray.is_initialized()
    slots, why = (0, "") if address or stays else own_ray.share(resources, worker_mb)
    if patches.is_ray_abandoned():
        raise BadInput("Ray must answer, and a part of it has died in this process: start Python, or the kernel, anew")
    session = None if stays else _start_ray(address, slots * resources.cpus_per_trial)
    parts: tuple[Part, ...] = ()
    try:
        parts = _find_parts()
        yield _measure(resources, trial_mb, parts, why, is_own=not (address or stays))
    finally:
        if patches.is_ray_abandoned() or not all(part.answers() for part in parts):
            patches.abandon_ray()
        elif session:
            ray.shutdown()
            if not address:
                own_ray.remove(session)


def _start_ray(address: str, cpus: int) -> Path:
    """Returns the folder of its session. cpus: what trials get where it is a Ray of this machine alone."""
    own = {} if address else own_ray.settings(cpus)
    patches.silence()
    try:
        if address:
            address = patches.find_cluster() if address == "auto" else address
            wait_for(address)
        with patches.own_signals(), contextlib.nullcontext() if address else patches.without_bystanders():
            context: Any = _join(address) if address else ray.init(address="local", **_QUIETLY, **own)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        what = f"the Ray at RAY_ADDRESS {address} must let this command join" if address else "Ray must start here"
        raise BadInput(f"{what}, and does not: {last_line(error)}") from None
    return Path(context.address_info["session_dir"])


def _join(address: str) -> Any:
    """What ray.init gives back, which waits deaf to Ctrl-C: in a thread, which is left behind where it takes too long.

    Raises BadInput then: a notebook's kernel goes on, and may ask again once the thread has ended.
    """
    joined: Future[Any] = Future()

    def join() -> None:
        try:
            context = ray.init(address=address, **_QUIETLY)
        except BaseException as error:
            if joined.set_running_or_notify_cancel():
                joined.set_exception(error)
        else:
            if joined.set_running_or_notify_cancel():
                joined.set_result(context)
            else:
                ray.shutdown()

    patches.join_briefly()
    try:
        threading.Thread(target=join, name=_JOINING, daemon=True).start()
        wait([joined], _JOIN_S)
    finally:
        is_late = joined.cancel()
    if is_late:
        raise BadInput(
            f"RAY_ADDRESS must name a Ray's head; what answers at {address} has not let this command join within "
            f"{_JOIN_S:g} s"
        )
    return joined.result()


def _find_parts() -> tuple[Part, ...]:
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    node = this_node()
    return (
        Part("the cluster's head", host.strip("[]"), int(port), patches.HEAD_SILENT_S),
        Part("this node's Ray", node["NodeManagerAddress"], node["NodeManagerPort"], 1.0),
    )


def _measure(resources: Resources, trial_mb: float, parts: tuple[Part, ...], why: str, is_own: bool) -> Cluster:
    """What fits on the cluster as it is, and as it may grow. Raises BadInput where no node will do for a trial."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    has, to_come = ray.cluster_resources(), _workers_to_come()
    cpus, gpus, is_auto = resources.cpus_per_trial, resources.gpus_per_trial, resources.gpus_per_trial == "auto"
    if gpus == "auto":
        gpus = 1.0 if has.get("GPU") or to_come.get("GPU") else 0.0
    gpu_mb = _gpu_memory_mb(to_come) if gpus else None
    if gpu_mb and is_auto:
        gpus = 1 / min(trials_per_gpu(gpu_mb, trial_mb), _trials_per_gpu_by_cpus(to_come, cpus))
    if unusable := _unusable_accelerators(has, gpus, is_auto):
        raise BadInput(
            f"the cluster's accelerators must be NVIDIA GPUs, which alone TensorFlow can use here; got {unusable}: "
            f"use nodes with those, or train on the CPUs with --set resources.gpus_per_trial=0"
        )
    if is_own and gpus > has.get("GPU", 0):
        raise BadInput(
            f"resources.gpus_per_trial must be at most the {has.get('GPU', 0):g} GPUs here, got {gpus:g}: "
            f"leave it at auto, or run on a cluster that has them"
        )
    slots, most = room(nodes, to_come, cpus, gpus)
    limit = resources.max_concurrent or max(1, slots, most)
    return Cluster(
        cpus_per_trial=cpus,
        gpus_per_trial=gpus,
        slots=min(slots, limit),
        most=max(1, min(most, limit)),
        gpu_limit_mb=0.9 * gpu_mb * gpus if gpu_mb and gpus < 1 else None,
        needs=_in_words(cpus, gpus),
        why=why,
        parts=parts,
        is_own=is_own,
    )


def room(nodes: Sequence[Mapping[str, Any]], to_come: Mapping[str, float], cpus: int, gpus: float) -> tuple[int, int]:
    """How many trials fit on these nodes now, and once the autoscaler has started all it may.

    nodes: as ray.nodes() gives them. to_come: nodes, and CPU and GPU of each, where that is known.
    Raises BadInput where a trial would wait for ever.
    """
    slots = sum(trials_that_fit(node["Resources"], cpus, gpus) for node in nodes)
    most = max(slots, int(to_come.get("nodes", 0)) * trials_that_fit(to_come, cpus, gpus))
    if not most and (to_come or not any(_NODE_GROUP in node["Labels"] for node in nodes)):
        each = [*(node["Resources"] for node in nodes), to_come]
        has = max(each, key=lambda has: (has.get("CPU", 0), has.get("GPU", 0)))
        raise BadInput(
            f"a trial must find a node with {_in_words(cpus, gpus)}, and the largest of this cluster has "
            f"{_in_words(has.get('CPU', 0), has.get('GPU', 0))}: lower resources.cpus_per_trial or .gpus_per_trial, or "
            f"add a larger node"
        )
    return slots, most


def _in_words(cpus: float, gpus: float) -> str:
    return plural(int(cpus), "CPU") + (f" and {plural(math.ceil(gpus), 'GPU')}" if gpus else "")


def this_node() -> dict[str, Any]:
    """What Ray knows of the node that this process runs on."""
    here = ray.get_runtime_context().get_node_id()
    found: dict[str, Any] = next(node for node in ray.nodes() if node["NodeID"] == here)
    return found


def trials_that_fit(has: Mapping[str, float], cpus: int, gpus: float) -> int:
    """How many trials, of so many CPUs and GPUs each, fit into these resources, which Ray names CPU and GPU."""
    by_cpus = has.get("CPU", 0) // cpus
    return int(min(by_cpus, has.get("GPU", 0) / gpus) if gpus else by_cpus)


def _gpu_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]


def _trials_per_gpu_by_cpus(to_come: Mapping[str, float], cpus: int) -> int:
    """How many trials a node's CPUs allow for each of its GPUs, on the node where that is fewest; at least 1."""
    nodes = [node["Resources"] for node in _gpu_nodes()] or [to_come]
    return max(1, min(int(has.get("CPU", 0) // cpus / has["GPU"]) for has in nodes))


def _gpu_memory_mb(to_come: Mapping[str, float]) -> float | None:
    """Memory of the smallest GPU there is, or of those to come where there is none; None where some node cannot say."""

    def memories_mb() -> list[float]:  # in here, so that Ray sends its code and the node need not import this file
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        try:
            return [float(line) for line in subprocess.run(query, capture_output=True, check=True).stdout.split()]
        except (OSError, subprocess.CalledProcessError, ValueError):
            return []

    answers = [
        ray.remote(memories_mb)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in _gpu_nodes()
    ]
    if not answers:
        return to_come.get("GPU MB")
    memories = ray.get(answers)
    return min((mb for node in memories for mb in node), default=None) if all(memories) else None


def _workers_to_come() -> dict[str, float]:
    """What the autoscaler may start, if the head's Ray labels say so: nodes, CPU and GPU of each, and MB of each GPU.

    Ray tells a driver only of the nodes that are there, and there may be none yet.
    """
    labels = {k: v for node in ray.nodes() if node["Alive"] for k, v in node["Labels"].items()}
    names = {"nodes": "worker-nodes", "CPU": "worker-cpus", "GPU": "worker-gpus", "GPU MB": "worker-gpu-mb"}
    return {name: float(labels[label]) for name, label in names.items() if labels.get(label, "").isdigit()}


def _unusable_accelerators(has: Mapping[str, float], gpus: float, is_auto: bool) -> str:
    """Accelerators that a trial would get, or on auto should get, and TensorFlow cannot use. Named as Ray does."""
    kinds: tuple[str, ...] = ()
    if gpus:
        kinds = ("accelerator_type:AMD-", "accelerator_type:Intel-")
    elif is_auto:
        kinds = ("TPU", "HPU", "NPU", "neuron_cores")
    return ", ".join(sorted(name.removeprefix("accelerator_type:") for name in has if name.startswith(kinds)))
