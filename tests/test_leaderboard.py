"""leaderboard: the ranked table, how other tools open it, and the command that prints it."""

import csv
import io
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from run_folders import board_of

from orchestrator.board.sentences import sentences, so_far
from orchestrator.board.table import COLUMNS, SCHEMA_VERSION, build_board, build_history, facts
from orchestrator.board.views import by_config, compare_runs, effects, sort_board, verdict, where
from orchestrator.display import leaderboard as room
from orchestrator.display.opening import read_board
from orchestrator.display.table import as_csv, as_markdown, as_rich
from orchestrator.documents import document
from orchestrator.errors import BadInput
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import Plan, make_plan
from orchestrator.runs import lease
from orchestrator.runs.folder import BOARD, HISTORY, Run
from orchestrator.runs.lease import Lease
from orchestrator.runs.result import Epoch, Result
from orchestrator.spec.code import Code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec
from orchestrator.store import open_store
from orchestrator.terminal import make_console

HOSTILE = "[red]boom[/red] | a \\| b\nsecond `line` <script>\x1b[31m\x1b[2J\x9b1m\r* [link](http://x)\t\u2028end"


def planned(**spec: object) -> Plan:
    tree = {"name": "cats", "data": {"uri": "images"}, "grid": {"batch_size": [5, 10, 20]}} | spec
    return make_plan(
        load_spec(yaml.safe_dump(tree)), Counts(100, 20), "i", Networks({"small_cnn": Code("c", {"dropout": 0.0})})
    )


def result(trial_id: str, accuracies: list[float], losses: list[float] | None = None, **more: object) -> Result:
    """A result whose epochs have these validation accuracies (and losses), 2 s and 50 images/s each."""
    losses = losses or [1 - accuracy for accuracy in accuracies]
    history = [
        Epoch(epoch=i + 1, loss=0.5, accuracy=0.6, val_loss=loss, val_accuracy=accuracy, train_s=2.0, images_per_s=50.0)
        for i, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True))
    ]
    facts = {"trial_id": trial_id, "status": "ok", "epochs": len(history) or 1, "history": history}
    return Result(**facts | more)


def ranked(plan: Plan, *accuracies: float, metric: str = "val_accuracy") -> pa.Table:
    """A board where the trial of each point, in plan order, ended with this accuracy."""
    results = {
        p.trial_id: result(p.trial_id, [0.0] * (p.epochs - 1) + [a])
        for p, a in zip(plan.points, accuracies, strict=True)
    }
    return board_of(plan, results, (), f"metric={metric}")


def test_each_axis_is_a_column_of_its_own_type():
    """Whole numbers, numbers, truth values, texts; sizes read 32x64; a mixture of both numbers is numbers."""
    grid = {
        "batch_size": [5, 10],
        "learning_rate": [0.1, 0.2],
        "l1": [0, 0.5],
        "horizontal_flip": [True, False],
        "optimizer": ["adam"],
        "image_size": [64, [32, 64]],
    }
    board = board_of(planned(grid=grid), {})
    types = {name: str(board.schema.field(name).type) for name in grid}
    assert types == {
        "batch_size": "int64",
        "learning_rate": "double",
        "l1": "double",
        "horizontal_flip": "bool",
        "optimizer": "string",
        "image_size": "string",
    }
    assert set(board["image_size"].to_pylist()) == {"64x64", "32x64"}
    assert set(board["l1"].to_pylist()) == {0.0, 0.5}
    assert [name for name in board.column_names if name not in grid] == list(COLUMNS)


def test_the_best_point_is_first_and_ties_keep_the_order_of_the_plan():
    """Rank counts from 1 over the points that are ok."""
    board = ranked(planned(), 0.5, 0.9, 0.5)
    assert board["batch_size"].to_pylist() == [10, 5, 20]
    assert board["rank"].to_pylist() == [1, 2, 3]


def test_a_loss_ranks_from_the_lowest():
    """The metric decides what is best."""
    board = ranked(planned(), 0.5, 0.9, 0.7, metric="val_loss")
    assert board["val_loss"].to_pylist() == sorted(board["val_loss"].to_pylist())
    assert board["batch_size"].to_pylist() == [10, 20, 5]


