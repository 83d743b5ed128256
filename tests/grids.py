"""The grid command as a user starts it, outside any checkout, and what it leaves in the run folder."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator.grid", *args]


def grid(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(command(*args), cwd=cwd, text=True, capture_output=True, timeout=300, check=False)


def board(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "leaderboard.parquet")


def results(run: Path) -> dict[str, int]:
    """Result files and when each was written: a trial that is trained twice would change one."""
    return {path.name: path.stat().st_mtime_ns for path in (run / "trials").glob("*.json")}


def digests(run: Path, trial_id: str, epochs: int | None = None) -> dict[str, str]:
    """Epochs -> digest of the weights that the trial had then. epochs: of the result; None: of its longest."""
    paths = (run / "trials").glob(f"{trial_id}-{epochs or '*'}.json")
    return max((json.loads(path.read_text()) for path in paths), key=lambda result: result["epochs"])["digests"]


def assert_the_winner_is_there(run: Path) -> None:
    """models/ holds the model of the first row alone, with the weights that its trial had."""
    first = board(run).iloc[0]
    facts = json.loads((run / "models" / "best.json").read_text())
    assert facts["point_id"] == first.point_id
    assert facts["metrics"]["val_accuracy"] == first.val_accuracy
    assert facts["weights"] == digests(run, first.trial_id)[str(facts["epochs"])]
    files = {str(path.relative_to(run / "models")) for path in (run / "models").rglob("*") if path.is_file()}
    assert files == {"best.json", "best.keras", "best-validation.parquet"}
