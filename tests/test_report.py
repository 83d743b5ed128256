"""report: one page that holds all of a run, escapes what it shows, and needs nothing else."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folders import HOSTILE, NASTY, add_winner, write_run

from orchestrator.board.table import build_history
from orchestrator.display.page import gather, page, write_page
from orchestrator.errors import BadInput
from orchestrator.runs.folder import Run
from orchestrator.runs.result import Epoch, Result
from orchestrator.store import open_store


class Elements(HTMLParser):
    """The tags of a page, and the text of each script, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}  # of the title, and of each script by its id
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._within = dict(attributes).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, text: str) -> None:
        self.texts[self._within] = self.texts.get(self._within, "") + text


def report(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.report", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_run(str(tmp_path / "cats"), {"batch_size": [16, 64], "dropout": [0.0, 0.5]}, seeds=(0, 1), fail=1)


def test_the_command_writes_the_page_into_the_run_folder(run: Run, tmp_path: Path):
    """It prints where; the page is one file without an address to load anything from."""
    done = report(run.store.uri)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{tmp_path}/cats/report.html\n")
    found = Elements((tmp_path / "cats" / "report.html").read_text(encoding="utf-8"))
    assert found.texts["title"] == "cats"
    assert [attributes.get("id", "own") for tag, attributes in found.tags if tag == "script"] == [
        "data",
        "plotly",
        "own",
    ]
    linked = [attributes[name] for _, attributes in found.tags for name in ("src", "href") if name in attributes]
    assert [address for address in linked if not address.startswith(("#", "data:"))] == []


def test_the_page_of_a_bucket_lies_in_the_bucket(bucket: str):
    """Written there, and read from there."""
    run = write_run(f"{bucket}/runs/cats", {"batch_size": [16]})
    assert write_page(run) == f"{bucket}/runs/cats/report.html"
    assert run.store.read("report.html").startswith(b"<!doctype html>")


def test_a_folder_without_a_board_is_refused(tmp_path: Path):
    """One line, exit 2, and no page."""
    done = report(str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path} must be a run folder, and holds no leaderboard.parquet")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [HOSTILE, NASTY, "\ud800 half a pair", "\u2028\u2029\x00\x7f"])
def test_no_text_leaves_its_place(run: Run, text: str):
    """Whatever a label holds: the page has the same tags, and the script gets the text back unchanged."""
    data = gather(run) | {"name": text, "verdict": [text]}
    found, harmless = Elements(page(data)), Elements(page(gather(run)))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in harmless.tags]
    block = found.texts["data"]
    assert json.loads(block)["verdict"] == [text]
    run.write_report(page(data))
    assert block.isascii()


def test_only_the_pages_own_scripts_may_run(run: Run):
    """The policy names their digests, and allows no connection and no inline handler."""
    text = page(gather(run))
    found = Elements(text)
    (policy,) = [attributes["content"] for _, attributes in found.tags if "http-equiv" in attributes]
    digests = [
        base64.b64encode(hashlib.sha256(found.texts[name].encode()).digest()).decode() for name in ("plotly", "script")
    ]
    assert policy.startswith("default-src 'none'; script-src ")
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert "unsafe-eval" not in policy
    assert "connect-src 'none'" in policy


def test_what_the_run_does_not_hold_is_left_out(run: Run):
    """No winner, no facts of the data, no skipped files: the page is still one."""
    data = gather(run)
    assert [data[name] for name in ("model", "validation", "dataset")] == [None, None, None]
    assert data["skipped"] == {"count": 0, "first": []}
    assert data["verdict"][0].startswith("best: batch_size=64 dropout=0.0, val_accuracy ")
    assert "overfitting from epoch" in data["verdict"][-1]
    assert "1 configuration with fewer seeds than the best: compared on those that both have" in data["verdict"]
    assert data["spec"].startswith("name: cats\n")


