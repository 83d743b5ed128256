"""Result: what one trial gives back. Pure."""

import hashlib
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Epoch(_Record):
    """One epoch of one trial. Losses include the regularisation, as in Keras; train_s leaves validation out."""

    epoch: int = Field(ge=1)
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    train_s: float = Field(ge=0)
    images_per_s: float = Field(ge=0)


class Result(_Record):
    """What a trial gives back: its history, or the error that ended it.

    Attributes:
        epochs: How many epochs were asked for; the history is shorter only where early stopping ended it.
        digests: Epoch -> SHA-256 of the weights after it, for each milestone.
        peak_memory_mb: Most memory that the worker process held during the trial.
        started_at, finished_at: UTC, ISO 8601.
        checksum: Of all the rest, in a file alone: see `sealed`.
    """

    version: Literal[1] = 1
    trial_id: str
    status: Literal["ok", "failed"]
    epochs: int = Field(ge=1)
    history: list[Epoch] = []
    digests: dict[int, str] = {}
    steps_per_epoch: int | None = None
    peak_memory_mb: float | None = None
    device: str | None = None
    node: str | None = None
    error: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    checksum: str | None = None

    def sealed(self) -> str:
        """As JSON with its checksum, so that a file of which one bit was turned over is known from what was written."""
        return self.model_copy(update={"checksum": self._sum()}).model_dump_json()

    @classmethod
    def unsealed(cls, data: bytes) -> "Result":
        """What `sealed` gave. Raises ValueError where it is damaged."""
        found = cls.model_validate_json(data)
        if found.checksum not in (None, found._sum()):
            raise ValueError("its checksum is that of another result")
        return found.model_copy(update={"checksum": None})

    def _sum(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"checksum"}).encode()).hexdigest()


def now() -> str:
    """This moment in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
