"""run: the output folder. Results are written once, the longest counts, and what is damaged is put aside, not lost."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.board.table import build_history
from orchestrator.runs.folder import Run
from orchestrator.runs.result import Epoch, Result
from orchestrator.store import open_store

EPOCH = Epoch(epoch=1, loss=0.5, accuracy=0.6, val_loss=0.7, val_accuracy=0.8, train_s=1.0, images_per_s=2.0)


def result(epochs: int, trial_id: str = "abc", **more: object) -> Result:
    history = [EPOCH.model_copy(update={"epoch": i + 1}) for i in range(epochs)]
    return Result(trial_id=trial_id, status="ok", epochs=epochs, history=history, digests={epochs: "d"}, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def run(folder: Path) -> Run:
    return Run(open_store(str(folder), create=True))


def test_a_new_folder_is_empty_and_reading_does_not_make_it(run: Run, folder: Path):
    """No plan, no results, no checkpoint, and nothing is written by looking."""
    assert run.read_plan() is None
    assert run.read_results() == {}
    assert run.read_checkpoint("abc") is None
    assert not folder.exists()


def test_a_result_reads_back_as_it_was_written(run: Run):
    """With its history, its digests by epoch, and its times."""
    written = result(3, node="n", device="cpu", peak_memory_mb=1.5, started_at="2026-01-02T03:04:05+00:00")
    run.write_result(written)
    assert run.read_results() == {"abc": written}


def test_a_result_is_written_once_and_never_changed(run: Run, folder: Path):
    """An equal trial gives an equal result: the first one stays, to the byte."""
    run.write_result(result(2, node="first"))
    (file,) = (folder / "trials").iterdir()
    before = file.read_bytes(), file.stat().st_mtime_ns
    run.write_result(result(2, node="second"))
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert run.read_results()["abc"].node == "first"


def test_the_longest_result_of_a_trial_counts(run: Run):
    """A trial that was asked for more epochs later has several; all of them stay."""
    for epochs in (4, 10, 2):
        run.write_result(result(epochs))
    run.write_result(result(3, trial_id="other"))
    assert {trial_id: found.epochs for trial_id, found in run.read_results().items()} == {"abc": 10, "other": 3}


WHOLE = result(2).model_dump_json()
DAMAGED = {
    "cut short": WHOLE[:-20],
    "empty": "",
    "not JSON": "<html>",
    "a list": "[]",
    "not UTF-8": b"\xff\xfe",
    "an unknown key": WHOLE[:-1] + ', "extra": 1}',
    "a later version": WHOLE.replace('"version":3', '"version":4'),
    "a number as text": WHOLE.replace('"epochs":2', '"epochs":"2"'),
    "no loss": WHOLE.replace('"loss":0.5', '"loss":null'),
    "an endless loss": WHOLE.replace('"loss":0.5', '"loss":NaN'),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_result_is_put_aside_and_does_not_count(run: Run, folder: Path, content: str | bytes):
    """Its bytes are kept under damaged/, the others count, and the trial can write a new one."""
    data = content if isinstance(content, bytes) else content.encode()
    assert data != WHOLE.encode()
    run.write_result(result(2, trial_id="other"))
    (folder / "trials" / "abc-2.json").write_bytes(data)
    assert set(run.read_results()) == {"other"}
    assert (folder / "damaged" / "trials" / "abc-2.json").read_bytes() == data
    assert not (folder / "trials" / "abc-2.json").exists()
    run.write_result(result(2))
    assert set(run.read_results()) == {"other", "abc"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def almost_results(draw):
    """The bytes of a result with one field changed, cut, or with bytes in it replaced."""
    tree = json.loads(WHOLE)
    where = draw(st.sampled_from([tree, tree["history"][0]]))
    where[draw(st.sampled_from(sorted(where)))] = draw(json_values)
    data = bytearray(json.dumps(tree).encode())
    for _ in range(draw(st.integers(0, 2))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.binary(max_size=40) | almost_results())
def test_any_bytes_in_a_result_file_are_a_result_or_damaged(run: Run, folder: Path, data: bytes):
    """Reading a run never fails for what a file holds, and never loses it."""
    file, aside = folder / "trials" / "abc-2.json", folder / "damaged" / "trials" / "abc-2.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    aside.unlink(missing_ok=True)
    file.write_bytes(data)
    found = run.read_results()
    assert (file if found else aside).read_bytes() == data
    assert file.exists() != aside.exists()
    for one in found.values():
        assert Result.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize(("before", "after"), [(b'"loss":0.5', b'"loss":0.4'), (b'"d"', b'"e"')])
def test_a_result_with_another_number_in_it_is_damaged(run: Run, folder: Path, before: bytes, after: bytes):
    """Good JSON, but not what was written: a bit that turned over on a disk must not reach the board."""
    run.write_result(result(1))
    (file,) = (folder / "trials").iterdir()
    file.write_bytes(file.read_bytes().replace(before, after, 1))
    assert run.read_results() == {}
    assert (folder / "damaged" / "trials" / file.name).exists()


def test_what_is_damaged_twice_is_kept_twice(run: Run, folder: Path):
    """Nothing under damaged/ is ever written over."""
    (folder / "trials").mkdir(parents=True)
    for data in (b"one", b"two", b"two"):
        (folder / "trials" / "abc-2.json").write_bytes(data)
        assert run.read_results() == {}
    aside = folder / "damaged" / "trials"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == {"abc-2.json": b"one", "abc-2.json.2": b"two"}


def test_tidying_puts_damaged_tables_aside_and_deletes_what_is_half_written(run: Run, folder: Path):
    """A table cut short or with a wrong byte is moved, a whole one stays, a killed writer's temporary file goes."""
    table = build_history({"abc": result(3)})
    run.write_tables({"leaderboard.parquet": table, "history.parquet": table})
    assert run.tidy() == []
    board = bytearray((folder / "leaderboard.parquet").read_bytes())
    board[board.index(b"abc")] ^= 1
    (folder / "leaderboard.parquet").write_bytes(board)
    os.truncate(folder / "history.parquet", 100)
    (folder / ".0123456789abcdef.tmp").write_bytes(b"half")
    assert run.tidy() == ["damaged/leaderboard.parquet", "damaged/history.parquet"]
    assert (folder / "damaged" / "leaderboard.parquet").read_bytes() == board
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "damaged"]


