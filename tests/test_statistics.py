"""statistics: seeds folded, who is best and how sure that is, what each axis does, where overfitting begins."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.board.effects import main_effects
from orchestrator.board.estimates import Estimate, configurations, estimate, is_apart, lead, t_quantile
from orchestrator.board.verdict import judge, mean_curve, overfitting, sentences


def rows(scores: dict[tuple[object, ...], list[float | None]], axes: list[str], **more: object) -> list[dict]:
    """A board: values of the axes -> the metric of seeds 0, 1, 2 …; None failed. A point takes 10 s."""
    return [
        {
            **dict(zip(axes, values, strict=True)),
            "seed": seed,
            "trial_id": f"{values}{seed}",
            "status": "failed" if score is None else "ok",
            "val_accuracy": score,
            "val_loss": score,
            "train_s": 10.0,
            "epochs_trained": 3,
        }
        | more
        for values, found in scores.items()
        for seed, score in enumerate(found)
    ]


def ranked(scores: dict[int, list[float | None]], metric: str = "val_accuracy"):
    """Configurations of one axis, batch_size."""
    board = rows({(size,): found for size, found in scores.items()}, ["batch_size"])
    return configurations(board, ["batch_size"], metric)


def curve(val_loss: list[float], loss: list[float] | None = None) -> list[dict[str, float]]:
    """Epochs with these losses; the training loss falls unless it is given."""
    loss = loss or [1 / (i + 1) for i in range(len(val_loss))]
    return [
        {"epoch": i + 1, "loss": a, "accuracy": 0.9, "val_loss": b, "val_accuracy": 0.8}
        for i, (a, b) in enumerate(zip(loss, val_loss, strict=True))
    ]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 29, 30, 101, 1000])
def test_the_t_interval_is_exact(freedom: int):
    """As scipy has it, for few seeds and for many."""
    assert t_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-9)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9))
def test_mean_deviation_and_interval_are_the_textbooks(values: list[float]):
    """Whatever the values: numpy's mean and deviation, scipy's interval."""
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    expected = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    assert found.half_width == pytest.approx(expected, abs=1e-8)


def test_one_value_has_no_spread():
    """One seed says nothing of how far another would be off."""
    assert estimate([0.5]) == Estimate(0.5, None, None, 1)


def test_points_are_folded_over_their_seeds():
    """Best mean first; what failed in one seed stands after what is whole, however good its other seeds were."""
    found = ranked({5: [0.5, 0.7], 10: [0.8, 0.6], 20: [0.9, None], 30: [None, None]})
    assert [each.values["batch_size"] for each in found] == [10, 5, 20]
    assert [each.score.count for each in found] == [2, 2, 1]
    assert found[0].score.mean == pytest.approx(0.7)
    assert found[0].scores == {0: 0.8, 1: 0.6}
    assert found[0].train_s == 10.0


def test_a_loss_is_best_when_lowest():
    """The order and the sign of a lead follow the metric."""
    best, second = ranked({5: [0.5, 0.7], 10: [0.8, 0.9]}, "val_loss")
    assert best.values == {"batch_size": 5}
    assert lead(best, second, "val_loss").mean == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        ([0.90, 0.80, 0.70], [0.80, 0.71, 0.60], True),  # each seed moves both alike: pairs see what means do not
        ([0.90, 0.80, 0.70], [0.70, 0.79, 0.80], False),
        ([0.90, 0.80], [0.80, 0.71], True),  # two seeds, nearly the same lead
        ([0.90, 0.80], [0.80, 0.50], False),
        ([0.75, 0.50], [0.50, 0.25], False),  # exactly the same lead: two steps of one image could be chance
        ([0.75] * 5, [0.50] * 5, False),
        ([0.75] * 6, [0.50] * 6, True),  # six of six: the sign test
        ([0.75] * 6, [0.75] * 6, False),
        ([0.9], [0.1], False),
    ],
)
def test_two_configurations_are_compared_on_the_same_seeds(a: list[float], b: list[float], apart: bool):
    """Their difference seed by seed decides; never a single seed, nor few differences without spread."""
    first, second = ranked({1: a, 2: b})
    ahead = lead(first, second, "val_accuracy")
    assert (ahead is not None and is_apart(ahead)) is apart
    if ahead and ahead.std > 1e-6:
        interval = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
        assert bool(interval.low > 0) is apart
        assert ahead.mean - ahead.half_width == pytest.approx(interval.low)


def test_the_verdict_names_the_cheapest_that_ties():
    """Among those that cannot be told from the best; a cheaper one that is clearly worse is no tie."""
    board = rows({(1,): [0.90, 0.80, 0.85], (2,): [0.89, 0.81, 0.84], (3,): [0.20, 0.11, 0.15]}, ["batch_size"])
    for row in board:
        row["train_s"] = {1: 300.0, 2: 200.0, 3: 1.0}[row["batch_size"]]
    verdict = judge(configurations(board, ["batch_size"], "val_accuracy"), "val_accuracy", {})
    assert verdict.best.values == {"batch_size": 1}
    assert [each.values["batch_size"] for each in verdict.ties] == [2]
    assert verdict.cheapest.values == {"batch_size": 2}
    best, ties = sentences(verdict)
    assert best == (
        "best: batch_size=1, val_accuracy 0.8500 ± 0.1242 (95% interval, 3 seeds); "
        "the next, batch_size=2, is 0.0033 behind"
    )
    assert ties == (
        "tied with the best on these seeds: 1 configuration (batch_size=2); "
        "the cheapest of these: batch_size=2, 3 min 20 s of training instead of 5 min 00 s"
    )


def test_a_clear_lead_is_said_with_its_interval():
    """No tie is named then."""
    verdict = judge(ranked({1: [0.9, 0.8, 0.7], 2: [0.8, 0.71, 0.6]}), "val_accuracy", {})
    assert (verdict.ties, verdict.cheapest) == ((), None)
    (line,) = sentences(verdict)
    assert line.endswith("; ahead of the next, batch_size=2, by 0.0967 ± 0.0143 on the same seeds")


def test_one_seed_cannot_tell():
    """It says so, and which seeds to add; the seed that is trained stays in the list."""
    verdict = judge(ranked({5: [0.5], 10: [0.75]}), "val_accuracy", {})
    assert (verdict.lead, verdict.ties, verdict.cheapest) == (None, (), None)
    assert sentences(verdict) == [
        "best: batch_size=10, val_accuracy 0.7500; the next, batch_size=5, is 0.2500 behind",
        'one seed cannot tell whether that is more than chance: train others with --set "seeds=[0, 1, 2]"',
    ]
    board = [row | {"seed": 7} for row in rows({(5,): [0.5], (10,): [0.75]}, ["batch_size"])]
    verdict = judge(configurations(board, ["batch_size"], "val_accuracy"), "val_accuracy", {})
    assert sentences(verdict)[1].endswith('"seeds=[7, 8, 9]"')


def test_what_has_fewer_seeds_is_left_out_of_the_verdict():
    """A lucky single seed neither wins nor is compared; the verdict says how many were left out."""
    verdict = judge(ranked({5: [0.5, 0.6], 10: [0.99, None]}), "val_accuracy", {})
    assert (verdict.best.values, verdict.runner_up) == ({"batch_size": 5}, None)
    assert sentences(verdict)[-1] == "1 configuration left out, with fewer seeds that are ok than the best"


def test_no_point_that_is_ok_is_no_verdict():
    """Nothing is trained yet, or all failed."""
    assert judge(ranked({5: [None]}), "val_accuracy", {}) is None
    assert main_effects(ranked({5: [None]}), ["batch_size"]) is None


@pytest.mark.parametrize(
    ("val_loss", "epoch"),
    [
        ([0.9, 0.5, 0.4, 0.5, 0.6, 0.7, 0.8], 4),
        ([0.50, 0.40, 0.35, 0.33, 0.34, 0.36, 0.38, 0.41], 5),
        ([0.9, 0.8, 0.7, 0.6], None),  # still falling
        ([0.9, 0.5, 0.4, 0.6], None),  # a single epoch may be a slip
        ([0.50, 0.45, 0.47, 0.42, 0.46, 0.43], None),  # it wobbles as it always did
        ([0.5, 0.5, 0.5, 0.5], None),
        ([0.3, 0.4, 0.5, 0.6], 2),
        ([0.3, 0.4], None),
        ([0.3], None),
        ([], None),
    ],
)
def test_overfitting_begins_where_val_loss_turns_for_good(val_loss: list[float], epoch: int | None):
    """The first epoch after the lowest val_loss, if what follows lies above it by more than a usual step."""
    found = overfitting(curve(val_loss))
    assert (found and found.epoch) == epoch
    if found:
        assert (found.lowest, found.last) == (min(val_loss), val_loss[-1])


def test_a_training_that_falls_apart_is_no_overfitting():
    """Both losses rise: the learning rate is too high, say."""
    assert overfitting(curve([0.5, 0.4, 0.6, 0.8, 1.0], [0.5, 0.4, 0.6, 0.8, 1.0])) is None


def test_the_verdict_tells_where_its_winner_overfits():
    """Over the mean of its seeds, and no further than the epochs of its points: a shared trial goes on."""
    history = {"(1,)0": curve([0.5, 0.3, 0.4, 0.1]), "(1,)1": curve([0.5, 0.3, 0.6, 0.1])}
    verdict = judge(ranked({1: [0.8, 0.8]}), "val_accuracy", history)
    assert [epoch["val_loss"] for epoch in verdict.curve] == pytest.approx([0.5, 0.3, 0.5])
    assert sentences(verdict)[-1].startswith("no overfitting seen in 3 epochs; accuracy 0.9000 in training, 0.8000")
    board = rows({(1,): [0.8]}, ["batch_size"], epochs_trained=5)
    history = {"(1,)0": curve([0.9, 0.5, 0.6, 0.8, 0.95, 0.1])}
    verdict = judge(configurations(board, ["batch_size"], "val_accuracy"), "val_accuracy", history)
    assert sentences(verdict)[-1].startswith(
        "overfitting from epoch 3: val_loss rose from 0.5000 to 0.9500 while loss fell"
    )
    history = {"(1,)0": curve([0.9, 0.5, 0.4, 0.3, 0.2])}
    verdict = judge(configurations(board, ["batch_size"], "val_accuracy"), "val_accuracy", history)
    assert "val_loss was lowest in the last epoch, 5, so more epochs may help" in sentences(verdict)[-1]


def test_curves_of_unequal_length_are_averaged_where_all_have_an_epoch():
    """Early stopping ends seeds at different epochs; a trial without a history is not counted."""
    assert [epoch["val_loss"] for epoch in mean_curve([curve([0.2, 0.4]), curve([0.4]), []])] == pytest.approx([0.3])
    assert mean_curve([[], []]) == []


def grid_of(score, axes: dict[str, list]):
    """Configurations of a full grid whose metric is a function of its values."""
    board = rows({values: [score(*values)] for values in itertools.product(*axes.values())}, list(axes))
    return configurations(board, list(axes), "val_accuracy")


def test_the_variance_of_a_full_grid_is_shared_out_exactly():
    """By hand: y = a + 2b + ab over a, b in -1, 1 has variance 1 + 4 + 1."""
    found = main_effects(grid_of(lambda a, b: a + 2 * b + a * b, {"a": [-1, 1], "b": [1, -1]}), ["a", "b"])
    assert found.exact
    assert [(each.axis, each.share) for each in found.axes] == [
        ("b", pytest.approx(4 / 6)),
        ("a", pytest.approx(1 / 6)),
    ]
    assert found.pairs == {("a", "b"): pytest.approx(1 / 6)}
    assert found.rest == pytest.approx(1 / 6)
    levels = found.axes[0].levels
    assert [(each.value, each.mean, each.count) for each in levels] == [
        (-1, pytest.approx(-2), 2),
        (1, pytest.approx(2), 2),
    ]
    assert [each.std for each in levels] == pytest.approx([0, 2 * math.sqrt(2)])  # a + ab: 0 at b = -1, +-2 at b = 1


def test_shares_of_a_larger_grid_match_the_sums_of_squares():
    """Three axes, random scores: each share is that of the marginal means, as the analysis of variance defines it."""
    random = np.random.default_rng(0)
    axes = {"a": ["x", "y"], "b": [1, 2, 3], "c": [0.1, 0.2, 0.3, 0.4]}
    scores = {values: random.normal() for values in itertools.product(*axes.values())}
    found = main_effects(grid_of(lambda *values: scores[values], axes), list(axes))
    y = np.array(list(scores.values())).reshape(2, 3, 4)
    y = y - y.mean()
    share = {each.axis: each.share for each in found.axes}
    for axis, others in (("a", (1, 2)), ("b", (0, 2)), ("c", (0, 1))):
        assert share[axis] == pytest.approx((y.mean(others) ** 2).mean() / (y**2).mean())
    for pair, other in ((("a", "b"), 2), (("a", "c"), 1), (("b", "c"), 0)):
        joint = (y.mean(other) ** 2).mean() / (y**2).mean()
        assert found.pairs[pair] == pytest.approx(joint - share[pair[0]] - share[pair[1]])
    assert sum(share.values()) + found.rest == pytest.approx(1)


def test_a_grid_with_holes_is_approximate_and_says_so():
    """What is additive is still found exactly: the hole does not tilt the means of the other axis."""
    whole = grid_of(lambda a, b: a + 10 * b, {"a": [0, 1, 2], "b": [0, 1]})
    holed = [each for each in whole if tuple(each.values.values()) not in ((2, 0), (1, 1))]
    found = main_effects(holed, ["a", "b"])
    assert not found.exact
    assert found.pairs == {}
    means = {each.axis: [level.mean for level in each.levels] for each in found.axes}
    assert np.diff(means["a"]) == pytest.approx([1, 1])
    assert np.diff(means["b"]) == pytest.approx([10])
    assert found.rest == pytest.approx(0, abs=1e-9)


def test_an_axis_with_one_value_has_no_effect():
    """It is left out; a grid where nothing varies has none at all, and one where all are equal shares out nothing."""
    found = main_effects(grid_of(lambda a, b: 0.5, {"a": [1], "b": [1, 2]}), ["a", "b"])
    assert [(each.axis, each.share) for each in found.axes] == [("b", 0.0)]
    assert found.rest == 0
    assert main_effects(grid_of(lambda a: 0.5, {"a": [1]}), ["a"]) is None


def test_values_stand_in_their_order():
    """Numbers ascend; texts and truth values stay as the board has them."""
    found = main_effects(grid_of(lambda a, b: a, {"a": [10, 5, 20], "b": ["sgd", "adam"]}), ["a", "b"])
    values = {each.axis: [level.value for level in each.levels] for each in found.axes}
    assert values["a"] == [5, 10, 20]
    assert set(values["b"]) == {"sgd", "adam"}


def test_an_axis_of_thousands_of_values_takes_no_matrix_of_them():
    """A random search over one axis: shares of a full grid; with holes it is left out, and the others are not."""
    full = grid_of(lambda rate, size: rate + size, {"rate": [i / 3000 for i in range(3000)], "size": [0, 1]})
    tracemalloc.start()
    found = main_effects(full, ["rate", "size"])
    holed = main_effects(full[1:], ["rate", "size"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    assert [(each.axis, len(each.levels)) for each in found.axes] == [("size", 2), ("rate", 3000)]
    assert found.rest == pytest.approx(0, abs=1e-9)
    assert [each.axis for each in holed.axes] == ["size"]
