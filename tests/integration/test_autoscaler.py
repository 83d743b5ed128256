"""The autoscaler for real: Ray's own, with nodes that are processes here. From no worker to three and back to none."""

import contextlib
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from cluster import HEAD_ID, RAY, Head, head
from waiting import eventually

WORKERS = {
    "resources": {"CPU": 1},
    "labels": {"node-type": "c5.xlarge"},
    "node_config": {},
    "min_workers": 0,
    "max_workers": 3,
}
GRID = ("grid={batch_size: [64, 96, 128, 160], epochs: [2]}", "seeds=[0, 1, 2]", "train.checkpoint_every_s=0.5")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Path]]:
    """A head that runs no trial, and leave to start three workers."""
    folder = tmp_path_factory.mktemp("a")  # short: Ray keeps sockets there, whose paths are limited to 107 characters
    labels = {"worker-nodes": "3", "worker-cpus": "1", "worker-gpus": "0"}
    with head(folder, cpus=0, labels=labels, node_types={"cpu.worker": WORKERS}) as server:
        yield server, folder


def workers(server: Head) -> int:
    """How many nodes are there besides the head."""
    request = urllib.request.Request(
        f"{server.address}/nodes?view=summary", headers={"Authorization": f"Bearer {server.token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        summary = json.load(answer)["data"]["summary"]
    return sum(node["raylet"].get("state") == "ALIVE" and not node["raylet"].get("isHeadNode") for node in summary)


def kill_a_worker_node(folder: Path) -> None:
    """As a spot machine goes: its raylet at once, and with it all that runs there."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line, env = (process / "cmdline").read_text(), (process / "environ").read_text()
            mine = line.partition("\0")[0].endswith("/raylet") and str(folder) in line
            if mine and f"NODE_ID_FOR_TESTING={HEAD_ID}" not in env:
                os.kill(int(process.name), signal.SIGKILL)
                return
    raise AssertionError("there is no worker node to kill")


@pytest.mark.long
def test_a_grid_from_no_worker_to_three_and_back_with_one_lost_on_the_way(cluster: tuple[Head, Path]) -> None:
    """Twelve trials: nodes come as trials wait, one is lost in mid-trial, the board is complete, and the nodes go."""
    server, folder = cluster
    assert workers(server) == 0
    line = [RAY, "job", "submit", "--", "python", "-m", "orchestrator.grid", "--output", str(folder / "runs")]
    line += [word for setting in GRID for word in ("--set", setting)]
    most, killed, out = 0, False, []
    with subprocess.Popen(
        line,
        cwd=folder,
        env={**os.environ, **server.env()},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as job:
        for text in job.stdout:
            out.append(text)
            if text.startswith("epoch"):
                most = max(most, workers(server))
            if text.startswith("epoch 1/") and most == 3 and not killed:
                kill_a_worker_node(folder)
                killed = True
        assert job.wait(60) == 0, "".join(out)
    log = "".join(out)
    assert "12 trials of 12 to train, up to 3 at once as nodes join" in log
    assert most == 3
    assert killed
    board, history = (pd.read_parquet(folder / "runs" / "shirts" / f"{t}.parquet") for t in ("leaderboard", "history"))
    assert board.status.tolist() == ["ok"] * 12
    assert board.point_id.is_unique
    worker_s = history.groupby("trial_id")[["train_s", "validate_s"]].sum().sum(axis=1)
    assert board.cost_usd.tolist() == pytest.approx([worker_s[trial] * 0.17 / 3600 for trial in board.trial_id])
    eventually(lambda: workers(server) == 0, 60)
