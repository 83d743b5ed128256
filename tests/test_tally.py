"""tally: in how many of the last epochs each validation image was right, across legs too."""

import numpy as np
import pytest

from orchestrator.runs.result import Epoch, Right, score, window_of
from orchestrator.train.tally import Tally


@pytest.mark.parametrize("legs", [(40,), (4, 8, 16, 40), (13, 14, 15, 40)])
def test_what_is_counted_is_the_window_of_the_score(legs: tuple[int, ...]) -> None:
    """However the epochs were cut into legs, each of which goes on from what the one before has saved."""
    right = np.random.default_rng(0).random((40, 203)) < 0.7
    tally, done = Tally(203, "val_accuracy"), 0
    for end in legs:
        saved = tally.recent, tally.ranked, tally.kept
        tally = Tally(203, "val_accuracy")
        tally.resume(*saved)
        for epoch in range(done + 1, end + 1):
            tally.add(epoch, right[epoch - 1], ranks=True)
        tally.keep(end)
        done = end
    assert len(tally.recent) <= 8
    for end in legs:
        window = window_of(end, "val_accuracy")
        found = tally.kept[end]
        assert (found.epoch, found.window) == (end, window)
        counts = np.frombuffer(found.unpacked(), np.uint8)
        assert counts.tolist() == right[end - window : end].sum(0).tolist()
        history = [
            Epoch(epoch=i + 1, metrics={"val_accuracy": float(each.mean())}, train_s=1.0, images_per_s=1.0)
            for i, each in enumerate(right[:end])
        ]
        assert counts.mean() / window == pytest.approx(score(history, False, "val_accuracy"))


def test_without_the_first_epochs_of_a_window_nothing_is_said() -> None:
    """A checkpoint of an older version has none of them."""
    tally = Tally(10, "val_accuracy")
    tally.add(20, np.ones(10, bool), ranks=True)
    tally.keep(20)
    assert tally.kept == {}


def test_bits_of_other_images_are_refused() -> None:
    """As many more or fewer make another number of bytes."""
    with pytest.raises(ValueError, match="other images"):
        Tally(20, "val_accuracy").resume(np.zeros((2, 4), np.uint8), None, {})


def test_damaged_counts_are_a_value_error() -> None:
    """Not an error of zlib's."""
    with pytest.raises(ValueError, match="damaged"):
        Right(epoch=1, window=1, counts="AAAA").unpacked()
