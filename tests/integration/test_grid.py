"""The main command: real Ray, real workers."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from grids import assert_the_winner_is_there, board, command, digests, grid, results
from images import class_folder, fill

from orchestrator import open_run
from orchestrator.runs import lease
from orchestrator.store import open_store

GRID = "grid={batch_size: [32, 64], epochs: [1, 2]}"  # that of the finished run
SMALL = "grid={batch_size: [64], epochs: [1]}"


@pytest.fixture
def finished(shirts: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed; the current folder is two above."""
    shutil.copytree(shirts, tmp_path / "runs" / "shirts")
    return tmp_path / "runs" / "shirts"


def test_what_another_driver_trained_meanwhile_is_not_trained_again(shirts: Path, tmp_path: Path) -> None:
    """Results that come after a driver counted what is left, and before it has the run folder, are taken as done."""
    trials = board(shirts).trial_id.nunique()
    with subprocess.Popen(command("--set", GRID), cwd=tmp_path, text=True, stdout=subprocess.PIPE) as late:
        counted = late.stdout.readline()
        shutil.copytree(shirts / "trials", tmp_path / "runs" / "shirts" / "trials")  # a worker takes seconds to start
        out, _ = late.communicate(timeout=300)
    assert f"{trials} trials of {trials} to train" in counted
    assert f"{trials} trials done by another driver meanwhile: not trained again" in out
    assert not any(line.startswith("epoch ") for line in out.splitlines())
    assert late.returncode == 0
    assert list(board(tmp_path / "runs" / "shirts").point_id) == list(board(shirts).point_id)


def test_a_second_driver_is_told_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it waits to see whether the first is at work, on stderr where stdout is for JSON; then it is refused."""
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    run = open_store(str(tmp_path / "runs" / "shirts"), create=True)
    with lease.Lease(run, lambda: None) as first:
        refused = grid("--set", SMALL, "--json", cwd=tmp_path)
        assert first.holds()
    assert refused.returncode == 2
    told, why = refused.stderr.splitlines()
    assert f"error: {json.loads(refused.stdout)['error']['message']}" == why
    assert told.startswith(f"{run.uri} was driven by process {os.getpid()} on ")
    assert told.endswith("; waiting up to 20 s to see whether it is still at work")
    assert why.startswith(f"error: one driver at a time may write {run.uri}, and process {os.getpid()} on ")


def test_a_grid_that_grew_trains_only_the_new_points(finished: Path) -> None:
    """Another seed, and points drawn on another axis, beside those at its default: what is trained stays.

    While it goes on, it says what leads, and of how many points.
    """
    before = results(finished)
    there = ", ".join(f"{{batch_size: {size}, epochs: {epochs}}}" for size in (32, 64) for epochs in (1, 2))
    rate = "{from: 0.0005, to: 0.02, scale: log}"
    axes = f"{{batch_size: [32, 64], epochs: [1, 2], learning_rate: {rate}}}"
    changes = (f"grid={axes}", "sample={points: 2}", f"points=[{there}]", "order=balanced", "seeds=[0, 7]")
    bigger = [part for change in changes for part in ("--set", change)]
    plan = grid(*bigger, "--plan", "--json", cwd=finished.parents[1])
    assert json.loads(plan.stdout)["standing"] == {"done": 4, "missing": 0, "new": 12}
    grown = grid(*bigger, cwd=finished.parents[1])
    assert grown.returncode == 0, grown.stderr
    after = results(finished)
    assert {name: after[name] for name in before} == before
    assert len({name.partition("-")[0] for name in after}) == 2 + 6, "trials"
    assert len(board(finished)) == 16
    assert set(board(finished).status) == {"ok"}
    assert re.search(r"^so far: batch_size=.* of \d+ of 16 points; .*\d+ not trained yet$", grown.stdout, re.MULTILINE)


MOODY = """
import os
import keras

@keras.saving.register_keras_serializable()
class Ends(keras.layers.Layer):
    # in training, in the second epoch, its worker ends, or the loss becomes no number: a relu may make NaN 0

    def __init__(self, kills=False, **kwargs):
        super().__init__(**kwargs)
        self.kills = kills
        self.steps = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        import tensorflow as tf
        if training:
            self.steps.assign_add(1.0)
        late = self.steps > 40.0
        if self.kills:
            end = lambda: tf.py_function(lambda: os._exit(1), [], [])
            with tf.control_dependencies([tf.cond(late, lambda: tf.group(end()), tf.no_op)]):
                return tf.identity(x)
        return tf.where(late, float("nan"), x)

    def get_config(self):
        return {**super().get_config(), "kills": self.kills}

