"""checkpoint: what the file holds, and how it is written while training goes on. No TensorFlow, no trial."""

import io
import json
import threading

import numpy as np
import pytest

from orchestrator.runs.result import Epoch
from orchestrator.store import StoreError
from orchestrator.train.checkpoint import BestWeights, Checkpoint, CheckpointState, CheckpointWriter, read_arrays

EPOCH = Epoch(epoch=1, loss=0.7, accuracy=0.5, val_loss=0.6, val_accuracy=0.6, train_s=1.0, images_per_s=9.0)
STATE = CheckpointState(history=[EPOCH], digests={1: "d"}, step=3, spent_s=0.5, best_epoch=1)
BEST = BestWeights(1, [np.zeros((2, 3), np.float32)], np.full((4, 1), 0.25, np.float32))
WHOLE = Checkpoint(STATE, [np.ones((2, 3), np.float32), np.float64(7) * np.ones(3)], BEST, np.ones((2, 1), np.uint8))
# as this package has always written it
OLD_STATE = (
    '{"history":[{"epoch":1,"loss":0.7,"accuracy":0.5,"val_loss":0.6,"val_accuracy":0.6,"train_s":1.0,'
    '"images_per_s":9.0,"validate_s":0.0}],"digests":{"1":"d"},"step":3,"spent_s":0.5,"kept":1}'
)


def file_of(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_a_checkpoint_comes_back_as_it_was() -> None:
    """State, values and best weights, types and shapes included."""
    found = Checkpoint.from_bytes(WHOLE.to_bytes())
    assert found.state == STATE
    assert found.best.epoch == 1
    assert found.right.tolist() == [[1], [1]]
    pairs = [*zip(found.values, WHOLE.values, strict=True), *zip(found.best.weights, BEST.weights, strict=True)]
    for mine, expected in [*pairs, (found.best.outputs, BEST.outputs)]:
        assert (mine.dtype, mine.tolist()) == (expected.dtype, expected.tolist())


def test_the_names_in_the_file_never_change() -> None:
    """Or checkpoints of version 0.1.0 could not be read."""
    arrays = read_arrays(WHOLE.to_bytes())
    assert list(arrays) == ["far", "v0000", "v0001", "right", "k0000", "probabilities"]
    assert json.loads(arrays["far"].tobytes()).keys() == {*json.loads(OLD_STATE), "ranked", "right"}
    assert CheckpointState.model_validate_json(OLD_STATE) == STATE


def test_without_best_weights_there_are_none_in_the_file() -> None:
    """They are as large as the model, so they are written only where they count."""
    state = STATE.model_copy(update={"best_epoch": None})
    data = Checkpoint(state, WHOLE.values, None).to_bytes()
    assert list(read_arrays(data)) == ["far", "v0000", "v0001"]
    assert Checkpoint.from_bytes(data).best is None


@pytest.mark.parametrize("lost", ["far", "v0000", "probabilities"])
def test_a_file_that_lacks_a_part_is_no_checkpoint(lost: str) -> None:
    """One ValueError that names the part."""
    arrays = read_arrays(WHOLE.to_bytes())
    del arrays[lost]
    with pytest.raises(ValueError, match=f"it has no '{lost}'"):
        Checkpoint.from_bytes(file_of(**arrays))


def test_only_one_is_written_at_a_time_and_the_training_thread_does_not_wait() -> None:
    """While the store is slow, `write_if_due` does nothing; `write` waits its turn."""
    go, written = threading.Event(), []

    def write(data: bytes) -> None:
        assert go.wait(60)
        written.append(Checkpoint.from_bytes(data).state.step)

    steps = iter(range(3, 9))
    writer = CheckpointWriter(
        lambda: Checkpoint(STATE.model_copy(update={"step": next(steps)}), [], BEST), write, 0.0, pytest.fail
    )
    for _ in range(3):
        writer.write_if_due()
    go.set()
    writer.write()
    writer.wait()
    assert written == [3, 4]


def test_after_three_failures_in_a_row_training_ends() -> None:
    """Two are told and survived; one that succeeds between them begins the count anew. The end is none to fail at."""
    outcomes, said = iter("xx.xxxx"), []

    def write(data: bytes) -> None:
        if next(outcomes) == "x":
            raise StoreError("the bucket is full")

    writer = CheckpointWriter(lambda: WHOLE, write, 60.0, said.append)
    for _ in range(6):
        writer.write()
    with pytest.raises(StoreError, match="the bucket is full"):
        writer.write()
    writer.write_last()
    assert said == ["no checkpoint written: StoreError: the bucket is full"] * 6
