"""winner: which models stay in the run folder, which go, and which must be trained again."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.board.table import build_board
from orchestrator.driver.state import RunState
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import Plan, make_plan
from orchestrator.plans.trials import Point, Trial
from orchestrator.runs.checkpoints import KeepCheckpoints, checkpoint_sizes
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import KeepModels, Run
from orchestrator.runs.lease import Lease
from orchestrator.runs.result import Epoch, Exported, Result
from orchestrator.runs.winner import delete_beaten, leading_point, place_models, trained_points
from orchestrator.spec.code import Code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec
from orchestrator.spec.sections import Spec
from orchestrator.store import open_store

GRID = "{name: a, data: {uri: x}, grid: {batch_size: [5, 10], epochs: [1, 2]}}"


def planned(*overrides: str) -> tuple[Spec, Plan]:
    spec = load_spec(GRID, overrides)
    return spec, make_plan(spec, Counts(100, 20), "i", Networks({"small_cnn": Code("c", {})}))


def result(trial: Trial, *accuracies: float, val_loss: float = 1.0) -> Result:
    history = [
        Epoch(epoch=i, loss=1.0, accuracy=0.5, val_loss=val_loss / i, val_accuracy=a, train_s=1.0, images_per_s=1.0)
        for i, a in enumerate(accuracies, 1)
    ]
    return Result(trial_id=trial.id, status="ok", epochs=len(accuracies), history=history)


def put(run: Run, name: str, point: Point, epoch: int, validation: bytes = b"", **more: object) -> None:
    """A model of that point's trial, as after `epoch`; its file says so. more: facts of it."""
    facts = Exported(
        classes=["a", "b"],
        image_size=(8, 8),
        resize="nearest",
        scale=1.0,
        point_id=point.id,
        trial_id=point.trial_id,
        values={},
        seed=0,
        epochs=point.epochs,
        epoch=epoch,
        metric="val_accuracy",
        metrics={},
        weights="w",
        index_digest="i",
        spec={},
        versions={},
    ).model_copy(update=more)
    run.write_model(name, f"{point.trial_id} {epoch}".encode(), validation, facts)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(open_store(str(tmp_path), create=True))


def point(plan: Plan, batch_size: int, epochs: int) -> Point:
    return next(p for p in plan.points if (p.values["batch_size"], p.epochs) == (batch_size, epochs))


def first(spec: Spec, plan: Plan, results: Mapping[str, Result]) -> Point | None:
    return leading_point(plan, build_board(spec, plan, results))


def place(
    run: Run, spec: Spec, plan: Plan, results: Mapping[str, Result], keep: KeepModels = KeepModels.best
) -> tuple[Trial, ...]:
    return place_models(run, plan, results, first(spec, plan, results), spec, keep)


def by_size(plan: Plan) -> tuple[Trial, Trial]:
    small, large = sorted(plan.trials, key=lambda trial: trial.values["batch_size"])
    return small, large


def test_while_trials_run_only_their_candidates_and_the_leaders_stay(run: Run) -> None:
    """A finished trial's candidate goes when another leads; one at work keeps its own, and kept models stay."""
    spec, plan = planned("grid.batch_size=[5, 10, 20]")
    trials = {trial.values["batch_size"]: trial for trial in plan.trials}
    results = {trials[5].id: result(trials[5], 0.6, 0.7), trials[10].id: result(trials[10], 0.9, 0.8)}
    for size, epochs in ((5, 2), (10, 1), (20, 1)):
        put(run, f"candidates/{point(plan, size, epochs).id}", point(plan, size, epochs), epochs)
    put(run, point(plan, 5, 1).id, point(plan, 5, 1), 1)
    delete_beaten(run, plan, results, first(spec, plan, results))
    left = {f"candidates/{point(plan, 10, 1).id}", f"candidates/{point(plan, 20, 1).id}", point(plan, 5, 1).id}
    assert set(run.list_models()) == left


