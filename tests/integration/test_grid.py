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


def test_the_board_does_not_depend_on_who_trained_what(tmp_path: Path) -> None:
    """24 small trials of six shapes: two workers that take what comes next, and one; the same weights to the bit."""
    many = ["--set", "grid={batch_size: [32, 64, 96], epochs: [1], dropout: [0.0, 0.5]}", "--set", "seeds=[0, 1, 2, 3]"]
    digests = []
    for name, at_once in (("two", 2), ("one", 1)):
        done = grid(*many, "--name", name, "--set", f"resources.max_concurrent={at_once}", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        files = (tmp_path / "runs" / name / "trials").iterdir()
        digests.append({path.name: json.loads(path.read_text())["digests"] for path in files})
    assert len(digests[0]) == 24
    assert digests[0] == digests[1]


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
    assert "interrupted: python -m orchestrator.grid --set" in out
    assert "goes on from here" in out
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


def test_a_grid_from_bucket_to_bucket(bucket: str, tmp_path: Path) -> None:
    """Images read from object storage, the run folder written there; the board is read from there too."""
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
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in done.stdout + again.stdout
