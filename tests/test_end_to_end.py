"""End to end: a grid on a folder, on a bucket and as a job, and its page in a browser. tests/integration has more."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from cluster import Head, submit
from grids import assert_the_winner_is_there, board, grid, results
from images import class_folder, fill
from PIL import Image

from orchestrator.store import open_store

SMALL = "grid={batch_size: [64], epochs: [1]}"


def shown(uri: str) -> list[dict]:
    """The rows that the leaderboard command prints."""
    line = [sys.executable, "-m", "orchestrator.leaderboard", uri, "--json"]
    return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)["rows"]


def printed(run: Path) -> str:
    """What the command that trained it said."""
    return (run.parents[1] / "printed").read_text()


def test_every_point_is_one_row_and_ok(shirts: Path) -> None:
    """Four points, ranked, with what each cost; pandas, polars and DuckDB read the same; the winner is there."""
    table = board(shirts)
    assert list(table["rank"]) == [1, 2, 3, 4]
    assert set(table.status) == {"ok"}
    assert table.val_accuracy.is_monotonic_decreasing
    assert set(zip(table.batch_size, table.epochs, strict=True)) == {(b, e) for b in (32, 64) for e in (1, 2)}
    assert set(table.steps_per_epoch) == {30, 15}
    assert (table.epochs_trained == table.epochs).all()
    file = shirts / "leaderboard.parquet"
    assert pl.read_parquet(file)["point_id"].to_list() == list(table.point_id)
    assert duckdb.sql(f"select point_id from '{file}' order by rank").df().point_id.tolist() == list(table.point_id)
    assert json.loads(pq.read_schema(file).metadata[b"orchestrator"])["schema_version"] == 2
    assert_the_winner_is_there(shirts)


def test_the_page_shows_images_as_they_are_trained_on(shirts: Path) -> None:
    """A worker drew them beside its first trial."""
    webp = (shirts / "samples.webp").read_bytes()
    assert Image.open(io.BytesIO(webp)).width > 500
    assert base64.b64encode(webp).decode() in (shirts / "report.html").read_text()


def test_points_that_differ_only_in_epochs_share_a_trial(shirts: Path) -> None:
    """Two trials for four points; the history has a row for each trial and epoch."""
    assert board(shirts).trial_id.nunique() == 2
    history = pd.read_parquet(shirts / "history.parquet")
    assert len(history) == 4
    assert history.groupby("trial_id").epoch.apply(list).tolist() == [[1, 2]] * 2


def test_a_narrower_grid_says_what_is_no_longer_shown(shirts: Path) -> None:
    """Rows leave the board; what is trained stays, and is known again."""
    plan = grid("--plan", "--set", SMALL, cwd=shirts.parents[1])
    assert plan.stdout.startswith(
        "3 points of the last grid not in this one, and so not on the board: what is trained "
    )
    assert "1 done, 0 missing, 0 new" in plan.stdout


def test_a_job_log_is_plain_lines(shirts: Path) -> None:
    """No colours, no Ray chatter; one line for each epoch and trial, the best ten, and the command that opens them."""
    out = printed(shirts)
    assert "\x1b" not in out
    assert "ray" not in out.lower().replace("array", "")
    assert sum(line.startswith("epoch ") for line in out.splitlines()) == 4
    assert sum(line.startswith("trial ") for line in out.splitlines()) == 2
    assert f"python -m orchestrator.leaderboard {shirts}" in out
    assert "4 of 4 points ok" in out


def test_a_run_ends_with_its_verdict_and_its_page(shirts: Path) -> None:
    """Which point is best, how sure that is, whether it overfits; the page holds every point and every curve."""
    best = board(shirts).iloc[0]
    lines = printed(shirts).splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("best: ")]
    assert lines[at].startswith(f"best: batch_size={best.batch_size} epochs={best.epochs}, ")
    images, behind, rates, fits = lines[at + 1 : at + 5]
    assert re.match(r"\d+ validation images: always answering one class is right in 50.0%; two of 4 conf", images)
    assert re.search(r" must differ by about \d+ points to be told apart$", images)
    assert "by these images alone" in behind
    assert 'train others with --set "seeds=[0, 1, 2]"' in behind
    assert "learning_rate" in rates
    assert "accuracy" in fits
    page = (shirts / "report.html").read_text(encoding="utf-8")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["board"]["columns"]["point_id"] == list(board(shirts).point_id)
    assert set(data["curves"]) == set(board(shirts).trial_id)
    assert data["verdict"][0] == lines[at]


def test_the_page_is_drawn_in_a_browser(shirts: Path, visit: Callable) -> None:
    """Its board and every chart that a grid of two axes has; nothing is said on the console or asked of the network."""
    page = visit(shirts / "report.html")
    page.locator("#count", has_text="4 of 4 points").wait_for()
    assert page.locator("#points tbody tr").count() == 4
    charts = page.locator(".chart:visible").all()
    for chart in charts:
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg, .why").first.wait_for()
    assert len(charts) > 8
    assert page.locator(".chart .why").count() == 0
    best = board(shirts).iloc[0]
    assert (
        page.locator("#verdict").text_content() == f"Best configurationbatch_size{best.batch_size}epochs{best.epochs}"
    )


def test_the_same_command_again_trains_nothing(shirts: Path, tmp_path: Path) -> None:
    """It prints the same board, and no result is written anew."""
    run = tmp_path / "runs" / "shirts"
    shutil.copytree(shirts, run)
    before = results(run)
    again = grid("--set", "grid={batch_size: [32, 64], epochs: [1, 2]}", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert [row["point_id"] for row in json.loads(again.stdout)["rows"]] == list(board(shirts).point_id)
    assert results(run) == before
    assert not (run / "owner.json").exists()


def test_a_grid_from_bucket_to_bucket(
    bucket: str, tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images read from object storage, the run folder written there; the board is read from there too."""
    monkeypatch.setenv("TMPDIR", str(short))
    fill(open_store(f"{bucket}/pets"), class_folder({"cat": 12, "dog": 12}))
    args = ("--data", f"{bucket}/pets/", "--output", f"{bucket}/runs", "--set", SMALL, "--set", "data.image_size=32")
    logs: dict[Path, bytes] = {}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(grid, *args, cwd=tmp_path)
        while not wait([running], timeout=0.2).done:  # Ray's go when it ends well
            for path in short.rglob("*.log"):
                with contextlib.suppress(OSError):
                    logs[path] = path.read_bytes()
    done = running.result()
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists()
    (row,) = shown(f"{bucket}/runs/shirts")
    assert row["status"] == "ok"
    keys = {o.key for o in open_store(f"{bucket}/runs/shirts").list()}
    assert {key for key in keys if key.startswith("models/")} == {
        f"models/best{end}" for end in (".keras", ".json", "-validation.parquet")
    }
    assert [key.split("/")[1] for key in keys if key.startswith("events/")] == [row["point_id"]]
    again = grid(*args, cwd=tmp_path)
    assert again.returncode == 0
    assert "to train" not in again.stdout
    assert len(logs) > 5, "Ray's"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        assert not any(os.environ[name].encode() in text for text in [done.stdout.encode(), *logs.values()])


@pytest.mark.slow
def test_a_job_trains_a_grid(ray_head: Head, working_dir: Path, tmp_path: Path) -> None:
    """Submitted, followed to its end, and read."""
    args = ("--set", "grid={batch_size: [32, 64], epochs: [1]}", "--output", str(tmp_path / "runs"))
    first = submit(ray_head, working_dir, *args)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 of 2 points ok" in first.stdout
    run = tmp_path / "runs" / "shirts"
    assert [row["status"] for row in shown(str(run))] == ["ok", "ok"]
