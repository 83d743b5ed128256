"""statistics: seeds folded, who is best and how sure that is, what each axis does, where overfitting begins."""

import itertools
import math
import re
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.board.comparison import compare
from orchestrator.board.effects import describe_effects, main_effects
from orchestrator.board.estimates import Estimate, configurations, estimate, t_quantile
from orchestrator.board.sentences import sentences
from orchestrator.board.verdict import judge, mean_curve, overfitting


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
    assert found[0].scores == {(0, 0): 0.8, (1, 0): 0.6}
    assert found[0].train_s == 10.0


def test_a_loss_is_best_when_lowest():
    """The order and the sign of a lead follow the metric."""
    best, second = ranked({5: [0.5, 0.7], 10: [0.8, 0.9]}, "val_loss")
    assert best.values == {"batch_size": 5}
    assert compare((best, second), "val_loss").each[1].behind_by == pytest.approx(0.25)


def trained(accuracies: dict[int, list[float]], images: int = 400, flips: float = 0.02, seed: int = 0):
    """Configurations of batch_size whose images are known: each seed's images are right at random, but for a core."""
    random = np.random.default_rng(seed)
    hard = random.random(images)  # the same images are hard for all
    board, right = rows({(size,): list(found) for size, found in accuracies.items()}, ["batch_size"]), {}
    for row in board:
        row["point_id"] = row["trial_id"]
        wrong = hard + random.normal(0, flips, images) > row["val_accuracy"]
        right[row["point_id"]] = 1 - wrong.astype(np.float32)
        row["val_accuracy"] = float(right[row["point_id"]].mean())
    return configurations(board, ["batch_size"], "val_accuracy", right)


def test_the_error_of_a_lead_is_made_of_images_and_seeds():
    """By hand, from the formula at the head of comparison.py."""
    ranked_ones = trained({1: [0.9, 0.8, 0.85], 2: [0.85, 0.8, 0.8], 3: [0.8, 0.7, 0.75]})
    found = compare(ranked_ones, "val_accuracy")
    x = np.array([[each.right[seed, 0] for seed in range(3)] for each in ranked_ones])
    scores = x.mean(2)
    rest = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
    seed = 2 * (rest**2).sum() / 4
    within = np.mean([(x[0] - x[c]).var(0, ddof=1).mean() / 400 for c in (1, 2)])
    quantile = scipy.stats.t.ppf(1 - 0.05 / 6, 4)
    for c in (1, 2):
        difference = (x[0] - x[c]).mean(0)
        error = math.sqrt(max(difference.var(ddof=1) / 400 + max(0, seed - within) / 3, seed / 3))
        assert found.each[c].behind_by == pytest.approx(difference.mean(), rel=1e-5)
        assert found.each[c].error == pytest.approx(error, rel=1e-5)
    assert found.costs == pytest.approx(max(0, *(quantile * e.error - e.behind_by for e in found.each[1:])))
    assert found.costs_here == pytest.approx(
        max(0, *(quantile * math.sqrt(seed / 3) - e.behind_by for e in found.each[1:]))
    )


def test_the_verdict_has_one_order_without_contradictions():
    """Whoever is behind, so is everybody below with as many seeds, whatever their spread."""
    random = np.random.default_rng(1)
    for _ in range(50):
        means = random.uniform(0.6, 0.9, 8)
        scores = {size: list(random.normal(mean, 0.005, 3)) for size, mean in enumerate(means)}
        found = trained(scores, 400, random.uniform(0.01, 0.3), int(random.integers(1000)))
        may = [each.may_be_best for each in compare(found, "val_accuracy").each]
        assert may == sorted(may, reverse=True)


@pytest.mark.parametrize(("seeds", "equals"), [(2, 4), (3, 3), (3, 8), (5, 4)])
def test_equals_are_seldom_called_behind(seeds: int, equals: int):
    """Seeds of one configuration, dealt out as several: some are called behind in at most one board of twenty."""
    random = np.random.default_rng(seeds * equals)
    ahead, boards = 0, 400
    for number in range(boards):
        scores = {size: list(np.clip(random.normal(0.8, 0.015, seeds), 0, 1)) for size in range(equals)}
        each = compare(trained(scores, 300, 0.1, number), "val_accuracy").each
        ahead += not all(one.may_be_best for one in each)
    assert ahead <= boards / 20


def test_one_common_seed_of_several_says_nothing():
    """Nothing is known of how seeds differ, where the best alone has several."""
    each = compare(ranked({5: [0.9, 0.9], 10: [0.1, None]}), "val_accuracy")
    assert each.each[1].may_be_best
    assert (each.costs, each.costs_here) == (None, None)


def test_what_is_clearly_worse_is_called_behind():
    """With three seeds, and with six points between them on 1,600 images."""
    found = compare(trained({1: [0.90, 0.91, 0.90], 2: [0.84, 0.84, 0.83]}, 1600), "val_accuracy")
    assert not found.each[1].may_be_best
    assert found.costs == 0