def first():
    try:
        os.mkdir("dead")
    except FileExistsError:
        return False
    return True

def moody(input_shape, classes, dropout=0.5, mood="well"):
    with open("workers", "a") as file:
        print(os.getpid(), mood, file=file)
    if mood == "raises":
        raise ValueError("in no mood")
    if mood == "dies" or (mood == "dies once" and first()):
        os._exit(1)
    bias = keras.initializers.Constant(float("nan") if mood == "diverges" else 0.0)
    layers = [
        keras.Input(input_shape),
        keras.layers.Conv2D(4, 3, activation="relu", activity_regularizer=keras.regularizers.L2(1e-3)),
        keras.layers.Flatten(),
        keras.layers.Dropout(dropout),
        *([Ends(mood.startswith("kills"))] if mood.endswith("later") else []),
        keras.layers.Dense(1, activation="sigmoid", bias_initializer=bias),
    ]
    return keras.Sequential(layers)
"""
BACKWARDS = """
import sys
from orchestrator import grid
from orchestrator.driver import line
forwards = line.remaining
line.remaining = lambda plan, done: forwards(plan, done)[::-1]
grid.main(set_=sys.argv[1:])
"""
TELLING = """
import sys
from orchestrator import grid
from orchestrator.driver.watch import GridWatch
started = GridWatch.started
GridWatch.started = lambda self, trial_id: (print("start", trial_id), started(self, trial_id))
grid.main(set_=sys.argv[1:])
"""


def test_the_board_does_not_depend_on_who_trained_what(tmp_path: Path) -> None:
    """Trials of all kinds follow on one another in two workers, in one, and the other way round: the same weights.

    Between them are some that raise and some that diverge; no worker is replaced for that.
    """
    (tmp_path / "mine.py").write_text(MOODY)
    points = [
        *("{batch_size: 32}", "{batch_size: 64, dropout: 0.0}", "{batch_size: 64, image_size: 20}"),
        *("{batch_size: 50, precision: mixed_bfloat16}", "{batch_size: 96, optimizer: rmsprop}"),
        *("{batch_size: 16, lr_scale: linear}", "{batch_size: 48, learning_rate: auto}"),
        *("{batch_size: 64, schedule: wsd}", "{batch_size: 64, schedule: wsd, epochs: 4}"),
        "{batch_size: 40, schedule: plateau, optimizer: sgd, momentum: 0.9, ema: 0.9}",
        "{batch_size: 48, preset: strong, mixup: 0.4, cutmix: 1.0, label_smoothing: 0.1}",
        *("{batch_size: 64, mood: raises}", "{batch_size: 40, mood: diverges}"),
    ]
    settings = ["model=mine:moody", "grid={}", f"points=[{', '.join(points)}]", "seeds=[0, 1]", "train.epochs=2"]
    boards = []
    for name, at_once in (("two", 2), ("one", 1), ("backwards", 1)):
        sets = [*settings, f"name={name}", f"resources.max_concurrent={at_once}"]
        if name == "backwards":
            line = [sys.executable, "-c", BACKWARDS, *sets]
        else:
            line = command(*(part for each in sets for part in ("--set", each)))
        done = subprocess.run(line, cwd=tmp_path, text=True, capture_output=True, timeout=300, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        (run,) = (path for path in (tmp_path / "runs").iterdir() if path.name == name)
        weights = {path.name: json.loads(path.read_text())["digests"] for path in (run / "trials").iterdir()}
        assert len(weights) == 22
        weights |= {path.name: path.read_bytes() for path in (run / "rates").iterdir()}
        boards.append((weights, sorted(board(run).error.dropna())))
        workers = {line.split()[0] for line in (tmp_path / "workers").read_text().splitlines()}
        assert len(workers) <= at_once
        (tmp_path / "workers").unlink()
    assert boards[0] == boards[1] == boards[2]
    errors = boards[0][1]
    assert [error.split(":")[0] for error in errors] == ["Diverged"] * 2 + ["ValueError"] * 2


@pytest.mark.long
def test_trials_start_in_the_order_of_the_plan_and_a_killed_one_comes_first(tmp_path: Path) -> None:
    """Longest first, equal ones as they stand; a trial whose worker died does not wait for all the others."""
    (tmp_path / "mine.py").write_text(MOODY)
    sets = (
        *("model=mine:moody", "grid={}", "points=[{mood: dies once, epochs: 2}, {mood: well, epochs: 1}]"),
        *("seeds=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]", "train.batch_size=240"),
    )
    flags = [part for each in sets for part in ("--set", each)]
    planned = [trial["id"] for trial in json.loads(grid(*flags, "--plan", "--json", cwd=tmp_path).stdout)["trials"]]
    done = subprocess.run(
        [sys.executable, "-c", TELLING, *sets], cwd=tmp_path, text=True, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    started = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("start ")]
    (killed,) = {each for each in started if started.count(each) == 2}
    again = len(started) - 1 - started[::-1].index(killed)
    assert again <= 4, "among the next that a worker takes"
    del started[again]
    assert all(abs(started.index(each) - at) <= 2 for at, each in enumerate(planned)), "two start at once"


@pytest.mark.long
def test_a_trial_that_kills_its_workers_fails_alone(tmp_path: Path) -> None:
    """Again and again, before its first step or later, and it comes first: rows say so, and the others are trained.

    What it reached before stays, is ranked, has a model, and is not trained again.
    """
    (tmp_path / "mine.py").write_text(MOODY)
    moods = [("dies", 2), ("well", 1)]
    moods += [(f"{end} later", epochs) for end in ("kills", "diverges") for epochs in (1, 3)]
    done = grid(
        *("--set", "model=mine:moody", "--set", "grid={}", "--set", "resources.max_concurrent=1"),
        *("--set", f"points=[{', '.join(f'{{mood: {mood}, epochs: {epochs}}}' for mood, epochs in moods)}]"),
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    table = board(tmp_path / "runs" / "shirts").set_index(["mood", "epochs"])
    bad = {("dies", 2), ("kills later", 3), ("diverges later", 3)}
    assert table.status.to_dict() == {point: "failed" if point in bad else "ok" for point in moods}
    why = "killed, as when memory runs out, or crashed"
    for mood, epochs in (("dies", 2), ("kills later", 3)):
        assert table.error[mood, epochs] == f"its worker died 3 times: {why}"
    assert table.error["diverges later", 3].startswith("Diverged: the loss became nan in epoch 2")
    same = table.loc[[("kills later", 1), ("diverges later", 1)]]
    assert same.val_loss.nunique() == 1
    assert same.error.isna().all()
    assert_the_winner_is_there(tmp_path / "runs" / "shirts")
    assert done.stdout.count(f"mood=dies goes on in another worker, as its last one died: {why}") == 2
    assert not {"Traceback", "(raylet)", "ERROR"} & set((done.stdout + done.stderr).split())


def test_a_grid_of_which_nothing_can_be_trained_is_a_board_of_reasons(tmp_path: Path) -> None:
    """Every trial fails before its first step: exit status 1, and rows that say why; a mended grid goes on."""
    (tmp_path / "mine.py").write_text(MOODY)
    done = grid("--set", "model=mine:moody", "--set", "grid={dropout: [7.0, 8.0], epochs: [1]}", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "0 of 2 points ok, 2 failed." in done.stdout
    table = board(tmp_path / "runs" / "shirts")
    assert list(table.status) == ["failed"] * 2
    assert table.error.str.contains("dropout|rate", case=False).all()
    assert (tmp_path / "runs" / "shirts" / "report.html").exists()


def test_networks_are_compared_and_the_winner_is_refitted(tmp_path: Path) -> None:
    """Their sizes stand on the board; the refit is made once, to the same bits by one worker and by two."""
    sets = ["grid={model: [mlp, se_resnet]}", "train.epochs=2", "data.image_size=12", "seeds=[0, 1]"]
    weights = []
    for name, at_once in (("two", 2), ("one", 1)):
        own = [*sets, f"name={name}", f"resources.max_concurrent={at_once}"]
        line = [*(part for each in own for part in ("--set", each)), "--refit", "--json"]
        done = grid(*line, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads(done.stdout)
        run = tmp_path / "runs" / name
        assert told["refit"] == f"{run}/models/refit.keras"
        facts = json.loads((run / "models" / "refit.json").read_text())
        assert (facts["point_id"], facts["refit"]["images"]) == (told["rows"][0]["point_id"], 1200)
        assert facts["refit"]["steps"] == 30 * json.loads((run / "models" / "best.json").read_text())["epoch"]
        weights.append({path.name: json.loads(path.read_text())["digests"] for path in (run / "trials").iterdir()})
    assert weights[0] == weights[1]
    assert len(weights[0]) == 5
    table = board(run)
    assert table.groupby("model").parameters.first().to_dict() == {"mlp": 72_065, "se_resnet": 80_957}
    assert (table.model_mb == table.parameters * 4 / 1e6).all()
    assert (table.ms_per_image > 0).all()
    before = results(run)
    again = grid(*line, cwd=tmp_path)
    assert json.loads(again.stdout)["refit"] == told["refit"]
    assert results(run) == before
    assert "the winner again" not in again.stderr
    said = open_run(run).refitted.predict(np.zeros((1, 12, 12, 3), np.uint8))
    assert len(said) == 1


def test_points_may_be_trained_alone(shirts: Path, tmp_path: Path) -> None:
    """One trial for each, under an id of its own, with the weights that a shared one has at that epoch."""
    done = grid("--set", "grid={batch_size: [64], epochs: [1, 2]}", "--no-share-epochs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    alone = board(tmp_path / "runs" / "shirts").set_index("epochs").trial_id
    assert alone.nunique() == 2
    (shared,) = set(board(shirts).query("batch_size == 64").trial_id)
    assert shared not in set(alone)
    at = digests(shirts, shared)
    assert {epochs: digests(tmp_path / "runs" / "shirts", alone[int(epochs)])[epochs] for epochs in ("1", "2")} == at


def test_a_damaged_checkpoint_is_told_where_a_person_looks(finished: Path) -> None:
    """The run's own output names the trial and where the damaged file went."""
    (trial_id,) = set(board(finished).query("batch_size == 64").trial_id)
    (finished / "checkpoints" / f"{trial_id}.npz").write_bytes(b"\x00" * 100)
    grown = grid("--set", "grid={batch_size: [64], epochs: [3]}", cwd=finished.parents[1])
    assert grown.returncode == 0, grown.stderr
    assert f"trial {trial_id} starts anew; its checkpoint is in damaged/" in grown.stdout


