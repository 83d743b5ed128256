"""Result: what one trial gives back. Pure."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Epoch(_Record):
    """One epoch of one trial. Losses include the regularisation, as in Keras; train_s leaves validate_s out."""

    epoch: int = Field(ge=1)
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    train_s: float = Field(ge=0)
    images_per_s: float = Field(ge=0)
    validate_s: float = Field(0.0, ge=0)


class Result(_Record):
    """What a trial gives back: its history, or the error that ended it.

    Attributes:
        epochs: How many epochs were asked for; the history is shorter only where early stopping ended it.
        digests: Epoch -> SHA-256 of the weights after it, for each milestone.
        peak_memory_mb: Most memory that the worker process held during the trial.
        node_type: What the node says it is, such as g4dn.xlarge; node_share: fraction of the node that the trial held.
        started_at, finished_at: UTC, ISO 8601.
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
    node_type: str | None = None
    node_share: float | None = Field(None, gt=0, le=1)
    error: str | None = None
    started_at: str | None = None
    finished_at: str | None = None


def now() -> str:
    """This moment in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
