"""Sampling: points drawn from ranges, which stay as sample and grid grow; balanced order; suggestions."""

from collections import Counter
from itertools import islice
from math import log10
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import write_run
from scipy.stats import qmc
from test_plan import ids, planned

from orchestrator.board.views import effects
from orchestrator.display.figures import draw_heatmap
from orchestrator.display.opening import read_board, read_history
from orchestrator.display.page import gather
from orchestrator.errors import BadInput
from orchestrator.plans.points import Plan, remaining
from orchestrator.plans.sampling import DIMENSIONS, directions, draw
from orchestrator.spec.ranges import Range
from orchestrator.spec.reading import load_spec, to_yaml
from orchestrator.spec.sections import Sample
from orchestrator.suggest import Tried, suggestions

RATE = {"from": 1e-4, "to": 1e-2, "scale": "log"}
DROPOUT = {"from": 0, "to": 0.8}
GRID = {"learning_rate": RATE, "dropout": DROPOUT}


def drawn(count: int = 64, grid: dict[str, Any] | None = None, **spec: Any) -> Plan:
    method = {name: spec.pop(name) for name in ("method", "seed") if name in spec}
    return planned(grid=GRID if grid is None else grid, sample={"points": count, **method}, **spec)


def values(plan: Plan, axis: str) -> list[Any]:
    return [point.values[axis] for point in plan.points]


def test_the_sequence_is_sobols_as_it_is_published() -> None:
    """The first 1024 points of every dimension, as SciPy has them, which takes them in another order."""
    published = qmc.Sobol(DIMENSIONS, scramble=False, bits=32).random_base2(10)
    for dimension in range(DIMENSIONS):
        of = directions(dimension)
        for i in (*range(17), 500, 1023):
            bits = 0
            for number in range(10):
                bits ^= of[number] * ((i ^ i >> 1) >> number & 1)
            assert bits / 2**32 == published[i, dimension]


@pytest.mark.parametrize("seed", range(3))
def test_each_axis_is_filled_evenly(seed: int) -> None:
    """Of the first 2^m points each of 2^m equal parts holds one, on a known axis and on one of the model's own."""
    grid = {"hidden": Range(0, 63), "l2": Range(0.0, 64.0), "width": Range(1, 64)}
    found = list(islice(draw(grid, Sample(points=64, seed=seed)), 64))
    for axis, low in (("hidden", 0), ("l2", 0), ("width", 1)):
        for count in (2, 4, 8, 16, 32, 64):
            parts = Counter(int((each[axis] - low) * count / 64) for each in found[:count])
            assert set(parts.values()) == {1}, (axis, count)
    by_luck = list(islice(draw(grid, Sample(points=64, seed=seed, method="random")), 64))
    assert len({each["hidden"] for each in by_luck}) < 60


def test_pairs_of_axes_are_filled_evenly_too() -> None:
    """Of 64 points, 4 lie in each of 4 x 4 fields of rate and penalty: a grid that never repeats a value."""
    grid = {"learning_rate": Range(0.0, 4.0), "l2": Range(0.0, 4.0)}
    found = islice(draw(grid, Sample(points=64)), 64)
    assert Counter(Counter((int(p["learning_rate"]), int(p["l2"])) for p in found).values()) == {4: 16}


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_a_sample_grows_and_keeps_what_is_trained(method: str) -> None:
    """More points begin with the same ones; another seed draws others; a point that is named is none the less there."""
    before, after = drawn(64, method=method), drawn(128, method=method)
    assert ids(after)[:64] == ids(before)
    assert len(set(ids(after))) == 128
    assert not set(ids(before)) & set(ids(drawn(64, method=method, seed=1)))
    named = dict(before.points[5].values)
    assert set(ids(before)) < set(ids(drawn(64, method=method, points=[named])))


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_another_axis_and_another_order_move_no_value(method: str) -> None:
    """Also beside axes of the model's own, whose dimensions nobody has fixed."""
    before = drawn(method=method)
    other = drawn(grid={"width": {"from": 8, "to": 64}, "dropout": DROPOUT, "optimizer": ["adam", "sgd"], **GRID})
    backwards = drawn(grid=dict(reversed(GRID.items())), method=method)
    assert ids(before) == ids(backwards)
    if method == "sobol":
        for axis in GRID:
            assert values(other, axis) == values(before, axis)
        assert Counter(values(other, "optimizer")) == {"adam": 32, "sgd": 32}