def test_the_verdict_names_who_may_be_as_good_and_what_the_choice_can_cost():
    """And one that is nearly as good and cheaper, but none that is merely not behind."""
    verdict = judge(trained({1: [0.92, 0.80, 0.87], 2: [0.86, 0.85, 0.83], 3: [0.20, 0.11, 0.15]}), "val_accuracy", {})
    assert [each.values["batch_size"] for each in verdict.rivals] == [2]
    best, rivals, calibration, rates = sentences(verdict)
    assert calibration.startswith("calibration: ")
    assert re.fullmatch(
        r"best: batch_size=1, val_accuracy 0\.\d{4} ± 0\.\d{4} \(95% interval of 3 seeds; 0\.\d{4} on seeds that did "
        r"not choose it\)", best
    )  # fmt: skip
    assert re.fullmatch(
        r"may be as good: 1 of 2 others \(batch_size=2\); choosing the best costs at most \d+\.\d points on these "
        r"images and on others like them \(95%\)", rivals
    )  # fmt: skip
    assert rates.startswith("all batch sizes were trained with one learning_rate")


def test_a_winner_is_judged_on_seeds_that_did_not_choose_it():
    """Each seed is left out once, and the others choose."""
    verdict = judge(ranked({1: [0.9, 0.5, 0.8], 2: [0.71] * 3}), "val_accuracy", {})
    assert verdict.unchosen == pytest.approx((0.71 + 0.5 + 0.71) / 3)


def test_one_seed_cannot_tell():
    """It says so, and which seeds to add; the seed that is trained stays in the list."""
    verdict = judge(ranked({5: [0.5], 10: [0.75]}), "val_accuracy", {})
    assert verdict.cheapest is None
    assert sentences(verdict)[:2] == [
        "best: batch_size=10, val_accuracy 0.7500",
        (
            "the next, batch_size=5, is 25.0 points behind; one seed cannot tell whether another would order them "
            'alike: train others with --set "seeds=[0, 1, 2]"'
        ),
    ]
    (line,) = (line for line in sentences(judge(trained({5: [0.5], 10: [0.75]}), "val_accuracy", {})) if "seed" in line)
    assert "by these images alone 0 of 1 other may be as good" in line
    board = [row | {"seed": 7} for row in rows({(5,): [0.5], (10,): [0.75]}, ["batch_size"])]
    verdict = judge(configurations(board, ["batch_size"], "val_accuracy"), "val_accuracy", {})
    assert sentences(verdict)[1].endswith('"seeds=[7, 8, 9]"')


def test_what_has_fewer_seeds_does_not_win_by_luck():
    """A lucky single seed stands below, and is compared on the seed that both have."""
    verdict = judge(ranked({5: [0.5, 0.6], 10: [0.99, None], 20: [0.4, 0.5]}), "val_accuracy", {})
    assert verdict.best.values == {"batch_size": 5}
    assert [each.behind_by for each in verdict.comparison.each] == pytest.approx([0, 0.1, -0.49])
    assert [each.may_be_best for each in verdict.comparison.each] == [True, True, True]


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
    """Both losses rise: the learning rate is too high, say. It is not praised either."""
    history = {"(1,)0": curve([0.5, 0.4, 0.6, 0.8, 1.0], [0.5, 0.4, 0.6, 0.8, 1.0])}
    assert overfitting(history["(1,)0"]) is None
    board = configurations(rows({(1,): [0.8]}, ["batch_size"], epochs_trained=5), ["batch_size"], "val_accuracy")
    assert sentences(judge(board, "val_accuracy", history))[-1].startswith(
        "training fell apart: loss and val_loss rose after epoch 2, to 1.0000 and 1.0000; try a smaller learning_rate"
    )


def test_more_epochs_are_not_advised_where_they_were_tried():
    """And did not score better; the loss is that of the last epoch, and the model that of another."""
    board = rows({(10,): [0.81], (20,): [0.80]}, ["epochs"]) + rows({(30,): [None]}, ["epochs"])
    for row in board:
        row["epochs_trained"] = row["epochs"]
    history = {row["trial_id"]: curve(list(np.linspace(0.9, 0.4, 20))) for row in board}
    verdict = judge(configurations(board, ["epochs"], "val_accuracy"), "val_accuracy", history)
    assert sentences(verdict)[-1] == (
        "no overfitting: val_loss was lowest in the last epoch, 10, but 20 epochs did not score better; "
        "accuracy 0.9000 in training, 0.8000 in validation after epoch 10"
    )


def test_cheaper_is_what_takes_a_tenth_less():
    """Not what rounds to the same time."""
    board = rows({(1,): [0.80, 0.81, 0.79], (2,): [0.80, 0.813, 0.79]}, ["batch_size"])
    for seconds, told in ((9.99, None), (8.0, 1)):
        board[0] |= {"train_s": seconds}
        for row in board[1:3]:
            row["train_s"] = seconds
        verdict = judge(configurations(board, ["batch_size"], "val_accuracy"), "val_accuracy", {})
        assert (verdict.cheapest and verdict.cheapest.values["batch_size"]) == told


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


def test_where_all_score_the_same_no_axis_explains_anything():
    """Sums of the same figures differ in their last digit; a single axis explains all, whatever it does."""
    random, axes = np.random.default_rng(0), {"a": [*range(8)], "b": [0, 1]}
    found = main_effects(grid_of(lambda a, b: 0.8 + 2e-16 * random.integers(9), axes), list(axes))
    assert [each.share for each in found.axes] == [0, 0]
    assert [round(each.by_chance, 3) for each in found.axes] == [0.467, 0.067]
    assert describe_effects(found) == "all configurations score the same: no axis explains anything"
    (only,) = main_effects(grid_of(lambda a: random.normal(), {"a": [1, 2, 3]}), ["a"]).axes
    assert (only.share, only.by_chance) == (pytest.approx(1), 1)


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
