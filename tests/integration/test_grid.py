"""The main command end to end: real Ray, real workers, folders and a real object store."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from images import class_folder, fill

from orchestrator.run import lease
from orchestrator.store import open_store

GRID = "grid={batch_size: [32, 64], epochs: [1, 2], dropout: [0.0, 0.5]}"
SMALL = "grid={batch_size: [64], epochs: [1]}"


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator.grid", *args]


def grid(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end as a user would, away from any checkout."""
    return subprocess.run(command(*args), cwd=cwd, text=True, capture_output=True, timeout=300, check=False)


def write_folder(folder: Path, counts: dict[str, int]) -> Path:
    """A folder of pictures, `counts` of each class."""
    fill(open_store(str(folder), create=True), class_folder(counts))
    return folder


def board(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "leaderboard.parquet")


def assert_the_winner_is_there(run: Path) -> None:
    """models/ holds the model of the first row alone, with the weights that its trial had."""
    first = board(run).iloc[0]
    facts = json.loads((run / "models" / "best.json").read_text())
    assert facts["point_id"] == first.point_id
    assert facts["metrics"]["val_accuracy"] == first.val_accuracy
    (result,) = (json.loads(p.read_text()) for p in (run / "trials").glob(f"{first.trial_id}-*"))
    assert facts["weights"] == result["digests"][str(facts["epochs"])]
    files = {str(path.relative_to(run / "models")) for path in (run / "models").rglob("*") if path.is_file()}
    assert files == {"best.json", "best.keras", "best-validation.parquet"}


def results(run: Path) -> dict[str, int]:
    """Result files and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (run / "trials").iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of eight points, and what the command printed."""
    cwd = tmp_path_factory.mktemp("finished")
    done = grid("--set", GRID, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return cwd / "runs" / "shirts", done.stdout


def test_every_point_is_one_row_and_ok(finished: tuple[Path, str]) -> None:
    """Eight points, ranked, with what each cost; pandas, polars and DuckDB read the same."""
    run, _ = finished
    table = board(run)
    assert list(table["rank"]) == list(range(1, 9))
    assert set(table.status) == {"ok"}
    assert table.val_accuracy.is_monotonic_decreasing
    assert set(zip(table.batch_size, table.epochs, table.dropout, strict=True)) == {
        (b, e, d) for b in (32, 64) for e in (1, 2) for d in (0.0, 0.5)
    }
    assert set(table.steps_per_epoch) == {30, 15}
    assert (table.epochs_trained == table.epochs).all()
    file = run / "leaderboard.parquet"
    assert pl.read_parquet(file)["point_id"].to_list() == list(table.point_id)
    assert duckdb.sql(f"select point_id from '{file}' order by rank").df().point_id.tolist() == list(table.point_id)
    assert json.loads(pq.read_schema(file).metadata[b"orchestrator"])["schema_version"] == 1


def test_points_that_differ_only_in_epochs_share_a_trial(finished: tuple[Path, str]) -> None:
    """Four trials for eight points; the history has a row for each trial and epoch."""
    run, _ = finished
    assert board(run).trial_id.nunique() == 4
    history = pd.read_parquet(run / "history.parquet")
    assert len(history) == 8
    assert history.groupby("trial_id").epoch.apply(list).tolist() == [[1, 2]] * 4


def test_a_job_log_is_plain_lines(finished: tuple[Path, str]) -> None:
    """No colours, no Ray chatter; one line for each epoch and trial, the best ten, and the command that opens them."""
    run, out = finished
    assert "\x1b" not in out
    assert "ray" not in out.lower().replace("array", "")
    assert sum(line.startswith("epoch ") for line in out.splitlines()) == 8
    assert sum(line.startswith("trial ") for line in out.splitlines()) == 4
    assert f"python -m orchestrator.leaderboard {run}" in out
    assert "8 of 8 points ok" in out


def test_a_run_ends_with_its_verdict_and_its_page(finished: tuple[Path, str]) -> None:
    """Which point is best, how sure that is, whether it overfits; the page holds every point and every curve."""
    run, out = finished
    best = board(run).iloc[0]
    lines = out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("best: ")]
    assert lines[at].startswith(f"best: batch_size={best.batch_size} epochs={best.epochs} dropout={best.dropout}, ")
    assert lines[at + 1].startswith("one seed cannot tell whether that is more than chance: train others with --set")
    assert "accuracy" in lines[at + 2]
    page = (run / "report.html").read_text(encoding="utf-8")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["board"]["columns"]["point_id"] == list(board(run).point_id)
    assert set(data["curves"]) == set(board(run).trial_id)
    assert data["verdict"][0] == lines[at]