def test_points_that_are_not_ok_stand_last_without_a_rank():
    """After those that are ok come the failed, the running and the pending ones."""
    plan = planned(grid={"batch_size": [1, 2, 3, 4]})
    one, two, _, four = (point.trial_id for point in plan.points)
    began = "2026-01-02T03:04:05+00:00"
    results = {
        two: Result(trial_id=two, status="failed", epochs=10, error="out of memory", started_at=began),
        four: result(four, [0.1] * 10),
    }
    board = board_of(plan, results, {one})
    assert board["batch_size"].to_pylist() == [4, 2, 1, 3]
    assert board["status"].to_pylist() == ["ok", "failed", "running", "pending"]
    assert board["rank"].to_pylist() == [1, None, None, None]
    assert board["error"].to_pylist() == [None, "out of memory", None, None]
    assert board["val_accuracy"].to_pylist() == [0.1, None, None, None]
    assert board["started_at"].to_pylist()[1] == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_each_point_of_a_shared_trial_is_read_off_at_its_own_epoch():
    """Values, best epoch and time are those of the point's own epochs, not of the whole trial."""
    plan = planned(grid={"epochs": [2, 3]})
    trial_id = plan.trials[0].id
    board = board_of(plan, {trial_id: result(trial_id, [0.3, 0.2, 0.9])})
    rows = {row["epochs"]: row for row in board.to_pylist()}
    names = ("rank", "val_accuracy", "best_val_accuracy", "best_epoch", "epochs_trained", "train_s", "images_per_s")
    assert [rows[2][name] for name in names] == [2, 0.2, 0.3, 1, 2, 4.0, 50.0]
    assert [rows[3][name] for name in names] == [1, 0.9, 0.9, 3, 3, 6.0, 50.0]


def test_a_point_costs_its_share_of_the_node_for_its_own_epochs():
    """Training and validation of as many epochs, on half a node: by list price, by the spec's, or not known."""
    plan = planned(grid={"epochs": [1, 2]})
    trial = result(plan.trials[0].id, [0.5, 0.6], node_type="g4dn.xlarge", node_share=0.5)
    trial = trial.model_copy(
        update={"history": [epoch.model_copy(update={"validate_s": 1.6}) for epoch in trial.history]}
    )

    def costs(result: Result, *overrides: str) -> list[float | None]:
        board = board_of(plan, {result.trial_id: result}, (), *overrides)
        return board.sort_by("epochs")["cost_usd"].to_pylist()

    assert costs(trial) == pytest.approx([3.6 / 3600 * 0.526 / 2, 7.2 / 3600 * 0.526 / 2])
    assert costs(trial, "resources.usd_per_hour=1.0") == pytest.approx([0.0005, 0.001])
    assert costs(trial.model_copy(update={"node_type": None})) == [None, None]


def test_a_result_of_fewer_epochs_than_asked_leaves_the_longer_point_pending():
    """The point waits for the trial to go on; the shorter one is done."""
    plan = planned(grid={"epochs": [2, 3]})
    trial_id = plan.trials[0].id
    board = board_of(plan, {trial_id: result(trial_id, [0.3, 0.2])})
    assert dict(zip(board["epochs"].to_pylist(), board["status"].to_pylist(), strict=True)) == {2: "ok", 3: "pending"}


@pytest.mark.parametrize(("restore_best", "read_off"), [(True, 0.7), (False, 0.8)])
def test_early_stopping_reads_off_the_epoch_it_restores(restore_best, read_off):
    """With restore_best the epoch of the lowest val_loss counts, without it the last one trained."""
    plan = planned(grid={"batch_size": [5]})
    trial_id = plan.trials[0].id
    stopped = result(trial_id, [0.6, 0.7, 0.8], [0.5, 0.3, 0.4], epochs=10)
    stopping = f"train.early_stopping={{patience: 1, restore_best: {str(restore_best).lower()}}}"
    (row,) = board_of(plan, {trial_id: stopped}, (), stopping).to_pylist()
    assert (row["val_accuracy"], row["epochs_trained"]) == (read_off, 3)
    assert row["best_epoch"] == (2 if restore_best else 3)


@pytest.mark.parametrize(("metric", "best"), [("val_accuracy", 3), ("best_val_accuracy", 3), ("val_loss", 2)])
def test_the_best_epoch_is_that_of_the_metric_that_ranks(metric: str, best: int):
    """A board has one notion of it."""
    plan = planned(grid={"batch_size": [5]}, train={"epochs": 4})
    trained = result(plan.trials[0].id, [0.6, 0.7, 0.8, 0.75], [0.5, 0.3, 0.4, 0.6], epochs=4)
    (row,) = board_of(plan, {trained.trial_id: trained}, (), f"metric={metric}").to_pylist()
    assert row["best_epoch"] == best


