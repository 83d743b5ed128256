"""Backbones: found and refused before anything is loaded, features made once, heads and whole models that agree."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from grids import grid
from images import class_folder, fill

from orchestrator.data.backbone import find_networks
from orchestrator.data.indexing import build_index
from orchestrator.errors import BadInput
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import Plan, make_plan
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import Reporter, WorkerContext
from orchestrator.runs.folder import KeepModels, Run
from orchestrator.runs.result import Result
from orchestrator.spec.axes import Settings
from orchestrator.spec.backbones import Pretrained, views
from orchestrator.spec.reading import load_spec
from orchestrator.spec.sections import Augment, Backbone, Data, Train
from orchestrator.store import open_store

SIDE = 16


def start_worker() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["HTTPS_PROXY"] = "http://127.0.0.1:9"  # no machine has a network here
    os.environ["KERAS_HOME"] = "/nonexistent"
    from orchestrator.train.device import use_device

    use_device(1)


def make_network(path: str, ending: str = "") -> None:
    """A small network with everything that must not change while a head is trained: dropout and normalization."""
    import keras

    keras.utils.set_random_seed(1)
    x = pixels = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, name="first")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Conv2D(12, 3, name="last")(x)
    if ending == "classifier":
        x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
        x = keras.layers.Dense(5, activation="softmax")(x)
    if ending == "flat":
        x = keras.layers.Dense(5)(keras.layers.Flatten()(x))
    if ending == "two":
        keras.Model(pixels, [x, pixels]).save(path)
        return
    network = keras.Model(pixels, x, name="small")
    network.get_layer("norm").set_weights(
        [np.linspace(*ends, 8) for ends in ((0.5, 2), (-1, 1), (-0.3, 0.3), (0.2, 2))]
    )
    network = keras.Sequential([pixels, *network.layers[1:]]) if ending == "sequential" else network
    network.save(path)


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    """One worker that trains trial after trial, as in a grid."""
    with new_worker() as pool:
        yield pool


def new_worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, worker: ProcessPoolExecutor) -> Path:
    """Networks as .keras files, and forty images of two classes."""
    folder = tmp_path_factory.mktemp("files")
    for ending in ("", "classifier", "flat", "two", "sequential"):
        worker.submit(make_network, str(folder / f"small{ending}.keras"), ending).result()
    (folder / "text.keras").write_text("no model")
    fill(open_store(str(folder / "images"), create=True), class_folder({"cat": 24, "dog": 24}, 20, 20))
    return folder


def context_of(
    folder: Path, files: Path, keep: KeepModels = KeepModels.none, **spec: Any
) -> tuple[WorkerContext, Plan]:
    """A run folder and the plan of a spec with these keys."""
    tree = {"name": "a", "data": {"uri": str(files / "images"), "image_size": SIDE}, "seeds": [3]}
    tree |= {
        "backbone": str(files / "small.keras"),
        "grid": {"batch_size": [8], "dropout": [0.5], "epochs": [2]},
        **spec,
    }
    loaded = load_spec(yaml.safe_dump(tree))
    images = open_store(loaded.data.uri)
    index = build_index(images, loaded.data)
    counts = Counts(int((~index.validates()).sum()), int(index.validates().sum()))
    networks, weights = find_networks(loaded)
    plan = make_plan(loaded, counts, index.digest, networks)
    run = Run(open_store(str(folder), create=True))
    return WorkerContext(loaded, index, images, run, keep, networks=networks, weights=weights), plan


def train(trial: Trial, context: WorkerContext, cache: str) -> tuple[Result | str, list[tuple[Any, ...]]]:
    """The result, or what was refused; and what was told of features. cache: this node's."""
    os.environ["ORCHESTRATOR_CACHE_DIR"] = cache
    from orchestrator.data import features
    from orchestrator.train import inputs
    from orchestrator.train.trial import run_trial

    features.CHUNK = 20
    inputs._features.clear()
    inputs._caches.clear()
    told: list[tuple[Any, ...]] = []
    try:
        return run_trial(trial, context, Reporter(preparing=lambda *what: told.append(what))), told
    except BadInput as error:
        return str(error), told