def test_what_a_person_put_into_the_folder_stays(run: Run, folder: Path):
    """Beside ours and among ours: hidden files, results of something else, links and what they lead to."""
    run.write_result(result(2))
    ours = {path for path in folder.rglob("*") if path.is_file()}
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / ".0123456789abcdef.tmp").write_text("mine")
    theirs = [
        ".notes.tmp",
        ".0123456789abcdef0.tmp",
        "checkpoints/.thesis.tmp",
        "models/.0123456789ABCDEF.tmp",
        "models/.cache.tmp/model.bin",
        "models/.fedcba9876543210.tmp/model.bin",
        "trials/notes.json",
        "trials/abc-2.json.bak",
        "trials/abc-2.txt",
        "events/notes.txt",
        "events/abc/notes.txt",
        "mine/abc-2.json",
    ]
    for name in theirs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    (folder / "checkpoints" / "outside").symlink_to(outside)
    (folder / "models" / ".0000000000000000.tmp").symlink_to(outside / ".0123456789abcdef.tmp")
    (folder / "checkpoints" / ".0123456789abcdef.tmp").write_bytes(b"half")
    assert run.tidy() == []
    assert set(run.read_results()) == {"abc"}
    assert run.list_events() == {}
    assert (outside / ".0123456789abcdef.tmp").read_text() == "mine"
    links = {folder / "checkpoints" / "outside", folder / "models" / ".0000000000000000.tmp"}
    found = {path for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    assert found == ours | links | {folder / name for name in theirs}


@pytest.mark.parametrize("damage", [pa.table({"abc": ["a\x7f"]}), pa.table({"a\x7f": ["abc"]})])
def test_a_table_with_a_text_or_a_name_that_is_not_unicode_is_damaged(run: Run, damage: pa.Table):
    """Arrow reads both without a word, or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(damage, sink)
    run.store.write("leaderboard.parquet", sink.getvalue().to_pybytes().replace(b"a\x7f", b"a\xff"))
    assert run.tidy() == ["damaged/leaderboard.parquet"]


def test_a_plan_reads_back_as_it_was_written(run: Run, folder: Path):
    """With the resolved spec beside it."""
    run.write_plan("name: cats\n", {"data.image_size": (64, 64), "train.optimizer": "adam"}, ["a", "b"])
    assert run.read_plan() == {
        "shared": {"data.image_size": [64, 64], "train.optimizer": "adam"},
        "points": ["a", "b"],
    }
    assert (folder / "spec.yaml").read_text() == "name: cats\n"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff", b'{"shared": {}}', b'{"shared": 3, "points": []}']
)
def test_a_damaged_plan_is_put_aside(run: Run, folder: Path, data: bytes):
    """The run goes on as if it had none: results alone say what is done."""
    folder.mkdir()
    (folder / "plan.json").write_bytes(data)
    assert run.read_plan() is None
    assert (folder / "damaged" / "plan.json").read_bytes() == data
    assert not (folder / "plan.json").exists()


def test_a_checkpoint_is_replaced_by_the_next(run: Run):
    """Only the last one of a trial is kept, to the byte."""
    run.write_checkpoint("abc", b"one")
    run.write_checkpoint("abc", b"two\x00")
    run.write_checkpoint("other", b"three")
    assert run.read_checkpoint("abc") == b"two\x00"


def test_skipped_files_are_listed_with_their_reason(run: Run, folder: Path):
    """Whoever looks into the folder sees what was left out."""
    run.write_skipped([("cats/a.jpg", "empty"), ("dogs/ü.txt", "not an image file")])
    assert json.loads((folder / "skipped.json").read_text()) == [
        {"key": "cats/a.jpg", "reason": "empty"},
        {"key": "dogs/ü.txt", "reason": "not an image file"},
    ]


def test_the_folder_holds_what_its_room_says(run: Run, folder: Path):
    """Every file of a run, by name."""
    table = build_history({"abc": result(1)})
    run.write_plan("name: cats\n", {}, [])
    run.write_tables({"leaderboard.parquet": table, "history.parquet": table})
    run.write_result(result(1))
    run.write_checkpoint("abc", b"")
    run.write_skipped([])
    run.write_dataset({"uri": "s3://bucket/pets"})
    run.replace_events("abc", (), "events.out.tfevents.1", b"")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {".lock"}
    assert found == {
        "spec.yaml",
        "plan.json",
        "skipped.json",
        "trials/abc-1.json",
        "checkpoints/abc.npz",
        "leaderboard.parquet",
        "history.parquet",
        "dataset.json",
        "events/abc/events.out.tfevents.1",
    }
