"""Trials in real worker processes: exact wherever they stopped, whoever trained before them."""

import contextlib
import io
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.board.table import build_board
from orchestrator.data.backbone import find_networks
from orchestrator.data.indexing import build_index
from orchestrator.driver.state import RunState
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import make_plan
from orchestrator.plans.refit import refit_spec, refit_trial
from orchestrator.plans.trials import Trial, points_of
from orchestrator.runs.context import Reporter, WorkerContext
from orchestrator.runs.folder import KeepModels, Run
from orchestrator.runs.result import Epoch, Result
from orchestrator.spec.reading import load_spec
from orchestrator.store import open_store

SPEC = """
name: exact
data: {uri: "sample://shirts", image_size: [28, 28]}
augment: {rotation_deg: 10, width_shift: 0.1, height_shift: 0.1, horizontal_flip: true}
grid: {batch_size: [64], epochs: [1, 3], dropout: [0.5], l2: [0.01]}
"""


def work_in(folder: Path, *overrides: str) -> tuple[WorkerContext, tuple[Trial, ...]]:
    """A run folder and the trials of SPEC with some fields changed."""
    spec = load_spec(SPEC, overrides)
    images = open_store(spec.data.uri)
    index = build_index(images, spec.data)
    counts = Counts(int((~index.validates()).sum()), int(index.validates().sum()))
    networks, weights = find_networks(spec)
    plan = make_plan(spec, counts, index.digest, networks)
    run = Run(open_store(str(folder), create=True))
    return WorkerContext(spec, index, images, run, networks=networks, weights=weights), plan.trials


def start_worker() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from orchestrator.train.device import use_device

    use_device(1)


def train(trial: Trial, work: WorkerContext) -> Result:
    from orchestrator.train.trial import run_trial

    return run_trial(trial, work)


def train_and_listen(trial: Trial, work: WorkerContext) -> tuple[Result, list[str]]:
    """The result, and what the trial had to say to a person."""
    from orchestrator.train.trial import run_trial

    said: list[str] = []
    return run_trial(trial, work, Reporter(say=said.append)), said


def train_in_pieces(trial: Trial, work: WorkerContext) -> tuple[Result, list[float]]:
    """It asks after every batch, and is stopped again and again; and the epochs behind it each time it went on."""
    from orchestrator.train import graphs, loop
    from orchestrator.train.trial import run_trial

    graphs._kept.clear()  # they remember how many batches take a second
    begun: list[float] = []
    stretch_s, loop._STRETCH_S = loop._STRETCH_S, 0.0
    result = None
    while not result:
        asks = iter(range((1, 15, 2, 9)[len(begun) % 4] - 1))
        reporter = Reporter(
            ready=lambda unreadable, behind: begun.append(behind), stopping=lambda asks=asks: next(asks, None) is None
        )
        result = run_trial(trial, work, reporter)
    loop._STRETCH_S = stretch_s
    return result, begun


def train_while_a_checkpoint_is_written(trial: Trial, work: WorkerContext) -> Result:
    """The store takes its time over the first checkpoint: until two epochs are trained."""
    from orchestrator.train.trial import run_trial

    trained, write = threading.Event(), Run.write_checkpoint

    def slowly(run: Run, trial_id: str, data: bytes) -> None:
        assert trained.wait(60)
        write(run, trial_id, data)

    Run.write_checkpoint = slowly
    try:
        return run_trial(trial, work, Reporter(epoch=lambda epoch: trained.set() if epoch.epoch == 2 else None))
    finally:
        Run.write_checkpoint = write