def train_and_stop_after_a_chunk(trial: Trial, context: WorkerContext, cache: str, killed: bool) -> bool:
    """Whether it stopped. killed: it does not, but is killed instead."""
    os.environ["ORCHESTRATOR_CACHE_DIR"] = cache
    from orchestrator.data import features
    from orchestrator.train.trial import run_trial

    features.CHUNK = 20
    stop = threading.Event()

    def end(*what: Any) -> None:
        stop.set()
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)

    return run_trial(trial, context, Reporter(preparing=end, stopping=stop.is_set)) is None


def digests(result: Result | str) -> dict[int, str]:
    assert isinstance(result, Result), result
    assert result.status == "ok", result.error
    return result.digests


# --- The spec ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"backbone": "MobileNetV9"}, "backbone must be a network of keras.applications or a .keras file, got "),
        ({"backbone": "MobilenetV2"}, "(did you mean MobileNetV2?)"),
        (
            {"backbone": "./none.keras"},
            "backbone must be a network of keras.applications or a .keras file that is there",
        ),
        ({"backbone": "{files}/text.keras"}, "must be a Keras model of layers (Functional or Sequential), saved as a"),
        (
            {"backbone": {"name": "{files}/small.keras", "layer": "lats"}},
            "got 'lats' (did you mean last?); its last ones",
        ),
        ({"backbone": {"name": "{files}/small.keras", "weights": "x.h5"}}, "backbone.weights must be left out, as "),
        ({"backbone": {"name": "ResNet50", "weights": "none.h5"}}, "backbone.weights must be imagenet or a file"),
        ({"backbone": {"name": "ResNet50", "weights": "x.txt"}}, "(.h5, .weights.h5, .keras), got x.txt"),
        ({"backbone": "ResNet50"}, "image_size must be at least [32, 32] for the backbone ResNet50, got [16, 16]"),
        ({"backbone": "Xception", "data": {"image_size": 64}}, "image_size must be at least [71, 71]"),
        (
            {"backbone": "ResNet50", "model": "small_cnn"},
            "model must be head, or a function of your own, where there is",
        ),
        ({"backbone": None, "model": "head"}, "model head must have a backbone, whose features it takes"),
        ({"backbone": None, "grid": {"unfreeze": [0, 2]}}, "grid.unfreeze must have a backbone to unfreeze"),
        ({"augment": {"rotation_deg": 9}}, "augment must be left out with backbone.views 1"),
        ({"backbone": {"name": "ResNet50", "view": 2}}, "backbone.view is not a known key (did you mean views?)"),
        ({"backbone": 5}, "backbone must be a mapping, got 5"),
        (
            {"grid": {"training_images": [10, 60]}},
            "training_images must be at most 40, as so many images train, got 60",
        ),
        ({"grid": {"rotation_deg": [0, 30]}}, "augment must be left out with backbone.views 1"),
        ({"grid": {"preset": ["none", "light"]}}, "augment must be left out with backbone.views 1"),
        (
            {"augment": {"cutmix": 1}},
            "cutmix must be 0 with a backbone, whose features have no place to put a box, got 1",
        ),
        ({"grid": {"fine_tune_learning_rate": [1e-4]}}, "must have points that unfreeze: add one, such as unfreeze"),
        (
            {"grid": {"backbone": ["none", "{files}/small.keras"], "unfreeze": [0, 2]}},
            "remove one of them, for example with exclude: [{backbone: 'none', unfreeze: 2}]",
        ),
        ({"grid": {"width": [1]}}, "must be an argument of the model head (hidden, dropout, l2)"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(tmp_path: Path, files: Path, spec: dict, message: str):
    """In one line that says what it must be, what it was, and what to do."""
    spec = json.loads(json.dumps(spec).replace("{files}", str(files)))
    if size := spec.pop("data", None):
        spec["data"] = {"uri": str(files / "images"), **size}
    with pytest.raises(BadInput) as refused:
        context_of(tmp_path, files, **spec)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_weights_are_other_trials_and_another_place_is_not(tmp_path: Path, files: Path):
    """One byte of the file makes all trials others; the same file elsewhere makes none."""
    shutil.copy(files / "small.keras", tmp_path / "moved.keras")
    other = (tmp_path / "moved.keras").read_bytes() + b"\0"
    (tmp_path / "other.keras").write_bytes(other)
    here, moved, changed = (
        context_of(tmp_path / "run", files, backbone=str(path))[1].trials[0].id
        for path in (files / "small.keras", tmp_path / "moved.keras", tmp_path / "other.keras")
    )
    assert here == moved != changed


def test_where_no_image_is_turned_the_features_of_older_runs_are_found():
    """Their ids are as they were before there was a choice; where images are turned, they are others."""
    network = Pretrained("abc", "0..1", "", None, 1.0)
    ids = {}
    for exif in ("ignore", "apply"):
        data = Data(uri="unused", exif=exif)
        settings = Settings(data, Augment(rotation_deg=5), Backbone(name="MobileNet", views=2), Train(), "head", {})
        ids[exif] = [view.id for view in views(settings, network, "digest")]
    assert ids["ignore"][:2] == ["92f6a58499097d7185c6b7426b5a0c78", "26c42620f5588a26b1628f78d7807917"]
    assert not {*ids["ignore"]} & {*ids["apply"]}


def test_a_run_without_a_backbone_can_gain_one(tmp_path: Path, files: Path):
    """Its trials keep their ids, and the plan says which are new, what is made for them, and what waits for what."""
    before = context_of(tmp_path, files, backbone=None)[1]
    axes = {"batch_size": [8], "dropout": [0.5], "epochs": [2], "backbone": ["none", str(files / "small.keras")]}
    context, after = context_of(tmp_path, files, backbone=None, grid=axes)
    assert {trial.id for trial in before.trials} < {trial.id for trial in after.trials}
    assert (before.features, len(after.features), after.features[0].width) == ((), 1, 12)
    assert context.spec.model == "auto"
    frozen, branch = context_of(tmp_path, files, grid={**axes, "backbone": [axes["backbone"][1]], "unfreeze": [3, 0]})[
        1
    ].trials
    assert (branch.frozen, branch.values["unfreeze"], frozen.values["unfreeze"]) == (frozen.id, 3, 0)


def test_fewer_training_images_are_some_of_the_others_of_each_class_alike(files: Path, tmp_path: Path):
    """The same ones on every machine: drawn by the path."""
    index = context_of(tmp_path, files)[0].index
    readable = np.ones(len(index), bool)
    rows = [index.training_rows(readable, limit) for limit in (10, 20, None)]
    assert [len(each) for each in rows] == [10, 20, 40]
    assert set(rows[0]) < set(rows[1]) < set(rows[2])
    assert np.bincount(index.labels[rows[0]]).tolist() == [5, 5]


# --- Features and heads -----------------------------------------------------------------------------------------------


def test_features_are_made_once_and_are_the_same_for_all(tmp_path: Path, files: Path, worker: ProcessPoolExecutor):
    """Stopped after a chunk, killed after another, and resumed; fetched by another node; taken over by another run."""
    context, plan = context_of(tmp_path / "run", files)
    trial, node = plan.trials[0], str(tmp_path / "node")
    assert worker.submit(train_and_stop_after_a_chunk, trial, context, node, False).result()
    with new_worker() as other, pytest.raises(BrokenProcessPool):
        other.submit(train_and_stop_after_a_chunk, trial, context, node, True).result()
    result, told = worker.submit(train, trial, context, node).result()
    assert len(told) == 1, "a chunk was made twice"
    expected = digests(result)

    def again(folder: str, cache: str) -> list[tuple[Any, ...]]:
        other = replace(context, run=Run(open_store(str(tmp_path / folder), create=True)))
        for file in (tmp_path / folder / "trials").glob("*"):
            file.unlink()
        shutil.rmtree(tmp_path / folder / "checkpoints", ignore_errors=True)
        result, told = worker.submit(train, trial, other, str(tmp_path / cache)).result()
        assert digests(result) == expected
        return told

    assert again("run", "another node") == []
    assert again("another run", "node") == []
    assert again("a third run", "a third node")[-1][3] == 48
    streamed = {"uri": str(files / "images"), "image_size": SIDE, "cache_limit_gb": 0}
    context = context_of(tmp_path / "run", files, data=streamed)[0]
    assert again("streamed", "a fourth node")[-1][3] == 48


def test_damaged_features_are_made_anew(tmp_path: Path, files: Path, worker: ProcessPoolExecutor):
    """A turned bit in the run folder's chunk, and one in the node's array: the same weights."""
    context, plan = context_of(tmp_path / "run", files)
    expected = digests(worker.submit(train, plan.trials[0], context, str(tmp_path / "node")).result()[0])
    (chunk, *_), (array,) = sorted((tmp_path / "run").rglob("*.f32")), (tmp_path / "node").rglob("features.f32")
    for file in (chunk, array):
        data = bytearray(file.read_bytes())
        data[5] ^= 1
        file.write_bytes(data)
    for file in [*(tmp_path / "run" / "trials").glob("*"), *(tmp_path / "run" / "checkpoints").glob("*")]:
        file.unlink()
    assert digests(worker.submit(train, plan.trials[0], context, str(tmp_path / "node")).result()[0]) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"backbone": {"name": "{files}/smalltwo.keras"}}, "must take one image and give one feature map"),
        ({"backbone": "{files}/smallflat.keras"}, "takes images of 32x32 only: set data.image_size to [32, 32]"),
        (
            {"backbone": {"name": "{files}/small.keras", "unfreeze": 9}},
            "unfreeze must be at most 3, the layers of the backbone with weights, got 9",
        ),
        (
            {"backbone": "MobileNet", "data": {"image_size": 32}},
            "must have its ImageNet weights, and they cannot be fetched",
        ),
    ],
)
def test_what_only_keras_can_tell_is_refused_before_anything_is_trained(
    tmp_path: Path, files: Path, worker: ProcessPoolExecutor, spec: dict, message: str
):
    """In one line, by the first worker."""
    spec = json.loads(json.dumps(spec).replace("{files}", str(files)))
    if size := spec.pop("data", None):
        spec["data"] = {"uri": str(files / "images"), **size}
    context, plan = context_of(tmp_path / "run", files, **spec)
    refused, _ = worker.submit(train, plan.trials[0], context, str(tmp_path / "node")).result()
    assert message in str(refused)
    assert "\n" not in str(refused)
    assert not list((tmp_path / "run").glob("trials/*"))


