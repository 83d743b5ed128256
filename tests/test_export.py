"""export: which models a trial writes while it trains, and that their weights are those of the epoch read off."""

import dataclasses
import json
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_trial import new_worker, train, train_and_die, work_in

from orchestrator.errors import BadInput
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import KeepModels
from orchestrator.runs.result import Result

# with this rate the lowest val_loss comes early and the highest val_accuracy at another epoch
RISING = ("grid.epochs=[8]", "train.learning_rate=0.01", "grid.dropout=[0.0]", "grid.l2=[0.0]", "data.split_by=order")
STOPPING = (*RISING, "train.early_stopping={patience: 3}", "train.checkpoint_every_s=0.001")

CLOSED = """
import keras


class Closed(keras.layers.Layer):
    def __init__(self, what):
        super().__init__()

    def call(self, x):
        return x


def build(input_shape, classes):
    image = keras.Input(input_shape)
    x = keras.layers.Flatten()(Closed(object())(image))
    return keras.Model(image, keras.layers.Dense(1, activation="sigmoid")(x))
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    """One worker that trains trial after trial, as in a grid."""
    with new_worker() as pool:
        yield pool


def keeping(folder: Path, keep: KeepModels, *overrides: str) -> tuple[WorkerContext, Trial]:
    work, (trial,) = work_in(folder, *overrides)
    return dataclasses.replace(work, keep=keep), trial


def models(folder: Path) -> dict[str, dict]:
    """Name -> facts, of every model that is whole."""
    whole = {}
    for path in (folder / "models").rglob("*.json"):
        name = str(path.relative_to(folder / "models")).removesuffix(".json")
        assert {f"{path.stem}{end}" for end in (".keras", "-validation.parquet")} <= {
            p.name for p in path.parent.iterdir()
        }
        whole[name] = json.loads(path.read_text())
    return whole


def test_a_trial_keeps_its_best_milestone(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """By the metric of the spec, as a candidate; with its figures and the digest that the result has."""
    for metric, better in (("val_accuracy", max), ("loss", min)):
        work, trial = keeping(tmp_path / metric, KeepModels.best, f"metric={metric}")
        result = worker.submit(train, trial, work).result()
        assert result.status == "ok", result.error
        ((name, facts),) = models(tmp_path / metric).items()
        best = better((1, 3), key=lambda milestone: result.history[milestone - 1].metrics[metric])
        assert name == f"candidates/{trial.points[trial.milestones.index(best)]}"
        assert (facts["epochs"], facts["epoch"], facts["metric"]) == (best, best, metric)
        assert facts["weights"] == result.digests[best]
        assert facts["metrics"]["val_loss"] == result.history[best - 1].metrics["val_loss"]
        assert facts["values"] == {"batch_size": 64, "epochs": best, "dropout": 0.5, "l2": 0.01}
        assert [len(list((tmp_path / metric / "models" / "candidates").iterdir()))] == [3]


def test_all_keeps_every_milestone_and_none_keeps_nothing(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """And whatever is kept, the trial's weights and metrics are the same."""
    results = {}
    for keep in KeepModels:
        work, trial = keeping(tmp_path / keep, keep)
        results[keep] = worker.submit(train, trial, work).result()
    assert set(models(tmp_path / KeepModels.all)) == set(trial.points)
    assert not (tmp_path / KeepModels.none / "models").exists()
    assert results[KeepModels.all].digests == results[KeepModels.none].digests == results[KeepModels.best].digests
    assert (
        results[KeepModels.all].history[-1].metrics["val_loss"]
        == results[KeepModels.none].history[-1].metrics["val_loss"]
    )


@pytest.fixture(scope="module")
def stopped(worker: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, dict]:
    """A trial that early stopping ended, and the facts of its model."""
    folder = tmp_path_factory.mktemp("stopped")
    work, trial = keeping(folder, KeepModels.best, *STOPPING)
    result = worker.submit(train, trial, work).result()
    assert result.status == "ok", result.error
    return result, models(folder)[f"candidates/{trial.points[0]}"]


def test_early_stopping_exports_the_weights_of_the_lowest_val_loss(
    stopped: tuple[Result, dict], worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Those that a trial has which ends at that epoch."""
    result, facts = stopped
    best = min(result.history, key=lambda epoch: epoch.metrics["val_loss"])
    assert best.epoch < len(result.history) < 8
    assert (facts["epoch"], facts["epochs"], facts["metrics"]["val_loss"]) == (best.epoch, 8, best.metrics["val_loss"])
    work, trial = keeping(tmp_path, KeepModels.none, *RISING, f"grid.epochs=[{best.epoch}]")
    assert worker.submit(train, trial, work).result().digests[best.epoch] == facts["weights"]


@pytest.mark.slow
def test_the_best_weights_survive_a_kill(
    stopped: tuple[Result, dict], worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Killed after the best epoch, resumed by another worker: the model has the weights from before the kill."""
    result, facts = stopped
    work, trial = keeping(tmp_path, KeepModels.best, *STOPPING)
    process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=(trial, work, facts["epoch"] + 1))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert models(tmp_path) == {}
    resumed = worker.submit(train, trial, work).result()
    assert [epoch.metrics["val_loss"] for epoch in resumed.history] == [
        epoch.metrics["val_loss"] for epoch in result.history
    ]
    assert models(tmp_path)[f"candidates/{trial.points[0]}"]["weights"] == facts["weights"]