def test_the_winner_becomes_best_and_a_better_one_takes_its_place(run: Run) -> None:
    """Through the growth of the grid: a winner of an earlier run stays usable until it is beaten."""
    spec, plan = planned("grid.batch_size=[5]")
    (trial,) = plan.trials
    results = {trial.id: result(trial, 0.6, 0.7)}
    put(run, f"candidates/{point(plan, 5, 2).id}", point(plan, 5, 2), 2)
    assert place(run, spec, plan, results) == ()
    assert run.list_models() == ["best"]
    assert run.read_model("best").values == {"batch_size": 5, "epochs": 2}

    spec, plan = planned()
    _, large = by_size(plan)
    for accuracies, holder in (((0.5, 0.5), trial), ((0.5, 0.8), large)):
        put(run, f"candidates/{point(plan, 10, 2).id}", point(plan, 10, 2), 2)
        assert place(run, spec, plan, {**results, large.id: result(large, *accuracies)}) == ()
        assert run.list_models() == ["best"]
        assert run.store.read("models/best.keras") == f"{holder.id} 2".encode()
        assert run.read_model("best").spec["grid"]["batch_size"] == [5, 10]


def test_what_lies_nowhere_is_trained_again_alone(run: Run) -> None:
    """With another metric another point wins: its trial, as far as the point goes. Until then the old model stays."""
    spec, plan = planned("metric=val_loss")
    small, large = by_size(plan)
    results = {small.id: result(small, 0.9, 0.8, val_loss=2.0), large.id: result(large, 0.5, 0.5, val_loss=1.0)}
    put(run, "best", point(plan, 5, 1), 1)
    (again,) = place(run, spec, plan, results)
    assert (again.id, again.milestones, again.points) == (large.id, (2,), (point(plan, 10, 2).id,))
    assert run.read_model("best").trial_id == small.id
    put(run, f"candidates/{again.points[0]}", point(plan, 10, 2), 2)
    assert place(run, spec, plan, results) == ()
    assert run.read_model("best").metric == "val_loss"
    assert run.store.read("models/best.keras") == f"{large.id} 2".encode()


def test_all_needs_every_point_and_takes_what_is_there(run: Run) -> None:
    """Kept, best and candidates are taken; of the others each trial is asked once, for the milestones it lacks."""
    spec, plan = planned("grid.batch_size=[5, 10, 20]")
    trials = {trial.values["batch_size"]: trial for trial in plan.trials}
    results = {trial.id: result(trial, 0.5, 0.01 * size) for size, trial in trials.items()}
    put(run, "best", point(plan, 5, 1), 1)
    put(run, f"candidates/{point(plan, 10, 2).id}", point(plan, 10, 2), 2)
    lacking = {trial.id: trial.milestones for trial in place(run, spec, plan, results, KeepModels.all)}
    assert lacking == {trials[5].id: (2,), trials[10].id: (1,), trials[20].id: (1, 2)}
    assert set(run.list_models()) == {"best", point(plan, 5, 1).id, point(plan, 10, 2).id}
    for size, milestones in ((5, (2,)), (10, (1,)), (20, (1, 2))):
        for epochs in milestones:
            put(run, point(plan, size, epochs).id, point(plan, size, epochs), epochs)
    assert place(run, spec, plan, results, KeepModels.all) == ()
    assert set(run.list_models()) == {"best", *(p.id for p in plan.points)}


def test_another_metric_chooses_the_threshold_anew(run: Run) -> None:
    """From the predictions that lie beside the model; where they cannot be read, it is one half, as before."""
    sink = pa.BufferOutputStream()
    labels, second = ["a"] * 50 + ["b"] * 50, [0.1] * 50 + [0.4] * 50
    pq.write_table(pa.table({"label": labels, "probabilities": [[1 - p, p] for p in second]}), sink)
    for validation, threshold in ((sink.getvalue().to_pybytes(), 0.25), (b"", None)):
        for metric, before, after in (("val_accuracy", "val_loss", threshold), ("val_loss", "val_accuracy", None)):
            spec, plan = planned("grid={batch_size: [5], epochs: [2]}", f"metric={metric}")
            results = {trial.id: result(trial, 0.5, 0.6) for trial in plan.trials}
            put(run, "best", plan.points[0], 2, validation, metric=before, threshold=0.7)
            assert place(run, spec, plan, results) == ()
            best = run.read_model("best")
            assert (best.metric, best.threshold, best.threshold_chosen is not None) == (
                metric,
                after,
                after is not None,
            )
    put(run, "best", plan.points[0], 2, metric="val_loss", threshold=0.7)
    assert place(run, spec, plan, results) == ()
    assert run.read_model("best").threshold == 0.7  # the same metric: it stays