def preprocessed_as_keras_does(mode: str, module: str) -> float:
    """The largest difference between our layers and keras.applications' own function, for pixels of 0 to 255."""
    import keras
    import numpy as np

    from orchestrator.train.backbone import _preprocess

    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.float32)
    image = keras.Input((8, 8, 3))
    ours = keras.Model(image, _preprocess(image, mode))
    theirs = getattr(keras.applications, module).preprocess_input(pixels.copy())
    return float(np.abs(ours(pixels / 255) - theirs).max())


@pytest.mark.parametrize(
    ("mode", "module"),
    [("-1..1", "mobilenet_v2"), ("caffe", "resnet50"), ("torch", "densenet"), ("0..255", "efficientnet_v2")],
)
def test_pixels_are_prepared_as_keras_prepares_them(worker: ProcessPoolExecutor, mode: str, module: str):
    """By layers in the model: what a network was trained on, to rounding."""
    assert worker.submit(preprocessed_as_keras_does, mode, module).result() < 1e-4


FINE_TUNED = {"batch_size": [8], "dropout": [0.5], "epochs": [2], "unfreeze": [0, 2]}


def fine_tune_in_pieces(trial: Trial, context: WorkerContext) -> dict[int, str]:
    """Stopped a few batches after the head is trained, and again."""
    from orchestrator.train import loop
    from orchestrator.train.trial import run_trial

    stretch_s, loop._STRETCH_S = loop._STRETCH_S, 0.0
    result = None
    while not result:
        asks = iter(range(18))
        result = run_trial(trial, context, Reporter(stopping=lambda asks=asks: next(asks, None) is None))
    loop._STRETCH_S = stretch_s
    return digests(result)