def test_a_verdict_says_what_it_could_not_compare():
    """Of four configurations, two seeds each, one has failed and one waits; no second seed is trained."""
    plan = planned(grid={"batch_size": [1, 2, 3, 4]}, seeds=[0, 1])
    first = {p.values["batch_size"]: p.trial_id for p in plan.points if p.seed == 0}
    results = {first[size]: result(first[size], [0.1 * size] * 10) for size in (1, 2)}
    results[first[3]] = Result(trial_id=first[3], status="failed", epochs=10, error="out of memory")
    text = "\n".join(sentences(verdict(board_of(plan, results), build_history(results))))
    assert "that is the best of 2 of 4 configurations with a point that is ok: the others are not compared" in text
    assert "of the best no other of 2 is trained to the end" in text
    assert "--set" not in text
    del results[first[1]]
    lines = sentences(verdict(board_of(plan, results), build_history(results)))
    assert lines[1].startswith("that is the only one of 4 configurations with a point that is ok")
    assert "the only configuration" not in lines[0]


def test_empty_cells_of_other_tools_are_empty_here(tmp_path: Path):
    """NaN neither ranks nor is printed; and what a run folder says of its classes counts for an older board."""
    plan = planned()
    frame = ranked(plan, 0.5, 0.9, 0.7).to_pandas()
    frame.loc[frame.batch_size == 10, ["score", "val_accuracy", "val_loss"]] = float("nan")
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    arrays = [
        pa.array(frame[name], from_pandas=False) if name == "score" else table[name] for name in table.schema.names
    ]
    pq.write_table(pa.table(arrays, names=table.schema.names), tmp_path / BOARD)
    counts = {"cat": {"training": 9, "validation": 50}, "dog": {"training": 9, "validation": 50}}
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": counts}))
    board = read_board(str(tmp_path))
    assert facts(board)["classes"] == {"cat": 50, "dog": 50}
    assert board["score"].null_count == 1
    assert sentences(verdict(board, build_history({})))[0].startswith("best: batch_size=20, ")


def test_the_board_says_its_schema_axes_and_metric(tmp_path: Path):
    """They stay with the file."""
    run = Run(open_store(str(tmp_path / "run"), create=True))
    run.write_tables(
        {
            BOARD: ranked(planned(), 0.5, 0.9, 0.7, metric="val_loss"),
            HISTORY: build_history({}),
        }
    )
    assert facts(read_board(str(tmp_path / "run"))) == {
        "schema_version": SCHEMA_VERSION,
        "axes": ["batch_size"],
        "metric": "val_loss",
    }


def test_a_board_without_costs_is_still_read(tmp_path: Path):
    """The column came later: it is empty there, and what the table says of itself is kept."""
    board = ranked(planned(), 0.5, 0.6, 0.7)
    pq.write_table(board.drop_columns("cost_usd"), tmp_path / BOARD)
    read = read_board(str(tmp_path))
    assert set(read["cost_usd"].to_pylist()) == {None}
    assert facts(read) == facts(board)
    assert "cost_usd" not in printed(read)


def test_a_board_that_another_tool_wrote_is_still_read(tmp_path: Path):
    """Without metadata, what is no fixed column is an axis."""
    plan = planned(grid={"batch_size": [5], "dropout": [0.25]})
    ranked(plan, 0.5).to_pandas().to_parquet(tmp_path / "mine.parquet")
    table = pq.read_table(tmp_path / "mine.parquet").replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "mine.parquet")
    board = read_board(str(tmp_path / "mine.parquet"))
    assert facts(board)["axes"] == ["batch_size", "dropout"]
    assert "0.25" in printed(board)


def test_pandas_polars_and_duckdb_open_the_same_rows(tmp_path: Path):
    """The board is plain Parquet."""
    plan = planned(grid={"batch_size": [5, 10], "optimizer": ["adam", "sgd"], "horizontal_flip": [True, False]})
    done = plan.points[:5]
    results = {p.trial_id: result(p.trial_id, [i / 10] * 10, node="n") for i, p in enumerate(done)}
    Run(open_store(str(tmp_path), create=True)).write_tables(
        {
            BOARD: board_of(plan, results),
            HISTORY: build_history(results),
        }
    )
    file = tmp_path / "leaderboard.parquet"
    names = ["rank", "point_id", "status", "batch_size", "optimizer", "horizontal_flip", "val_accuracy", "node"]
    expected = [tuple(row[name] for name in names) for row in read_board(str(tmp_path)).to_pylist()]
    assert len(expected) == 8
    assert polars.read_parquet(file).select(names).rows() == expected
    assert duckdb.sql(f"select {', '.join(names)} from '{file}'").fetchall() == expected
    frame = pandas.read_parquet(file)[names].astype(object)
    rows = frame.where(frame.notna(), None).itertuples(index=False, name=None)
    assert list(rows) == expected


