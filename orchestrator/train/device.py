"""Device: what this worker process may take of its machine, what it trains on, and how much memory it holds."""

import contextlib
import gc
import os
import platform
import resource

import tensorflow as tf

from orchestrator.errors import BadInput

_RESIDENT_BYTES = 2 * 10**9  # images or features up to this size are kept on a GPU, if there is one
_GROWTH_MB = 2000.0
_held_mb: list[float] = []  # at the start of each trial in this process


def use_device(threads: int, gpu_limit_mb: float | None = None) -> None:
    """Say what this process may take. To be called before TensorFlow's first operation; later calls change nothing.

    threads: CPU threads inside an operation, at least 1. gpu_limit_mb: the most GPU memory to hold, in MiB; None: as
    much as there is. Either way it is taken as it is needed.
    """
    if tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for gpu in tf.config.list_physical_devices("GPU"):
        if gpu_limit_mb is None:
            tf.config.experimental.set_memory_growth(gpu, True)
        else:  # it grows up to the limit because the process has TF_FORCE_GPU_ALLOW_GROWTH
            limit = tf.config.LogicalDeviceConfiguration(memory_limit=int(gpu_limit_mb))
            tf.config.set_logical_device_configuration(gpu, [limit])
    gc.freeze()  # the imported modules stay, so no garbage collection needs to look through them


def check_gpu() -> None:
    """Raises BadInput where Ray gives this process a GPU and TensorFlow sees none."""
    if not tf.config.list_physical_devices("GPU"):
        raise BadInput(
            f"the GPU that Ray counts on {platform.node()} must be an NVIDIA one that TensorFlow can use, and it sees "
            f"none: install the package as .[gpu] and a current NVIDIA driver there, or train on the CPUs with "
            f"--set resources.gpus_per_trial=0"
        )


def device_name() -> str:
    """The model of the GPU that this process trains on, or `cpu`."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "cpu"
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"))


def gpu_with_room(size_bytes: int) -> str | None:
    """The GPU's name in TensorFlow where there is one and so many bytes of images may stay on it; otherwise None."""
    return "GPU:0" if tf.config.list_logical_devices("GPU") and size_bytes <= _RESIDENT_BYTES else None


def has_grown() -> bool:
    """Whether this process holds over 2 GB more than after its first trial, so that a fresh one should take over.

    Call it once at the start of each trial. Always False where the system does not say what a process holds.
    """
    _held_mb.append(_status_mb("RssAnon") or 0.0)
    return len(_held_mb) > 2 and _held_mb[-1] > _held_mb[1] + _GROWTH_MB


def reset_peak_memory() -> None:
    """Make `peak_memory_mb` count from now on, where the system allows it; elsewhere it counts from the start."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_memory_mb() -> float:
    """The most memory that this process has held, in MiB."""
    if (peak_mb := _status_mb("VmHWM")) is not None:
        return peak_mb
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if os.uname().sysname == "Darwin" else 2**10)


def _status_mb(field: str) -> float | None:
    """A field of what the kernel says of this process; None where it is not Linux."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024
    except (OSError, StopIteration):
        return None
