"""Run folders of version 0.1.0: they open, and go on without training anything twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import orchestrator

RECORDED = Path(__file__).parent / "older_runs" / "0.1.0"
IMAGES = Path(orchestrator.__file__).parent / "data" / "sample" / "shirts" / "train.parquet"
TOUCHED_NS = 1_700_000_000 * 10**9


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A folder as it was left: two specs, the images, and runs/finished and runs/half."""
    shutil.copytree(RECORDED, tmp_path / "runs")
    for spec in (tmp_path / "runs").glob("*.yaml"):
        spec.rename(tmp_path / spec.name)
    (tmp_path / "shirts").mkdir()
    shutil.copyfile(IMAGES, tmp_path / "shirts" / "train.parquet")
    os.utime(tmp_path / "shirts" / "train.parquet", ns=(TOUCHED_NS, TOUCHED_NS))
    return tmp_path


def run(cwd: Path, command: str, *args: str) -> str:
    """What a command that ends well prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"orchestrator.{command}", *args], cwd=cwd, text=True, capture_output=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def results(cwd: Path, name: str) -> dict[str, dict]:
    """Trial and epochs -> the result, as it is in the run folder."""
    return {path.stem: json.loads(path.read_text()) for path in (cwd / "runs" / name / "trials").glob("*.json")}


def test_a_finished_run_is_read(cwd: Path) -> None:
    """Plan, leaderboard, report and predictions, all without training."""
    plan = json.loads(run(cwd, "grid", "finished.yaml", "--plan", "--json"))
    assert plan["standing"] == {"done": 4, "missing": 0, "new": 0}
    rows = json.loads(run(cwd, "leaderboard", "runs/finished", "--json"))["rows"]
    assert [(row["rank"], row["val_accuracy"]) for row in rows] == [
        (1, 0.8375),
        (2, 0.8375),
        (3, 0.825),
        (4, 0.8208333333333333),
    ]
    assert "val_accuracy" in run(cwd, "leaderboard", "runs/finished", "--effects")
    assert run(cwd, "report", "runs/finished").strip().endswith("report.html")
    (cwd / "a.png").write_bytes(pq.read_table(cwd / "shirts" / "train.parquet")["image"][0]["bytes"].as_py())
    (row,) = json.loads(run(cwd, "predict", "runs/finished", "a.png", "--json"))["images"]
    assert row["class"] in ("shirt", "t-shirt")


def test_a_metric_that_nobody_recorded_then_cannot_rank(cwd: Path) -> None:
    """One line says which, and how to go on; also where a newer run is compared with it."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.grid", "finished.yaml", "--plan", "--set", "metric=val_f1"],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "error: metric val_f1 must be recorded in every result, and 2 of 2 trials in " in done.stderr
    assert "--set metric=val_accuracy, or train them anew under another --name" in done.stderr


@pytest.mark.slow
def test_a_finished_run_grows(cwd: Path) -> None:
    """The same command trains nothing; one more epoch goes on from the checkpoints, after the epochs that are there."""
    before = results(cwd, "finished")
    recorded = pq.read_table(cwd / "runs" / "finished" / "leaderboard.parquet")
    run(cwd, "grid", "finished.yaml")
    assert results(cwd, "finished") == before
    board = pq.read_table(cwd / "runs" / "finished" / "leaderboard.parquet")
    assert board.select(recorded.column_names).equals(recorded)
    assert board["score"].to_pylist() == recorded["val_accuracy"].to_pylist()  # of two epochs the last fifth is one
    run(cwd, "grid", "finished.yaml", "--set", "grid.epochs=[1, 2, 3]")
    after = results(cwd, "finished")
    assert {name: after[name] for name in before} == before
    for name, old in before.items():
        new = after[f"{name.removesuffix('-2')}-3"]
        assert [epoch["train_s"] for epoch in new["history"][:2]] == [epoch["train_s"] for epoch in old["history"]]
        assert new["digests"].items() >= old["digests"].items()
    assert pq.read_table(cwd / "runs" / "finished" / "leaderboard.parquet").num_rows == 6


@pytest.mark.slow
def test_a_half_done_run_goes_on(cwd: Path) -> None:
    """The finished trial is left alone; the other one goes on in its 14th epoch and is done after 40."""
    before = results(cwd, "half")
    told = run(cwd, "grid", "half.yaml")
    assert "epoch 13/40" not in told
    assert "epoch 14/40" in told
    after = results(cwd, "half")
    assert {name: after[name] for name in before} == before
    (added,) = (after[name] for name in after.keys() - before.keys())
    first, later = added["history"][:13], added["history"][13:]
    assert [epoch["epoch"] for epoch in (*first, *later)] == list(range(1, 41))
    assert all("val_objective" not in epoch["metrics"] for epoch in first)
    assert all(epoch["metrics"]["val_objective"] > epoch["metrics"]["val_loss"] for epoch in later)
    statuses = pq.read_table(cwd / "runs" / "half" / "leaderboard.parquet")["status"].to_pylist()
    assert statuses == ["ok", "ok"]
