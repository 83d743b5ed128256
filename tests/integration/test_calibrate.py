"""Calibration: one command measures this machine, and --plan forecasts with what it found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(module: str, *args: str, cwd: Path) -> str:
    env = {**os.environ, "ORCHESTRATOR_CACHE_DIR": str(cwd / "cache")}
    command = [sys.executable, "-m", f"orchestrator.{module}", *args]
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.mark.long
def test_what_is_measured_is_what_plans_go_by(tmp_path: Path) -> None:
    """A first guess before, what was measured after; larger batches are never slower."""
    assert "a first guess" in run("grid", "--plan", cwd=tmp_path)
    told = run("calibrate", "--precisions", "float32", cwd=tmp_path)
    rates = [int(line.split()[2]) for line in told.splitlines() if line.startswith("float32")]
    assert len(rates) >= 2
    assert min(rates) > 10
    assert "images/s into a node's cache" in told
    assert "measured for small_cnn on cpu" in run("grid", "--plan", cwd=tmp_path)


def test_a_file_of_another_kind_is_not_written_over(tmp_path: Path) -> None:
    """The cache folder may be anybody's: it is said before anything is measured."""
    theirs = tmp_path / "calibration.json"
    theirs.write_text('{"camera": 3}')
    env = {**os.environ, "ORCHESTRATOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "orchestrator.calibrate"]
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {theirs} must be a calibration, and is another file: move it")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"calibration.json": '{"camera": 3}'}
