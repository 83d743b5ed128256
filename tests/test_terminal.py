"""terminal: names of files, of classes and of somebody else's run control no terminal and forge no line."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import class_folder, fill
from run_folders import add_winner, write_run

from orchestrator import grid
from orchestrator.display.leaderboard import Format, View, print_board
from orchestrator.display.predictions import Format as PredictionFormat
from orchestrator.display.predictions import print_predictions
from orchestrator.errors import BadInput, exit_on_bad_input
from orchestrator.runs.result import Exported, Threshold
from orchestrator.store import open_store
from orchestrator.terminal import make_console, write
from orchestrator.words import printable

GRID = "grid: {batch_size: [16]}\n"
EVIL = "cat\x1b[2J\x1b]0;owned\x07\r\nerror: all is lost\x9b31m\u202edog\u2066\u2028x\x00\udce9"


def is_clean(text: str) -> bool:
    """Whether every character is shown, and no line is the forged one."""
    shown = all(c == "\n" or (c.isprintable() and printable(c) == c) for c in text)
    return shown and not any(line.startswith("error: all is lost") for line in text.splitlines())


def plan_of_evil_classes(folder: Path) -> None:
    files = class_folder({"a": 20, "b": 20})
    fill(open_store(str(folder / "images"), create=True), files)
    names = {"a": EVIL.replace("\x00", "").replace("\udce9", ""), "b": "dog"}
    with open(folder / "images" / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((key, names[key[0]]) for key in files)])
    (folder / "spec.yaml").write_text(
        f"name: x\ndata: {{uri: {folder}/images, layout: table}}\noutput: {folder}/runs\n{GRID}"
    )
    grid.main(str(folder / "spec.yaml"), plan=True)


def plan_of_evil_files(folder: Path) -> None:
    fill(open_store(str(folder / "images"), create=True), class_folder({"a\u202e\x9b1m": 20, "b": 20}))
    (folder / "images" / "b" / "c\x1b[2J\nerror: all is lost.png").write_bytes(b"")
    (folder / "images" / "b" / "caf\udce9.png").write_bytes(b"")
    (folder / "spec.yaml").write_text(f"name: x\ndata: {{uri: {folder}/images}}\noutput: {folder}/runs\n{GRID}")
    grid.main(str(folder / "spec.yaml"), plan=True)


def board_of_evil(folder: Path, view: View, form: Format) -> None:
    evil = EVIL.replace("\udce9", "")
    run = write_run(str(folder / "run"), {"note": [1, 2], "dropout": [0.0, 0.5]}, fail=1)
    add_winner(run, folder / "run", (evil, "dog"))
    board = pq.read_table(folder / "run" / "leaderboard.parquet")
    rows = [{**row, "note": evil * row["note"], "error": row["error"] and evil} for row in board.to_pylist()]
    about = json.loads(board.schema.metadata[b"orchestrator"]) | {"classes": {evil: 15, "dog": 15}, "race": [evil]}
    fields = [pa.field("note", pa.string()) if field.name == "note" else field for field in board.schema]
    metadata = {"orchestrator": json.dumps(about)}
    pq.write_table(
        pa.Table.from_pylist(rows, pa.schema(fields, metadata=metadata)), folder / "run" / "leaderboard.parquet"
    )
    print_board([str(folder / "run")], view, form, watch=False)


def predictions_of_evil(form: PredictionFormat) -> None:
    why = Threshold(metric=EVIL, at_half=0.8, at_threshold=0.85, images=220)
    facts = Exported.model_construct(classes=["dog", EVIL], threshold=0.3, threshold_chosen=why)
    print_predictions([(EVIL, np.array([0.6, 0.4], np.float32))], facts, form)


def complaint_of_evil() -> None:
    raise BadInput(f"{EVIL}: it must be another")


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    "says",
    [
        plan_of_evil_classes,
        plan_of_evil_files,
        lambda folder: board_of_evil(folder, View(), Format.table),
        lambda folder: board_of_evil(folder, View(by_config=True), Format.table),
        lambda folder: board_of_evil(folder, View(effects=True), Format.table),
        lambda folder: board_of_evil(folder, View(classes=True), Format.table),
        lambda folder: board_of_evil(folder, View(), Format.markdown),
        lambda folder: board_of_evil(folder, View(where=(EVIL,)), Format.table),
        lambda folder: predictions_of_evil(PredictionFormat.table),
        lambda folder: complaint_of_evil(),
        lambda folder: make_console(stderr=True).out(EVIL),
    ],
    ids=[
        "classes",
        "files",
        "board",
        "by-config",
        "effects",
        "by-class",
        "markdown",
        "where",
        "predict",
        "error",
        "line",
    ],
)
def test_what_is_foreign_controls_nothing(
    says: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences, carriage returns, line breaks, directions: all that is printed is plain text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_CACHE_DIR", str(tmp_path / "cache"))
        try:
            with exit_on_bad_input():
                says(tmp_path)
        except SystemExit:
            pass
    printed = capsys.readouterr()
    assert is_clean(printed.out + printed.err)
    assert "[2J" in printed.out + printed.err  # it was there, and what is left of it can be read


def test_programs_get_every_character_and_people_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    """CSV into a file or a pipe is as it is; on a terminal somebody looks at it."""
    write(f"a,{EVIL}")
    assert capsys.readouterr().out == "a," + EVIL.replace("\udce9", "?") + "\n"

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Terminal())
        write("a,b\n\x1b[2Jc")
        assert sys.stdout.getvalue() == "a,b\n [2Jc\n"
