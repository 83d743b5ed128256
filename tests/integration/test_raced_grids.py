"""A race with real Ray and real workers: the same whatever dies, and what it stopped goes on as if it never had."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from grids import board, command, digests, grid

RACE = [
    *("--set", "grid={batch_size: [32, 64], dropout: [0.0, 0.2, 0.4, 0.6]}", "--set", "train.epochs=12"),
    *("--set", "race.share=0.1", "--name", "race", "--export-models", "none"),
]
SAME = ["point_id", "status", "score", "val_accuracy", "epochs_trained", "stopped_because"]


def facts(run: Path) -> pd.DataFrame:
    return board(run)[SAME].reset_index(drop=True)


def kill_at(line: str, cwd: Path) -> None:
    """Start the command, and kill its driver when it prints such a line."""
    with subprocess.Popen(command(*RACE, "--takeover"), cwd=cwd, text=True, stdout=subprocess.PIPE) as driver:
        for printed in driver.stdout:
            if printed.startswith(line):
                driver.kill()
                return
    raise AssertionError(f"it never said {line!r}")


@pytest.mark.long
def test_a_race_is_the_same_whatever_dies(tmp_path: Path) -> None:
    """With one worker, and with two whose driver dies after the first and the second rung: one board, one course.

    Then the race is called off: all that was stopped goes on, and ends with the weights that it has in a full grid.
    """
    alone, killed, whole = (tmp_path / name for name in ("alone", "killed", "whole"))
    for folder in (alone, killed, whole):
        folder.mkdir()
    done = grid(*RACE, "--set", "resources.max_concurrent=1", cwd=alone)
    assert done.returncode == 0, done.stderr
    stopped = board(alone / "runs/race").query("status == 'stopped'")
    assert set(stopped.epochs_trained) <= {4, 8}
    assert len(stopped) >= 4
    assert stopped.stopped_because.str.contains(" others were ahead| would have to gain ").all()
    assert "stopped: " in done.stdout

    kill_at("rung 4/12", killed)
    kill_at("rung 8/12", killed)
    assert grid(*RACE, "--takeover", cwd=killed).returncode == 0
    pd.testing.assert_frame_equal(facts(killed / "runs/race"), facts(alone / "runs/race"))
    courses = [json.loads((folder / "runs/race/race.json").read_text()) for folder in (alone, killed)]
    assert courses[0] == courses[1]

    assert grid(*RACE, "--set", "race=false", cwd=killed).returncode == 0
    assert grid(*RACE, "--set", "race=false", cwd=whole).returncode == 0
    trials = board(whole / "runs/race").trial_id
    assert set(board(killed / "runs/race").status) == {"ok"}
    for trial_id in trials:
        resumed = digests(killed / "runs/race", trial_id, 12)
        assert resumed == digests(whole / "runs/race", trial_id, 12)