def test_the_same_command_again_trains_nothing(finished: tuple[Path, str]) -> None:
    """It prints the same board, and no result is written anew."""
    run, _ = finished
    before = results(run)
    again = grid("--set", GRID, "--json", cwd=run.parent.parent)
    assert again.returncode == 0, again.stderr
    assert [row["point_id"] for row in json.loads(again.stdout)] == list(board(run).point_id)
    assert results(run) == before
    assert not (run / "owner.json").exists()


def test_what_another_driver_trained_meanwhile_is_not_trained_again(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Results that come after a driver counted what is left, and before it has the run folder, are taken as done."""
    run, _ = finished
    args = command("--set", GRID, "--export-models", "none")
    with subprocess.Popen(args, cwd=tmp_path, text=True, stdout=subprocess.PIPE) as late:
        counted = late.stdout.readline()
        shutil.copytree(run / "trials", tmp_path / "runs" / "shirts" / "trials")  # a worker takes seconds to start
        out, _ = late.communicate(timeout=300)
    assert "4 trials of 4 to train" in counted
    assert "4 trials done by another driver meanwhile: not trained again" in out
    assert not any(line.startswith("epoch ") for line in out.splitlines())
    assert late.returncode == 0
    assert "8 of 8 points ok" in out
    assert list(board(tmp_path / "runs" / "shirts").point_id) == list(board(run).point_id)


def test_a_second_driver_is_told_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it waits to see whether the first is at work, on stderr where stdout is for JSON; then it is refused."""
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    run = open_store(str(tmp_path / "runs" / "shirts"), create=True)
    with lease.Lease(run, lambda: None) as first:
        refused = grid("--set", SMALL, "--json", cwd=tmp_path)
        assert first.holds()
    assert (refused.returncode, refused.stdout) == (2, "")
    told, why = refused.stderr.splitlines()
    assert told.startswith(f"{run.uri} was driven by process {os.getpid()} on ")
    assert told.endswith("; waiting up to 20 s to see whether it is still at work")
    assert why.startswith(f"error: one driver at a time may write {run.uri}, and process {os.getpid()} on ")


def test_a_grid_that_grew_trains_only_the_new_points(finished: tuple[Path, str]) -> None:
    """Another seed, and another axis with the old default among its values: what is trained stays."""
    run, _ = finished
    before = results(run)
    bigger = [
        *("--set", "grid={batch_size: [32, 64], epochs: [1, 2], dropout: [0.0], learning_rate: [0.001, 0.01]}"),
        *("--set", "seeds=[0, 7]"),
    ]
    plan = grid(*bigger, "--plan", "--json", cwd=run.parent.parent)
    assert json.loads(plan.stdout)["standing"] == {"done": 4, "missing": 0, "new": 12}
    grown = grid(*bigger, cwd=run.parent.parent)
    assert grown.returncode == 0, grown.stderr
    after = results(run)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 6
    assert len(board(run)) == 16
    assert set(board(run).status) == {"ok"}


MOODY = """
import os
import keras

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
        *("{batch_size: 64, mood: raises}", "{batch_size: 40, mood: diverges}"),
    ]
    settings = ["model=mine:moody", "grid={}", f"points=[{', '.join(points)}]", "seeds=[0, 1, 2]", "train.epochs=2"]
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
        digests = {path.name: json.loads(path.read_text())["digests"] for path in (run / "trials").iterdir()}
        assert len(digests) == 15
        boards.append((digests, sorted(board(run).error.dropna())))
        workers = {line.split()[0] for line in (tmp_path / "workers").read_text().splitlines()}
        assert len(workers) <= at_once
        (tmp_path / "workers").unlink()
    assert boards[0] == boards[1] == boards[2]
    errors = boards[0][1]
    assert [error.split(":")[0] for error in errors] == ["Diverged"] * 3 + ["ValueError"] * 3


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


def test_a_trial_that_kills_its_workers_fails_alone(tmp_path: Path) -> None:
    """Again and again, before its first step, and it comes first: a row says so, and the others are trained."""
    (tmp_path / "mine.py").write_text(MOODY)
    done = grid(
        *("--set", "model=mine:moody", "--set", "grid={}", "--set", "resources.max_concurrent=1"),
        *("--set", "points=[{mood: dies, epochs: 2}, {mood: well, epochs: 1}]"),
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    table = board(tmp_path / "runs" / "shirts").set_index("mood")
    assert table.status.to_dict() == {"well": "ok", "dies": "failed"}
    why = "killed, as when memory runs out, or crashed"
    assert table.error["dies"] == f"its worker died 3 times: {why}"
    assert done.stdout.count(f"mood=dies goes on in another worker, as its last one died: {why}") == 2
    assert not {"Traceback", "(raylet)", "ERROR"} & set((done.stdout + done.stderr).split())


def test_a_grid_of_which_nothing_can_be_trained_is_a_board_of_reasons(tmp_path: Path) -> None:
    """Every trial fails before its first step: exit status 1, and rows that say why; a mended grid goes on."""
    done = grid("--set", "grid={dropout: [7.0, 8.0], epochs: [1]}", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "0 of 2 points ok, 2 failed." in done.stdout
    table = board(tmp_path / "runs" / "shirts")
    assert list(table.status) == ["failed"] * 2
    assert table.error.str.contains("dropout|rate", case=False).all()
    assert (tmp_path / "runs" / "shirts" / "report.html").exists()


def test_points_may_be_trained_alone(tmp_path: Path) -> None:
    """One trial for each, under an id of its own, with the weights that a shared one has at that epoch."""
    digests, trials = {}, {}
    for how in ("--share-epochs", "--no-share-epochs"):
        args = ("--set", "grid={batch_size: [64], epochs: [1, 2], dropout: [0.5]}", "--name", how.strip("-"))
        done = grid(*args, how, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        files = [json.loads(path.read_text()) for path in (tmp_path / "runs" / how.strip("-") / "trials").iterdir()]
        digests[how] = {at: digest for file in files for at, digest in file["digests"].items()}
        trials[how] = {file["trial_id"] for file in files}
    assert digests["--share-epochs"] == digests["--no-share-epochs"]
    assert [len(trials[how]) for how in trials] == [1, 2]
    assert not set.intersection(*trials.values())


def test_a_damaged_checkpoint_is_told_where_a_person_looks(tmp_path: Path) -> None:
    """The run's own output names the trial and where the damaged file went."""
    done = grid("--set", SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "runs" / "shirts" / "checkpoints").iterdir()
    file.write_bytes(b"\x00" * 100)
    grown = grid("--set", "grid={batch_size: [64], epochs: [2]}", cwd=tmp_path)
    assert grown.returncode == 0, grown.stderr
    assert f"trial {file.stem} starts anew; its checkpoint is in damaged/" in grown.stdout


def test_a_killed_driver_loses_no_finished_trial(tmp_path: Path) -> None:
    """SIGKILL after the first finished trial; the same command finishes the rest and trains nothing twice."""
    args = command("--set", GRID)
    with subprocess.Popen(args, cwd=tmp_path, text=True, stdout=subprocess.PIPE) as driver:
        next(line for line in driver.stdout if line.startswith("trial 1/"))
        driver.kill()
    run = tmp_path / "runs" / "shirts"
    before = results(run)
    assert 1 <= len(before) < 4
    assert len(board(run)) == 8
    again = grid("--set", GRID, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    after = results(run)
    assert {name: after[name] for name in before} == before
    assert board(run).point_id.is_unique
    assert list(board(run).status) == ["ok"] * 8
    assert_the_winner_is_there(run)


def test_models_that_are_not_there_are_made_again(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Who wants every point's model later trains again what no checkpoint holds, and gets the same weights."""
    run, _ = finished
    shutil.copytree(run, tmp_path / "runs" / "shirts")
    run = tmp_path / "runs" / "shirts"
    spec = ("--set", "grid={batch_size: [64], epochs: [1, 2], dropout: [0.5]}")
    shutil.rmtree(run / "models")
    nothing = grid(*spec, "--export-models", "none", cwd=tmp_path)
    assert "models:" not in nothing.stdout
    assert "no model of the winner in models/: the same command makes it" in nothing.stdout
    assert not (run / "models").exists()

    before = results(run)
    done = grid(*spec, "--export-models", "all", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "models: 1 trial to train again" in done.stdout
    assert results(run) == before
    table = board(run)
    (result,) = (json.loads(p.read_text()) for p in (run / "trials").glob(f"{table.trial_id[0]}-*"))
    for row in table.itertuples():
        facts = json.loads((run / "models" / f"{row.point_id}.json").read_text())
        assert facts["weights"] == result["digests"][str(row.epochs)]
    assert json.loads((run / "models" / "best.json").read_text())["point_id"] == table.point_id[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM: the board is up to date, the exit status is 130, and the line printed resumes."""
    args = command("--set", "grid={batch_size: [8], epochs: [1, 500]}")
    with subprocess.Popen(args, cwd=tmp_path, text=True, stdout=subprocess.PIPE) as driver:
        next(line for line in driver.stdout if line.startswith("epoch 2/"))
        driver.send_signal(number)
        out = driver.stdout.read()
        assert driver.wait(60) == 130
    assert "interrupted; to go on from here: python -m orchestrator.grid --set" in out
    run = tmp_path / "runs" / "shirts"
    assert set(board(run).status) == {"pending"}
    assert (run / "report.html").exists()
    assert not (run / "owner.json").exists()


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
    """Exit status 2, one line with the files' names and the way to skip them; skipping lists them in the run folder."""
    images = write_folder(tmp_path / "pets", {"cat": 12, "dog": 12})
    (images / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and nothing more")
    args = ("--data", str(images), "--set", SMALL, "--name", "pets")
    refused = grid(*args, cwd=tmp_path)
    assert refused.returncode == 2
    assert "cat/broken.jpg" in refused.stderr
    assert "--set data.on_bad_image=skip" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()

    skipped = grid(*args, "--set", "data.on_bad_image=skip", cwd=tmp_path)
    assert skipped.returncode == 0, skipped.stderr
    assert [bad["key"] for bad in json.loads((tmp_path / "runs/pets/skipped.json").read_text())] == ["cat/broken.jpg"]


def test_a_users_model_is_trained_or_refused(tmp_path: Path) -> None:
    """Its own arguments are axes; a wrong output shape is one line and exit status 2, before anything is written."""
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "def wide(input_shape, classes, width=4):\n"
        "    image = keras.Input(input_shape)\n"
        "    x = keras.layers.Dense(width)(keras.layers.Flatten()(image))\n"
        "    return keras.Model(image, keras.layers.Dense(1, activation='sigmoid')(x))\n"
        "def wrong(input_shape, classes):\n"
        "    image = keras.Input(input_shape)\n"
        "    return keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(image)))\n"
    )
    wrong = grid("--set", "model=mine:wrong", "--set", SMALL, cwd=tmp_path)
    assert wrong.returncode == 2
    assert "must build a Keras model with output shape (None, 1)" in wrong.stderr
    assert not (tmp_path / "runs").exists()
    right = grid("--set", "model=mine:wide", "--set", "grid={width: [4, 8], epochs: [1]}", cwd=tmp_path)
    assert right.returncode == 0, right.stderr
    assert sorted(board(tmp_path / "runs" / "shirts").width) == [4, 8]


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


def test_more_than_two_classes_train_a_softmax(tmp_path: Path) -> None:
    """Three folders, three classes; accuracies are fractions of all images."""
    images = write_folder(tmp_path / "pets", {"cat": 10, "dog": 10, "fish": 10})
    done = grid("--data", str(images), "--set", SMALL, "--set", "data.image_size=32", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy = board(tmp_path / "runs" / "shirts").val_accuracy[0] * 6
    assert accuracy == pytest.approx(round(accuracy), abs=1e-6)


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


def test_a_grid_from_bucket_to_bucket(
    bucket: str, tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images read from object storage, the run folder written there; the board is read from there too."""
    monkeypatch.setenv("TMPDIR", str(short))
    fill(open_store(f"{bucket}/pets"), class_folder({"cat": 12, "dog": 12}))
    args = ("--data", f"{bucket}/pets/", "--output", f"{bucket}/runs", "--set", SMALL, "--set", "data.image_size=32")
    done = grid(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists()
    shown = subprocess.run(
        [sys.executable, "-m", "orchestrator.leaderboard", f"{bucket}/runs/shirts", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    (row,) = json.loads(shown.stdout)
    assert row["status"] == "ok"
    keys = {o.key for o in open_store(f"{bucket}/runs/shirts").list()}
    assert {key for key in keys if key.startswith("models/")} == {
        f"models/best{end}" for end in (".keras", ".json", "-validation.parquet")
    }
    assert [key.split("/")[1] for key in keys if key.startswith("events/")] == [row["point_id"]]
    again = grid(*args, cwd=tmp_path)
    assert again.returncode == 0
    assert "to train" not in again.stdout
    logs = [path.read_bytes() for path in short.rglob("*.log")]
    assert len(logs) > 5, "Ray's"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        assert not any(os.environ[name].encode() in text for text in [done.stdout.encode(), *logs])
