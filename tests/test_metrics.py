"""Metrics: one table, read by whatever ranks and shows; a new metric is one row."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.metrics import METRICS, of_column, recorded, shown
from orchestrator.runs.result import Epoch, best_epoch, merit, monitored, ranked_by, read_off
from orchestrator.spec.reading import load_spec

NEW_ROW = """
import json
from orchestrator.metrics import METRICS, Metric

row = Metric("val_kappa", "higher", "predictions", frozenset({"board", "table"}), lambda found: 0.0, decimals=2)
METRICS["val_kappa"] = row

from orchestrator.board.table import build_board, build_history
from orchestrator.board.views import verdict
from orchestrator.display.table import as_markdown, columns
from orchestrator.display.page import gather
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import make_plan
from orchestrator.runs.folder import Run
from orchestrator.runs.result import Epoch, Result
from orchestrator.spec.code import Code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec
from orchestrator.store import open_store

spec = load_spec("name: a\\ndata: {uri: x}\\ngrid: {batch_size: [5, 10]}\\nmetric: val_kappa\\ntrain: {epochs: 1}")
plan = make_plan(spec, Counts(10, 5), "index", Networks({"small_cnn": Code("code", {})}))
results = {}
for trial in plan.trials:
    size = trial.values["batch_size"]
    metrics = {"loss": 1.0, "val_loss": 1.0, "accuracy": 0.5, "val_accuracy": 1 / size, "val_kappa": size / 20}
    epoch = Epoch(epoch=1, metrics=metrics, train_s=1.0, images_per_s=1.0)
    results[trial.id] = Result(trial_id=trial.id, status="ok", epochs=1, history=[epoch])
board, history = build_board(spec, plan, results), build_history(results)
run = Run(open_store("run", create=True))
run.write_tables({"leaderboard.parquet": board, "history.parquet": history})
page = gather(run)
print(json.dumps({
    "ranked": board["batch_size"].to_pylist(),
    "columns": columns(board),
    "markdown": as_markdown(board),
    "history": history["val_kappa"].to_pylist(),
    "best": verdict(board, history).best.values,
    "charts": page["charts"],
    "curve": page["curves"][plan.trials[0].id]["val_kappa"],
}))
"""


def test_a_new_row_is_read_by_whatever_ranks_and_shows(tmp_path: Path) -> None:
    """The spec takes it, the board ranks by it, tables, history and page show it."""
    done = subprocess.run([sys.executable, "-c", NEW_ROW], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["ranked"] == [10, 5]
    assert found["best"] == {"batch_size": 10}
    assert "val_kappa" in found["columns"]
    assert "| 0.50 |" in found["markdown"]
    assert sorted(found["history"]) == [0.25, 0.5]
    assert {"training": None, "validation": "val_kappa"} in found["charts"]
    assert found["curve"][0] in (0.25, 0.5)


def test_an_objective_never_ranks() -> None:
    """It holds penalties, which do not compare across values of l2."""
    text = "name: a\ndata: {uri: x}\ngrid: {batch_size: [5]}\nmetric: "
    for name, row in METRICS.items():
        if "objective" in name:
            assert "board" not in row.shown
            with pytest.raises(BadInput, match="metric must be one of"):
                load_spec(text + name)
        else:
            assert load_spec(text + name).metric == name


def test_every_recorded_metric_of_an_epoch_is_a_row() -> None:
    """Also those of which a board shows the best of all epochs."""
    assert set(recorded()) == {row.recorded for row in METRICS.values()}
    assert set(shown("table")) | set(shown("live")) <= set(shown("board"))
    assert of_column("val_loss_std") is METRICS["val_loss"]
    assert of_column("train_s") is None


def epochs(*figures: dict[str, float]) -> list[Epoch]:
    return [Epoch(epoch=i + 1, metrics=each, train_s=1.0, images_per_s=1.0) for i, each in enumerate(figures)]


def test_a_trial_begun_by_an_older_version_is_stopped_by_what_it_began_with() -> None:
    """Its first epochs have losses with penalties; comparing later ones without would end it at the wrong epoch."""
    old = {"val_loss": 1.5, "val_accuracy": 0.5}
    new = [{"val_loss": loss, "val_objective": loss + 1, "val_accuracy": 0.6} for loss in (0.9, 0.4)]
    assert monitored(epochs(old, *new)) == [1.5, 1.9, 1.4]
    assert monitored(epochs(*new)) == [0.9, 0.4]
    assert read_off(epochs(old, *new), restore_best=True).epoch == 3
    assert read_off(epochs(old, new[0]), restore_best=True).epoch == 1


def test_the_first_of_equal_epochs_is_the_best() -> None:
    """By accuracy the highest, by loss the lowest."""
    history = epochs(*({"val_accuracy": a, "val_loss": b} for a, b in ((0.5, 0.4), (0.7, 0.3), (0.7, 0.3))))
    assert best_epoch(history, "val_accuracy").epoch == 2
    assert ranked_by(history, False, "best_val_accuracy").epoch == 2
    assert ranked_by(history, False, "val_accuracy").epoch == 3
    assert merit(history, False, "best_val_accuracy") == (-0.7, 3)
    assert merit(history, False, "val_loss") == (0.3, 3)
