"""Outcome: how a run ended: in one word, as an exit status, and as values for programs."""

from enum import StrEnum
from typing import Any

import pyarrow as pa

from orchestrator.board.table import cost_usd
from orchestrator.board.views import verdict
from orchestrator.display.table import board_tree, count_points
from orchestrator.display.winner import read_first, say_test
from orchestrator.driver.state import RunState
from orchestrator.errors import DONE, FAILED, INTERRUPTED, USED_UP
from orchestrator.race.describe import sum_up
from orchestrator.runs.folder import BEST, REFIT


class Outcome(StrEnum):
    """How a run ended. What failed is said before what the budget left out, and an interruption before all."""

    done = "done"
    failed = "failed"
    budget = "budget"
    interrupted = "interrupted"

    @property
    def exit_status(self) -> int:
        return {"done": DONE, "failed": FAILED, "budget": USED_UP, "interrupted": INTERRUPTED}[self]


def outcome(board: pa.Table, budget_used_up: bool, interrupted: bool) -> Outcome:
    """board: as it stands at the end. Points that are not trained for no known reason count as failed."""
    points = count_points(board)
    if interrupted:
        return Outcome.interrupted
    if points["failed"] or (points["not_trained"] and not budget_used_up):
        return Outcome.failed
    return Outcome.budget if points["not_trained"] else Outcome.done


def run_tree(state: RunState, how: Outcome) -> dict[str, Any]:
    """What `grid --json` says of a run that has ended: see docs/json.md."""
    context, board = state.context, state.board
    run, best = context.run, read_first(context.run, board)
    refit = read_first(run, board, REFIT)
    race = sum_up(state.course, context.spec, state.plan) if state.course else []
    found = verdict(board, state.history, state.predictions)
    notes = [*race, *say_test(run, board)] if found else []
    return {
        "run": run.store.uri,
        "name": context.spec.name,
        "outcome": how.value,
        "exit_status": how.exit_status,
        "cost_usd": cost_usd(context.spec, state.plan, state.results),
        "model": f"{run.store.uri}/models/{BEST}.keras" if best else None,
        "refit": f"{run.store.uri}/models/{REFIT}.keras" if refit else None,
        **board_tree(board, board, found, notes, best.test if best else None),
    }
