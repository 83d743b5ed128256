"""chance: what the verdict says where one answer for every image is as good, or the images are too few to tell."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from test_statistics import rows, trained

from orchestrator.board.chance import FEW, differing, has_learned, resolution, say_few
from orchestrator.board.comparison import compare
from orchestrator.board.estimates import Z, configurations, wilson
from orchestrator.board.sentences import sentences
from orchestrator.board.verdict import judge

EVEN, SKEWED = {"cat": 120, "dog": 120}, {"cat": 60, "dog": 4}
LEARNING = [0.7, 0.6, 0.5]  # val_loss, which goes on falling
FLAT = [0.5, 0.4, 0.41]


def says(
    accuracies: dict[int, list[float]],
    classes: dict[str, int] | None,
    training: float,
    val_loss: list[float],
    metric: str = "val_accuracy",
) -> list[str]:
    """The verdict on a board of batch sizes, whose epochs end with these figures."""
    board = rows({(size,): found for size, found in accuracies.items()}, ["batch_size"], learning_rate=0.1)
    ranked = configurations([{metric: row["val_accuracy"], **row} for row in board], ["batch_size"], metric)
    validation = max(score for found in accuracies.values() for score in found)
    curve = [
        {"epoch": i + 1, "loss": 1 / (i + 1), "accuracy": training, "val_loss": loss, "val_accuracy": validation}
        for i, loss in enumerate(val_loss)
    ]
    verdict = judge(ranked, metric, {trial: curve for each in ranked for trial in each.trial_ids}, classes=classes)
    return sentences(verdict)


NOTHING = "nothing here beats always answering cat, which is right in 93.8% of the 64 validation images: try metric="
HAPPY = ("no overfitting", "more epochs may help", "may be as good", "to be told apart")


@pytest.mark.parametrize(
    ("board", "told", "not_told"),
    [
        # every configuration answers "cat" to all images
        (({1: [0.9375] * 3, 2: [0.9375] * 3}, SKEWED, 0.9375, LEARNING), NOTHING, HAPPY),
        # one image better than that
        (({1: [61 / 64]}, SKEWED, 0.95, LEARNING), "shown to beat always answering cat", HAPPY),
        # so do these, and their losses wobble
        (({1: [0.9375]}, SKEWED, 0.9246, [0.3, 0.1, 0.2, 0.3]), NOTHING, (*HAPPY, "overfitting")),
        # as many of each, and it guesses; or it learns by heart
        (({1: [0.5]}, EVEN, 0.9, [0.6, 0.7, 0.8, 0.9]), "overfitting from epoch 2: ", HAPPY),
        (({1: [0.5], 2: [0.48]}, EVEN, 0.5, LEARNING), "beats always answering one class", HAPPY),
        # it looks better than guessing, on few images
        (({1: [0.6]}, {"cat": 10, "dog": 10}, 0.6, LEARNING), "as 60.0% of so many may be chance", HAPPY),
        # ranked by its loss, it answers "cat" all the same
        (({1: [0.9375]}, SKEWED, 0.9375, LEARNING, "val_loss"), "not shown to beat always answering cat; ", HAPPY),
        # ranked by the F1 of the larger class, which is what always answering it has
        (
            ({1: [2 * 190 / 390], 2: [0.87]}, {"coat": 10, "shirt": 190}, 0.95, LEARNING, "val_f1"),
            "nothing here beats always answering shirt, whose f1 is 0.9744: f1 is of shirt alone, the second class; to",
            HAPPY,
        ),
        (({1: [0.6]}, {"shirt": 190, "coat": 10}, 0.95, LEARNING, "val_f1"), "best: batch_size=1", ("nothing here",)),
        # it knows its training images
        (
            ({1: [0.6]}, {"cat": 600, "dog": 600}, 0.72, FLAT),
            "it knows the training images far better than others",
            HAPPY[:2],
        ),
        (({1: [0.64]}, EVEN, 0.82, LEARNING), "it knows the training images far better than others", HAPPY[:2]),
        # by so few images, that may be chance
        (({1: [0.8]}, {"cat": 10, "dog": 10}, 0.91, FLAT), "no overfitting seen in 3 epochs", ("it knows",)),
        # too few epochs to see it turn
        (({1: [0.8]}, EVEN, 0.82, [0.7]), "1 epoch cannot show overfitting; ", HAPPY),
        (({1: [0.8]}, EVEN, 0.82, [0.5, 0.6]), "2 epochs cannot show overfitting; ", HAPPY),
        # all score the same, or as good as the same
        (({1: [0.8], 2: [0.8], 3: [0.8]}, EVEN, 0.82, FLAT), "scores the same, and so do 2 in all", ("behind",)),
        (({1: [0.8, 0.7], 2: [0.7, 0.8]}, EVEN, 0.82, FLAT), "1 other (batch_size=2), of which 1 scores the same", ()),
        (({1: [0.8], 2: [0.7998]}, EVEN, 0.82, FLAT), "is less than 0.1 points behind", ("0.0 points behind",)),
        # it has learned, and is worth training on
        (({1: [0.8]}, EVEN, 0.82, LEARNING), "so more epochs may help", ("nothing", "shown")),
        # an older board does not say what its classes are
        (({1: [0.9375]}, None, 0.9375, LEARNING), "no overfitting", ("always answering", "validation images")),
    ],
)
def test_a_board_made_to_fool_the_verdict(board, told, not_told):
    """It says what must be said of such a board, and none of the lines that would mislead."""
    text = "\n".join(says(*board))
    assert told in text
    assert [each for each in not_told if each in text] == []


def test_a_model_that_finds_both_classes_has_learned():
    """Though "cat" for all would be right more often; a balanced accuracy of few images may be chance."""
    last = {"val_accuracy": 0.9, "val_balanced_accuracy": 0.85}
    assert has_learned(last, {"cat": 600, "dog": 40})
    assert not has_learned(last | {"val_balanced_accuracy": 0.5}, {"cat": 600, "dog": 40})
    assert not has_learned(last | {"val_balanced_accuracy": 0.7}, SKEWED)
    assert has_learned(last, {})


def test_what_so_many_images_can_tell_is_said_once():
    """Beside one seed; not where the bound on the cost of choosing says it, nor with nothing to compare."""
    one, several = trained({1: [0.9], 2: [0.88]}), trained({1: [0.9] * 3, 2: [0.88] * 3})
    classes = {"cat": 300, "dog": 100}
    lines = sentences(judge(one, "val_accuracy", {}, classes=classes))
    assert lines[1].startswith("400 validation images: always answering cat is right in 75.0%; two configurations must")
    assert "told apart" not in "\n".join(sentences(judge(several, "val_accuracy", {}, classes=classes)))
    assert "told apart" not in "\n".join(sentences(judge(one[:1], "val_accuracy", {}, classes=classes)))


@pytest.mark.parametrize(("images", "accuracy"), [(240, 0.9), (1000, 0.7)])
def test_that_difference_is_told_apart_and_less_is_not(images: int, accuracy: float):
    """Pairs that share half of their mistakes: the test finds that difference half the time, and 5% where none is."""
    random, least = np.random.default_rng(0), resolution(images, accuracy)
    either = accuracy * (1 - accuracy)  # how often just one of the two is right

    def told(difference: float) -> float:
        parts = [(either + difference) / 2, (either - difference) / 2, 1 - either]
        better, worse, _ = random.multinomial(images, parts, 4000).T
        return float((np.abs(better - worse) > Z * np.sqrt(better + worse)).mean())

    assert told(0.0) == pytest.approx(0.05, abs=0.015)
    assert told(least) == pytest.approx(0.5, abs=0.07)
    assert told(least / 3) < 0.2


def test_a_model_that_is_always_right_does_not_tell_everything():
    """Four images must speak for one of the two, however few are in doubt."""
    assert resolution(100, 1.0) == pytest.approx(0.038, abs=0.001)
    assert resolution(400, 0.8, differ=0.04) == pytest.approx(Z * math.sqrt(0.04 / 400))
    assert resolution(400, 0.8, 0.04, 8) == pytest.approx(norm.ppf(1 - 0.05 / 56) * math.sqrt(0.04 / 400))


def test_what_is_behind_by_less_than_that_may_be_as_good():
    """The two lines of a verdict agree, however many are compared."""
    for seed in range(10):
        board = trained({size: [0.8 - 0.02 * size] for size in range(8)}, seed=seed)
        least = resolution(400, board[0].score.mean, differing(board), len(board))
        for each in compare(board, "val_accuracy").each[1:]:
            assert each.may_be_best or each.behind_by > least / 2
            assert not each.may_be_best or each.behind_by < 2 * least


def test_small_classes_are_named_the_smallest_first():
    """With their counts and how well a recall can be known then; three at most."""
    classes = {"ant": FEW, "cat": 60, "dog": 4, "emu": 12, "fox": 0, "gnu": 29, "owl": 20}
    (line,) = say_few(classes)
    assert line == (
        "too few validation images to judge a class by: "
        "fox 0 (recall unknown), dog 4 (recall ± 35 points), emu 12 (recall ± 25 points), and 2 more"
    )
    assert say_few({"ant": FEW}) == []


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (3, 4), (90, 100), (500, 1000)])
def test_the_interval_of_a_share_is_wilsons(right: int, count: int):
    """As scipy has it."""
    found = binomtest(right, count).proportion_ci(0.95, "wilson")
    assert wilson(right, count) == pytest.approx((found.low, found.high), abs=1e-9)
    assert wilson(0, 0) == (0, 1)