@pytest.mark.slow
def test_ranked_by_the_best_accuracy_the_model_is_that_epochs(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """What won the rank is what is kept."""
    work, trial = keeping(tmp_path, KeepModels.best, *RISING, "metric=best_val_accuracy")
    result = worker.submit(train, trial, work).result()
    best = max(result.history, key=lambda epoch: epoch.metrics["val_accuracy"])
    assert best.epoch < 8
    facts = models(tmp_path)[f"candidates/{trial.points[0]}"]
    assert (facts["epoch"], facts["metrics"]["val_accuracy"]) == (best.epoch, best.metrics["val_accuracy"])


@pytest.mark.slow
def test_a_finished_trial_gives_its_models_again(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """The last milestone's from the checkpoint, an earlier one's by training anew; results and checkpoint stay."""
    work, trial = keeping(tmp_path, KeepModels.none)
    result = worker.submit(train, trial, work).result()
    before = {p.name: p.stat().st_mtime_ns for place in ("trials", "checkpoints") for p in (tmp_path / place).iterdir()}
    for at in (1, 0):
        milestone, point = trial.milestones[at], trial.points[at]
        asked = dataclasses.replace(trial, milestones=(milestone,), epochs=milestone, points=(point,))
        again = worker.submit(train, asked, dataclasses.replace(work, keep=KeepModels.best, models_only=True)).result()
        assert again.status == "ok", again.error
        assert models(tmp_path)[f"candidates/{point}"]["weights"] == result.digests[milestone]
        taken_over = again.history[0].train_s == result.history[0].train_s
        assert taken_over == (at == 1)
    after = {p.name: p.stat().st_mtime_ns for place in ("trials", "checkpoints") for p in (tmp_path / place).iterdir()}
    assert after == before


def import_from(folder: str) -> None:
    sys.path.insert(0, folder)


def test_a_model_that_cannot_be_saved_is_refused_before_training(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Not after hours of it: one line, and nothing is written. Who keeps no models may train it."""
    (tmp_path / "closed_net.py").write_text(CLOSED)
    worker.submit(import_from, str(tmp_path)).result()
    for keep in (KeepModels.best, KeepModels.none):
        work, trial = keeping(tmp_path / "run", keep, "grid={epochs: [1]}")
        work = dataclasses.replace(work, spec=work.spec.model_copy(update={"model": "closed_net:build"}))
        trained = worker.submit(train, trial, work)
        if keep is KeepModels.none:
            assert trained.result().status == "ok"
        else:
            with pytest.raises(
                BadInput, match=r"model closed_net:build must be one that Keras can save: .*--export-models"
            ):
                trained.result()
            assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_streamed_images_give_thumbnails_too(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """The pictures of the worst classified are those that a node's cache would hold."""
    pictures = {}
    for limit in (20, 0):
        work, trial = keeping(
            tmp_path / str(limit), KeepModels.all, "grid={epochs: [1]}", f"data.cache_limit_gb={limit}"
        )
        result = worker.submit(train, trial, work).result()
        assert result.status == "ok", result.error
        rows = pq.read_table(tmp_path / str(limit) / "models" / f"{trial.points[0]}-validation.parquet").to_pylist()
        pictures[limit] = {row["path"]: row["thumbnail"] for row in rows if row["thumbnail"]}
        assert len(pictures[limit]) == 24
    both = set(pictures[20]) & set(pictures[0])
    assert both
    assert all(pictures[20][path] == pictures[0][path] for path in both)


@pytest.mark.slow
def test_a_resumed_trial_does_not_write_what_is_there(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """A grid that grows in epochs keeps the model of the shorter point, unless the longer one is better."""
    work, short = keeping(tmp_path, KeepModels.all, "grid.epochs=[1]")
    worker.submit(train, short, work).result()
    file = tmp_path / "models" / f"{short.points[0]}.keras"
    before = file.stat().st_mtime_ns
    work, long = keeping(tmp_path, KeepModels.all)
    assert worker.submit(train, long, work).result().status == "ok"
    assert set(models(tmp_path)) == set(long.points)
    assert file.stat().st_mtime_ns == before
