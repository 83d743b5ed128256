"""`ray job submit` on a real head with token authentication."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from cluster import RAY, Head, submit


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