def test_the_winner_is_shown_by_its_validation_images(run: Run, tmp_path: Path):
    """Who is taken for whom, and the images with a thumbnail, the worst first."""
    add_winner(run, tmp_path / "cats")
    data = gather(run)
    assert data["validation"]["matrix"] == [[13, 2], [2, 13]]
    worst = data["validation"]["worst"]
    assert len(worst) == 24
    assert [image["path"] for image in worst[:2]] == ["dog/29.png", "cat/28.png"]
    assert (worst[0]["label"], worst[0]["predicted"]) == ("dog", "cat")
    assert [image["own"] for image in worst] == sorted(image["own"] for image in worst)
    assert worst[0]["probability"] == pytest.approx(0.9)  # of the cat that it was taken for, not of the dog
    figures = data["validation"]["figures"]["columns"]
    assert (figures["class"], figures["most_taken_for"]) == (["cat", "dog"], ["dog (2)", "cat (2)"])
    assert figures["recall"] == [13 / 15, 13 / 15]
    (says,) = data["validation"]["says"]
    assert "batch_size=64; its answers on 30 validation images" in says
    assert says.endswith("dog is said above a probability of 0.5, as in training")
    assert base64.b64decode(worst[0]["png"]).startswith(b"\x89PNG")
    assert data["skipped"] == {"count": 1, "first": [{"key": "cat/broken.png", "reason": "cut short"}]}
    assert data["versions"]["keras"] == "3.15.1"


def test_a_file_of_the_winner_that_cannot_be_read_is_named(run: Run, tmp_path: Path):
    """One line, not a page without it."""
    add_winner(run, tmp_path / "cats")
    (tmp_path / "cats" / "models" / "best-validation.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match=r"best-validation\.parquet in .* is damaged"):
        gather(run)
    (tmp_path / "cats" / "dataset.json").write_text("{")
    with pytest.raises(BadInput, match=r"dataset\.json in .* must be JSON"):
        gather(run)


def test_one_seed_has_no_folded_table(tmp_path: Path):
    """It would repeat the board."""
    assert gather(write_run(str(tmp_path / "one"), {"batch_size": [16]}))["configurations"] is None
    several = gather(write_run(str(tmp_path / "two"), {"batch_size": [16]}, seeds=(0, 1)))["configurations"]
    assert several["columns"]["seeds"] == [2]


def test_a_board_that_another_tool_wrote_is_shown(run: Run, tmp_path: Path):
    """With NaN where a point has no value, and without history."""
    file = tmp_path / "cats" / "leaderboard.parquet"
    frame = pq.read_table(file).to_pandas()
    assert frame.val_accuracy.isna().any()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None), file)
    (tmp_path / "cats" / "history.parquet").unlink()
    data = gather(Run(open_store(str(tmp_path / "cats"))))
    assert data["curves"] == {}
    assert "NaN" not in page(data).partition('id="data">')[2].partition("</script>")[0]


def test_long_histories_are_thinned_out(tmp_path: Path):
    """A page stays small: at most some 100,000 epochs, and the last of each trial."""
    run = write_run(str(tmp_path / "long"), {"batch_size": [16]})
    epoch = Epoch(epoch=1, loss=1, accuracy=0.5, val_loss=1, val_accuracy=0.5, train_s=1, images_per_s=1)
    long = [epoch.model_copy(update={"epoch": i + 1}) for i in range(1000)]
    results = {f"{i}": Result(trial_id=f"{i}", status="ok", epochs=1000, history=long) for i in range(250)}
    table = pq.read_table(tmp_path / "long" / "leaderboard.parquet")
    run.write_tables({"leaderboard.parquet": table, "history.parquet": build_history(results)})
    curves = gather(run)["curves"]
    assert len(curves) == 250
    assert sum(len(curve["loss"]) for curve in curves.values()) < 101_000
    assert {curve["epoch"][-1] for curve in curves.values()} == {1000}
