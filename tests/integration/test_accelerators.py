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
