"""Accelerators that TensorFlow cannot use: one clear line before anything is written, not a slow run on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


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


def test_trials_share_a_gpu_as_its_memory_allows(tmp_path: Path) -> None:
    """Ray is told of 2 GPUs and a driver says what they hold: each takes as many trials as fit the smaller one."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 16384; echo 15360\n")
    driver.chmod(0o755)
    asked = (
        "from orchestrator import fanout\nfrom orchestrator.spec import Resources\n"
        "with fanout.connect(Resources(), trial_mb=2500) as cluster:\n"
        "    print(round(1 / cluster.gpus_per_trial), cluster.slots, round(cluster.gpu_limit_mb))"
    )
    env = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 16, "GPU": 2}', "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", asked], env={**os.environ, **env}, text=True, capture_output=True, timeout=120
    )
    assert done.stdout.split() == ["5", "10", "2765"], done.stderr