def test_points_with_the_same_weights_share_a_model(run: Run) -> None:
    """Early stopping ended both after the same epoch: whichever stands first on the board, its model is there."""
    spec, plan = planned("grid={epochs: [20, 10]}", "train.early_stopping={patience: 1}")
    (trial,) = plan.trials
    results = {trial.id: result(trial, 0.5, 0.6).model_copy(update={"epochs": 20})}
    assert len(trained_points(plan, results)) == 2
    short = next(p for p in plan.points if p.epochs == 10)
    put(run, f"candidates/{short.id}", short, 2)
    assert place(run, spec, plan, results) == ()
    assert run.read_model("best").point_id == first(spec, plan, results).id


def test_models_that_a_person_put_there_stay(run: Run, tmp_path: Path) -> None:
    """Copies of ours under other names, and whatever else lies there; only candidates that were beaten go."""
    spec, plan = planned()
    small, large = by_size(plan)
    results = {small.id: result(small, 0.9, 0.9), large.id: result(large, 0.5, 0.5)}
    beaten = point(plan, 10, 2)
    put(run, "candidates/mine", beaten, 2)
    put(run, "mine", beaten, 2)
    run.store.write(f"models/candidates/{beaten.id}.txt", b"mine")
    run.store.write("models/candidates/notes.json", b"mine")
    run.store.write("models/notes.json", b"mine")
    theirs = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    put(run, f"candidates/{beaten.id}", beaten, 2)
    put(run, f"candidates/{point(plan, 5, 1).id}", point(plan, 5, 1), 1)
    assert place(run, spec, plan, results) == ()
    found = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    best = {"best.json", "best.keras", "best-validation.parquet"}
    assert {path.name for path in found.keys() - theirs} == best
    assert {path: found[path] for path in theirs} == theirs


def test_without_a_result_or_without_models_nothing_happens(run: Run) -> None:
    """No point is ok yet, or the person wants no models."""
    spec, plan = planned()
    assert first(spec, plan, {}) is None
    assert place(run, spec, plan, {}) == ()
    results = {trial.id: result(trial, 0.5, 0.6) for trial in plan.trials}
    assert place(run, spec, plan, results, KeepModels.none) == ()
    assert run.list_models() == []


@pytest.mark.parametrize(
    ("keep", "while_it_trains", "interrupted", "over"),
    [("all", "abc", "abc", "abc"), ("best", "ac", "ac", "a"), ("none", "ac", "ac", "")],
)
def test_checkpoints_stay_as_they_are_kept(
    tmp_path: Path, keep: str, while_it_trains: str, interrupted: str, over: str
):
    """That of a trial that goes on in any case, and the leader's until its model is there; others' are not ours."""
    spec, plan = planned("grid.batch_size=[5, 10, 20]")
    run = Run(open_store(str(tmp_path), create=True))
    names = dict(zip("abc", (trial.id for trial in plan.trials), strict=True)) | {"other": "0123456789ab"}
    for trial_id in names.values():
        run.write_checkpoint(trial_id, b"state")
    context = WorkerContext(spec, None, run.store, run)  # type: ignore[arg-type]
    context = replace(context, index=SimpleNamespace(classes=("a", "b"), labels=np.arange(2), judged=np.ones(2, bool)))
    a, b, c = plan.trials
    state = RunState(context, plan, {a.id: result(a, 0.9, 0.9), b.id: result(b, 0.5, 0.5)}, KeepCheckpoints(keep))

    def left() -> str:
        found = checkpoint_sizes(run)
        assert found.pop(names["other"]) == 5
        return "".join(name for name in "abc" if names[name] in found)

    with Lease(run.store, lambda: None, False, lambda line: None) as state.lease:
        state.running.add(c.id)
        state.changed(print)
        assert left() == while_it_trains
        state.running.clear()
        state.drop_checkpoints(last=True)
        assert left() == interrupted
        state.add(result(c, 0.4, 0.4))
        state.drop_checkpoints(last=True)
        assert left() == over
