"""Schedules and what else an optimizer is told: as Keras has it, exact, and shared as far as epochs are the same."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_trial import new_worker, same, train, train_and_listen, work_in

from orchestrator.driver.legs import GridLegs
from orchestrator.driver.state import RunState
from orchestrator.errors import BadInput
from orchestrator.plans.describe import describe
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import Plan, make_plan, remaining
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import Reporter, WorkerContext
from orchestrator.runs.folder import KeepModels
from orchestrator.runs.result import Result
from orchestrator.spec.code import Code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec

LOSSES = [0.9, 0.8, 0.79995, 0.8, 0.79, 0.7, 0.8, 0.8, 0.8, 0.8, 0.9, 0.6]
PLAIN = ("augment={}",)  # which is compiled sooner
WSD = ("train.schedule=wsd", "train.decay_share=0.4", "train.ema=0.9", *PLAIN)


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    with new_worker() as pool:
        yield pool


def planned(*overrides: str) -> Plan:
    spec = load_spec("{name: a, data: {uri: x}, grid: {batch_size: [5], epochs: [10, 20]}}", overrides)
    return make_plan(spec, Counts(100, 20), "i", Networks({"small_cnn": Code("c", {})}))


def train_and_stop(trial: Trial, work: WorkerContext, asks: int) -> Result:
    """It asks after every batch, is stopped once, and goes on."""
    from orchestrator.train import loop
    from orchestrator.train.trial import run_trial

    asked = iter(range(asks))
    stretch_s, loop._STRETCH_S = loop._STRETCH_S, 0.0
    try:
        assert run_trial(trial, work, Reporter(stopping=lambda: next(asked, None) is None)) is None
    finally:
        loop._STRETCH_S = stretch_s
    return train(trial, work)


def rates_beside_keras(schedule: str, steps: int, epochs: int) -> tuple[list[float], list[float]]:
    """The rates of all steps, ours and Keras'."""
    import keras

    from orchestrator.spec.sections import Train
    from orchestrator.train.schedules import rates

    train = Train(schedule=schedule, learning_rate=0.02, warmup_epochs=2, step_epochs=3, plateau_patience=2)
    ours = np.concatenate([rates(train, steps, epochs, LOSSES[:epoch]) for epoch in range(epochs)])
    warmup, last = 2 * steps, epochs * steps
    cosine = keras.optimizers.schedules.CosineDecay(0.0, last - warmup, warmup_target=0.02, warmup_steps=warmup)
    falls = keras.optimizers.schedules.PolynomialDecay(0.02, 2 * steps, 0.0)
    stairs = keras.optimizers.schedules.ExponentialDecay(0.02, 3 * steps, 0.1, staircase=True)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.02), "mse")
    plateau = keras.callbacks.ReduceLROnPlateau(patience=2)
    plateau.set_model(model)
    plateau.on_train_begin()
    theirs = []
    for step in range(last):
        if step and step % steps == 0:
            plateau.on_epoch_end(step // steps - 1, {"val_loss": LOSSES[step // steps - 1]})
        warm = cosine(step) if step < warmup else 0.02
        rate = {
            "constant": 0.02,
            "warmup": warm,
            "step": stairs(step),
            "cosine": cosine(step),
            "plateau": model.optimizer.learning_rate,
            "wsd": falls(step - last + 2 * steps) if step >= last - 2 * steps else warm,
        }[schedule]
        theirs.append(float(rate))
    return ours.tolist(), theirs


@pytest.mark.parametrize("schedule", ["constant", "warmup", "step", "cosine", "plateau", "wsd"])
def test_rates_are_those_of_keras(worker: ProcessPoolExecutor, schedule: str) -> None:
    """At every step of ten epochs, of which the last fifth decays."""
    ours, theirs = worker.submit(rates_beside_keras, schedule, 3, 10).result()
    assert ours == pytest.approx(theirs, rel=2e-6, abs=1e-9)
    assert (len(set(ours)) > 1) == (schedule != "constant")


def optimizers_beside_keras(name: str, fields: dict[str, float]) -> tuple[float, float]:
    """Largest difference of a weight, or of its average, to Keras' own after some steps, and how far these moved."""
    import keras
    import tensorflow as tf

    from orchestrator.spec.sections import Train
    from orchestrator.train.optimizers import averages, make_optimizer

    random = np.random.default_rng(0)
    starts = [random.normal(size=shape).astype("float32") for shape in ((6, 5), (5,))]
    gradients = [[random.normal(size=start.shape).astype("float32") for start in starts] for _ in range(8)]
    own = make_optimizer(Train(optimizer=name, learning_rate=0.02, **fields))
    options = {"weight_decay": 0.1, "global_clipnorm": 0.5, "use_ema": True, "ema_momentum": 0.7}
    options |= {"momentum": 0.9} if "momentum" in fields else {}
    theirs = type(keras.optimizers.get(name))(0.02, **options)
    ends = []
    for optimizer in (own, theirs):
        variables = [keras.Variable(start) for start in starts]
        optimizer.build(variables)
        for step in gradients:
            optimizer.apply([tf.constant(gradient) for gradient in step], variables)
        kept = averages(own) if optimizer is own else optimizer._model_variables_moving_average
        ends.append([np.array(each) for each in (*variables, *kept)])
    apart = max(float(np.abs(a - b).max()) for a, b in zip(*ends, strict=True))
    return apart, float(np.abs(ends[0][0] - starts[0]).max())


@pytest.mark.parametrize(
    "optimizer",
    ["adam", "nadam", "sgd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "rmsprop", "adagrad"))],
)
def test_optimizers_do_with_their_settings_as_keras_does(worker: ProcessPoolExecutor, optimizer: str) -> None:
    """Weights and their averages, with decay, clipping by the norm of all gradients, and momentum where it has any."""
    fields = {"weight_decay": 0.1, "clip_norm": 0.5, "ema": 0.7}
    fields |= {"momentum": 0.9} if optimizer in ("rmsprop", "sgd") else {}
    apart, moved = worker.submit(optimizers_beside_keras, optimizer, fields).result()
    assert apart < 1e-6 < 1e-3 < moved


def smoothed_beside_keras(classes: int) -> tuple[float, float, float, float]:
    """The mean objective of a step with smoothed labels, what Keras' loss says, and the same of the plain loss."""
    import keras
    import tensorflow as tf

    from orchestrator.spec.sections import Train
    from orchestrator.train.model import head
    from orchestrator.train.optimizers import make_optimizer
    from orchestrator.train.steps import Sums, no_sums, training_step

    keras.utils.set_random_seed(0)
    model = head((6,), classes)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(9, 6)).astype("float32"), random.integers(0, classes, 9)
    said = model(x)
    truth = y[:, None] if classes == 2 else keras.utils.to_categorical(y, classes)
    kind = keras.losses.BinaryCrossentropy if classes == 2 else keras.losses.CategoricalCrossentropy
    theirs = [float(kind(label_smoothing=smoothing)(truth, said)) for smoothing in (0.3, 0.0)]
    optimizer, sums = make_optimizer(Train()), tf.Variable(no_sums())
    optimizer.build(model.trainable_variables)
    labels = tf.constant(y[:, None], tf.float32) if classes == 2 else tf.constant(y, tf.int32)
    training_step(model, optimizer, sums, smoothing=0.3)(tf.constant(x), labels)
    found = Sums(*sums.numpy().tolist())
    return found.objective / 9, theirs[0], found.loss / 9, theirs[1]


@pytest.mark.parametrize("classes", [2, 3])
def test_labels_are_smoothed_as_keras_does_in_the_objective_alone(worker: ProcessPoolExecutor, classes: int) -> None:
    """The loss that is recorded stays that of the labels."""
    objective, theirs, loss, plain = worker.submit(smoothed_beside_keras, classes).result()
    assert objective == pytest.approx(theirs, rel=1e-5)
    assert loss == pytest.approx(plain, rel=1e-5)
    assert objective > loss


def test_milestones_of_wsd_share_the_stable_part(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Whoever trained it, and wherever that was stopped: the same weights to the bit as of a trial alone."""
    together, (long, short) = work_in(tmp_path / "together", "grid.epochs=[3, 5]", *WSD)
    assert (long.stable.forks, short.stable.trainer, short.epochs_of_another) == ((2, 3), long.id, 2)
    first = worker.submit(train_and_stop, long, together, 50).result()  # while the third epoch is validated
    then = worker.submit(train, short, together).result()
    alone, (lonely,) = work_in(tmp_path / "alone", "grid.epochs=[3]", *WSD)
    assert same(then, worker.submit(train, lonely, alone).result())
    assert [epoch.train_s for epoch in then.history[:2]] == [epoch.train_s for epoch in first.history[:2]]
    assert then.history[2] != first.history[2]
    assert [epoch.learning_rate for epoch in first.history] == pytest.approx(
        [0.001 * 14 / 15, 0.001, 0.001, 0.001 * 16 / 30, 0.001 / 30]
    )


@pytest.mark.slow
def test_a_longer_milestone_begins_where_a_shorter_one_left_the_stable_part(
    worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """A grid that grows in epochs trains only the new ones, and those of the decay; a damaged state costs the rest."""
    work, (short,) = work_in(tmp_path, "grid.epochs=[3]", *WSD)
    before = worker.submit(train, short, work).result()
    work, (long,) = work_in(tmp_path, "grid.epochs=[5]", *WSD)
    grown = worker.submit(train, long, work).result()
    assert [epoch.train_s for epoch in grown.history[:2]] == [epoch.train_s for epoch in before.history[:2]]
    for damaged in (tmp_path / "checkpoints").rglob("*.npz"):
        damaged.write_bytes(b"PK")
    anew, said = worker.submit(train_and_listen, long, work).result()
    assert same(anew, grown)
    assert [line.partition("; ")[0] for line in said] == [f"trial {long.id} starts anew"] * 3
    assert anew.history[0].train_s != grown.history[0].train_s


def train_with_averages(work: WorkerContext) -> tuple[Result, str, list[np.ndarray]]:
    """A trial that keeps averages, the digest of its model's file, and the weights that it goes on with."""
    from orchestrator.train.checkpoint import Checkpoint
    from orchestrator.train.model_file import load, weights_digest

    (trial,) = make_plan(work.spec, Counts(960, 240), work.index.digest, work.networks).trials
    result = train(trial, work)
    model = load(work.run.store.read(f"models/{trial.points[-1]}.keras"), "a model", "small_cnn")
    values = Checkpoint.from_bytes(work.run.read_checkpoint(trial.id)).values
    own = [value for value in values if value.dtype == np.float32][: len(model.get_weights())]
    return result, weights_digest(model), [*own, *model.get_weights()]


def test_a_trial_with_averages_is_judged_by_them_and_goes_on_without(
    worker: ProcessPoolExecutor, tmp_path: Path
) -> None:
    """Digest and model are those of the averages; the weights that are trained are others."""
    work, _ = work_in(tmp_path, "grid.epochs=[1]", "train.ema=0.9", *PLAIN)
    result, digest, weights = worker.submit(train_with_averages, replace(work, keep=KeepModels.all)).result()
    assert result.digests == {1: digest}
    own, averaged = weights[: len(weights) // 2], weights[len(weights) // 2 :]
    assert [each.shape for each in own] == [each.shape for each in averaged]
    assert max(np.abs(a - b).max() for a, b in zip(own, averaged, strict=True)) > 1e-4


@pytest.mark.parametrize(
    ("schedule", "trials", "epochs"),
    [("constant", 1, 20), ("warmup", 1, 20), ("step", 1, 20), ("plateau", 1, 20), ("cosine", 2, 30), ("wsd", 2, 22)],
)
def test_epochs_are_shared_as_far_as_rates_are_the_same(schedule: str, trials: int, epochs: int) -> None:
    """10 and 20 epochs whose last fifth decays take 22; what a cosine costs is said."""
    plan = planned(f"train.schedule={schedule}")
    assert (len(plan.trials), plan.epochs_trained) == (trials, epochs)
    lines = describe(plan, load_spec("{name: a, data: {uri: x}, grid: {batch_size: [5]}}"), [], "f")
    costs = "with a cosine they share nothing, as its rates depend on the last epoch: 10 epochs more"
    assert (costs in map(str.strip, lines)) == (schedule == "cosine")


def test_a_longer_milestone_goes_on_from_the_stable_part_that_is_there() -> None:
    """Of 40 epochs, 16 lie in the run folder once 20 are done, and the forecast counts the others."""
    before, plan = planned("train.schedule=wsd"), planned("train.schedule=wsd", "grid.epochs=[10, 20, 40]")
    assert {trial.id for trial in before.trials} < {trial.id for trial in plan.trials}
    longest = plan.trials[0]
    (left,) = remaining(plan, {trial.id: trial.epochs for trial in before.trials})
    assert left.forecast_s == pytest.approx(longest.forecast_s * 24 / 40)


def test_a_milestone_waits_for_the_trial_that_trains_its_stable_part(tmp_path: Path) -> None:
    """Until that is past the fork, or has ended however; in a race each trains its own."""
    work, trials = work_in(tmp_path, "grid={batch_size: [64], epochs: [10, 20]}", "train.schedule=wsd")
    plan = make_plan(work.spec, Counts(960, 240), work.index.digest, work.networks)
    for ends in (lambda legs: legs.passed(trials[0].id, 8), lambda legs: legs.ended(trials[0].id)):
        legs = GridLegs(RunState(work, plan, {}))
        assert (legs.take().epochs, legs.take(), legs.over()) == (20, None, False)
        legs.passed(trials[0].id, 7)
        assert (legs.take(), legs.may_grow) == (None, True)
        ends(legs)
        assert (legs.take().epochs, legs.may_grow, legs.over()) == (10, False, True)
    assert [trial.stable for trial in planned("train.schedule=wsd", "race=true").trials] == [None, None]


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ("schedule=[step, wsd]", "decay_share=[0.5]"),
        ("schedule=[plateau, cosine]", "warmup_epochs=[4]"),
        ("optimizer=[adamw, sgd]", "weight_decay=[0.004]"),
        ("optimizer=[adam, adamw]", "weight_decay=[0.0]"),
    ],
)
def test_what_changes_nothing_changes_no_id(own: str, other: str) -> None:
    """A parameter of another schedule, and the weight decay that Keras' optimizer has by itself."""
    before, after = planned(f"grid.{own}"), planned(f"grid.{own}", f"grid.{other}")
    first, _ = own.partition("[")[2].split(",")
    kept = {point.id for point in before.points} & {point.id for point in after.points}
    assert kept == {point.id for point in before.points if first in point.values.values()}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.momentum=0.9"], "momentum must be 0 with optimizer adam, as only sgd and rmsprop take one, got 0.9: "),
        (["grid.optimizer=[sgd, nadam]", "grid.momentum=[0.0, 0.9]"], "momentum must be 0 with optimizer nadam, "),
        (["train.decay_share=0.5"], "train.decay_share must have points that read it: set train.schedule to wsd, or "),
        (["grid.warmup_epochs=[0, 5]"], "grid.warmup_epochs must have points that read it: set train.schedule to war"),
        (["train.schedule=exponential"], "train.schedule must be one of 'constant', 'warmup', 'step', 'cosine', 'pl"),
        (["train.ema=1"], "train.ema must be a number below 1, got 1"),
    ],
)
def test_what_cannot_work_is_one_line(overrides: list[str], message: str) -> None:
    """Before anything is trained: what it must be, what it was, what to do."""
    with pytest.raises(BadInput) as error:
        planned(*overrides)
    assert str(error.value).startswith(message)
