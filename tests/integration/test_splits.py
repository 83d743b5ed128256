"""Splits of real grids: test images that only winners see, and folds."""

import json
from pathlib import Path

import pandas as pd
import pytest
from grids import board, digests, grid
from images import encoded, fill, picture

from orchestrator.store import open_store

QUICK = ("--set", "train.batch_size=64", "--set", "resources.max_concurrent=1")


def test_the_test_images_are_opened_once_for_each_winner(tmp_path: Path) -> None:
    """Running a finished grid again opens them no more; a grid that grows and gets another winner says "2 times"."""
    words = ["--set", "data.test_split=0.1", *QUICK, "--name", "t"]
    first = grid("--set", "grid={epochs: [1]}", *words, cwd=tmp_path)
    assert first.returncode == 0, first.stdout
    assert "test: the winner is shown 120 images" in first.stdout
    assert "on 120 test images, which only the winner has seen: accuracy 0." in first.stdout
    run = tmp_path / "runs" / "t"
    (look,) = json.loads((run / "test.json").read_text())
    best = json.loads((run / "models" / "best.json").read_text())
    assert best["test"] == look
    judged = pd.read_parquet(run / "models" / "best-test.parquet")
    assert look["value"] == pytest.approx((judged.label == judged.predicted).mean())
    assert look["validation"] == best["metrics"]["val_accuracy"]
    again = grid("--set", "grid={epochs: [1]}", *words, cwd=tmp_path)
    assert "test: the winner" not in again.stdout
    assert "on 120 test images" in again.stdout
    by_loss = grid("--set", "grid={epochs: [1]}", *words, "--set", "metric=val_f1", cwd=tmp_path)
    assert "test: the winner" not in by_loss.stdout
    assert "which only the winner has seen: f1 0." in by_loss.stdout
    grown = grid("--set", "grid={epochs: [1, 6]}", *words, "--set", "metric=val_loss", cwd=tmp_path)
    assert "opened 2 times" in grown.stdout
    assert len(json.loads((run / "test.json").read_text())) == 2
    assert "opened 2 times" in (run / "report.html").read_text()
    seen = {*pd.read_parquet(run / "models" / "best-validation.parquet").path}
    assert not seen & {*judged.path}


def test_folds_on_one_worker_and_on_two(tmp_path: Path) -> None:
    """Patients in sub-folders: each image validates once, no patient on both sides, the same weights either way."""
    keys = [f"{pet}/p{i % 9}/{i}.jpg" for pet in ("cat", "dog") for i in range(90)]
    fill(
        open_store(str(tmp_path / "pets"), create=True),
        {key: encoded(picture(i % 90 + 1000 * (i // 90)), "JPEG") for i, key in enumerate(keys)},
    )
    words = [
        "--data",
        "pets",
        "--set",
        "data.image_size=16",
        "--set",
        "data.folds=3",
        "--set",
        "data.group_by=folder",
        "--set",
        "data.layout=classes",
    ]
    words += ["--set", "grid={dropout: [0.0, 0.5], epochs: [2]}", "--export-models", "all"]
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    for run, workers in ((one, 1), (two, 2)):
        done = grid(*words, "--name", run.name, "--set", f"resources.max_concurrent={workers}", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert "95% interval of 3 folds" in done.stdout
    rows = board(one)
    assert sorted(rows.fold) == [0, 0, 1, 1, 2, 2]
    assert all(digests(one, trial) == digests(two, trial) for trial in rows.trial_id)
    judged = [
        pd.read_parquet(one / "models" / f"{point}-validation.parquet") for point in rows[rows.dropout == 0].point_id
    ]
    assert sorted(pd.concat(judged).path) == sorted(keys)
    patients = [{path.rsplit("/", 1)[0] for path in each.path} for each in judged]
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]