def train_and_fail(trial: Trial, work: WorkerContext) -> tuple[Result, list[Result]]:
    """The memory is full after the second epoch; and what it told to have reached."""
    from orchestrator.train.trial import run_trial

    def fill_memory(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise MemoryError("full")

    told: list[Result] = []
    return run_trial(trial, work, Reporter(epoch=fill_memory, reached=told.append)), told


def train_resident(trial: Trial, work: WorkerContext) -> Result:
    """As on a GPU: the images are on the device, and picked and augmented there. Here the device is the CPU."""
    from orchestrator.train import inputs

    inputs.gpu_with_room = lambda size_bytes: "CPU:0"
    return train(trial, work)


def train_and_die(trial: Trial, work: WorkerContext, epochs: int) -> None:
    """Train, and be killed as the machine's power would do it: in the middle of the epoch after `epochs`."""
    start_worker()
    from orchestrator.train.checkpoint import CheckpointWriter
    from orchestrator.train.trial import run_trial

    write_if_due = CheckpointWriter.write_if_due

    def die_after_writing(writer: CheckpointWriter) -> None:
        write_if_due(writer)
        state = writer._snapshot().state
        if len(state.history) == epochs and state.step > 0 and writer._thread:
            writer.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    CheckpointWriter.write_if_due = die_after_writing
    run_trial(trial, work)


def new_worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker)


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    """One worker that trains trial after trial, as in a grid."""
    with new_worker() as pool:
        yield pool


