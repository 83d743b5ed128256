"""budget: what fits is begun, what would end too late or cost too much is not."""

from orchestrator.plans.budget import Meter
from orchestrator.spec.sections import Budget


def test_without_a_budget_everything_fits():
    """And nothing is ever used up."""
    meter = Meter(Budget(), 0.0)
    assert meter.start("a", 10.0, 1e9, 1.0)
    assert not meter.used_up(1e9)


def test_a_trial_that_would_end_too_late_is_not_begun_and_a_shorter_one_is():
    """Hours count from the command's start, by whatever clock."""
    meter = Meter(Budget(max_hours=1.0), 500.0)
    assert meter.start("long", 500.0, 3600.0, 0.0)
    assert not meter.start("late", 1000.0, 3200.0, 0.0)
    assert meter.start("short", 1000.0, 3000.0, 0.0)
    assert not meter.used_up(4099.0)
    assert meter.used_up(4100.0)


def test_dollars_are_spent_while_trials_run_and_kept_for_those_that_do():
    """Two at 1 cent a second: what the first has still to cost is not given to a third."""
    meter = Meter(Budget(max_usd=10.0), 0.0)
    assert meter.start("a", 0.0, 400.0, 0.01)
    assert meter.start("b", 0.0, 400.0, 0.01)
    assert not meter.start("c", 100.0, 300.0, 0.01)
    assert meter.usd(100.0) == 2.0
    meter.end("a", 200.0)  # sooner than forecast: what is left over is there for others
    assert meter.start("c", 200.0, 300.0, 0.01)
    meter.end("b", 400.0)
    assert meter.usd(400.0) == 2.0 + 4.0 + 2.0
    assert not meter.used_up(599.0)
    assert meter.used_up(600.0), "the forecast was wrong, and the money is gone"


def test_another_try_of_a_trial_counts_what_the_first_one_cost():
    """Its worker died half way."""
    meter = Meter(Budget(max_usd=10.0), 0.0)
    assert meter.start("a", 0.0, 500.0, 0.01)
    assert meter.start("a", 300.0, 500.0, 0.01)
    assert meter.usd(400.0) == 4.0
