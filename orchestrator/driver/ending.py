"""Ending: while a run folder is held: whatever ends the run is recorded in it, and told to who wants to know, once."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from rich.console import Console

from orchestrator import __version__
from orchestrator.board.sentences import sentences
from orchestrator.board.table import cost_usd
from orchestrator.board.views import verdict
from orchestrator.display.table import count_points
from orchestrator.driver.outcome import Outcome, outcome
from orchestrator.driver.state import RunState
from orchestrator.driver.summary import say_points
from orchestrator.driver.watch import GridWatch
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Notify
from orchestrator.store import StoreError
from orchestrator.tracking.notify import host, tell
from orchestrator.words import last_line, now

URL = "ORCHESTRATOR_NOTIFY_URL"


def address_to_tell(notify: Notify) -> str | None:
    """Where to tell how the run ends; None: nowhere. Raises BadInput where the environment holds no address."""
    if notify.url is not None:
        return notify.url.get_secret_value()
    url = os.environ.get(URL, "").strip()
    if url and not (url.startswith(("https://", "http://")) and host(url)):
        raise BadInput(f"{URL} must be an address such as https://ntfy.sh/TOPIC, got another, which is not shown")
    return url or None


def record_beginning(state: RunState) -> None:
    """The first line of this driver; it is written when the run folder is taken."""
    state.events.tell("run.began", points=count_points(state.board), trials=len(state.left), version=__version__)


@contextlib.contextmanager
def ending(state: RunState, watch: GridWatch, notify: Notify, url: str | None, console: Console) -> Iterator[None]:
    """Around everything that is done while the lease is held."""
    error = None
    try:
        yield
    except KeyboardInterrupt:
        watch.interrupted = True
        raise
    except BaseException as why:
        error = str(why) if isinstance(why, BadInput) else last_line(why)
        raise
    finally:
        if state.holds_lease():
            state.running.clear()
            board = state.board
            how = outcome(board, watch.budget_used_up, watch.interrupted)
            how = Outcome.failed if error and how is not Outcome.interrupted else how
            facts = _facts(state, board, how, error)
            state.events.tell(f"run.{how}", **{name: facts[name] for name in ("points", "best", "cost_usd", "error")})
            if url and how.value in notify.on:
                _tell_once(state, board, facts, url, console)
            state.events.write(console.out)


def _facts(state: RunState, board: pa.Table, how: Outcome, error: str | None) -> dict[str, Any]:
    """How the run ended, as plain values: see docs/json.md, kind notice."""
    points = count_points(board)
    return {
        "run": state.context.run.store.uri,
        "name": state.context.spec.name,
        "outcome": how.value,
        "points": points,
        "best": board["point_id"][0].as_py() if points["ok"] else None,
        "cost_usd": cost_usd(state.context.spec, state.plan, state.results),
        "error": error,
    }


def _tell_once(state: RunState, board: pa.Table, facts: Mapping[str, Any], url: str, console: Console) -> None:
    """Unless the same end of the same points was told before. What fails here is one line, and nothing else."""
    run = state.context.run
    same = {"outcome": str(facts["outcome"]), "points": _digest(board)}
    try:
        before = run.read_told()
        if any(same.items() <= each.items() for each in before):
            return
        why = tell(url, _lines(state, board, facts), facts)
        if why is None:
            run.write_told([*before, {**same, "host": host(url), "at": now()}])
            state.events.tell("run.told", host=host(url))
    except StoreError as trouble:
        why = str(trouble)
    if why:
        console.out(f"notify: {why}; nobody was told, and the run is as it would be without")


def _digest(board: pa.Table) -> str:
    """Of which points there are, and how each of them ended."""
    points = sorted(zip(board["point_id"].to_pylist(), board["status"].to_pylist(), strict=True))
    return hashlib.sha256(json.dumps(points).encode()).hexdigest()[:12]


def _lines(state: RunState, board: pa.Table, facts: Mapping[str, Any]) -> list[str]:
    """For people: what cannot be left out comes first."""
    how = "the budget is used up" if facts["outcome"] == "budget" else facts["outcome"]
    cost = facts["cost_usd"]
    found = verdict(board, state.history, state.predictions)
    return [
        f"{facts['name']}: {how}, {say_points(facts['points'])}",
        *([facts["error"]] if facts["error"] else []),
        "cost: its nodes have no price" if cost is None else f"cost: ${cost:.2f} while its trials trained",
        facts["run"],
        *(sentences(found) if found else []),
    ]