@pytest.fixture(scope="module")
def undisturbed(worker: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> Result:
    work, (trial,) = work_in(tmp_path_factory.mktemp("undisturbed"))
    return worker.submit(train, trial, work).result()


def test_a_result_holds_every_epoch_and_the_weights_at_its_milestones(undisturbed: Result) -> None:
    """What a trial gives back: three epochs, digests at 1 and 3, and what it cost."""
    assert undisturbed.status == "ok", undisturbed.error
    assert [epoch.epoch for epoch in undisturbed.history] == [1, 2, 3]
    assert set(undisturbed.digests) == {1, 3}
    assert undisturbed.steps_per_epoch == 15
    assert undisturbed.peak_memory_mb > 100
    assert all(epoch.images_per_s > 0 for epoch in undisturbed.history)


def test_a_fresh_worker_gives_the_same_weights(undisturbed: Result, tmp_path: Path) -> None:
    """To the bit: another process, which trained other trials before."""
    work, (trial,) = work_in(tmp_path)
    other, (before,) = work_in(tmp_path / "before", "grid.batch_size=[50]", "grid.epochs=[1]", "grid.dropout=[0.1]")
    with new_worker() as pool:
        assert pool.submit(train, before, other).result().status == "ok"
        assert same(pool.submit(train, trial, work).result(), undisturbed)


def test_a_trial_of_one_epoch_is_the_start_of_one_of_three(
    undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Points that differ only in epochs may share a trial: its weights at the milestone are those of a shorter one."""
    work, (trial,) = work_in(tmp_path, "grid.epochs=[1]")
    alone = worker.submit(train, trial, work).result()
    assert alone.digests[1] == undisturbed.digests[1]
    assert alone.history[0].metrics["val_loss"] == undisturbed.history[0].metrics["val_loss"]


def test_what_a_trial_reached_stays_when_it_fails(
    undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Each time; it has a result of its own, and on the board the figures that it has trained alone."""
    work, (trial,) = work_in(tmp_path)
    for _ in range(2):  # the second time it goes on from behind the milestone
        failed, told = worker.submit(train_and_fail, trial, work).result()
        assert failed.error == "MemoryError: full"
        assert {(result.status, result.epochs, *result.digests) for result in told} == {("ok", 1, 1)}
    reached = work.run.read_results()
    assert {trial_id: result.epochs for trial_id, result in reached.items()} == {trial.id: 1}
    plan = make_plan(work.spec, Counts(960, 240), work.index.digest, work.networks)
    state = RunState(work, plan, {})
    for result in (*told, failed):
        state.add(result)
    assert [leg.epochs for leg in state.left] == [3]
    ok, lost = state.board.to_pylist()
    whole = build_board(work.spec, plan, {trial.id: undisturbed}).to_pylist()
    alone = next(row for row in whole if row["epochs"] == 1)
    assert (ok["status"], ok["epochs"], lost["status"], lost["error"]) == ("ok", 1, "failed", "MemoryError: full")
    spent = {"train_s", "images_per_s", "peak_memory_mb", "started_at", "finished_at", "rank"}
    assert {name: ok[name] for name in ok.keys() - spent} == {name: alone[name] for name in ok.keys() - spent}
    assert same(worker.submit(train, trial, work).result(), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("augment", [None, "{preset: strong, mixup: 0.4, cutmix: 1}"])
def test_images_on_the_device_are_the_same_images(
    undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path, augment: str | None
) -> None:
    """What a GPU does in place of tf.data: the same order and changes, but for how another graph rounds."""
    work, (trial,) = work_in(tmp_path / "resident", *([f"augment={augment}"] if augment else []))
    with new_worker() as pool:
        result = pool.submit(train_resident, trial, work).result()
    assert result.status == "ok", result.error
    if augment:
        piped, _ = work_in(tmp_path / "piped", f"augment={augment}")
        undisturbed = worker.submit(train, trial, piped).result()
    assert result.history[0].metrics["loss"] == pytest.approx(undisturbed.history[0].metrics["loss"], rel=1e-4)
    assert result.history[2].metrics["val_loss"] == pytest.approx(undisturbed.history[2].metrics["val_loss"], rel=0.02)


def kill_in_mid_epoch(trial: Trial, work: WorkerContext, epochs: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=(trial, work, epochs))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert work.run.read_checkpoint(trial.id) is not None


@pytest.mark.parametrize(
    "epochs", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_killed_trial_goes_on_exactly(
    undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path, epochs: int
) -> None:
    """SIGKILL in mid-epoch, then another worker: weights and metrics are those of a trial nobody disturbed."""
    work, (trial,) = work_in(tmp_path, "train.checkpoint_every_s=0.001")
    kill_in_mid_epoch(trial, work, epochs)
    assert same(worker.submit(train, trial, work).result(), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_refit_takes_the_winners_steps_on_all_its_images(
    worker: ProcessPoolExecutor, tmp_path: Path, is_killed: bool
) -> None:
    """It ends within an epoch, exactly wherever it was stopped, and says what it is instead of how good it is."""

    def refit(folder: str) -> tuple[Trial, WorkerContext]:
        settings = ("grid.epochs=[3]", "train.schedule=cosine", "train.ema=0.9", "train.checkpoint_every_s=0.001")
        work, (trial,) = work_in(tmp_path / folder, *settings)
        again = refit_trial(trial, points_of(trial, work.spec.axes)[0], 15, [0.6, 0.5, 0.4])
        return again, replace(work, spec=refit_spec(work.spec), keep=KeepModels.all)

    trial, work = refit("quiet")
    result = worker.submit(train, trial, work).result()
    assert result.status == "ok", result.error
    assert [round(each.images_per_s * each.train_s) for each in result.history] == [1200, 1200, 45 % 19 * 64]
    winners = [0.001 * (1 + math.cos(math.pi * (step - 15) / 30)) / 2 for step in (18, 37, 44)]  # the first 15 warm up
    assert [each.learning_rate for each in result.history] == pytest.approx(winners)
    facts = work.run.read_model("refit")
    assert (facts.refit.images, facts.refit.steps, facts.point_id) == (1200, 45, trial.points[0])
    assert facts.weights == result.digests[3]
    assert set(facts.metrics) == {"accuracy", "loss", "objective"}
    assert [o.key for o in work.run.store.list("models")] == ["models/refit.json", "models/refit.keras"]
    trial, disturbed = refit("disturbed")
    if is_killed:
        kill_in_mid_epoch(trial, disturbed, 1)
        assert same(worker.submit(train, trial, disturbed).result(), result)
    else:
        pieces, begun = worker.submit(train_in_pieces, trial, disturbed).result()
        assert len(begun) > 3
        assert same(pieces, result)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        "train.precision=mixed_bfloat16",
        "train.learning_rate=auto train.schedule=cosine train.ema=0.9",
        "augment={preset: strong, mixup: 0.4, cutmix: 1} train.label_smoothing=0.1",
        "train.class_weight=balanced train.optimizer=sgd train.momentum=0.9",
        "train.optimizer=nadam train.schedule=plateau train.plateau_patience=1 train.clip_norm=1 train.weight_decay=1",
        "train.precision=mixed_float16 train.schedule=wsd train.ema=0.9 train.lr_scale=sqrt",
        "grid.model=[deep_cnn] train.ema=0.9",
        "grid.model=[se_resnet]",
    ],
)
def test_whatever_it_trains_with_a_killed_trial_goes_on_exactly(
    worker: ProcessPoolExecutor, tmp_path: Path, setting: str
) -> None:
    """Half-size numbers, whose losses are scaled, optimizers with other state, rates that change, moving averages."""
    settings = (*re.split(r" (?=train)", setting), "grid.epochs=[2]", "train.checkpoint_every_s=0.001")
    work, (trial,) = work_in(tmp_path / "killed", *settings)
    kill_in_mid_epoch(trial, work, 1)
    quiet, _ = work_in(tmp_path / "quiet", *settings)
    assert same(worker.submit(train, trial, work).result(), worker.submit(train, trial, quiet).result())


def test_a_trial_may_be_stopped_anywhere(undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Between any two batches, of validation too: it goes on from there, and ends as if nobody had asked."""
    work, (trial,) = work_in(tmp_path)
    result, begun = worker.submit(train_in_pieces, trial, work).result()
    assert same(result, undisturbed)
    steps = [0, 1, 15, 15, 21, 22, 34, 36, 45, 45]  # of 15 an epoch; twice in validation, and once just before it
    assert begun == pytest.approx([each / 15 for each in steps])


def test_training_goes_on_while_a_checkpoint_is_written(
    undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """However slow the store."""
    work, (trial,) = work_in(tmp_path, "grid.epochs=[3]", "train.checkpoint_every_s=0.001")
    result = worker.submit(train_while_a_checkpoint_is_written, trial, work).result()
    assert result.status == "ok", result.error
    assert result.digests[3] == undisturbed.digests[3]


def test_a_grid_that_grows_in_epochs_trains_only_the_new_ones(
    undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """The final state of a finished trial is kept, so two more epochs cost two, and give the same weights."""
    work, (short,) = work_in(tmp_path, "grid.epochs=[1]")
    first = worker.submit(train, short, work).result()
    work, (long,) = work_in(tmp_path)
    grown = worker.submit(train, long, work).result()
    assert long.id == short.id
    assert same(grown, undisturbed)
    assert grown.history[0].train_s == first.history[0].train_s  # taken over, not trained again
    assert sorted(p.name for p in (tmp_path / "trials").iterdir()) == [f"{long.id}-1.json", f"{long.id}-3.json"]


def train_counted(trials: Sequence[Trial], work: WorkerContext, keep: bool = True) -> tuple[list[Result], int]:
    """One after the other in this process, and for how many of them graphs were traced. keep: from trial to trial."""
    from orchestrator.train import graphs, trial

    traced, kept = 0, graphs.Graphs

    def count(*args: Any) -> Any:
        nonlocal traced
        traced += 1
        return kept(*args)

    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "Graphs", count)
        graphs._kept.clear()
        for each in trials:
            results.append(trial.run_trial(each, work))
            if not keep:
                graphs._kept.clear()
    return results, traced


def test_legs_are_one_trial(undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Up to a rung and on from there, in the worker that has its graphs and in another: the same to the bit."""
    work, (trial,) = work_in(tmp_path / "one")
    legs, traced = worker.submit(train_counted, [trial.leg(end) for end in (1, 2, 3)], work).result()
    assert [(leg.epochs, len(leg.history)) for leg in legs] == [(1, 1), (2, 2), (3, 3)]
    assert traced == 1
    assert same(legs[-1], undisturbed)
    work, (trial,) = work_in(tmp_path / "two")
    worker.submit(train, trial.leg(2), work).result()
    with new_worker() as pool:
        last = pool.submit(train, trial, work).result()
    assert same(last, undisturbed)


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ("grid.dropout=[0.0,0.3,0.6] grid.l2=[0.0,0.013]", 2),
        pytest.param("grid.learning_rate=[0.001,0.02] grid.dropout=[0.3,0.6]", 1, marks=pytest.mark.slow),
        pytest.param("seeds=[4,9] grid.momentum=[0.0,0.5,0.9] train.optimizer=sgd", 2, marks=pytest.mark.slow),
        pytest.param(
            "grid.momentum=[0.3,0.8] grid.clip_norm=[0.05,3.7] train.optimizer=rmsprop", 1, marks=pytest.mark.slow
        ),
        pytest.param("grid.weight_decay=[0.01,0.2] grid.schedule=[constant,cosine,step]", 2, marks=pytest.mark.slow),
        pytest.param("grid.dropout=[0.1,0.7] seeds=[1,2] train.precision=mixed_bfloat16", 1, marks=pytest.mark.slow),
        pytest.param("grid.dropout=[0.1,0.7] train.precision=mixed_float16", 1, marks=pytest.mark.slow),
        pytest.param(
            "grid.mixup=[0.2] augment.validation=true augment.rotation_deg=9 seeds=[1,2]", 1, marks=pytest.mark.slow
        ),
        pytest.param("grid.dropout=[0.1,0.7] grid.model=[deep_cnn] train.ema=0.9", 1, marks=pytest.mark.slow),
    ],
)
def test_what_a_worker_trained_before_makes_no_difference(
    worker: ProcessPoolExecutor, tmp_path: Path, settings: str, shapes: int
) -> None:
    """Trials of one shape share their graphs, and end with the weights of those that trace their own, to the bit."""
    few = (*settings.split(), "grid.epochs=[2]", "data.training_images=96")
    used, traced = worker.submit(train_counted, *reversed(work_in(tmp_path / "used", *few))).result()
    assert traced == shapes
    fresh, traced = worker.submit(train_counted, *reversed(work_in(tmp_path / "fresh", *few)), False).result()
    assert traced == len(fresh)
    assert all(map(same, used, fresh))


def test_a_leg_whose_result_is_lost_is_read_off_a_later_checkpoint(
    undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Nothing is trained again, and the checkpoint stays."""
    work, (trial,) = work_in(tmp_path)
    worker.submit(train, trial, work).result()
    before = work.run.read_checkpoint(trial.id)
    for file in (tmp_path / "trials").iterdir():
        file.unlink()
    again = worker.submit(train, trial.leg(2), work).result()
    whole = worker.submit(train, trial, work).result()
    assert [epoch.train_s for epoch in again.history] == [epoch.train_s for epoch in whole.history[:2]]
    assert again.digests == {1: undisturbed.digests[1]}
    assert work.run.read_checkpoint(trial.id) == before


def test_a_result_says_which_images_were_right(undisturbed: Result) -> None:
    """At each milestone, as many of them as the accuracy says; in how many epochs of the last fifth."""
    assert set(undisturbed.right) == {1, 3}
    for epoch, right in undisturbed.right.items():
        assert (right.epoch, right.window) == (epoch, 1)
        counts = np.frombuffer(right.unpacked(), np.uint8)
        assert counts.mean() == pytest.approx(undisturbed.history[epoch - 1].metrics["val_accuracy"])


@pytest.mark.parametrize(
    "damage",
    [pytest.param(b"", marks=pytest.mark.slow), pytest.param(b"PK\x03\x04 not a zip", marks=pytest.mark.slow), None],
)
def test_a_damaged_checkpoint_means_a_fresh_start(
    undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path, damage: bytes | None
) -> None:
    """Empty, not a checkpoint, or cut short: the trial starts anew and ends as it would have."""
    work, (trial,) = work_in(tmp_path, "grid.epochs=[1]")
    worker.submit(train, trial, work).result()
    whole = work.run.read_checkpoint(trial.id)
    work.run.write_checkpoint(trial.id, whole[: len(whole) // 2] if damage is None else damage)
    work, (trial,) = work_in(tmp_path)
    result, (said,) = worker.submit(train_and_listen, trial, work).result()
    assert same(result, undisturbed)
    assert said.startswith(f"trial {trial.id} starts anew; its checkpoint is in damaged/")


def read_with_every_bit_turned() -> list[str]:
    """Each bit of a small checkpoint turned over in its turn: what came of it that was neither whole nor an error."""
    from orchestrator.train.checkpoint import read_arrays

    arrays, file = {"far": np.arange(9, dtype=np.uint8), "v0000": np.ones((2, 2), np.float32)}, io.BytesIO()
    np.savez(file, **arrays)
    whole, strange = file.getvalue(), []
    for i, bit in itertools.product(range(len(whole)), range(8)):
        data = bytearray(whole)
        data[i] ^= 1 << bit
        with contextlib.suppress(ValueError):
            found = read_arrays(bytes(data))
            for name in found.keys() & arrays:
                if found[name].tobytes() != arrays[name].tobytes():
                    strange.append(f"bit {bit} of byte {i}: {name}")
    return strange


def test_any_turned_bit_of_a_checkpoint_is_an_error_or_does_nothing(worker: ProcessPoolExecutor) -> None:
    """Never an exception that nobody expects, never other numbers."""
    assert worker.submit(read_with_every_bit_turned).result() == []


@pytest.mark.slow
def test_another_models_checkpoint_is_not_taken(
    undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """A whole checkpoint of other shapes is no checkpoint."""
    work, (trial,) = work_in(tmp_path)
    other, (foreign,) = work_in(tmp_path / "other", "data.image_size=[32, 32]", "grid.epochs=[1]")
    worker.submit(train, foreign, other).result()
    work.run.write_checkpoint(trial.id, other.run.read_checkpoint(foreign.id))
    assert same(worker.submit(train, trial, work).result(), undisturbed)


def test_a_trial_that_raises_is_a_failed_result(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """One line of why, nothing written, and the worker goes on."""
    work, (trial,) = work_in(tmp_path)
    trial = replace(trial, values={**trial.values, "dropout": 7.0})
    result = worker.submit(train, trial, work).result()
    assert result.status == "failed"
    assert "\n" not in result.error
    assert "dropout" in result.error.lower() or "rate" in result.error.lower()
    assert not (tmp_path / "trials").exists()


def test_a_loss_that_is_no_number_fails_the_trial(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Divergence is a failed row that says in which epoch, and what to try."""
    work, (trial,) = work_in(tmp_path, "train.learning_rate=1e+30", "train.optimizer=sgd")
    result = worker.submit(train, trial, work).result()
    assert result.error.startswith("Diverged: the loss became")
    assert "smaller learning_rate" in result.error


def test_early_stopping_ends_a_trial_and_keeps_its_history(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """With a patience of 1 and no progress possible, training ends after the second epoch of 30."""
    still = ("train.learning_rate=1e-30", "train.early_stopping={patience: 1}")
    work, (trial,) = work_in(tmp_path, "grid.epochs=[30]", *still)
    result = worker.submit(train, trial, work).result()
    assert result.status == "ok", result.error
    assert len(result.history) == 2
    assert result.epochs == 30


@pytest.mark.slow
def test_early_stopping_ends_points_that_share_a_trial_where_it_ends_each_alone(
    worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """The weights at every milestone before the end are those of the shorter trial, and so is the end."""
    early = "train.early_stopping={patience: 2}"
    work, (shared,) = work_in(tmp_path / "shared", "grid.epochs=[2, 5, 60]", "train.learning_rate=0.02", early)
    together = worker.submit(train, shared, work).result()
    assert 5 <= len(together.history) < 60
    for epochs in (2, 5, 60):
        work, (alone,) = work_in(tmp_path / str(epochs), f"grid.epochs=[{epochs}]", "train.learning_rate=0.02", early)
        result = worker.submit(train, alone, work).result()
        assert result.digests == {at: digest for at, digest in together.digests.items() if at == epochs}
        assert [e.metrics["val_loss"] for e in result.history] == [
            e.metrics["val_loss"] for e in together.history[: len(result.history)]
        ]
        assert len(result.history) == min(epochs, len(together.history))


def train_all(trials: tuple[Trial, ...], work: WorkerContext) -> tuple[list[Result], list[float]]:
    """Results, and the memory that the worker held after each, in MB."""
    results, held_mb = [], []
    for trial in trials:
        results.append(train(trial, work))
        status = Path("/proc/self/status").read_text()
        held_mb.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
    return results, held_mb


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "seeds", "keep", "most_mb"),
    [([960], range(40), KeepModels.best, 30), (range(481, 521), [0], KeepModels.none, 100)],
)
def test_a_worker_does_not_grow(
    tmp_path: Path, sizes: Sequence[int], seeds: Sequence[int], keep: KeepModels, most_mb: float
) -> None:
    """After 20 trials, 20 more leave less than that behind: with one graph for all; and where each has one, which is
    about 10 MB, the last 16 stay.
    """
    overrides = [f"grid={{batch_size: {list(sizes)}, epochs: [1], dropout: [0.5]}}", f"seeds={list(seeds)}"]
    work, trials = work_in(tmp_path, *overrides, "train.optimizer=adamw")
    with new_worker() as pool:
        results, held_mb = pool.submit(train_all, trials, replace(work, keep=keep)).result()
    assert {result.status for result in results} == {"ok"}
    assert held_mb[-1] - held_mb[20] < most_mb


def settings_of_a_gpu() -> tuple[int, list[tuple[str, float]]]:
    """Threads, and what TensorFlow is told of a GPU that it is made to believe in: first without a limit, then with."""
    import tensorflow as tf

    from orchestrator.train.device import use_device

    told: list[tuple[str, float]] = []
    tf.config.list_physical_devices = lambda kind: [kind]
    tf.config.experimental.set_memory_growth = lambda gpu, grows: told.append((f"{gpu} grows", grows))
    tf.config.set_logical_device_configuration = lambda gpu, parts: told.append(
        (f"{gpu} limit", *(part.memory_limit for part in parts))
    )
    use_device(1)
    use_device(2, 3000.7)
    return tf.config.threading.get_intra_op_parallelism_threads(), told


def test_a_worker_takes_the_threads_and_the_gpu_memory_that_it_is_given() -> None:
    """Memory as it is needed where the GPU is its own, and up to a hard limit where others share it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        threads, told = pool.submit(settings_of_a_gpu).result()
    assert threads == 2
    assert told == [("GPU grows", True), ("GPU limit", 3000)]


def apply(optimizer, variable, gradient) -> None:
    optimizer.apply([gradient], [variable])


def adam_after(steps: int) -> tuple[float, float]:
    """Largest difference of weights, and largest weight change, between Keras' Adam and ours after some steps."""
    import keras
    import tensorflow as tf

    from orchestrator.train.optimizers import FusedAdam

    rng = np.random.default_rng(0)
    start = rng.normal(size=(40, 30)).astype("float32")
    gradients = [rng.normal(size=start.shape).astype("float32") for _ in range(steps)]
    ends = []
    for optimizer in (keras.optimizers.Adam(0.01), FusedAdam(0.01)):
        variable = keras.Variable(start)
        optimizer.build([variable])

        step = tf.function(lambda gradient: apply(optimizer, variable, gradient))  # noqa: B023  traced before the next
        for gradient in gradients:
            step(tf.constant(gradient))
        ends.append(np.array(variable))
    return float(np.abs(ends[0] - ends[1]).max()), float(np.abs(ends[0] - start).max())


def test_the_fused_adam_is_keras_adam(worker: ProcessPoolExecutor) -> None:
    """The same weights to rounding after 50 steps that moved them far."""
    difference, moved = worker.submit(adam_after, 50).result()
    assert moved > 0.1
    assert difference < 1e-5


def same(result: Result, expected: Result) -> bool:
    """Equal weights and metrics; only what was measured by the clock may differ."""

    def essence(r: Result) -> str:
        measured = {"train_s", "images_per_s", "validate_s"}
        right = {epoch: found.counts for epoch, found in r.right.items() if epoch in expected.right}
        return json.dumps([r.status, r.digests, right, [e.model_dump(exclude=measured) for e in r.history]])

    assert result.status == "ok", result.error
    assert essence(result) == essence(expected)
    return True


def test_history_is_made_of_epochs(undisturbed: Result) -> None:
    """A result survives being written and read."""
    again = Result.model_validate_json(undisturbed.model_dump_json())
    assert again == undisturbed
    assert isinstance(again.history[0], Epoch)


def test_a_loss_is_the_cross_entropy_alone(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Weights that hardly move predict alike, whatever l2 is: losses are alike, objectives are not."""
    figures = {}
    for l2 in (0.0, 10.0):
        work, (trial,) = work_in(
            tmp_path / str(l2), f"grid={{l2: [{l2}], epochs: [1]}}", "train.learning_rate=1e-9", "metric=val_loss"
        )
        figures[l2] = worker.submit(train, trial, work).result().history[0].metrics
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        assert figures[0.0][name] == pytest.approx(figures[10.0][name], abs=1e-5)
    for loss, objective in (("loss", "objective"), ("val_loss", "val_objective")):
        assert figures[0.0][objective] == figures[0.0][loss]
        assert figures[10.0][objective] > figures[10.0][loss] + 1


def train_with_a_new_metric(trial: Trial, work: WorkerContext) -> Result:
    from orchestrator.metrics import METRICS, Metric

    METRICS["val_sure"] = Metric("val_sure", "higher", "predictions", compute=lambda found: found.probabilities.max())
    try:
        return train(trial, work)
    finally:
        del METRICS["val_sure"]


def train_with_an_older_checkpoint(trial: Trial, work: WorkerContext) -> tuple[Result, list[str]]:
    """One that holds two epochs without val_f1, as an older version left it."""
    from orchestrator.train.checkpoint import Checkpoint

    train(trial.leg(2), work)
    saved = Checkpoint.from_bytes(work.run.read_checkpoint(trial.id))
    for epoch in saved.state.history:
        del epoch.metrics["val_f1"]
    work.run.write_checkpoint(trial.id, saved.to_bytes())
    return train_and_listen(trial, work)


def test_a_metric_ranks_whole_histories(undisturbed: Result, worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """A trial that an older version began starts anew where its first epochs do not have what ranks it."""
    work, (trial,) = work_in(tmp_path, "metric=val_f1")
    result, said = worker.submit(train_with_an_older_checkpoint, trial, work).result()
    assert same(result, undisturbed)
    assert [line.rpartition(": ")[2] for line in said] == ["an older version wrote it, which did not record val_f1"]


def test_a_new_metric_is_one_row_and_one_function(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """It is computed from the predictions for the validation images, and recorded in every epoch."""
    work, (trial,) = work_in(tmp_path, "grid.epochs=[2]")
    result = worker.submit(train_with_a_new_metric, trial, work).result()
    assert result.status == "ok", result.error
    assert all(0.5 < epoch.figures["val_sure"] <= 1 for epoch in result.history)


AUTO = (
    "train.learning_rate=auto",
    "augment={}",
    "grid={batch_size: [8], epochs: [1]}",
    "points=[{dropout: 0.5, batch_size: 8, epochs: 1}]",
    "seeds=[0, 1]",
)


def stop_in_the_range_test(trial: Trial, work: WorkerContext) -> Result | None:
    """The worker is told to stop after three rates."""
    from orchestrator.data.arrays import Stopped
    from orchestrator.train import rates

    loss_at, tried = rates._loss_at, itertools.count()

    def stop_at_the_fourth(*args: object) -> float | None:
        if next(tried) == 3:
            raise Stopped
        return loss_at(*args)

    rates._loss_at = stop_at_the_fourth
    try:
        return train(trial, work)
    finally:
        rates._loss_at = loss_at


def test_a_rate_is_the_same_wherever_it_is_found(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """By another trial, after a stop, or anew because its file was damaged: equal bytes; and it trains as if named."""
    work, trials = work_in(tmp_path / "one", *AUTO)
    one, *_, other = sorted(trials, key=lambda trial: (trial.values["dropout"], trial.seed))
    assert one.rate_test == other.rate_test
    result = worker.submit(train, one, work).result()
    assert result.status == "ok", result.error
    found = (tmp_path / "one" / "rates" / f"{one.rate_test}.json").read_bytes()
    assert json.loads(found)["rate"] == result.rate_used

    named, trials = work_in(tmp_path / "named", *AUTO, f"train.learning_rate={result.rate_used}")
    same_rate = min(trials, key=lambda trial: (trial.values["dropout"], trial.seed))
    assert worker.submit(train, same_rate, named).result().digests == result.digests

    again, _ = work_in(tmp_path / "two", *AUTO)
    key = f"rates/{one.rate_test}.json"
    again.run.store.write(key, found.replace(b'"rate":', b'"rate":1', 1))
    assert worker.submit(stop_in_the_range_test, other, again).result() is None
    result, said = worker.submit(train_and_listen, other, again).result()
    assert result.rate_used == json.loads(found)["rate"]
    assert said[0].endswith("was damaged, and is made anew")
    assert again.run.store.read(key) == found
