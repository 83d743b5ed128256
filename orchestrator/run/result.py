"""Result: what one trial gives back, and which of its epochs a point speaks of. Pure."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

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
    node_type: str | None = None
    node_share: float | None = Field(None, gt=0, le=1)
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


class Exported(_Record):
    """What stands beside an exported model: all that using it takes.

    Attributes:
        classes: Names, in the order of the model's output; of two, the one output is the probability of the second.
        image_size: (height, width) in pixels.
        scale: What the model's input is multiplied with, after images are decoded to RGB 0..255 and resized.
        epochs: How many epochs the point was asked to train.
        epoch: After which epoch the weights were taken; metrics are those of this epoch.
        weights: SHA-256 over the weights.
    """

    version: Literal[1] = 1
    classes: list[str]
    image_size: tuple[int, int]
    resize: str
    scale: float
    point_id: str
    trial_id: str
    values: dict[str, Any]
    seed: int
    epochs: int
    epoch: int
    metric: str
    metrics: dict[str, float]
    weights: str
    index_digest: str
    spec: dict[str, Any]
    versions: dict[str, str]


def read_off(history: Sequence[Epoch], restore_best: bool) -> Epoch:
    """The epoch whose figures a point's row shows: the last, or that of the lowest val_loss. history: not empty."""
    return min(history, key=lambda epoch: epoch.val_loss) if restore_best else history[-1]


def ranked_by(history: Sequence[Epoch], restore_best: bool, metric: str) -> Epoch:
    """The epoch that gave a point its rank, and whose weights are its model."""
    if metric == "best_val_accuracy":
        return max(history, key=lambda epoch: epoch.val_accuracy)
    return read_off(history, restore_best)


def merit(history: Sequence[Epoch], restore_best: bool, metric: str) -> tuple[float, int]:
    """What points are ranked by, the lowest first; of equals, the one that took fewer epochs."""
    figure = getattr(ranked_by(history, restore_best, metric), metric.removeprefix("best_"))
    return (-figure if metric.endswith("accuracy") else figure), len(history)