def test_fine_tuning_branches_from_the_frozen_trial(tmp_path: Path, files: Path, worker: ProcessPoolExecutor):
    """From its checkpoint where it was trained, and otherwise trained first; stopped or not; the same to the bit."""
    axes = {"batch_size": [8], "dropout": [0.5], "epochs": [2]}
    context, plan = context_of(tmp_path / "run", files, grid={**axes, "unfreeze": [0, 2]})
    cache = str(tmp_path / "node")
    frozen, branch = plan.trials
    still = worker.submit(train, frozen, context, cache).result()[0]
    tuned = worker.submit(train, branch, context, cache).result()[0]
    assert digests(still) != digests(tuned)
    alone, plan_alone = context_of(
        tmp_path / "alone", files, backbone={"name": str(files / "small.keras"), "unfreeze": 2}
    )
    assert plan_alone.trials[0].id == branch.id
    assert worker.submit(fine_tune_in_pieces, branch, alone).result() == digests(tuned)
    # the frozen trial goes on to more epochs: its state after 2 is gone, and is trained again for the branch
    longer, plan = context_of(tmp_path / "longer", files, grid={**axes, "unfreeze": [0, 2], "epochs": [2, 4]})
    whole, *branches = plan.trials
    assert (whole.milestones, [trial.milestones for trial in branches]) == ((2, 4), [(4,), (2,)])
    worker.submit(train, whole, longer, cache).result()
    assert digests(worker.submit(train, branches[1], longer, cache).result()[0]) == digests(tuned)


