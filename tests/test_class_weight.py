"""class_weight: what an image of each class counts for in training, as Keras' model.fit has it."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from images import as_shards, encoded, fill

from orchestrator.board.table import build_board, build_history
from orchestrator.board.views import effects, fold
from orchestrator.data.backbone import find_networks
from orchestrator.data.indexing import build_index
from orchestrator.data.weights import check_class_weights, class_weights
from orchestrator.display.page import gather
from orchestrator.display.table import as_markdown, columns
from orchestrator.driver.lay_out import Options
from orchestrator.driver.line import orchestrate
from orchestrator.driver.state import RunState
from orchestrator.driver.summary import count
from orchestrator.errors import BadInput
from orchestrator.plans.points import Plan, make_plan
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import BOARD, HISTORY, Run
from orchestrator.runs.result import Result
from orchestrator.spec.reading import load_spec
from orchestrator.store import open_store
from orchestrator.tracking.tensorboard import encode, hyperparameters
from orchestrator.words import label

GRID = "{name: a, data: {uri: 'sample://shirts'}, grid: {batch_size: [5]}}"


def start_worker() -> None:
    from orchestrator.train.device import use_device

    use_device(1)


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=start_worker) as pool:
        yield pool


def test_balanced_weighs_every_class_alike() -> None:
    """images / (classes * images of the class); a class that no image trains on takes nothing from the others."""
    labels = np.array([0] * 19 + [1])
    assert class_weights("balanced", ["cat", "dog"], labels) == pytest.approx([20 / 38, 10])
    assert class_weights("balanced", ["cat", "dog", "eel"], labels)[:2] == pytest.approx([20 / 38, 10])
    assert class_weights({"dog": 19.0}, ["cat", "dog"], labels).tolist() == [1, 19]
    assert class_weights("none", ["cat", "dog"], labels) is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.class_weight={shrit: 2}",
            "train.class_weight must name classes of the data (shirt, t-shirt), got 'shrit' (did you mean shirt?): ",
        ),
        ("grid.class_weight=[none, {shirt: 1, dog: 2}]", "grid.class_weight[1] must name classes of the data (shirt, "),
        (
            "points=[{class_weight: {dog: 2}}]",
            "points[0].class_weight must name classes of the data (shirt, t-shirt), ",
        ),
    ],
)
def test_a_class_that_the_data_do_not_have_is_found_before_training(override: str, message: str) -> None:
    """Wherever it stands, `--plan` says so in one line."""
    with pytest.raises(BadInput) as error:
        orchestrate(load_spec(GRID, [override]), Options(plan_only=True))
    assert str(error.value).startswith(message)


def test_of_many_classes_some_are_listed() -> None:
    """One line stays one line."""
    with pytest.raises(BadInput, match=r"c18, c19 and 980 more\), got 'dog': name one of them, or leave it out"):
        check_class_weights(load_spec(GRID, ["train.class_weight={dog: 2}"]), [f"c{i}" for i in range(1000)])


@pytest.mark.parametrize("value", ["heavy", "{cat: -1}", "{cat: a}", "3", "null", "{cat: .inf}"])
@pytest.mark.parametrize("path", ["train.class_weight={}", "grid.class_weight=[{}]"])
def test_what_is_no_weight_is_one_line(path: str, value: str) -> None:
    """It says all that it may be."""
    with pytest.raises(BadInput, match=r"class_weight(\[0\])? must be none, balanced, or a number of at least 0 for "):
        load_spec(GRID, [path.replace("{}", value)])


def train_beside_keras(
    classes: int, precision: str, mixes: bool = False
) -> tuple[dict[str, float], dict[str, float], float]:
    """What our step and Keras' fit sum up over the same batches, and the largest difference of a weight after them.

    mixes: each example has two labels, which Keras takes as mixed one-hot ones, and no weights.
    """
    import keras
    import tensorflow as tf

    from orchestrator.spec.sections import Train
    from orchestrator.train.model import head
    from orchestrator.train.optimizers import make_optimizer
    from orchestrator.train.steps import Sums, no_sums, training_step

    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    model = head((6,), classes, hidden=8, l2=0.01)
    theirs = keras.models.clone_model(model)
    theirs.set_weights(model.get_weights())
    random = np.random.default_rng(0)
    x, y = random.normal(size=(44, 6)).astype("float32"), random.integers(0, classes, 44)
    weights = None if mixes else np.array([1, 19, 0.5, 0][:classes], np.float32)
    others, share = random.integers(0, classes, 44), random.random(44, np.float32)
    optimizer, sums = make_optimizer(Train(precision=precision, learning_rate=0.01)), tf.Variable(no_sums())
    optimizer.build(model.trainable_variables)
    step = tf.function(training_step(model, optimizer, sums, weights))
    labels, other_labels = (
        tf.constant(each[:, None], tf.float32) if classes == 2 else tf.constant(each, tf.int32) for each in (y, others)
    )
    parts = [tf.constant(x), labels, *([other_labels, tf.constant(share)] if mixes else [])]
    for start in range(0, 44, 8):  # the last batch is a smaller one
        step(*(part[start : start + 8] for part in parts))
    loss, class_weight = "sparse_categorical_crossentropy", None
    if mixes:
        one_hot = np.eye(classes, dtype=np.float32)
        y = share[:, None] * one_hot[y] + (1 - share[:, None]) * one_hot[others]
        loss, y = ("binary_crossentropy", y[:, 1:]) if classes == 2 else ("categorical_crossentropy", y)
    else:
        class_weight = dict(enumerate(weights.tolist()))
        loss = "binary_crossentropy" if classes == 2 else loss
    theirs.compile(keras.optimizers.Adam(0.01), loss, weighted_metrics=["accuracy"] if mixes else None)
    fit = theirs.fit(x, y, 8, shuffle=False, verbose=0, class_weight=class_weight)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(model.get_weights(), theirs.get_weights(), strict=True))
    return Sums(*sums.numpy().tolist())._asdict(), fit.history, apart


@pytest.mark.parametrize(("classes", "precision"), [(2, "float32"), (4, "float32"), (4, "mixed_float16")])
def test_it_weighs_as_keras_does(worker: ProcessPoolExecutor, classes: int, precision: str) -> None:
    """The same batches leave the same weights as model.fit(class_weight=...), and the same mean objective."""
    sums, history, apart = worker.submit(train_beside_keras, classes, precision).result()
    assert apart < (1e-5 if precision == "float32" else 1e-3)
    assert sums["objective"] / sums["images"] == pytest.approx(history["loss"][0], rel=1e-5 if apart < 1e-5 else 1e-2)
    assert sums["loss"] < 0.7 * sums["objective"]  # the loss itself stays unweighted


@pytest.mark.parametrize("classes", [2, 4])
def test_mixed_labels_are_trained_on_as_by_keras(worker: ProcessPoolExecutor, classes: int) -> None:
    """The same weights and mean loss as model.fit on mixed one-hot labels; right is the label that counts for more."""
    sums, history, apart = worker.submit(train_beside_keras, classes, "float32", True).result()
    assert apart < 1e-5
    assert sums["objective"] / sums["images"] == pytest.approx(history["loss"][0], rel=1e-5)
    assert sums["images"] == 44
    if classes > 2:  # of two, Keras compares the mixed label itself
        assert sums["correct"] / sums["images"] == pytest.approx(history["accuracy"][0])


GRAINS = """
name: grains
data: {uri: IMAGES, image_size: [12, 12], validation_split: 0.25}
train: {epochs: 16, learning_rate: 0.003}
grid: {class_weight: [none, balanced, {stone: 19}]}
"""


def grain(number: int, is_stone: bool) -> bytes:
    """A picture of noise; stones are a little brighter, so that most, but not all, can be told from the others."""
    random = np.random.default_rng(number)
    level = random.normal(140 if is_stone else 115, 12)
    return encoded(np.clip(random.normal(level, 40, (12, 12, 3)), 0, 255).astype(np.uint8))


def train_all(work: WorkerContext, trials: tuple[Trial, ...]) -> list[Result]:
    from orchestrator.train.trial import run_trial

    return [run_trial(trial, work) for trial in trials]


@pytest.fixture(scope="module")
def grains(worker: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> tuple[WorkerContext, Plan]:
    """A run on 950 grains and 50 stones, trained to the end with each kind of weights."""
    folder = tmp_path_factory.mktemp("grains")
    names = [f"grain/{i:04}.png" for i in range(950)] + [f"stone/{i:04}.png" for i in range(50)]
    images = {name: grain(i, name.startswith("stone")) for i, name in enumerate(names)}
    store = fill(open_store(str(folder / "images"), create=True), as_shards(images, 1))
    spec = load_spec(GRAINS.replace("IMAGES", str(folder / "images")))
    index = build_index(store, spec.data)
    networks, _ = find_networks(spec)
    counts = count(index)
    plan = make_plan(spec, counts, index.digest, networks)
    work = WorkerContext(spec, index, store, Run(open_store(str(folder / "run"), create=True)), networks=networks)
    results = worker.submit(train_all, work, plan.trials).result()
    assert [result.error for result in results] == [None] * 3
    return work, plan


def test_a_rare_class_is_learned(grains: tuple[WorkerContext, Plan]) -> None:
    """Of 19 to 1, without weights nearly all are said to be of the many, which is right for 95%."""
    work, plan = grains
    rows = build_board(work.spec, plan, work.run.read_results()).to_pylist()
    found = {row["class_weight"]: row for row in rows}
    assert set(found) == {"none", "balanced", "{stone: 19}"}
    for name in ("balanced", "{stone: 19}"):
        assert found[name]["val_balanced_accuracy"] > found["none"]["val_balanced_accuracy"] + 0.1
        assert found[name]["val_recall"] > found["none"]["val_recall"] + 0.2


def test_weights_are_shown_as_they_are_written(grains: tuple[WorkerContext, Plan]) -> None:
    """In the table, the verdict, the page and what TensorBoard reads."""
    work, plan = grains
    results = work.run.read_results()
    board, history = build_board(work.spec, plan, results), build_history(results)
    work.run.write_tables({BOARD: board, HISTORY: history})
    assert {label(point.values, point.seed) for point in plan.points} >= {"class_weight={stone: 19}"}
    assert "{stone: 19}" in as_markdown(board)
    assert {row["value"] for row in effects(board, history)[0].to_pylist()} == {"none", "balanced", "{stone: 19}"}
    assert "{stone: 19}" in gather(work.run)["board"]["columns"]["class_weight"]
    assert any(b"{stone: 19}" in encode(hyperparameters(point), [], 0.0) for point in plan.points)
    assert [each.values["class_weight"] for each in fold(board)] == board["class_weight"].to_pylist()


def test_any_recorded_metric_ranks_a_finished_run(grains: tuple[WorkerContext, Plan]) -> None:
    """Nothing is trained again; the table shows it, and others only where they rank."""
    work, trained = grains
    for metric in ("val_balanced_accuracy", "val_auc", "val_f1"):
        spec = work.spec.model_copy(update={"metric": metric})
        plan = make_plan(spec, trained.counts, work.index.digest, work.networks)
        state = RunState(replace(work, spec=spec), plan, work.run.read_results())
        state.check_metric()
        assert state.left == ()
        scores = state.board["score"].to_pylist()
        assert scores == sorted(scores, reverse=True)
        assert [name for name in columns(state.board) if name.startswith("val_")] == [
            metric,
            "val_accuracy",
            "val_loss",
        ]
