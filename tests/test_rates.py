"""Learning rates that are found or scaled: which range tests a plan needs, what they pick, and what the board says."""

from pathlib import Path

import pytest
from run_folders import board_of
from test_leaderboard import result
from test_plan import planned, trial_ids

from orchestrator.board.sentences import sentences
from orchestrator.board.table import build_history
from orchestrator.board.views import by_config, verdict
from orchestrator.display.page import gather
from orchestrator.errors import BadInput
from orchestrator.plans.describe import as_tree, describe
from orchestrator.plans.rates import pick_rate, rates_to_try, start_rate, tells
from orchestrator.runs.folder import BOARD, HISTORY, Run
from orchestrator.runs.rates import RateFound, keep_rate
from orchestrator.spec.axes import resolve
from orchestrator.spec.reading import load_spec
from orchestrator.spec.sections import Train
from orchestrator.store import open_store

SPEC = "{name: a, data: {uri: x}, grid: {batch_size: [8, 32, 128]}}"


@pytest.mark.parametrize(
    ("losses", "picked"),
    [
        ([0.7, 0.6, 0.4, 0.6, 0.7], 0.01),  # as good on both sides
        ([0.7, 0.6, 0.4, 0.5, 0.7], 0.012),  # a little better on the higher one
        ([0.7, 0.6, 0.4, 9.0, None], 0.0089),  # how bad no training at all is tells nothing
        ([0.4, 0.5, 0.6, 0.7, None], 0.001),  # nothing lower was tried
        ([0.7, 0.6, 0.5, 0.4, 0.3], 0.1),  # nothing higher was
        ([0.7, 0.7, 0.7, 0.7, 0.7], 0.001),
        ([None, None, None, None, None], 0.001),
    ],
)
def test_the_rate_with_the_lowest_loss_is_taken(losses: list[float | None], picked: float) -> None:
    """Between the rates that were tried, as a parabola has it; to two digits."""
    assert pick_rate((0.001, 0.0032, 0.01, 0.032, 0.1), losses) == picked


def test_a_range_test_ends_where_training_falls_apart() -> None:
    """Not before something was learned, and not while it still is."""
    ends = [[0.7, 0.5, 0.7], [0.7, 0.8, 0.5, 0.9], [0.7, 0.69, None], [None]]
    goes_on = [[0.7], [0.7, 0.7], [0.7, 0.8], [0.7, 0.5, 0.6]]
    assert [tells(losses) for losses in ends] == [True] * 4
    assert [tells(losses) for losses in goes_on] == [False] * 4


def test_sgd_is_tried_at_higher_rates() -> None:
    assert (rates_to_try(Train())[0], rates_to_try(Train())[-1]) == (1e-5, 0.1)
    assert rates_to_try(Train(optimizer="sgd"))[-1] == 10


def test_one_range_test_serves_all_that_it_does_not_depend_on() -> None:
    """Dropout, l2, seeds, folds, epochs, schedules; another batch size, optimizer or argument has one of its own."""
    apart = {"batch_size": [8, 32], "optimizer": ["adam", "sgd"], "units": [1, 2], "precision": ["float32"]}
    shared = {
        "dropout": [0.0, 0.5],
        "l2": [0.0, 0.1],
        "epochs": [1, 2],
        "schedule": ["constant", "step"],
        "ema": [0, 0.9],
    }
    folds = {"uri": "images", "folds": 2}
    plan = planned(grid={**apart, **shared}, train={"learning_rate": "auto"}, seeds=[0, 1], data=folds)
    assert len(plan.rate_tests) == 8
    assert {test.trials for test in plan.rate_tests} == {64}
    assert {
        (trial.values["batch_size"], trial.values["optimizer"], trial.values["units"]) for trial in plan.trials[:8]
    } == {
        (test.values["batch_size"], test.values["optimizer"], test.values["units"]) for test in plan.rate_tests
    }  # one of each starts first


def test_a_range_test_stays_what_it_was_as_the_grid_grows() -> None:
    """With other axes and values, and in another version: a rate that changed would change weights."""
    one = planned(grid={"batch_size": [8]}, train={"learning_rate": "auto"})
    more = planned(grid={"batch_size": [8, 16], "dropout": [0.0, 0.5], "learning_rate": ["auto", 0.001]})
    assert [test.id for test in one.rate_tests] == ["85288210d331"]
    assert one.rate_tests[0].id in {test.id for test in more.rate_tests}
    assert trial_ids(one) < trial_ids(more)
    assert {bool(trial.rate_test) for trial in more.trials if trial.values["learning_rate"] == 0.001} == {False}