@pytest.mark.slow
def test_fine_tuning_follows_a_schedule_of_its_own(tmp_path: Path, files: Path, worker: ProcessPoolExecutor):
    """Head and branch each fall with a cosine, and the branch begins with the averages of the head's weights."""
    train_with = {"schedule": "cosine", "ema": 0.9}
    both, plan = context_of(tmp_path / "both", files, train=train_with, grid=FINE_TUNED)
    frozen, branch = plan.trials
    cache = str(tmp_path / "node")
    still, tuned = (worker.submit(train, trial, both, cache).result()[0] for trial in (frozen, branch))
    assert digests(still) != digests(tuned)
    alone, _ = context_of(tmp_path / "alone", files, train=train_with, grid=FINE_TUNED)
    assert worker.submit(fine_tune_in_pieces, branch, alone).result() == digests(tuned)


def test_views_are_trained_on_in_turn(tmp_path: Path, files: Path, worker: ProcessPoolExecutor):
    """Augmented versions of the training images, the same for every seed; the first are the images themselves."""
    shifted = {"augment": {"width_shift": 0.2}}
    few, many = (
        context_of(tmp_path / "run", files, backbone={"name": str(files / "small.keras"), "views": views}, **more)
        for views, more in ((1, {}), (3, shifted))
    )
    ends = []
    for context, plan in (few, many):
        for epochs in (1, 2):
            trial = replace(plan.trials[0], milestones=(epochs,), id=f"{plan.trials[0].id}{epochs}")
            ends.append(digests(worker.submit(train, trial, context, str(tmp_path / "node")).result()[0])[epochs])
    assert ends[0] == ends[2]
    assert ends[1] != ends[3]
    assert len(list((tmp_path / "run" / "features").glob("*.json"))) == 3


