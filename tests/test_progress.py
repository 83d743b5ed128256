"""progress: a live table on a terminal, plain lines in a log."""

import io
import json

import pytest
from rich.console import Console

from orchestrator.driver.progress import Progress
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import Plan, make_plan, remaining
from orchestrator.runs.result import Epoch, Result
from orchestrator.spec.code import Code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec


@pytest.fixture
def plan() -> Plan:
    spec = load_spec("{name: a, data: {uri: x}, grid: {batch_size: [5, 10], epochs: [2]}}")
    return make_plan(spec, Counts(100, 20), "i", Networks({"small_cnn": Code("c", {})}))


def epoch(number: int, val_accuracy: float) -> Epoch:
    return Epoch(
        epoch=number, loss=0.5, accuracy=0.7, val_loss=0.4, val_accuracy=val_accuracy, train_s=2.0, images_per_s=50.0
    )


def show(plan: Plan, terminal: bool, slots: int = 2) -> str:
    """What stands on the screen, or in the log, while the first trial is done and the second in its first epoch."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None, highlight=False, markup=False)
    first, second = plan.trials
    with Progress(plan, plan.trials, "val_accuracy", slots, console) as progress:
        for trial in (first, second):
            progress.started(trial.id)
        progress.epoch(first.id, epoch(1, 0.6))
        progress.epoch(first.id, epoch(2, 0.8))
        progress.ended(Result(trial_id=first.id, status="ok", epochs=2))
        progress.epoch(second.id, epoch(1, 0.7))
        if terminal:
            progress._live.refresh()
    return out.getvalue()


def test_a_log_has_one_plain_line_for_each_epoch_and_trial(plan: Plan) -> None:
    """Without control codes; the time left follows from the epochs measured, 2 s each."""
    lines = show(plan, terminal=False).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2", "trial 1/2 ok", "epoch 1/2"]
    assert "val_accuracy 0.8000" in lines[1]
    assert "50 images/s" in lines[1]
    assert lines[2].endswith("4 s left")


def test_a_terminal_has_a_table_of_what_runs(plan: Plan) -> None:
    """The running trial with its epoch, the best so far with where it came from, and how far the run is."""
    text = show(plan, terminal=True)
    assert f"batch_size={plan.trials[1].values['batch_size']}" in text
    assert "1/2" in text
    assert f"best epoch so far: val_accuracy 0.8000 (batch_size={plan.trials[0].values['batch_size']} epoch 2)" in text
    assert "1 trial done, 1 running, 0 waiting" in text


def test_what_is_trained_already_is_not_waited_for(plan: Plan) -> None:
    """A grid that grows in epochs, and a trial that goes on from its checkpoint: only the rest is still to come."""
    first, second = plan.trials
    todo = remaining(plan, {first.id: 1})
    assert [trial.id for trial in todo] == [second.id, first.id]
    assert todo[1].forecast_s == pytest.approx(first.forecast_s / 2)
    progress = Progress(plan, todo, "val_accuracy", 1, Console(file=io.StringIO()))
    progress.started(second.id)
    assert progress._left_s() == pytest.approx(second.forecast_s + first.forecast_s / 2)
    progress.ready(second.id, 0.5)
    assert progress._left_s() == pytest.approx(0.75 * second.forecast_s + first.forecast_s / 2)
    assert progress.expected_s(second, 0.5) == pytest.approx(0.75 * second.forecast_s)
    assert progress.expected_s(first, 1) == pytest.approx(first.forecast_s / 2), "what is done is left out once"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_warning_is_seen_on_a_terminal_too(plan: Plan, terminal: bool) -> None:
    """Above the table, and in a log."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None, highlight=False, markup=False)
    with Progress(plan, plan.trials, "val_loss", 1, console) as progress:
        progress.warn("the cache was damaged")
    assert "the cache was damaged" in out.getvalue()


def test_a_failed_trial_says_why(plan: Plan) -> None:
    """In the log, in one line."""
    out = io.StringIO()
    with Progress(plan, plan.trials, "val_loss", 1, Console(file=out, width=200)) as progress:
        progress.started(plan.trials[0].id)
        progress.ended(Result(trial_id=plan.trials[0].id, status="failed", epochs=2, error="Diverged: [red] at once"))
    assert out.getvalue().startswith("trial 1/2 failed: Diverged: [red] at once  ")


def test_the_verdict_so_far_is_said_as_another_leads(plan: Plan) -> None:
    """On a terminal it is always there, in a log where it names another configuration."""
    out = io.StringIO()
    with Progress(plan, plan.trials, "val_loss", 1, Console(file=out, width=200)) as progress:
        progress.leads("batch_size=5", "so far: batch_size=5, 0.7 of 1 of 3 points")
        progress.leads("batch_size=5", "so far: batch_size=5, 0.7 of 2 of 3 points")
        progress.leads("batch_size=10", "so far: batch_size=10, 0.8 of 3 of 3 points")
    starts = [line.split(",")[0] for line in out.getvalue().splitlines()]
    assert starts == ["so far: batch_size=5", "so far: batch_size=10"]


def test_a_race_counts_what_it_stopped_and_what_goes_on(plan: Plan) -> None:
    """A leg is no end; what was stopped counts as done until it starts again."""
    out = io.StringIO()
    first, second = plan.trials
    with Progress(plan, plan.trials, "val_loss", 1, Console(file=out, width=200)) as progress:
        for trial in (first, second):
            progress.started(trial.id)
            progress.ended(Result(trial_id=trial.id, status="ok", epochs=1))
        progress.stopped(second.id, "0.6000 after 1 epoch: 1 others were ahead")
        progress.stopped(second.id, "0.6000 after 1 epoch: 1 others were ahead")  # said once
        progress.started(second.id)
        for trial in (first, second):
            progress.ended(Result(trial_id=trial.id, status="ok", epochs=2))
    starts = [line.split("  ")[0] for line in out.getvalue().splitlines()]
    assert starts == [
        "rung 1/2",
        "rung 1/2",
        "trial 1/2 stopped, 0.6000 after 1 epoch: 1 others were ahead",
        "trial 1/2 ok",
        "trial 2/2 ok",
    ]


def test_a_page_gets_what_runs_as_plain_values(plan: Plan) -> None:
    """The epochs of running trials, how many wait, and the time left; what has ended is in the results."""
    first = plan.trials[0]
    with Progress(plan, plan.trials, "val_loss", 1, Console(file=io.StringIO())) as progress:
        progress.started(first.id)
        progress.epoch(first.id, epoch(1, 0.6))
        tree = json.loads(json.dumps(progress.as_tree()))
        assert (tree["waiting"], tree["left_s"]) == (1, pytest.approx(2.0 + 2 * 2.0, rel=0.5))
        (running,) = tree["running"].items()
        assert running == (first.id, {"epochs": 2, "history": [{"epoch": 1, **epoch(1, 0.6).figures}]})
        progress.epoch(first.id, epoch(2, 0.8))
        progress.ended(Result(trial_id=first.id, status="ok", epochs=2))
        assert progress.as_tree()["running"] == {}
