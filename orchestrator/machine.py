"""Machine: how many CPUs and how much memory this process may use, whatever confines it: taskset, a container, a job.

And what these CPUs are quick at.

Pure, but for reading /proc and /sys.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cpus(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """The cores that it may run on, and no more than its quota, rounded up; at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.inf]
    for folder in _control_groups("cpu", proc, groups):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or no limit
            if (file := folder / "cpu.max").exists():
                quota, period = file.read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                quotas.append(int(quota) / int(period))
    return max(1, min(bound, math.ceil(q) if (q := min(quotas)) < bound else bound))


def free_mb(proc: Path = _PROC, groups: Path = _GROUPS) -> float:
    """Memory in MB that it may still take; infinite where nobody knows."""
    free = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        free.append(_figures(proc / "meminfo")["MemAvailable:"] * 1024)
    for folder in _control_groups("memory", proc, groups):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with contextlib.suppress(OSError, ValueError):
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
                free.append(most - taken + _figures(folder / "memory.stat").get(cache, 0))
    return max(0.0, min(free)) / 1e6


def has_bfloat16(proc: Path = _PROC) -> bool:
    """Whether its CPUs multiply bfloat16 themselves; where they do not, it takes many times as long as float32."""
    return bool(_cpu_words(proc) & {"amx_bf16", "avx512_bf16", "bf16"})


def has_amx(proc: Path = _PROC) -> bool:
    """Whether its CPUs have a unit that multiplies matrices of bfloat16."""
    return "amx_bf16" in _cpu_words(proc)


def has_gpu(proc: Path = _PROC) -> bool:
    """Whether there is an NVIDIA GPU."""
    return any((proc / "driver" / "nvidia" / "gpus").glob("*"))


def _cpu_words(proc: Path) -> set[str]:
    """All words that /proc says of the CPUs; none where it says nothing."""
    try:
        return set((proc / "cpuinfo").read_text().split())
    except OSError:
        return set()


def _control_groups(controller: str, proc: Path, groups: Path) -> Iterator[Path]:
    """The folders of the control groups, of version 1 or 2, that this process is in: its own, and those around it.

    In a container, the path of its own group may be that of the host: then only the outermost folder is there.
    """
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if names and controller not in names.split(","):
                continue
            root = groups / names if names and (groups / names).is_dir() else groups / (controller if names else "")
            folder = root / path.strip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(root) and each.is_dir())


def _figures(file: Path) -> dict[str, int]:
    """The first two words of each line."""
    return {line.split()[0]: int(line.split()[1]) for line in file.read_text().splitlines()}