def test_a_sequential_network_is_as_good_as_a_functional_one(tmp_path: Path, files: Path, worker: ProcessPoolExecutor):
    """The same layers give the same features."""
    found = []
    for name in ("small", "smallsequential"):
        context, plan = context_of(tmp_path / name, files, backbone=str(files / f"{name}.keras"))
        digests(worker.submit(train, plan.trials[0], context, str(tmp_path / "node")).result()[0])
        found.append([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.f32"))])
    assert found[0] == found[1]


def test_features_are_mixed_like_images(tmp_path: Path, files: Path, worker: ProcessPoolExecutor):
    """mixup of what the head takes: other weights, the same in pieces, from features that there are already."""
    cache = str(tmp_path / "node")
    plain, mixed = (
        context_of(tmp_path / name, files, grid={"batch_size": [8], "mixup": [mixup], "epochs": [2]})
        for name, mixup in (("run", 0.0), ("run", 0.4))
    )
    ends = [
        digests(worker.submit(train, plan.trials[0], context, cache).result()[0]) for context, plan in (plain, mixed)
    ]
    assert ends[0] != ends[1]
    assert len(list((tmp_path / "run" / "features").glob("*.json"))) == 1
    again, plan = context_of(tmp_path / "again", files, augment={"mixup": 0.4}, grid={"batch_size": [8], "epochs": [2]})
    assert worker.submit(fine_tune_in_pieces, plan.trials[0], again).result() == ends[1]


def trial_digests(run: Path) -> dict[str, dict[str, str]]:
    return {path.name: json.loads(path.read_text())["digests"] for path in (run / "trials").glob("*.json")}


def test_a_winner_is_a_backbone_for_another_run(tmp_path: Path, files: Path, worker: ProcessPoolExecutor):
    """Every point's model is kept, and one of them is taken up to its classifier: the features that its head saw."""
    axes = {"batch_size": [8], "dropout": [0.0, 0.5], "epochs": [1]}
    context, plan = context_of(tmp_path / "run", files, KeepModels.all, grid=axes)
    for trial in plan.trials:
        digests(worker.submit(train, trial, context, str(tmp_path / "node")).result()[0])
    models = sorted((tmp_path / "run" / "models").glob("*.keras"))
    assert [path.stem for path in models] == sorted(point.id for point in plan.points)
    again, plan = context_of(tmp_path / "again", files, backbone=str(models[0]))
    digests(worker.submit(train, plan.trials[0], again, str(tmp_path / "node")).result()[0])
    ours, theirs = (
        np.concatenate(
            [np.frombuffer(path.read_bytes()[:-32], "<f4") for path in sorted((tmp_path / run).rglob("*.f32"))]
        )
        for run in ("run", "again")
    )
    assert np.abs(ours - theirs).max() < 1e-5


# --- A grid -----------------------------------------------------------------------------------------------------------


def compare_whole_model(run: Path, images: str, backbone: str) -> tuple[float, float]:
    """Largest difference of what the whole model says to what is recorded; and of its backbone to the file."""
    import keras
    import pyarrow.parquet as pq

    from orchestrator.train.inference import classify

    found = classify(str(run), [images])
    assert not found.failures
    said = {path.rsplit("images/")[-1]: probabilities for path, probabilities in found.said}
    recorded = pq.read_table(run / "models" / "best-validation.parquet").to_pylist()
    apart = max(float(np.abs(said[row["path"]] - np.array(row["probabilities"])).max()) for row in recorded)
    whole = keras.saving.load_model(run / "models" / "best.keras", compile=False)
    extractor = next(layer for layer in whole.layers if isinstance(layer, keras.Model))
    network = next(layer for layer in extractor.layers if isinstance(layer, keras.Model))
    theirs = keras.saving.load_model(backbone, compile=False)
    layers = [(layer, theirs.get_layer(layer.name)) for layer in network.layers if layer.weights]
    pairs = [(a, b) for ours, other in layers for a, b in zip(ours.get_weights(), other.get_weights(), strict=True)]
    changed = max(float(np.abs(a - b).max()) for a, b in pairs)
    return apart, changed


def train_heads(tmp_path: Path, files: Path, at_once: int) -> tuple[Path, str]:
    """The run folder of a grid of heads and a branch, and what the command printed."""
    tree = {
        "name": f"heads{at_once}",
        "data": {"uri": str(files / "images"), "image_size": 24},
        "backbone": str(files / "smallclassifier.keras"),
        "grid": {"batch_size": [8, 16], "dropout": [0.0, 0.5], "epochs": [2, 3]},
        "points": [{"batch_size": 8, "dropout": 0.5, "epochs": 3, "unfreeze": 2}],
        "resources": {"max_concurrent": at_once},
    }
    spec = tmp_path / f"heads{at_once}.yaml"
    spec.write_text(yaml.safe_dump({**tree, "output": str(tmp_path)}))
    done = grid(str(spec), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / f"heads{at_once}", done.stdout


def test_a_grid_of_heads_ends_in_a_whole_model(tmp_path: Path, files: Path, worker: ProcessPoolExecutor):
    """From pixels to what was recorded of the winner, with the backbone as it was."""
    run, printed = train_heads(tmp_path, files, 2)
    assert "features of" in printed
    backbone = str(files / "smallclassifier.keras")
    apart, changed = worker.submit(compare_whole_model, run, str(files / "images"), backbone).result()
    assert apart < 1e-5
    winner = json.loads((run / "models" / "best.json").read_text())["values"]
    assert (changed == 0) == (winner["unfreeze"] == 0)
    assert b"worst" in (run / "report.html").read_bytes()


@pytest.mark.slow
def test_one_worker_and_two_train_the_same_heads(tmp_path: Path, files: Path):
    """To the bit, where the branch waits for its frozen trial and where it comes after it anyway."""
    one, two = (trial_digests(train_heads(tmp_path, files, at_once)[0]) for at_once in (1, 2))
    assert len({name.partition("-")[0] for name in one}) == 5, "trials"
    assert one == two


@pytest.mark.slow
def test_a_bucket_keeps_the_features_for_other_nodes(
    bucket: str, tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
):
    """Images, backbone and run in a bucket: a machine that comes later fetches what the first one made."""
    store = open_store(bucket)
    fill(store, class_folder({"images/cat": 24, "images/dog": 24}, 20, 20))
    store.write("small.keras", (files / "small.keras").read_bytes())
    tree = {"name": "a", "data": {"uri": f"{bucket}/images", "image_size": SIDE}, "backbone": f"{bucket}/small.keras"}
    for node, dropouts, makes in (("one", [0.0], True), ("another", [0.0, 0.5], False)):
        monkeypatch.setenv("ORCHESTRATOR_CACHE_DIR", str(tmp_path / node))
        axes = {"batch_size": [8], "epochs": [1], "dropout": dropouts}
        (tmp_path / "a.yaml").write_text(yaml.safe_dump({**tree, "grid": axes, "output": f"{bucket}/runs"}))
        done = grid("a.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("features of" in done.stdout) == makes
        assert store.exists("runs/a/models/best.keras")


def trial_on_application(files: str, folder: str, name: str, layer: str | None) -> tuple[float, float, int]:
    """Save the network with random weights, train a head on it, export, compare; and count the features."""
    import keras

    path = f"{folder}/{name}.keras"
    getattr(keras.applications, name)(include_top=True, weights=None, input_shape=(64, 64, 3), classes=7).save(path)
    spec = {"data": {"uri": f"{files}/images", "image_size": 40}, "backbone": {"name": path, "layer": layer}}
    context, plan = context_of(Path(folder) / "run", Path(files), KeepModels.all, **spec)
    result, _ = train(plan.trials[0], context, f"{folder}/node")
    digests(result)
    point = plan.points[0].id
    context.run.copy_model(point, "best", context.run.read_model(point))
    (listing,) = (Path(folder) / "run" / "features").glob("*.json")
    width = json.loads(listing.read_text())["width"]
    return *compare_whole_model(Path(folder) / "run", f"{files}/images", path), width


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "width"),
    [
        ("MobileNetV2", None, 1280),
        ("MobileNetV2", "block_6_expand_relu", 192),
        ("EfficientNetV2B0", None, 1280),
        ("ResNet50V2", None, 2048),
        ("MobileNet", None, 1024),  # its classifier is a convolution
    ],
)
def test_networks_of_keras_applications(
    tmp_path: Path, files: Path, worker: ProcessPoolExecutor, name: str, layer: str | None, width: int
):
    """As files with a classifier, for images of another size: cut, scaled, trained, exported, and predicted with."""
    apart, changed, found = worker.submit(trial_on_application, str(files), str(tmp_path), name, layer).result()
    assert apart < 1e-5
    assert changed == 0
    assert found == width


def weights_of_application(files: str, folder: str) -> tuple[str, str]:
    """What becomes of a trial on MobileNetV3Small with a file of its weights, and with one of another network's."""
    import keras

    small = keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(64, 64, 3))
    small.save_weights(f"{folder}/own.weights.h5")
    keras.saving.load_model(f"{files}/small.keras").save_weights(f"{folder}/other.weights.h5")
    ends = []
    for file in ("own", "other"):
        backbone = {"name": "MobileNetV3Small", "weights": f"{folder}/{file}.weights.h5"}
        spec = {"data": {"uri": f"{files}/images", "image_size": 48}, "backbone": backbone}
        context, plan = context_of(Path(folder) / file, Path(files), **spec)
        result, _ = train(plan.trials[0], context, f"{folder}/node")
        ends.append(result if isinstance(result, str) else result.status)
    return ends[0], ends[1]


@pytest.mark.slow
def test_weights_from_a_file(tmp_path: Path, files: Path, worker: ProcessPoolExecutor):
    """For a network of keras.applications where there is no network to fetch them from; others are refused."""
    own, other = worker.submit(weights_of_application, str(files), str(tmp_path)).result()
    assert own == "ok"
    assert other.startswith("backbone.weights must hold the weights of MobileNetV3Small without its classifier, and ")
    assert "\n" not in other


def efficientnet_apart(folder: str) -> float:
    """Largest difference of EfficientNetB0's scaled pixels, weights from a file, to those with Keras' own weights."""
    import keras

    from orchestrator.train.backbone import _network

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # what ImageNet's weights hold
    made = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    scaling = next(layer for layer in made.layers if isinstance(layer, keras.layers.Normalization))
    scaling.adapt_mean.assign(mean)
    scaling.adapt_variance.assign(std**2)
    path = f"{folder}/efficient.weights.h5"
    made.save_weights(path)
    spec = {"name": "a", "data": {"uri": "x"}, "grid": {"batch_size": [1]}}
    spec |= {"backbone": {"name": "EfficientNetB0", "weights": path}}
    loaded = load_spec(yaml.safe_dump(spec))
    network = _network(loaded.backbone, find_networks(loaded)[1]["EfficientNetB0"], (32, 32))
    scaling = next(layer for layer in network.layers if isinstance(layer, keras.layers.Normalization))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    ours = keras.Model(network.inputs, scaling.output)(pixels)
    return float(np.abs(np.array(ours) - (pixels / 255 - mean) / std / np.sqrt(std)).max())


@pytest.mark.slow
def test_efficientnet_is_scaled_as_with_the_weights_that_keras_fetches(tmp_path: Path, worker: ProcessPoolExecutor):
    """Keras scales its pixels once more in that case alone, by no weight of the file."""
    assert worker.submit(efficientnet_apart, str(tmp_path)).result() < 1e-4