def test_the_history_has_one_row_per_trial_and_epoch():
    """Failed trials keep the epochs they had."""
    results = {"a": result("a", [0.1, 0.2]), "b": result("b", [0.3], status="failed", epochs=9)}
    rows = build_history(results).select(["trial_id", "epoch", "val_accuracy"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [("a", 1, 0.1), ("a", 2, 0.2), ("b", 1, 0.3)]


@pytest.mark.parametrize(
    ("column", "order"), [("val_accuracy", [10, 20, 5]), ("val_loss", [10, 20, 5]), ("batch_size", [5, 10, 20])]
)
def test_sorting_puts_the_best_or_the_lowest_first(column, order):
    """Accuracies from the highest, all else from the lowest."""
    assert sort_board(ranked(planned(), 0.5, 0.9, 0.7), column)["batch_size"].to_pylist() == order


def test_sorting_puts_empty_cells_last():
    """A pending point has no accuracy, and is not the best."""
    plan = planned()
    trial_id = plan.points[2].trial_id
    board = board_of(plan, {trial_id: result(trial_id, [0.0] * 10)})
    for column in ("val_accuracy", "val_loss", "node", "rank"):
        assert sort_board(board, column)["val_accuracy"].to_pylist() == [0.0, None, None]


def failed_board(error: str) -> pa.Table:
    plan = planned(grid={"batch_size": [5], "note": [error]})
    trial_id = plan.trials[0].id
    return board_of(plan, {trial_id: Result(trial_id=trial_id, status="failed", epochs=10, error=error)})


def printed(board: pa.Table) -> str:
    """The table as `console()` prints it to a file."""
    with pytest.MonkeyPatch.context() as patch:
        out = io.StringIO()
        patch.setattr(sys, "stdout", out)
        make_console().print(as_rich(board, 200))
    return out.getvalue()


def test_hostile_text_stays_text_in_the_table():
    """Markup is shown as it is, and nothing moves the cursor, changes colours or breaks a row."""
    text = printed(failed_board(HOSTILE))
    assert "[red]boom[/red]" in text
    assert "[link](http://x)" in text
    assert not [c for c in text if c != "\n" and not c.isprintable()]


def test_hostile_text_breaks_no_cell_of_markdown():
    """Two lines of head and one of cells, as many as columns; pipes, brackets, HTML and code marks are escaped."""
    lines = as_markdown(failed_board(HOSTILE)).split("\n")
    assert len(lines) == 3
    assert lines[2].isprintable()
    cells = lines[2].replace("\\\\", "").replace("\\|", "").count("|")
    assert cells == lines[0].count("|") == lines[1].count("|")
    assert "\\<script>" in lines[2]
    assert "\\[link](http" in lines[2]


def test_csv_and_json_give_hostile_text_back_unchanged():
    """They are for programs, which get each character."""
    board = failed_board(HOSTILE)
    (row,) = csv.DictReader(io.StringIO(as_csv(board), newline=""))
    assert row["error"] == row["note"] == HOSTILE
    (row,) = json.loads(document("x", rows=board.to_pylist()))["rows"]
    assert row["error"] == row["note"] == HOSTILE


@settings(max_examples=50)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_no_text_breaks_a_format(text):
    """Whatever an error says, the table keeps its rows and CSV, JSON and Parquet the text."""
    board = failed_board(text)
    assert len(as_markdown(board).splitlines()) == 3
    (row,) = csv.DictReader(io.StringIO(as_csv(board), newline=""))
    assert row["error"] == text
    assert json.loads(document("x", rows=board.to_pylist()))["rows"][0]["error"] == text
    assert "\x1b" not in printed(board)


def leaderboard(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.leaderboard", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder with three points, the third of them failed."""
    folder = str(tmp_path_factory.mktemp("runs") / "cats")
    plan = planned()
    one, two, three = (point.trial_id for point in plan.points)
    results = {
        one: result(one, [0.5] * 10),
        two: result(two, [0.75] * 10, [0.9] * 10),
        three: Result(trial_id=three, status="failed", epochs=10, error=HOSTILE),
    }
    Run(open_store(folder, create=True)).write_tables(
        {
            BOARD: board_of(plan, results),
            HISTORY: build_history(results),
        }
    )
    return folder


def test_the_command_prints_a_table_best_first(folder: str):
    """Rank, axes, metrics, and the error of what failed."""
    done = leaderboard(folder)
    assert (done.returncode, done.stderr) == (0, "")
    head, first, second, third, *_ = done.stdout.splitlines()
    assert head.split()[:4] == ["rank", "batch_size", "val_accuracy", "val_loss"]
    assert first.split()[:4] == ["1", "10", "0.7500", "0.9000"]
    assert second.split()[:4] == ["2", "5", "0.5000", "0.5000"]
    assert third.split()[:4] == ["-", "20", "-", "-"]
    assert "failed" in third
    assert "[red]boom[/red]" in third


def test_the_command_sorts_cuts_and_writes_other_formats(folder: str):
    """--sort takes any column, --top keeps the first rows, --format is for programs."""
    done = leaderboard(folder, "--sort", "val_loss", "--top", "1", "--format", "csv")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["batch_size"], row["val_loss"], row["rank"]) == ("5", "0.5", "2")
    done = leaderboard(f"{folder}/leaderboard.parquet", "--top", "2", "--json")
    assert [row["rank"] for row in json.loads(done.stdout)["rows"]] == [1, 2]
    done = leaderboard(folder, "--format", "markdown")
    assert done.stdout.splitlines()[0].startswith("| rank | status | batch_size | seed | score | val_accuracy |")
    assert len(done.stdout.splitlines()) == 5


def test_the_commands_mistakes_are_one_line(folder: str, tmp_path: Path):
    """A wrong column, a missing folder, an empty one: exit 2 and no traceback."""
    wrong = [
        ([folder, "--sort", "acuracy"], "error: --sort must be a column of the leaderboard (rank, point_id,"),
        ([str(tmp_path / "none")], f"error: {tmp_path}/none must be a folder; there is none"),
        ([str(tmp_path)], f"error: {tmp_path} must be a run folder, and holds no leaderboard.parquet"),
    ]
    for arguments, says in wrong:
        done = leaderboard(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(says)
        assert done.stderr.count("\n") == 1


def test_a_file_that_is_no_leaderboard_is_refused(folder: str, tmp_path: Path):
    """Not Parquet, cut short anywhere, or Parquet of something else."""
    whole = (Path(folder) / "leaderboard.parquet").read_bytes()
    broken = tmp_path / "leaderboard.parquet"
    for size in (0, 3, 4, 100, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:size])
        with pytest.raises(BadInput, match=r"leaderboard\.parquet in .* must be a Parquet file: "):
            read_board(str(tmp_path))
    pq.write_table(pa.table({"a": [1]}), broken)
    with pytest.raises(BadInput, match="must be a leaderboard, and has no column rank"):
        read_board(str(tmp_path))
    rotten = bytes(255 - byte if 40 < i < len(whole) // 3 else byte for i, byte in enumerate(whole))
    broken.write_bytes(rotten)
    with pytest.raises(BadInput, match="must be a Parquet file"):
        read_board(str(tmp_path))


def grid_board(scores: dict[tuple[int, float], list[float]]) -> pa.Table:
    """Batch size and dropout -> the accuracy of seeds 0, 1 …, after one epoch."""
    sizes, dropouts = zip(*scores, strict=True)
    grid = {"batch_size": list(dict.fromkeys(sizes)), "dropout": list(dict.fromkeys(dropouts)), "epochs": [1]}
    plan = planned(grid=grid, seeds=list(range(len(next(iter(scores.values()))))))
    found = {
        p.trial_id: result(p.trial_id, [scores[p.values["batch_size"], p.values["dropout"]][p.seed]])
        for p in plan.points
        if (p.values["batch_size"], p.values["dropout"]) in scores
    }
    return board_of(plan, found)


FULL = {(5, 0.0): [0.9, 0.8], (5, 0.5): [0.7, 0.6], (10, 0.0): [0.5, 0.4], (10, 0.5): [0.3, 0.2]}


@pytest.mark.parametrize(
    ("conditions", "sizes"),
    [
        (["batch_size=5"], [5, 5, 5, 5]),
        (["batch_size == 5", "dropout=0.5"], [5, 5]),
        (["batch_size!=5", "dropout<0.5"], [10, 10]),
        (["val_accuracy>=0.7"], [5, 5, 5]),
        (["val_accuracy>0.7"], [5, 5]),
        (["val_accuracy<=0.3"], [10, 10]),
        (["batch_size>7.5", "seed=1"], [10, 10]),
        (["status=ok", "rank=1"], [5]),
        (["node!=here", "rank<2"], [5]),
        (["started_at>2020-01-01"], []),
        (["node=here"], []),
    ],
)
def test_conditions_choose_rows(conditions: list[str], sizes: list[int]):
    """All of them must hold; numbers compare as numbers; an empty cell only differs."""
    assert where(grid_board(FULL), conditions)["batch_size"].to_pylist() == sizes


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("dropout", "--where must look like dropout=0.5 (or !=, <, >, <=, >=), got dropout"),
        ("drop=1", "--where must name a column of the leaderboard (rank, point_id, .*), got drop"),
        ("dropout=much", "--where must compare dropout with a number, got much"),
        ("started_at=soon", "--where must compare started_at with a time, such as 2026-01-31T12:00, got soon"),
    ],
)
def test_a_condition_that_is_none_says_what_it_must_be(condition: str, says: str):
    """One line, with the column and what it holds."""
    with pytest.raises(BadInput, match=re.escape(says).replace(r"\.\*", ".*")):
        where(grid_board(FULL), [condition])


def test_a_truth_value_is_chosen_by_its_name():
    """true and false, however they are written; nothing else."""
    board = board_of(planned(grid={"horizontal_flip": [True, False]}), {})
    assert where(board, ["horizontal_flip=True"])["horizontal_flip"].to_pylist() == [True]
    with pytest.raises(BadInput, match="with true or false, got 1"):
        where(board, ["horizontal_flip=1"])


def test_seeds_are_folded_into_one_row_per_configuration():
    """Mean, deviation and interval of the metric; whether it may be the best, by the same seeds."""
    table = by_config(grid_board({(5, 0.0): [0.9, 0.8, 0.7], (10, 0.0): [0.8, 0.9, 0.6], (20, 0.0): [0.1, 0.01, 0.0]}))
    assert table["batch_size"].to_pylist() == [5, 10, 20]
    assert table["seeds"].to_pylist() == [3, 3, 3]
    assert table["verdict"].to_pylist() == ["best", "may be best", "behind"]
    (first, *_) = table.to_pylist()
    assert first["score"] == first["val_accuracy"] == pytest.approx(0.8)
    assert first["score_std"] == pytest.approx(0.1)
    assert first["score_high"] - first["score_low"] == pytest.approx(2 * 4.302653 * 0.1 / 3**0.5)


def test_one_seed_has_no_interval_and_no_verdict():
    """Empty cells, not zeros."""
    rows = by_config(grid_board({(5, 0.0): [0.9], (10, 0.0): [0.8]})).to_pylist()
    assert [row["verdict"] for row in rows] == ["best", None]
    assert [row["score_std"] for row in rows] == [None, None]


def test_while_a_run_goes_on_a_line_says_what_leads_and_of_how_many_points():
    """With others that may be as good, where seeds tell that, and what is not trained yet."""
    found = verdict(
        grid_board({(5, 0.0): [0.9, 0.8], (10, 0.0): [0.8, 0.9], (20, 0.0): [0.1, 0.01]}), build_history({})
    )
    counts = {"ok": 6, "stopped": 0, "failed": 0, "not_trained": 3}
    line = so_far(found, counts)
    assert line.startswith("so far: batch_size=5 dropout=0.0 epochs=1, 0.8500 ± ")
    assert line.endswith(" of 6 of 9 points; 1 of 2 others may be as good; 3 not trained yet")
    one = verdict(grid_board({(5, 0.0): [0.9]}), build_history({}))
    assert (
        so_far(one, {**counts, "ok": 1, "not_trained": 0})
        == "so far: batch_size=5 dropout=0.0 epochs=1, 0.9000 of 1 of 1 point"
    )


def test_effects_say_which_axis_matters():
    """The one with the larger share first, each value with its mean over the other axis; and how to read them."""
    table, note = effects(grid_board(FULL), build_history({}))
    rows = [(row["axis"], row["value"], round(row["val_accuracy"], 6)) for row in table.to_pylist()]
    assert rows == [
        ("batch_size", "5", 0.75),
        ("batch_size", "10", 0.35),
        ("dropout", "0.0", 0.65),
        ("dropout", "0.5", 0.45),
    ]
    assert table["share"].to_pylist() == pytest.approx([0.8, 0.8, 0.2, 0.2])
    assert note.endswith("0% belongs to no single axis; exact: the configurations are a full grid")
    assert "where no axis did anything, shares would be about batch_size 33%, dropout 33%, by chance" in note
    _, note = effects(grid_board({key: FULL[key] for key in list(FULL)[:3]}), build_history({}))
    assert "approximate: the configurations are no full grid" in note
    with pytest.raises(BadInput, match="--effects must have an axis with two values"):
        effects(grid_board({(5, 0.0): [0.9]}), build_history({}))


def test_effects_of_a_race_are_taken_where_all_points_were():
    """Of the first seed, at the rung that stopped points reached, however far others went on."""
    plan = planned(grid={"batch_size": [5, 10]}, seeds=[7, 0], train={"epochs": 10})
    results, stopped = {}, {}
    for trial in plan.trials:
        if (trial.values["batch_size"], trial.seed) == (5, 7):
            results[trial.id] = result(trial.id, [0.6] * 4)
            stopped[trial.id] = "0.6 after 4 epochs"
        else:
            results[trial.id] = result(trial.id, [0.5] * 4 + [0.9] * 6)
    spec = load_spec("{name: a, data: {uri: x}, grid: {batch_size: [1]}}")
    board = build_board(spec, plan, results, (), stopped, {"first_seed": 7})
    assert board["status"].to_pylist().count("stopped") == 1
    table, note = effects(board, build_history(results))
    assert dict(zip(table["value"].to_pylist(), table["val_accuracy"].to_pylist(), strict=True)) == pytest.approx(
        {"5": 0.6, "10": 0.5}
    )
    assert note.startswith("after 4 epochs, as far as the stopped points went; ")


def test_runs_of_other_metrics_are_ranked_by_the_first_ones():
    """Not by a score that is a loss."""
    one, two = planned(grid={"batch_size": [5]}), planned(grid={"batch_size": [10]})
    boards = [ranked(one, 0.5), ranked(two, 0.9, metric="val_loss")]
    board = compare_runs(["one", "two"], boards, [one.shared, two.shared])
    assert board["run"].to_pylist() == ["two", "one"]


def test_runs_are_not_compared_by_what_one_does_not_record():
    """A run of an older version would stand last for nothing that it did."""
    old = ranked(planned(grid={"batch_size": [10]}), 0.5)
    new = old.replace_schema_metadata({"orchestrator": json.dumps({"axes": ["batch_size"], "metric": "val_f1"})})
    with pytest.raises(BadInput) as error:
        compare_runs(["new", "old"], [new, old], [{}, {}])
    assert str(error.value) == (
        "--compare must have runs that record val_f1, by which new is ranked, and points of old lack it: name old first"
    )


def test_runs_are_compared_by_what_differs():
    """An axis of one run and a fixed setting of the other are one column; what is equal in both is none."""
    one, two = planned(grid={"batch_size": [5, 10]}), planned(grid={"learning_rate": [0.1]}, train={"batch_size": 10})
    boards = [ranked(one, 0.5, 0.9), ranked(two, 0.7)]
    board = compare_runs(["one", "two"], boards, [one.shared, two.shared])
    assert facts(board)["axes"] == ["run", "learning_rate", "batch_size"]
    names = ["rank", "run", "batch_size", "learning_rate", "val_accuracy"]
    assert [tuple(row[name] for name in names) for row in board.to_pylist()] == [
        (1, "one", 10, 0.001, 0.9),
        (2, "two", 10, 0.1, 0.7),
        (3, "one", 5, 0.001, 0.5),
    ]
    longer = [ranked(planned(grid={"batch_size": [5], "epochs": [30]}), 0.5), boards[0]]
    board = compare_runs(["long", "one"], longer, [one.shared, one.shared])
    assert facts(board)["axes"] == ["run", "epochs", "batch_size"]
    assert board["epochs"].to_pylist() == [10, 10, 30]  # also where it is no axis; of equals the shorter first
    assert compare_runs(["one", "two"], boards, [{}, {}])["batch_size"].to_pylist() == [10, None, 5]  # no plan to read


def fitted(board: pa.Table, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, markup=False, color_system=None).print(as_rich(board, width))
    return out.getvalue()


@pytest.mark.parametrize("width", [20, 30, 40, 50, 60, 80, 100, 120, 200])
def test_the_table_fits_the_terminal(width: int):
    """No line is longer, no number is cut or wrapped; rank and metric stay; a note names what is left out."""
    lines = fitted(grid_board(FULL), width).splitlines()
    assert max(map(len, lines)) <= width
    head, rows = lines[0].split(), [line.split() for line in lines[1:9]]
    assert {"rank", "val_accuracy"} <= set(head)
    assert [row[0] for row in rows] == list("12345678")
    assert [row[head.index("val_accuracy")] for row in rows] == [f"0.{9 - i}000" for i in range(8)]
    assert all(len(row) == len(head) for row in rows)
    note = " ".join(lines[9:])
    assert ("too narrow for" in note) == ("images_per_s" not in head)


def test_an_error_wraps_and_the_numbers_do_not():
    """The error takes the room that is left."""
    lines = fitted(failed_board("out of memory " * 20), 100).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) > 3
    assert "error" in lines[0]
    assert "error" not in fitted(failed_board("out of memory " * 20), 60).splitlines()[0]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder with four configurations and two seeds."""
    folder = str(tmp_path_factory.mktemp("runs") / "seeded")
    board = grid_board(FULL)
    results = {
        row["trial_id"]: result(row["trial_id"], [0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.5, 0.6, 0.7, 0.8])
        for row in board.to_pylist()
    }
    Run(open_store(folder, create=True)).write_tables({BOARD: board, HISTORY: build_history(results)})
    return folder


def test_the_command_shows_the_views(seeded: str, folder: str):
    """Folded, effects, compared, chosen; the verdict stands below a table, and never among what programs read."""
    done = leaderboard(seeded)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nbest: batch_size=5 dropout=0.0 epochs=1, val_accuracy 0.8500" in done.stdout
    done = leaderboard(seeded, "--by-config", "--where", "dropout=0.5", "--sort", "batch_size", "--json")
    assert [(row["batch_size"], row["rank"]) for row in json.loads(done.stdout)["rows"]] == [(5, 1), (10, 2)]
    done = leaderboard(seeded, "--effects")
    assert done.stdout.splitlines()[1].split() == ["batch_size", "80.0%", "5", "0.7500", "0.1414", "2"]
    done = leaderboard("--compare", seeded, folder, "--top", "1", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["run"], row["batch_size"], row["rank"]) == ("seeded", "5", "1")


def test_views_that_do_not_go_together_are_refused(seeded: str):
    """One line each."""
    wrong = [
        ([seeded, "--by-config", "--effects"], "error: --by-config and --effects are two views"),
        ([seeded, seeded], "error: RUN must be one run folder, or several with --compare"),
        ([seeded, "--compare"], "error: RUN must be one run folder, or several with --compare"),
        ([seeded, "--watch", "--format", "csv"], "error: --watch prints a table, got --format csv"),
    ]
    for arguments, says in wrong:
        done = leaderboard(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(says)


def test_watching_ends_with_the_run(tmp_path: Path):
    """On a terminal: it shows the running board, reads it again, and ends with the last one when nothing is left."""
    run = Run(open_store(str(tmp_path / "cats"), create=True))
    plan = planned(grid={"batch_size": [5], "epochs": [1]})
    (trial_id,) = (trial.id for trial in plan.trials)
    run.write_tables({BOARD: board_of(plan, {}, {trial_id}), HISTORY: build_history({})})
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "orchestrator.leaderboard", run.store.uri, "--watch"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with Lease(run.store, lambda: None), subprocess.Popen(command, stdout=theirs, env=env) as watch:
        os.close(theirs)
        seen = b""
        while b"running" not in seen:
            seen += os.read(ours, 4096)
        done = {trial_id: result(trial_id, [0.75])}
        run.write_tables(
            {
                BOARD: board_of(plan, done),
                HISTORY: build_history(done),
            }
        )
        while b"the only configuration" not in seen:
            seen += os.read(ours, 4096)
        assert watch.wait(30) == 0
    os.close(ours)
    assert b"0.7500" in seen


@pytest.mark.parametrize(
    ("owner", "looks"),
    [
        (None, 1),  # it ended, or was interrupted
        ({"host": platform.node(), "pid": 1, "started": "another boot 1"}, 1),  # killed on this machine
        ({"host": "elsewhere", "pid": 1, "started": "1"}, 3),  # silent on another one
    ],
)
def test_watching_ends_with_the_driver(
    owner: dict | None, looks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Though points are running on the board; it says how to go on."""
    run = Run(open_store(str(tmp_path / "cats"), create=True))
    plan = planned(grid={"batch_size": [5, 10], "epochs": [1]})
    done = result(plan.trials[0].id, [0.75])
    run.write_tables({BOARD: board_of(plan, {done.trial_id: done}, {plan.trials[1].id}), HISTORY: build_history({})})
    if owner:
        run.store.write("owner.json", json.dumps(owner).encode())
    waits: list[float] = []
    monkeypatch.setattr(room.time, "sleep", waits.append)
    monkeypatch.setattr(lease, "_now", lambda: 10.0 * len(waits))
    room.print_board([run.store.uri], room.View(), room.Format.table, watch=True)
    assert len(waits) == looks - 1
    assert "no driver is at work on it: the same grid command trains the 1 point left" in capsys.readouterr().out
