"""shown: what the driver writes for those who look, while it trains, and how much of its time that may take."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from run_folders import write_run

import orchestrator.driver.state as state_module
from orchestrator.driver.state import RunState
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import make_plan
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import BOARD
from orchestrator.runs.lease import Lease
from orchestrator.runs.result import Result
from orchestrator.spec.code import Code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec


def state_of_two_trials(folder: Path) -> RunState:
    run = write_run(str(folder), {"batch_size": [16, 32]})
    spec = load_spec("{name: cats, data: {uri: images}, grid: {batch_size: [16, 32]}}")
    plan = make_plan(spec, Counts(100, 20), "index", Networks({"small_cnn": Code("code", {})}))
    index = SimpleNamespace(classes=("a", "b"), labels=np.arange(2), judged=np.ones(2, bool))
    return RunState(WorkerContext(spec, index, run.store, run), plan, {})  # type: ignore[arg-type]


def test_the_last_of_two_results_is_soon_on_the_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It comes right after the tables were written, and for hours nothing else happens."""
    now_s = 1000.0
    monkeypatch.setattr(state_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    state = state_of_two_trials(tmp_path / "cats")
    run = state.context.run

    def failed() -> int:
        return pq.read_table(tmp_path / "cats" / BOARD)["status"].to_pylist().count("failed")

    with Lease(run.store, lambda: None) as state.lease:
        for trial in state.plan.trials:
            state.add(Result(trial_id=trial.id, status="failed", epochs=trial.epochs, error="no luck"))
            state.changed(pytest.fail)
        assert failed() == 1
        now_s += 3.0
        state.write_if_due(pytest.fail)
        assert failed() == 2


def test_the_page_is_written_now_and_then_at_a_bounded_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What runs: every two seconds; the page: every minute, but later where writing it took more than a hundredth."""
    now_s, took_s, pages = 1000.0, 0.1, []

    def write_page(_: object) -> None:
        nonlocal now_s
        pages.append(now_s)
        now_s += took_s

    monkeypatch.setattr(state_module, "write_page", write_page)
    monkeypatch.setattr(state_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    state = state_of_two_trials(tmp_path / "cats")
    run = state.context.run

    def progress() -> dict:
        return {"running": {}, "at": now_s}

    def pass_time(until_s: float) -> None:
        nonlocal now_s
        while now_s < until_s:
            state.show_if_due(progress, pytest.fail)
            now_s += 0.5

    pass_time(1070.0)
    assert pages == [], "nobody writes without the lease"
    with Lease(run.store, lambda: None) as state.lease:
        pass_time(1200.0)
        assert pages == pytest.approx([1070.0, 1130.6, 1191.2], abs=1.1)
        took_s = 5.0
        pass_time(1900.0)
        assert np.diff(pages[3:]) == pytest.approx([505.0], abs=1.1)
        assert b'"at": 189' in run.store.read("progress.json")
        state.write_last()
        assert not run.store.exists("progress.json")
