"""Summary: what the grid command prints about its images before it trains, and about its results at the end."""

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from orchestrator.board.verdict import sentences
from orchestrator.board.views import verdict
from orchestrator.data.index import Index, check_split, describe_bad
from orchestrator.display.table import as_rich
from orchestrator.driver.state import RunState
from orchestrator.errors import DONE, FAILED, USED_UP, BadInput
from orchestrator.plan.forecast import Counts
from orchestrator.run.folder import BEST, BOARD, HISTORY, REPORT, Run
from orchestrator.spec.sections import Spec
from orchestrator.words import plural


def describe_index(index: Index, counts: Counts, uri: str) -> str:
    """One line on the images: classes, splits, and what is left out."""
    sizes = ", ".join(f"{name} {count}" for name, count in zip(index.classes, np.bincount(index.labels), strict=True))
    left_out = "".join(
        f"; {count} {what}" for count, what in ((len(index.bad), "skipped"), (index.ignored, "ignored")) if count
    )
    return (
        f"{len(index)} of {len(index.classes)} classes ({sizes}) in {uri}: {counts.training} train, "
        f"{counts.validation} validate{left_out}"
    )


def skipped_files(index: Index, unreadable: Mapping[int, str], spec: Spec) -> list[tuple[str, str]]:
    """All files left out, as (key, reason). Raises BadInput if none may be, or if too few images are left.

    unreadable: row of the index -> reason.
    """
    paths = index.paths if unreadable else []
    bad = [(paths[row], reason) for row, reason in sorted(unreadable.items())]
    if bad and spec.data.on_bad_image == "fail":
        raise BadInput(describe_bad(bad))
    check_split(index, index.readable(unreadable), spec.data.uri)
    return [*index.bad, *bad]


def dataset_facts(index: Index, unreadable: Mapping[int, str], spec: Spec) -> dict[str, Any]:
    """What the run trains on, for dataset.json."""
    readable = index.readable(unreadable)
    parts = {"training": ~index.validation & readable, "validation": index.validation & readable}
    counts = {part: np.bincount(index.labels[rows], minlength=len(index.classes)) for part, rows in parts.items()}
    return {
        "uri": spec.data.uri,
        "classes": {name: {part: int(counts[part][i]) for part in parts} for i, name in enumerate(index.classes)},
        "image_size": spec.data.image_size,
        "skipped": len(index.bad) + len(unreadable),
        "ignored": index.ignored,
        "packed": index.packed,
    }


def say_results(state: RunState, budget_used_up: bool, console: Console, with_table: bool) -> int:
    """Print the board's first rows, the verdict, and what to do next. Returns the exit status.

    with_table: whether to print the board; with --json, it is printed already.
    """
    board, run, spec = state.board, state.context.run, state.context.spec
    statuses = board["status"].to_pylist()
    ok, failed = statuses.count("ok"), statuses.count("failed")
    left = board.num_rows - ok - failed
    if with_table:
        console.print(as_rich(board.slice(0, 10), console.width))
    found = verdict(board, state.history)
    console.out("\n".join(["", *sentences(found)] if found else []))
    also = "".join(f", {count} {what}" for count, what in ((failed, "failed"), (left, "not trained")) if count)
    console.out(
        f"\n{ok} of {board.num_rows} points ok{also}. {BOARD}, {HISTORY}, {REPORT} and all results: {run.store.uri}\n"
        f"python -m orchestrator.leaderboard {shlex.quote(run.store.uri)}"
    )
    if ok:
        console.out(_say_model(run, board))
    if not left or not budget_used_up:
        return FAILED if failed or left else DONE
    limits = " and ".join(f"budget.{name} {value:g}" for name, value in spec.budget if value is not None)
    console.out(
        f"the budget is used up ({limits}): {left} of {plural(board.num_rows, 'point')} not trained. "
        f"The same command goes on from here, with as much again"
    )
    return FAILED if failed else USED_UP


def _say_model(run: Run, board: pa.Table) -> str:
    best = run.read_model(BEST)
    if best and best.point_id == board["point_id"][0].as_py():
        return f"python -m orchestrator.predict {shlex.quote(run.store.uri)} IMAGES"
    return "no model of the winner in models/: the same command makes it, unless with --export-models none"