def test_values_are_rounded_and_whole_where_the_field_is() -> None:
    plan = drawn(grid={**GRID, "batch_size": {"from": 8, "to": 128, "scale": "log"}, "width": {"from": 1, "to": 4}})
    assert all(float(f"{rate:.4g}") == rate for rate in values(plan, "learning_rate"))
    assert all(type(size) is int for size in values(plan, "batch_size"))
    assert Counter(size < 32 for size in values(plan, "batch_size")) == {True: 32, False: 32}
    assert Counter(values(plan, "width")) == dict.fromkeys((1, 2, 3, 4), 16)
    assert all(type(rate) is float for rate in values(plan, "dropout")), "also where the ends are written as whole"


@given(
    st.floats(1e-6, 1e3), st.floats(1.001, 1e6), st.sampled_from(["linear", "log"]), st.floats(0, 1, exclude_max=True)
)
def test_what_is_drawn_lies_in_the_range_and_is_drawn_as_it_is_rounded(low, factor, scale, place) -> None:
    found = Range(low, low * factor, scale)
    value = found.at(place)
    assert found.holds(value)
    assert found.rounded(value) == value
    assert found.part(value) in found.parts[1:-1]


def test_what_is_excluded_or_there_already_is_passed_over() -> None:
    """All that is left of a small grid is found, and each once."""
    grid = {"batch_size": {"from": 1, "to": 8}, "optimizer": ["adam", "sgd"]}
    rule = {"batch_size": 3, "optimizer": "sgd"}
    plan = drawn(14, grid, exclude=[rule], points=[{"batch_size": 4, "optimizer": "adam"}])
    assert len({(p.values["batch_size"], p.values["optimizer"]) for p in plan.points}) == 15
    assert not any(rule == dict(point.values) for point in plan.points)
    with pytest.raises(BadInput, match=r"^sample.points must be at most 14, as no more are found that are new"):
        drawn(15, grid, exclude=[rule], points=[{"batch_size": 4, "optimizer": "adam"}])


def test_a_list_of_epochs_is_not_drawn_from() -> None:
    """One trial serves them all; each drawn combination is there after each of them, for every seed."""
    plan = drawn(8, {**GRID, "epochs": [2, 4]}, seeds=[0, 1])
    assert (len(plan.points), len(plan.trials)) == (32, 16)
    assert {trial.milestones for trial in plan.trials} == {(2, 4)}
    assert len(set(values(drawn(8, {**GRID, "epochs": {"from": 2, "to": 30}}), "epochs"))) > 4


def test_a_spec_with_ranges_reads_back_as_itself() -> None:
    spec = load_spec("{name: a, data: {uri: x}, grid: {dropout: {from: 0, to: 1}, units: {from: 1, to: 9}}, "
                     "sample: {points: 9}}")  # fmt: skip
    assert load_spec(to_yaml(spec)) == spec
    assert spec.ranges == {"dropout": Range(0.0, 1.0), "units": Range(1, 9)}


def test_a_sample_over_lists_is_a_part_of_their_product() -> None:
    grid = {"batch_size": [4, 8, 16, 32], "dropout": [0, 0.2, 0.4, 0.6], "l2": [0, 0.1]}
    part = drawn(8, grid)
    assert set(ids(part)) < set(ids(planned(grid=grid)))
    assert Counter(values(part, "batch_size")) == dict.fromkeys((4, 8, 16, 32), 2)


CUBE = {"batch_size": [8, 16, 32, 64], "dropout": [0, 0.2, 0.4, 0.6], "l2": [0, 0.1, 0.2, 0.3]}


def started(plan: Plan, count: int) -> set[tuple[str, Any]]:
    return {value for trial in plan.trials[:count] for value in trial.values.items()}


def test_in_balanced_order_every_value_is_started_early() -> None:
    """After 8 of 64 trials all 12 values are; longest first takes 49 trials for that. The points are the same."""
    plan, longest = planned(grid=CUBE, order="balanced"), planned(grid=CUBE)
    assert len(started(plan, 8)) == 12
    assert len(started(longest, 48)) < 12
    assert sorted(plan.trials, key=lambda trial: trial.id) == sorted(longest.trials, key=lambda trial: trial.id)
    counts = Counter(value for trial in plan.trials[:32] for value in trial.values.items())
    assert set(counts.values()) <= {7, 8, 9}
    sizes = [trial.values["batch_size"] for trial in plan.trials[:1]]
    assert sizes == [8], "of equals, the longest first"


