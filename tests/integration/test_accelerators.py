"""Accelerators that TensorFlow cannot use: one clear line before anything is written, not a slow run on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import head


@pytest.mark.parametrize(
    ("counted", "says"),
    [
        ('{"GPU": 1, "accelerator_type:AMD-Instinct-MI300X": 1}', "got AMD-Instinct-MI300X: use nodes with those"),
        ('{"GPU": 1}', "TensorFlow can use, and it sees none: install the package as .[gpu]"),
    ],
    ids=["another maker's", "without its driver"],
)
def test_a_gpu_that_tensorflow_cannot_use_is_refused(counted: str, says: str, tmp_path: Path) -> None:
    """Ray is told of a GPU that is not there: exit status 2, one line with the way out, no run folder."""
    if Path("/dev/nvidia0").exists():
        pytest.skip("needs a machine without an NVIDIA GPU, where it would simply be used")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.grid", "--set", "grid={batch_size: [64], epochs: [1]}"],
        cwd=tmp_path,
        env={**os.environ, "RAY_OVERRIDE_RESOURCES": counted},
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "--set resources.gpus_per_trial=0" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


SHARE = """
import os, ray
from orchestrator.cluster.connect import connect
from orchestrator.spec.sections import Resources

class Slot:
    def gpu(self):
        return os.environ["CUDA_VISIBLE_DEVICES"]

with connect(Resources(gpus_per_trial=GPUS), trial_mb=2500) as cluster:
    print(round(1 / cluster.gpus_per_trial), cluster.slots, cluster.most, round(cluster.gpu_limit_mb))
    slot = ray.remote(Slot).options(num_cpus=cluster.cpus_per_trial, num_gpus=cluster.gpus_per_trial)
    slots = [slot.remote() for _ in range(cluster.slots)]
    print(*sorted(ray.get([each.gpu.remote() for each in slots])))
"""


def share(env: dict[str, str], gpus: str = "'auto'") -> list[str]:
    """How many trials share a GPU, how many run now and at most, what each may hold; and the GPU of each that runs."""
    done = subprocess.run(
        [sys.executable, "-c", SHARE.replace("GPUS", gpus)],
        env={**os.environ, **env},
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("cpus", "gpus", "told", "running"),
    [
        pytest.param(16, "'auto'", "5 10 10 2765", "0 0 0 0 0 1 1 1 1 1", id="as many as fit the smaller GPU"),
        pytest.param(5, "'auto'", "2 4 4 6912", "0 0 1 1", id="no more than the CPUs can feed"),
        pytest.param(16, "0.5", "2 4 4 6912", "0 0 1 1", id="as the person says"),
    ],
)
def test_trials_share_a_gpu(cpus: int, gpus: str, told: str, running: str, tmp_path: Path) -> None:
    """Ray is told of 2 GPUs and a driver says what they hold: each takes its trials at the same time, with a limit."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 16384; echo 15360\n")
    driver.chmod(0o755)
    env = {
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": cpus, "GPU": 2}),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    assert share(env, gpus) == [told, running]


def test_trials_share_gpus_that_are_still_to_come(short: Path) -> None:
    """The head's labels say what they hold, while no node is there."""
    labels = {"worker-nodes": "3", "worker-cpus": "4", "worker-gpus": "1", "worker-gpu-mb": "15000"}
    with head(short, cpus=0, labels=labels) as server:
        assert share({**server.env(), "RAY_ADDRESS": server.gcs}) == ["4 0 12 3375", ""]
