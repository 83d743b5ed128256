"""Checkpoint: all that decides how a trial goes on, as bytes and back, and writing it while training goes on.

The file is NumPy's .npz, uncompressed:
    far            how far the trial is: CheckpointState as JSON, in bytes
    v0000, v0001…  values of the variables: the model's, the optimizer's, and the sums over the epoch so far
    right          Tally.recent
    k0000, k0001…  the model's weights after its best epoch, where these count
    probabilities  what the model said of the validation images after that epoch
"""

import io
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.runs.result import Epoch, Right
from orchestrator.store import StoreError
from orchestrator.words import last_line

_MOST_FAILURES = 3  # checkpoints in a row that could not be written: to train on would be for nothing


class CheckpointState(BaseModel):
    """How far a trial is.

    Attributes:
        history: The epochs that are over.
        digests: Epoch -> SHA-256 of the weights after it, for each milestone so far.
        step: Steps taken of the epoch after the history; all of them where it was stopped before it was validated.
        spent_s: Seconds that these steps took.
        best_epoch: The epoch of Checkpoint.best; None where there is none. Called `kept` in the file.
        ranked, right: Tally.ranked and Tally.kept.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    history: list[Epoch]
    digests: dict[int, str]
    step: int = Field(ge=0)
    spent_s: float = Field(ge=0)
    best_epoch: int | None = Field(None, validation_alias="kept", serialization_alias="kept")
    ranked: Right | None = None
    right: dict[int, Right] = {}


@dataclass(frozen=True, slots=True)
class BestWeights:
    """The best epoch so far, where the weights that count are that epoch's and not the last one's.

    Attributes:
        weights: The model's variables after it, in their order.
        outputs: (validation images, model outputs) float32: what the model said of the validation images then.
    """

    epoch: int
    weights: list[np.ndarray]
    outputs: np.ndarray


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that decides how a trial goes on.

    Attributes:
        values: Of the trial's variables, in their order.
        right: Tally.recent; None in checkpoints of versions that did not write it.
    """

    state: CheckpointState
    values: list[np.ndarray]
    best: BestWeights | None
    right: np.ndarray | None = None

    def to_bytes(self) -> bytes:
        """The checkpoint as a file."""
        state = self.state.model_dump_json(by_alias=True).encode()
        arrays: dict[str, Any] = {"far": np.frombuffer(state, np.uint8), **_numbered("v", self.values)}
        if self.right is not None:
            arrays["right"] = self.right
        if self.best:
            arrays |= {**_numbered("k", self.best.weights), "probabilities": self.best.outputs}
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Checkpoint":
        """What `to_bytes` gave. Raises ValueError where it is damaged or no checkpoint."""
        arrays = read_arrays(data)
        try:
            state = CheckpointState.model_validate_json(arrays["far"].tobytes())
            values, best = _in_order("v", arrays), None
            if state.best_epoch is not None:
                best = BestWeights(state.best_epoch, _in_order("k", arrays), arrays["probabilities"])
        except KeyError as error:
            raise ValueError(f"it has no {error}") from None
        return cls(state, values, best, arrays.get("right"))


def _numbered(letter: str, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{letter}{i:04d}": array for i, array in enumerate(arrays)}


def _in_order(letter: str, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Raises KeyError where a number is missing."""
    return [arrays[f"{letter}{i:04d}"] for i in range(sum(name.startswith(letter) for name in arrays))]


def read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Name -> array of an uncompressed .npz file. Nothing in it is run. Raises ValueError where it is damaged."""
    file = io.BytesIO(data)
    try:
        with zipfile.ZipFile(file) as parts:
            if any(part.compress_type for part in parts.infolist()):
                raise ValueError("it is compressed, which ours are not")
            if sum(part.file_size for part in parts.infolist()) > len(data):
                raise ValueError("its parts overlap")
        with np.load(file, allow_pickle=False) as saved:
            return dict(saved)
    except Exception as error:  # zipfile and NumPy have a dozen kinds, down to Python's tokenizer's
        raise ValueError(f"it is damaged: {last_line(error)}") from None


class CheckpointWriter:
    """Writes checkpoints off the training thread, one at a time, each replacing the last one whole."""

    def __init__(
        self,
        snapshot: Callable[[], Checkpoint],
        write: Callable[[bytes], Any],
        every_s: float,
        complain: Callable[[str], None],
    ) -> None:
        """snapshot: gives the state as it is now, copied. write: puts a file where checkpoints are read from.

        every_s: seconds between the starts of two that `write_if_due` writes. complain: called, from any thread, with
        why one could not be written.
        """
        self._snapshot, self._write, self._every_s, self._complain = snapshot, write, every_s, complain
        self._thread: threading.Thread | None = None
        self._last = time.monotonic()
        self._failures: list[Exception] = []  # in a row, up to now

    def write_if_due(self) -> None:
        """Begin to write one where the last is old enough and no longer being written. Raises as `write` does."""
        if time.monotonic() - self._last >= self._every_s and not (self._thread and self._thread.is_alive()):
            self.write()

    def write(self) -> None:
        """Wait for the one being written, then begin to write the state as it is now.

        Raises the last failure where three in a row could not be written.
        """
        self.wait()
        if len(self._failures) >= _MOST_FAILURES:
            raise self._failures[-1]
        self._begin()

    def write_last(self) -> None:
        """Write the state as it is now, and return when that is done, or has failed: what is trained is trained.

        A grid that grows in epochs goes on from there.
        """
        self.wait()
        self._begin()
        self.wait()

    def _begin(self) -> None:
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._write_one, args=(self._snapshot(),))
        self._thread.start()

    def wait(self) -> None:
        """Return when the last one is written, or has failed."""
        if self._thread:
            self._thread.join()

    def _write_one(self, checkpoint: Checkpoint) -> None:
        try:
            self._write(checkpoint.to_bytes())
            self._failures.clear()
        except (StoreError, OSError, MemoryError) as error:  # training goes on: the next one may succeed
            self._failures.append(error)
            self._complain(f"no checkpoint written: {last_line(error)}")
