"""events: a real TensorBoard reads a run's scalars and its HParams tab; points are written once."""

import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from orchestrator.plans.trials import Point
from orchestrator.runs.folder import Run
from orchestrator.runs.result import Epoch, Result
from orchestrator.store import open_store
from orchestrator.tracking.tensorboard import write_events

STATUSES = [f"STATUS_{name}" for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]


@pytest.fixture(scope="module")
def tensorboard(shirts: Path) -> Iterator[str]:
    """The address of a TensorBoard on the run's events."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(shirts / "events"), "--load_fast=false"]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", "0", "--reload_interval", "0"], text=True, stderr=subprocess.PIPE
    ) as server:
        try:
            lines = iter(server.stderr.readline, "")
            yield next(found[0] for line in lines if (found := re.search(r"http://\S+:\d+", line)))
        finally:
            server.terminate()


def ask(address: str, path: str, body: dict | None = None):
    """JSON from TensorBoard's own interface, as its page asks for it."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/data/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def ask_until_read(address: str, path: str, count: int, body: dict | None = None):
    """Its first answers may come before it has read every file."""
    for _ in range(200):
        found = ask(address, path, body)
        if len(found["sessionGroups"] if body else found) == count:
            return found
        urllib.request.urlopen(f"{address}/data/environment", timeout=60).close()
    raise AssertionError(f"TensorBoard shows {found}")


def test_tensorboard_draws_every_point(shirts: Path, tensorboard: str) -> None:
    """Each point is one of its runs, with the curve that history.parquet has, as far as the point went."""
    board = pd.read_parquet(shirts / "leaderboard.parquet")
    history = pd.read_parquet(shirts / "history.parquet")
    assert set(ask_until_read(tensorboard, "runs", len(board))) == set(board.point_id)
    for row in board.itertuples():
        curve = history[(history.trial_id == row.trial_id) & (history.epoch <= row.epochs)].sort_values("epoch")
        query = urllib.parse.urlencode({"run": row.point_id, "tag": "val_loss"})
        found = ask(tensorboard, f"plugin/scalars/scalars?{query}")
        assert [(step, value) for _, step, value in found] == [
            (epoch, pytest.approx(value)) for epoch, value in zip(curve.epoch, curve.val_loss, strict=True)
        ]


def test_the_hparams_tab_has_a_row_for_every_point(shirts: Path, tensorboard: str) -> None:
    """Its axes and the seed, and the figures on the board."""
    board = pd.read_parquet(shirts / "leaderboard.parquet").set_index("point_id")
    everything = {"startIndex": 0, "sliceSize": 100, "allowedStatuses": STATUSES, "colParams": []}
    groups = ask_until_read(tensorboard, "plugin/hparams/session_groups", len(board), everything)["sessionGroups"]
    assert {group["name"] for group in groups} == set(board.index)
    for group in groups:
        row = board.loc[group["name"]]
        assert group["hparams"] == {"batch_size": row.batch_size, "epochs": row.epochs, "seed": row.seed}
        figures = {each["name"]["tag"]: each["value"] for each in group["metricValues"]}
        assert figures["val_accuracy"] == pytest.approx(row.val_accuracy)
    infos = ask(tensorboard, "plugin/hparams/experiment", {})["hparamInfos"]
    assert {info["name"] for info in infos if info["differs"]} == {"batch_size", "epochs"}


def test_a_point_is_written_anew_only_where_the_grid_gained_an_axis(tmp_path: Path) -> None:
    """One file for each point, whatever happens; sizes read as a person writes them."""
    run = Run(open_store(str(tmp_path), create=True))
    epoch = Epoch(epoch=1, loss=1.0, accuracy=0.5, val_loss=1.0, val_accuracy=0.5, train_s=1.0, images_per_s=20.0)
    results = {"t": Result(trial_id="t", status="ok", epochs=1, history=[epoch])}
    point = Point("p", "t", {"batch_size": 3, "image_size": (8, 9)}, 0, 1)
    write_events(run, [point], results, run.list_events())
    (first,) = (tmp_path / "events" / "p").iterdir()
    assert b"8x9" in first.read_bytes()
    before = first.stat().st_mtime_ns
    write_events(run, [point], results, run.list_events())
    assert first.stat().st_mtime_ns == before
    write_events(run, [Point("p", "t", {**point.values, "dropout": 0.5}, 0, 1)], results, run.list_events())
    (second,) = (tmp_path / "events" / "p").iterdir()
    assert second.name != first.name


def test_what_a_person_put_beside_them_stays(tmp_path: Path) -> None:
    """Also events of another program; only files with the names that ours have are replaced."""
    run = Run(open_store(str(tmp_path), create=True))
    epoch = Epoch(epoch=1, loss=1.0, accuracy=0.5, val_loss=1.0, val_accuracy=0.5, train_s=1.0, images_per_s=20.0)
    results = {"t": Result(trial_id="t", status="ok", epochs=1, history=[epoch])}
    theirs = ["notes.txt", "p/notes.txt", "p/events.out.tfevents.1700000000.host", "p/plugins/profile/trace"]
    for name in theirs:
        (tmp_path / "events" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "events" / name).write_text("mine")
    for values in ({"batch_size": 3}, {"batch_size": 3, "dropout": 0.5}):
        write_events(run, [Point("p", "t", values, 0, 1)], results, run.list_events())
    (name,) = run.list_events()["p"]
    found = {str(path.relative_to(tmp_path / "events")) for path in (tmp_path / "events").rglob("*") if path.is_file()}
    assert found == {*theirs, f"p/{name}"}
