"""classes: how well the winner does on each class, where its threshold lies, and the command that shows it."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from run_folders import add_winner, write_run
from scipy.stats import binomtest

from orchestrator.board.classes import class_table, confusion, for_reading
from orchestrator.display.leaderboard import Format, View, print_board
from orchestrator.errors import BadInput

CLASSES = ["ant", "cat", "dog", "emu"]
LABELS = ["ant"] * 4 + ["cat"] * 10 + ["dog"] * 6
SAID = ["ant"] * 3 + ["dog"] + ["cat"] * 5 + ["ant"] * 2 + ["dog"] * 3 + ["dog"] * 6


def test_the_figures_of_a_class_are_those_counted_by_hand():
    """The lowest recall first, the class without images last; intervals as scipy has them."""
    table = class_table(CLASSES, confusion(CLASSES, LABELS, SAID), "val_accuracy").to_pylist()
    names = ("class", "images", "recall", "answers", "precision", "taken_for", "taken")
    assert [tuple(row[name] for name in names) for row in table] == [
        ("cat", 10, 0.5, 5, 1.0, "dog", 3),
        ("ant", 4, 0.75, 5, 0.6, "dog", 1),
        ("dog", 6, 1.0, 10, 0.6, None, None),
        ("emu", 0, None, 0, None, None, None),
    ]
    found = binomtest(5, 10).proportion_ci(0.95, "wilson")
    assert (table[0]["recall_low"], table[0]["recall_high"]) == pytest.approx((found.low, found.high))
    found = binomtest(6, 10).proportion_ci(0.95, "wilson")
    assert (table[2]["precision_low"], table[2]["precision_high"]) == pytest.approx((found.low, found.high))


def test_a_person_reads_an_interval_and_a_confusion_as_one_cell():
    """And nothing where there is nothing."""
    table = for_reading(class_table(CLASSES, confusion(CLASSES, LABELS, SAID), "val_accuracy"))
    assert table["recall_95"].to_pylist() == ["0.24-0.76", "0.30-0.95", "0.61-1.00", None]
    assert table["most_taken_for"].to_pylist() == ["dog (3)", "dog (1)", None, None]


def shown(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    format: Format = Format.table,
    as_json: bool = False,
    **view: object,
) -> str:
    print_board([str(folder)], View(classes=True, **view), format, watch=False, as_json=as_json)
    return capsys.readouterr().out


def test_the_command_shows_the_classes_of_the_winner(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """In every format; a table says whose figures they are, of how many images, and where the threshold lies."""
    run = write_run(str(tmp_path / "cats"), {"batch_size": [16, 64]})
    add_winner(run, tmp_path / "cats")
    text = shown(tmp_path / "cats", capsys, Format.table)
    head, cat, dog, _, note, *_ = text.splitlines()
    assert head.split() == ["class", "images", "recall", "recall_95", "precision", "precision_95", "most_taken_for"]
    assert cat.split() == ["cat", "15", "0.867", "0.62-0.96", "0.867", "0.62-0.96", "dog", "(2)"]
    assert dog.split()[0] == "dog"
    assert note.startswith("the winner: batch_size=64; its answers on 30 validation images, with 95% intervals")
    rows = list(csv.DictReader(io.StringIO(shown(tmp_path / "cats", capsys, Format.csv, top=1))))
    assert [(row["class"], row["taken"]) for row in rows] == [("cat", "2")]
    rows = json.loads(shown(tmp_path / "cats", capsys, as_json=True, where=("class=dog",)))["rows"]
    assert [(row["class"], row["taken_for"], row["images"]) for row in rows] == [("dog", "cat", 15)]
    assert shown(tmp_path / "cats", capsys, Format.markdown).startswith("| class | images | recall | recall_low |")


def test_a_threshold_and_a_winner_of_before_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The figures are those at one half; predict would answer otherwise."""
    run = write_run(str(tmp_path / "cats"), {"batch_size": [16, 64]})
    add_winner(run, tmp_path / "cats")
    file = tmp_path / "cats" / "models" / "best.json"
    chosen = {"metric": "val_accuracy", "at_half": 0.8, "at_threshold": 0.9, "images": 30}
    more = {"point_id": "another", "epoch": 3, "threshold": 0.37, "threshold_chosen": chosen}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    text = " ".join(shown(tmp_path / "cats", capsys, Format.table).split())
    assert "not of the point that ranks first now, but of an earlier one: batch_size=64" in text
    assert "dog is said above a probability of 0.5, as in training" in text
    assert "predict says it differently: dog is said where its probability is above 0.37, not above 0.5" in text
    assert "that makes val_accuracy 0.9000 instead of 0.8000; on other images it gains less" in text


def test_a_run_without_a_model_says_what_to_do(tmp_path: Path):
    """One line; so do options that do not go together."""
    write_run(str(tmp_path / "cats"), {"batch_size": [16]})
    says = "--classes needs the predictions of the winner's model.*: run the grid again, without --export-models none"
    with pytest.raises(BadInput, match=says):
        print_board([str(tmp_path / "cats")], View(classes=True), Format.table, watch=False)
    with pytest.raises(BadInput, match="--effects and --classes are two views: give one of them"):
        print_board(["a"], View(classes=True, effects=True), Format.table, watch=False)
    for view, watch, option in (
        (View(classes=True), True, "--watch"),
        (View(classes=True, compare=True), False, "--co"),
    ):
        with pytest.raises(BadInput, match=f"--classes is of the winner of one run: leave {option}"):
            print_board(["a", "b"][: 1 + view.compare], view, Format.table, watch)


def test_many_classes_are_counted_at_once():
    """A thousand classes of a hundred thousand images."""
    random = np.random.default_rng(0)
    classes = [f"c{i}" for i in range(1000)]
    labels, said = ([classes[i] for i in random.integers(0, 1000, 100_000)] for _ in range(2))
    table = class_table(classes, confusion(classes, labels, said), "val_accuracy")
    assert (table.num_rows, sum(table["images"].to_pylist())) == (1000, 100_000)
