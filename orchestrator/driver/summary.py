"""Summary: what the grid command prints about its images before it trains, and about its results at the end."""

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from orchestrator.board.sentences import sentences
from orchestrator.board.views import verdict
from orchestrator.data.index import Index, check_split, describe_bad
from orchestrator.data.layout import VALIDATION
from orchestrator.display.table import as_rich, count_points
from orchestrator.display.winner import say_test
from orchestrator.driver.state import RunState
from orchestrator.errors import BadInput
from orchestrator.plans.forecast import Counts
from orchestrator.race.describe import sum_up
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import BEST, BOARD, HISTORY, REPORT
from orchestrator.spec.sections import Data, Spec
from orchestrator.words import plural

_CLASSES = 10  # that one line names with their counts


def count(index: Index) -> Counts:
    """How many images there are, as plans and forecasts take it."""
    test = int(index.tests.sum())
    training = min(int(index.trains(fold).sum()) for fold in range(index.folds))
    return Counts(training, len(index) - training - test, index.packed, test, index.split_digest)


def describe_index(index: Index, counts: Counts, data: Data, uri: str) -> list[str]:
    """Lines on the images: classes, splits, how they are laid out, and what is left out."""
    left_out = "".join(
        f"; {count} {what}"
        for count, what in (
            (len(index.bad), "skipped"),
            (index.ignored, "ignored"),
            (index.litter, "of the system's own or hidden"),
        )
        if count
    )
    parts = f"{counts.training} train, {counts.validation} validate" + f", {counts.test} test" * bool(counts.test)
    if index.folds > 1:
        parts = f"{len(index) - counts.test} in {index.folds} folds" + f", {counts.test} test" * bool(counts.test)
    return [
        f"{len(index)} of {len(index.classes)} classes ({_per_class(index)}) in {uri}: {parts}{left_out}",
        f"{index.what}; {_how_split(index, data)}",
        *index.notes,
    ]


def _per_class(index: Index) -> str:
    """How many images each of the first classes has: for training, validation and test, where there are several."""
    per_part = [index.trains(), index.validates(), *([index.tests] if index.tests.any() else [])]
    counts = [np.bincount(index.labels[rows], minlength=len(index.classes)).tolist() for rows in per_part]
    each = [
        f"{name} {' + '.join(map(str, own))}"
        for name, own in zip(index.classes, zip(*counts, strict=True), strict=True)
    ]
    return ", ".join(each[:_CLASSES]) + (f", and {len(each) - _CLASSES} more" if len(each) > _CLASSES else "")


def _how_split(index: Index, data: Data) -> str:
    """Who decided what each image is for."""
    together = f", {plural(index.groups, 'group')} kept together" if index.groups else ""
    if VALIDATION in index.given:
        return "split as they came"
    if index.folds > 1:
        return f"each image validates in one of {index.folds} folds{together}"
    drawn = "the first of each class by path" if data.split_by == "order" and not index.groups else "drawn by a hash"
    return f"validation: {drawn}{together}"


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
    parts = {"training": index.trains(), "validation": index.validates()}
    parts |= {"test": index.tests} if index.tests.any() else {}
    counts = {
        part: np.bincount(index.labels[rows & readable], minlength=len(index.classes)) for part, rows in parts.items()
    }
    return {
        "uri": spec.data.uri,
        "classes": {name: {part: int(counts[part][i]) for part in parts} for i, name in enumerate(index.classes)},
        "image_size": spec.data.image_size,
        "skipped": len(index.bad) + len(unreadable),
        "ignored": index.ignored,
        "layout": index.what,
        "notes": index.notes,
        **({"folds": index.folds} if index.folds > 1 else {}),
        "packed": index.packed,
    }


def say_results(state: RunState, budget_used_up: bool, console: Console) -> None:
    """Print the board's first rows, the verdict, and what to do next."""
    board, run, spec = state.board, state.context.run, state.context.spec
    points = count_points(board)
    ok, left = points["ok"], points["not_trained"]
    console.print(as_rich(board.slice(0, 10), console.width))
    found = verdict(board, state.history, state.predictions)
    race = sum_up(state.course, spec, state.plan) if state.course else []
    console.out("", *([*sentences(found), *race, *say_test(run, board), ""] if found else []))
    console.out(
        f"{say_points(points)}. {BOARD}, {HISTORY}, {REPORT} and all results: {run.store.uri}",
        f"python -m orchestrator.leaderboard {shlex.quote(run.store.uri)}",
    )
    if ok:
        console.out(_say_model(state.context, board))
    if left and budget_used_up:
        limits = " and ".join(f"budget.{name} {value:g}" for name, value in spec.budget if value is not None)
        console.out(
            f"the budget is used up ({limits}): {left} of {plural(board.num_rows, 'point')} not trained. "
            f"The same command goes on from here, with as much again"
        )


def say_points(points: Mapping[str, int]) -> str:
    """`6 of 8 points ok, 2 failed`. points: as count_points has them."""
    also = (f", {count} {what.replace('_', ' ')}" for what, count in points.items() if count and what != "ok")
    return f"{points['ok']} of {sum(points.values())} points ok{''.join(also)}"


def _say_model(context: WorkerContext, board: pa.Table) -> str:
    run, folder = context.run, context.networks.folder
    best = run.read_model(BEST)
    if best and best.point_id == board["point_id"][0].as_py():
        # files name no folder with code, as they may come from anybody
        place = f"PYTHONPATH={shlex.quote(folder)} " if folder != "." else ""
        return f"{place}python -m orchestrator.predict {shlex.quote(run.store.uri)} IMAGES"
    return "no model of the winner in models/: the same command makes it, unless with --export-models none"