def test_models_that_are_not_there_are_made_again(finished: Path) -> None:
    """Who wants every point's model later trains again what no checkpoint holds, and gets the same weights."""
    cwd, models = finished.parents[1], finished / "models"
    spec = ("--set", "grid={batch_size: [64], epochs: [1, 2]}")
    shutil.rmtree(models)
    nothing = grid(*spec, "--export-models", "none", cwd=cwd)
    assert "models:" not in nothing.stdout
    assert "no model of the winner in models/: the same command makes it" in nothing.stdout
    assert not models.exists()

    before = results(finished)
    done = grid(*spec, "--export-models", "all", cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert "models: 1 model to make" in done.stdout
    assert results(finished) == before
    table = board(finished)
    for row in table.itertuples():
        facts = json.loads((models / f"{row.point_id}.json").read_text())
        assert facts["weights"] == digests(finished, row.trial_id)[str(row.epochs)]
    assert json.loads((models / "best.json").read_text())["point_id"] == table.point_id[0]


def test_a_failed_point_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    """Exit status 1; the board says which failed and why; the next run tries it again."""
    args = ("--set", "grid={learning_rate: [0.001, 1e30], epochs: [1]}", "--set", "train.optimizer=sgd")
    done = grid(*args, cwd=tmp_path)
    assert done.returncode == 1
    table = board(tmp_path / "runs" / "shirts")
    assert list(table.status) == ["ok", "failed"]
    assert table.error[1].startswith("Diverged: the loss became")
    assert pd.isna(table["rank"][1])
    plan = grid(*args, "--plan", "--json", cwd=tmp_path)
    assert json.loads(plan.stdout)["standing"] == {"done": 1, "missing": 1, "new": 0}


def test_a_budget_leaves_out_what_does_not_fit_and_the_rest_is_trained(tmp_path: Path) -> None:
    """A dollar a second: the long trial is not begun, the short one is. Exit status 3, and the run goes on later."""
    args = ("--set", "grid={}", "--set", "points=[{batch_size: 8, epochs: 900}, {batch_size: 64, epochs: 1}]")
    money = ("--set", "resources.usd_per_hour=3600", "--set", "budget.max_usd=20")
    done = grid(*args, *money, cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert (
        "the budget is used up (budget.max_usd 20): 1 of 2 points not trained. The same command goes on" in done.stdout
    )
    table = board(tmp_path / "runs" / "shirts").set_index("batch_size")
    assert table.status.to_dict() == {64: "ok", 8: "pending"}
    assert 0 < table.cost_usd[64] < 20
    plan = grid(*args, "--plan", "--json", cwd=tmp_path)
    assert json.loads(plan.stdout)["standing"] == {"done": 1, "missing": 1, "new": 0}


def test_unreadable_images_are_named_before_anything_is_written(tmp_path: Path) -> None:
    """Exit status 2, one line with the files' names and the way to skip them; skipping lists them in the run folder.

    Three folders are three classes: a softmax is trained, and accuracies are fractions of all images.
    """
    fill(open_store(str(tmp_path / "pets"), create=True), class_folder({"cat": 10, "dog": 10, "fish": 10}))
    (tmp_path / "pets" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and nothing more")
    args = ("--data", "pets", "--set", SMALL, "--set", "data.image_size=32", "--name", "pets")
    refused = grid(*args, cwd=tmp_path)
    assert refused.returncode == 2
    assert "cat/broken.jpg" in refused.stderr
    assert "--set data.on_bad_image=skip" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()

    skipped = grid(*args, "--set", "data.on_bad_image=skip", cwd=tmp_path)
    assert skipped.returncode == 0, skipped.stderr
    run = tmp_path / "runs" / "pets"
    assert [bad["key"] for bad in json.loads((run / "skipped.json").read_text())] == ["cat/broken.jpg"]
    accuracy = board(run).val_accuracy[0] * 6
    assert accuracy == pytest.approx(round(accuracy), abs=1e-6)


def test_a_users_model_is_trained_or_refused(tmp_path: Path) -> None:
    """Its own arguments are axes; a wrong output shape is one line and exit status 2, before anything is written.

    It lies beside the spec, which the grid is called on from above, and so does a module that it imports.
    """
    spec = "specs/spec.yaml"
    (tmp_path / "specs").mkdir()
    (tmp_path / spec).write_text(files("orchestrator").joinpath("default.yaml").read_text())
    (tmp_path / "specs" / "parts.py").write_text("import keras\ndef act(x):\n    return keras.ops.relu(x)\n")
    (tmp_path / "specs" / "mine.py").write_text(
        "import keras\n"
        "import parts\n"
        "def wide(input_shape, classes, width=4):\n"
        "    image = keras.Input(input_shape)\n"
        "    x = keras.layers.Dense(width, activation=parts.act)(keras.layers.Flatten()(image))\n"
        "    return keras.Model(image, keras.layers.Dense(1, activation='sigmoid')(x))\n"
        "def wrong(input_shape, classes):\n"
        "    image = keras.Input(input_shape)\n"
        "    return keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(image)))\n"
    )
    wrong = grid(spec, "--set", "model=mine:wrong", "--set", SMALL, cwd=tmp_path)
    assert wrong.returncode == 2
    assert "must build a Keras model with output shape (None, 1)" in wrong.stderr
    assert not (tmp_path / "runs").exists()
    right = grid(spec, "--set", "model=mine:wide", "--set", "grid={width: [4, 8], epochs: [1]}", cwd=tmp_path)
    assert right.returncode == 0, right.stderr
    assert "PYTHONPATH=specs python -m orchestrator.predict " in right.stdout
    assert sorted(board(tmp_path / "runs" / "shirts").width) == [4, 8]


@pytest.mark.long
def test_a_worker_that_grows_is_replaced(tmp_path: Path) -> None:
    """A model that keeps 1.1 GB for each trial: a fresh worker takes over in time, and no trial is lost."""
    (tmp_path / "hoard.py").write_text(
        "import keras\n"
        "kept = []\n"
        "def hoard(input_shape, classes, width=4):\n"
        "    kept.append(bytearray(b'x') * 1_100_000_000)\n"
        "    image = keras.Input(input_shape)\n"
        "    x = keras.layers.Dense(width)(keras.layers.Flatten()(image))\n"
        "    return keras.Model(image, keras.layers.Dense(1, activation='sigmoid')(x))\n"
    )
    one = ("--set", "resources.max_concurrent=1", "--export-models", "none")
    done = grid("--set", "model=hoard:hoard", "--set", "grid={width: [4, 5, 6, 7, 8], epochs: [1]}", *one, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = board(tmp_path / "runs" / "shirts").sort_values("started_at")
    assert len(table) == 5
    assert table.peak_memory_mb.iloc[-1] < table.peak_memory_mb.max() - 1000


@pytest.mark.long
def test_epochs_that_are_told_together_are_all_told(tmp_path: Path) -> None:
    """As where thousands of trials run: each trial tells its first epoch at once, and the others when it ends."""
    together = (
        "from orchestrator import grid\n"
        "from orchestrator.cluster import tune\n"
        "tune.REPORT_INTERVAL_S = 1e6\n"
        "grid.main(set_=['grid={dropout: [0.0, 0.5], epochs: [4]}'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", together], cwd=tmp_path, text=True, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for dropout in ("0.0", "0.5"):
        told = [
            line for line in done.stdout.splitlines() if line.startswith("epoch ") and f"dropout={dropout} " in line
        ]
        assert [line.split()[1] for line in told] == ["1/4", "2/4", "3/4", "4/4"]
