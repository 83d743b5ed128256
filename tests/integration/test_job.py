"""`ray job submit` on a real head with token authentication."""

import json
import os
import signal
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


def submitted(working_dir: Path, *args: str) -> list[str]:
    """`python -m orchestrator.submit` on a spec beside the package."""
    (working_dir / "small.yaml").write_text(
        'name: small\ndata: {uri: "sample://shirts", image_size: 28}\ngrid: {batch_size: [64]}\ntrain: {epochs: 1}\n'
    )
    return [sys.executable, "-m", "orchestrator.submit", "small.yaml", *args]


def test_a_spec_is_submitted_and_its_exit_status_comes_back(ray_head: Head, working_dir: Path, tmp_path: Path) -> None:
    """The grid's own status: 3 when the budget is used up, 2 for what cannot be read there."""
    env = {**os.environ, **ray_head.env()}
    for status, says, more in (
        (3, "the budget is used up (budget.max_hours 1e-06): 1 of 1 point not trained", ("budget.max_hours=1e-6",)),
        (2, "must be a folder; there is none", ("data.uri=/nowhere",)),
    ):
        line = submitted(working_dir, "--output", str(tmp_path / f"runs{status}"))
        line += [word for setting in more for word in ("--set", setting)]
        done = subprocess.run(line, cwd=working_dir, env=env, text=True, capture_output=True, timeout=300, check=False)
        assert (done.returncode, says in done.stdout + done.stderr) == (status, True), done.stdout + done.stderr
        assert ray_head.token not in done.stdout + done.stderr


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(
    ray_head: Head, working_dir: Path, tmp_path: Path
) -> None:
    """It goes on; the line that stops it works, and what it had trained is kept."""
    env = {**os.environ, **ray_head.env()}
    line = submitted(working_dir, "--output", str(tmp_path / "runs"), "--set", "train.epochs=2000")
    with subprocess.Popen(
        line, cwd=working_dir, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as us:
        next(text for text in us.stdout if text.startswith("epoch 2/"))
        us.send_signal(signal.SIGINT)
        assert us.wait(30) == 130
        told = us.stderr.read()
    ways = dict(text.split(None, 1) for text in told.splitlines() if text.startswith(("  come", "  stop")))
    stop = ways["stop"].split()
    status = subprocess.run(
        [RAY, "job", "status", *stop[3:]], env=env, text=True, capture_output=True, timeout=60, check=True
    )
    assert "RUNNING" in status.stdout + status.stderr
    assert "goes on without you" in told
    subprocess.run([RAY, *stop[1:]], env=env, text=True, capture_output=True, timeout=120, check=True)
    run = tmp_path / "runs" / "small"
    assert (run / "leaderboard.parquet").exists()
    assert not (run / "owner.json").exists(), "it ended in order"


def test_what_only_this_machine_has_is_refused_before_anything_is_sent(working_dir: Path) -> None:
    """One line, exit status 2: no cluster, a spec elsewhere, a folder of this machine as data or output."""
    address = ("--address", "http://127.0.0.1:1")
    for says, args in (
        ("--address must be the cluster's dashboard", ("--output", "s3://bucket/runs")),
        ("output must be a bucket, or a full path", address),
        ("data.uri must be a bucket, or a full path", (*address, "--data", "pets", "--output", "s3://bucket/runs")),
        ("train.epochs must be a whole number of at least 1, got 0", (*address, "--set", "train.epochs=0")),
    ):
        env = {name: value for name, value in os.environ.items() if name != "RAY_API_SERVER_ADDRESS"}
        done = subprocess.run(
            submitted(working_dir, *args), cwd=working_dir, env=env, text=True, capture_output=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {says}")
        assert done.stderr.count("\n") == 1
