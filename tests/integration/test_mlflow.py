"""MLflow: a real server on loopback, with a store of its own, has one run for each point, once."""

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as Logged
from seaweedfs import free_ports
from waiting import eventually

from orchestrator.errors import BadInput
from orchestrator.tracking.mlflow import WINNER, check_server

GRID = "grid={batch_size: [32, 64], epochs: [1, 2]}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server with its own sqlite file and artifacts."""
    folder = tmp_path_factory.mktemp("mlflow")
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    places = ["--backend-store-uri", "sqlite:///store.db", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *places, "--host", "127.0.0.1", "--port", str(port)]
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (
        (folder / "log").open("w+") as log,
        subprocess.Popen(
            [*command, "--workers", "1"], cwd=folder, env=env, text=True, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            eventually(lambda: answers(address) or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            yield address
        finally:
            process.terminate()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
            return response.read() == b"OK"
    except OSError:
        return False


@pytest.fixture(scope="module")
def cwd(shirts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run in it, to be written."""
    cwd = tmp_path_factory.mktemp("logged")
    shutil.copytree(shirts, cwd / "runs" / "shirts")
    return cwd


def log(cwd: Path, server: str) -> str:
    """What the grid command, which finds nothing to train, says of MLflow."""
    command = [sys.executable, "-m", "orchestrator.grid", "--set", GRID, "--mlflow", server]
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()[-1]


def logged(server: str) -> dict[str, Logged]:
    """Point -> its MLflow run; no point has two."""
    client = MlflowClient(server)
    runs = client.search_runs([client.get_experiment_by_name("shirts").experiment_id])
    found = {run.data.tags["orchestrator.point"]: run for run in runs}
    assert len(found) == len(runs)
    return found


def test_every_point_is_one_run_with_its_figures_and_the_winner_has_its_model(cwd: Path, server: str) -> None:
    """Parameters, a metric for each epoch, the files of models/best; and nothing twice when the command runs again."""
    assert log(cwd, server) == f"mlflow: 4 points logged to experiment shirts at {server}"
    run = cwd / "runs" / "shirts"
    board, history = pd.read_parquet(run / "leaderboard.parquet"), pd.read_parquet(run / "history.parquet")
    runs, client = logged(server), MlflowClient(server)
    assert set(runs) == set(board.point_id)
    for row in board.itertuples():
        found = runs[row.point_id]
        assert found.info.status == "FINISHED"
        assert found.info.run_name == f"batch_size={row.batch_size} epochs={row.epochs}"
        wanted = {"batch_size": row.batch_size, "epochs": row.epochs, "seed": 0, "data.image_size": "28x28"}
        assert {name: found.data.params[name] for name in wanted} == {k: str(v) for k, v in wanted.items()}
        curve = history[(history.trial_id == row.trial_id) & (history.epoch <= row.epochs)].sort_values("epoch")
        values = client.get_metric_history(found.info.run_id, "val_accuracy")
        assert [(each.step, each.value) for each in values] == list(zip(curve.epoch, curve.val_accuracy, strict=True))
    best = runs[board.point_id[0]]
    assert [point for point, each in runs.items() if WINNER in each.data.tags] == [board.point_id[0]]
    files = {Path(file.path).name: file for file in client.list_artifacts(best.info.run_id, "model")}
    assert set(files) == {"best.keras", "best.json", "best-validation.parquet"}
    assert files["best.keras"].file_size == (run / "models" / "best.keras").stat().st_size

    assert log(cwd, server) == f"mlflow: 0 points logged to experiment shirts at {server}"
    assert {point: each.info.run_id for point, each in logged(server).items()} == {
        point: each.info.run_id for point, each in runs.items()
    }


def test_a_point_half_logged_is_logged_anew(cwd: Path, server: str) -> None:
    """As when the command was killed while it logged."""
    log(cwd, server)
    before = logged(server)
    lost = next(iter(before))
    client = MlflowClient(server)
    client.update_run(before[lost].info.run_id, status="RUNNING")
    assert log(cwd, server) == f"mlflow: 1 point logged to experiment shirts at {server}"
    after = logged(server)
    assert {point for point in before if after[point].info.run_id != before[point].info.run_id} == {lost}
    assert after[lost].data.metrics == before[lost].data.metrics


def test_where_nobody_answers_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and exit status 2, before anything is written; without the package, how to get it."""
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.grid", "--mlflow", address],
            cwd=tmp_path,
            env=os.environ | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"},
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: --mlflow must be the address of an MLflow server that answers, got http://127"
    )
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(BadInput, match="needs the package mlflow-skinny, which is not installed: pip install"):
        check_server(address)
