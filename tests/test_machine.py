"""machine: the CPUs and the memory that were granted, not those of the host."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import machine
from orchestrator.cluster import own_ray
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Resources

GB = 10**9
# what /proc/self/cgroup says, and the files below /sys/fs/cgroup: -> share of the host's cores, and GB
GRANTED = {
    "nothing": ("0::/\n", {}, None, 64.0),
    "version 2, in a container": (
        "0::/\n",
        {
            "cpu.max": "150000 100000",
            "memory.max": str(4 * GB),
            "memory.current": str(3 * GB),
            "memory.stat": f"anon 1\ninactive_file {GB // 2}\n",
        },
        2,
        1.0 + 0.5,  # the cache of files can be had back
    ),
    "version 2, no limits": ("0::/job\n", {"job/cpu.max": "max 100000", "job/memory.max": "max"}, None, 64.0),
    "version 2, a group around it": (
        "0::/user/job\n",
        {"user/cpu.max": "100000 100000", "user/job/cpu.max": "max 100000", "user/job/memory.max": "max"},
        1,
        64.0,
    ),
    "version 1, in a container that is told its path on the host": (
        "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n",
        {
            "cpu,cpuacct/cpu.cfs_quota_us": "50000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": str(2 * GB),
            "memory/memory.usage_in_bytes": str(GB),
            "memory/memory.stat": f"cache 1\ntotal_inactive_file {GB // 2}\n",
        },
        1,
        1.5,
    ),
    "version 1, no limits": (
        "4:memory:/\n3:cpu,cpuacct:/\n",
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "memory/memory.limit_in_bytes": str(2**63)},
        None,
        64.0,
    ),
}


@pytest.mark.parametrize(("cgroup", "files", "cores", "free_gb"), GRANTED.values(), ids=GRANTED)
def test_what_control_groups_grant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, files: dict[str, str], cores: int, free_gb: float
) -> None:
    """Of a host with 8 cores and 64 GB available."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(cgroup)
    (proc / "meminfo").write_text(f"MemTotal: {GB // 10} kB\nMemAvailable: {64 * GB // 1024} kB\n")
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    assert machine.cpus(proc, groups) == (cores or 8)
    assert machine.free_mb(proc, groups) / 1000 == pytest.approx(free_gb, rel=0.001)


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 clflushopt\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        (None, False),  # not on Linux
    ],
)
def test_which_cpus_are_quick_at_bfloat16(tmp_path: Path, cpuinfo: str | None, has: bool) -> None:
    """The others imitate it: a calibration that nobody waits for."""
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert machine.has_bfloat16(tmp_path) is has
    assert machine.has_amx(tmp_path) is (cpuinfo is not None and "amx_bf16" in cpuinfo)


def test_an_nvidia_driver_names_its_gpus(tmp_path: Path) -> None:
    """None where there is no driver, or no GPU."""
    assert not machine.has_gpu(tmp_path)
    (tmp_path / "driver" / "nvidia" / "gpus" / "0000:00:1e.0").mkdir(parents=True)
    assert machine.has_gpu(tmp_path)


def test_a_bound_process_has_the_cores_that_it_is_bound_to() -> None:
    """As `taskset -c 0` binds it, and batch systems do."""
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from orchestrator import machine; print(machine.cpus())"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"1\n"


@pytest.mark.parametrize(
    ("resources", "free_gb", "slots", "says"),
    [
        ({}, 1000, 64, ""),
        ({}, 16, 10, " (its cores would do for 64, but each takes up to 1.5 GB, of 16.0 free)"),
        ({"max_concurrent": 8}, 16, 10, ""),
        ({"cpus_per_trial": 32}, 16, 2, ""),
        ({"cpus_per_trial": 100}, 0.5, 1, ""),
    ],
)
def test_how_many_run_at_once_here(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, int], free_gb: float, slots: int, says: str
) -> None:
    """On 64 cores: no more than fit into its memory, and at least one; it says so where it is fewer than wanted."""
    monkeypatch.setattr(machine, "cpus", lambda: 64)
    monkeypatch.setattr(machine, "free_mb", lambda: free_gb * 1000)
    assert own_ray.share(Resources(**resources), 1500) == (slots, says)


def test_where_the_files_of_ray_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TMPDIR says, unless that is too long for sockets, or takes no files; and if nowhere, one line."""
    (long := tmp_path / ("a" * 60)).mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    for name, value, expected in (
        ("TMPDIR", "/var/tmp", "/var/tmp/ray"),
        ("TMPDIR", str(long), "/tmp/ray"),
        ("TMPDIR", "/proc", "/tmp/ray"),
        ("RAY_TMPDIR", "/dev/shm", "/dev/shm/ray"),
    ):
        monkeypatch.setenv(name, value)
        assert own_ray.settings(1)["_temp_dir"] == expected
    monkeypatch.setattr(own_ray, "_takes_files", lambda _: False)
    with pytest.raises(BadInput, match="TMPDIR must be a folder that can be written"):
        own_ray.settings(1)