def test_the_plan_names_the_range_tests_and_their_price() -> None:
    plan = planned(train={"learning_rate": "auto"}, seeds=[0, 1])
    spec = load_spec(SPEC, ["train.learning_rate=auto"])
    text = "\n".join(describe(plan, spec, [], "folder"))
    assert "  rates   2 range tests of up to 288 steps, for 4 trials: learning_rate auto\n" in text
    assert "for 2 trials: batch_size=5 optimizer=adam precision=float32\n" in text
    tests = as_tree(plan, {})["rate_tests"]
    assert [test["values"]["batch_size"] for test in tests] == [5, 10]
    assert 0 < tests[0]["forecast_s"] < tests[1]["forecast_s"]


def test_a_rate_that_is_found_is_not_scaled_too() -> None:
    """A point with both is refused in one line; excluded, the others stand."""
    both = {"batch_size": [8], "learning_rate": ["auto", 0.001], "lr_scale": ["none", "linear"]}
    with pytest.raises(BadInput, match=r"^lr_scale must be none where learning_rate is auto, .* got linear: "):
        planned(grid=both)
    assert len(planned(grid=both, exclude=[{"learning_rate": "auto", "lr_scale": "linear"}]).trials) == 3


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        ([], [0.001, 0.001, 0.001]),
        (["train.lr_scale=linear"], [0.00025, 0.001, 0.004]),
        (["train.lr_scale=sqrt"], [0.0005, 0.001, 0.002]),
        (["train.lr_scale=sqrt", "train.lr_base_batch=8"], [0.001, 0.002, 0.004]),
        (["train.lr_scale=linear", "backbone={name: b.keras, unfreeze: 1}"], [0.000025, 0.0001, 0.0004]),
        (
            ["train.lr_scale=linear", "backbone={name: b.keras, unfreeze: 1}", "train.fine_tune_learning_rate=0.01"],
            [0.0025, 0.01, 0.04],
        ),
    ],
)
def test_a_rate_may_grow_with_the_batch_size(overrides: list[str], rates: list[float]) -> None:
    """Against a base of 32 or another; that of layers that are unfrozen too."""
    spec = load_spec(SPEC, overrides)
    assert [start_rate(resolve(spec, {"batch_size": size})) for size in (8, 32, 128)] == pytest.approx(rates)


def test_the_board_has_the_rate_that_was_found() -> None:
    """A column, only where some point has one; in each view, and in the verdict. Numbers may stand beside auto."""
    plan = planned(grid={"batch_size": [8, 32], "learning_rate": ["auto", 0.001]}, train={"epochs": 1})
    found = {
        trial.id: result(trial.id, [0.9 if trial.rate_test else 0.8]).model_copy(
            update={"rate_used": 0.0021 if trial.rate_test else None}
        )
        for trial in plan.trials
    }
    board = board_of(plan, found)
    assert {(row["learning_rate"], row["rate_used"]) for row in board.to_pylist()} == {
        ("auto", 0.0021),
        ("0.001", None),
    }
    assert by_config(board)["rate_used"].to_pylist() == [0.0021, 0.0021, None, None]
    said = verdict(board, build_history(found))
    assert "the best was trained at a learning rate of 0.0021: a spec can name it as train.learning_rate" in sentences(
        said
    )
    assert said.tree()["rate_used"] == 0.0021
    assert "rate_used" not in board_of(planned(), {}).column_names


@pytest.mark.parametrize(("rate", "is_one"), [(None, True), (0.001, False)])
def test_the_verdict_says_where_batch_sizes_were_compared_at_one_rate(rate: float | None, is_one: bool) -> None:
    """And what to do; not where the rate was found, or scaled."""
    plan = planned(train={"epochs": 1})
    found = {t.id: result(t.id, [0.8]).model_copy(update={"rate_used": rate}) for t in plan.trials}
    said = verdict(board_of(plan, found), build_history(found))
    line = (
        "all batch sizes were trained with one learning_rate, which does not suit all of them: set it to auto, make it "
        "an axis too, or set lr_scale"
    )
    assert (line in sentences(said), said.tree()["one_rate_for_all_batch_sizes"]) == (is_one, is_one)


def test_the_page_has_the_curves_of_range_tests(tmp_path: Path) -> None:
    """Of those that can be read; a run without them has none."""
    run = Run(open_store(str(tmp_path / "cats"), create=True))
    plan = planned(train={"learning_rate": "auto", "epochs": 1})
    done = {t.id: result(t.id, [0.8]).model_copy(update={"rate_used": 0.01}) for t in plan.trials}
    run.write_tables({BOARD: board_of(plan, done), HISTORY: build_history(done)})
    keep_rate(
        run, RateFound(test_id="a", values={"batch_size": 5}, rate=0.01, rates=[0.01, 0.1], losses=[0.123456, None])
    )
    run.store.write("rates/b.json", b"{}")
    assert gather(run)["rates"] == [
        {"values": {"batch_size": 5}, "rate": 0.01, "rates": [0.01, 0.1], "losses": [0.1235, None]}
    ]
