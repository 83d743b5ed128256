"""`ray job submit` on a real head with token authentication."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import RAY, Head, head

ROOT = Path(__file__).parents[2]
GRID = "grid={batch_size: [32, 64], epochs: [1]}"


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    # a short folder: Ray keeps sockets there, whose paths are limited to 107 characters
    folder = tmp_path_factory.mktemp("h")
    with head(folder) as server:
        yield server


@pytest.fixture
def working_dir(tmp_path: Path) -> Path:
    """What a user would send: the package, and a spec beside it."""
    files = subprocess.run(["git", "ls-files", "orchestrator"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        target = tmp_path / "job" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return tmp_path / "job"


def submit(server: Head, working_dir: Path, *args: str) -> subprocess.CompletedProcess[str]:
    line = [RAY, "job", "submit", "--working-dir", ".", "--", "python", "-m", "orchestrator.grid", *args]
    env = {**os.environ, **server.env()}
    return subprocess.run(line, cwd=working_dir, env=env, text=True, capture_output=True, timeout=300, check=False)


def test_a_job_trains_a_grid_once(ray_head: Head, working_dir: Path, tmp_path: Path) -> None:
    """Submitted, followed to its end, read, and submitted again: nothing is trained twice."""
    args = ("--set", GRID, "--output", str(tmp_path / "runs"))
    first = submit(ray_head, working_dir, *args)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 of 2 points ok" in first.stdout
    run = tmp_path / "runs" / "shirts"
    shown = subprocess.run(
        [sys.executable, "-m", "orchestrator.leaderboard", str(run), "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [row["status"] for row in json.loads(shown.stdout)] == ["ok", "ok"]
    before = {path.name: path.stat().st_mtime_ns for path in (run / "trials").iterdir()}
    second = submit(ray_head, working_dir, *args)
    assert second.returncode == 0, second.stdout + second.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (run / "trials").iterdir()} == before


def test_the_jobs_exit_status_is_ours(ray_head: Head, working_dir: Path, tmp_path: Path) -> None:
    """Bad input fails the job, and its one line is in the job's log."""
    refused = submit(ray_head, working_dir, "--set", "train.epochs=0", "--output", str(tmp_path / "runs"))
    assert refused.returncode == 1, "that is how `ray job submit` says that the job failed"
    assert "failed with exit code 2" in refused.stdout + refused.stderr
    assert "error: train.epochs must be" in refused.stdout + refused.stderr
    assert not (tmp_path / "runs").exists()


def test_a_stranger_is_refused(ray_head: Head, working_dir: Path) -> None:
    """Without the token, nobody submits."""
    stranger = submit(Head(ray_head.address, "0" * 32), working_dir, "--plan")
    assert stranger.returncode != 0