def test_a_resumed_run_keeps_the_balanced_order_and_finishes_a_seed_first() -> None:
    plan = planned(grid=CUBE, order="balanced", seeds=[3, 1])
    assert [trial.seed for trial in plan.trials] == [3] * 64 + [1] * 64
    done = {trial.id: trial.epochs for trial in plan.trials[:5]}
    assert [trial.id for trial in remaining(plan, done)] == [trial.id for trial in plan.trials[5:]]


def test_in_balanced_order_each_quarter_of_a_range_is_started_early() -> None:
    plan = drawn(64, {**GRID, "batch_size": [8, 16, 32, 64]}, order="balanced")
    rates = Range(1e-4, 1e-2, "log")
    first = plan.trials[:8]
    assert {trial.values["batch_size"] for trial in first} == {8, 16, 32, 64}
    assert len({rates.part(trial.values["learning_rate"]) for trial in first}) == 4


QUARTERS = ["0.0001 to 0.000316", "0.000316 to 0.001", "0.001 to 0.00316", "0.00316 to 0.01"]


def test_tables_and_figures_take_a_range_in_quarters(tmp_path: Path) -> None:
    """Where 64 values would be 64 means of one point each. Whole numbers too, and few of them one by one."""
    grid = {"learning_rate": RATE, "batch_size": {"from": 8, "to": 71}, "hidden": {"from": 0, "to": 3}}
    run = write_run(str(tmp_path / "cats"), grid, drawn=64)
    board, history = read_board(run.store.uri), read_history(run.store.uri)
    table, note = effects(board, history)
    found: dict[str, list[str]] = {}
    for row in table.to_pylist():
        found.setdefault(row["axis"], []).append(row["value"])
        assert row["configurations"] == 16
    assert found["learning_rate"] == QUARTERS
    assert found["batch_size"] == ["8 to 23", "24 to 39", "40 to 55", "56 to 71"]
    assert found["hidden"] == ["0", "1", "2", "3"]
    assert note.startswith("of batch_size, learning_rate, quarters of the range; shares are of the variance")
    (drawing,) = draw_heatmap(board, "learning_rate", "hidden").data
    assert list(drawing.x) == QUARTERS
    assert len(drawing.z) == len(drawing.z[0]) == 4
    assert None not in [cell for row in drawing.z for cell in row]
    assert gather(run)["ranges"]["learning_rate"]["parts"] == ["below 0.0001", *QUARTERS, "above 0.01"]


AXES: dict[str, list[Any] | Range] = {
    "learning_rate": Range(1e-4, 1e-2, "log"),
    "hidden": Range(1, 64),
    "optimizer": ["adam", "sgd"],
}


def far(point: dict[str, Any]) -> float:
    """How far from the best: rate 0.002, 20 units, adam."""
    rate, units = log10(point["learning_rate"] / 0.002), (point["hidden"] - 20) / 64
    return abs(rate) + abs(units) + (point["optimizer"] == "sgd")


def test_suggestions_lie_near_the_best_and_follow_from_the_results_alone() -> None:
    """Nearer than what the sample would draw next; failed and pending ones are told as such."""
    pytest.importorskip("optuna")
    found = list(islice(draw(AXES, Sample(points=80)), 80))
    tried = [Tried(point, "ok", 1 - far(point), 10) for point in found[:60]]
    tried += [Tried(point, status) for point, status in zip(found[60:62], ("failed", "pending"), strict=True)]
    tried += [Tried(found[62], "stopped", 0.1, 4), Tried({**found[63], "hidden": 999}, "ok", 9.0, 10)]
    first, again = (list(islice(suggestions(AXES, tried, True), 16)) for _ in range(2))
    assert first == again
    for point in first:
        assert AXES["learning_rate"].holds(point["learning_rate"])
        assert type(point["hidden"]) is int
        assert AXES["learning_rate"].rounded(point["learning_rate"]) == point["learning_rate"]
    assert sum(map(far, first)) < 0.7 * sum(map(far, found[64:80]))
