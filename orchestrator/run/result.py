"""Result: what one trial gives back, and which of its epochs counts for a point. Pure."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.metrics import METRICS

_UNSEALED = ',"checksum":null}'


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Epoch(_Record):
    """One epoch of one trial.

    Attributes:
        metrics: Name -> value, with the names of metrics.METRICS. Results of 0.1.0 have no objectives: their losses
            include the penalties of the model's regularizers.
        train_s: Seconds of training, without validate_s.
    """

    epoch: int = Field(ge=1)
    metrics: dict[str, float]
    train_s: float = Field(ge=0)
    images_per_s: float = Field(ge=0)
    validate_s: float = Field(0.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _gather_metrics(cls, data: Any) -> Any:
        """Also accept metrics as fields of their own, as in results of 0.1.0."""
        if not isinstance(data, dict) or "metrics" in data:
            return data
        found = {name: data[name] for name in METRICS if name in data}
        return {**{name: value for name, value in data.items() if name not in found}, "metrics": found}

    @property
    def figures(self) -> dict[str, float]:
        """Everything that was measured, by name: a row of the history."""
        times = {"train_s": self.train_s, "images_per_s": self.images_per_s, "validate_s": self.validate_s}
        return {**self.metrics, **times}


class Result(_Record):
    """What a trial gives back: its history, or the error that ended it.

    Attributes:
        epochs: How many epochs were asked for; the history is shorter only if early stopping ended it.
        digests: Epoch -> SHA-256 of the weights after it, for each milestone.
        peak_memory_mb: Most memory that the worker process held during the trial.
        node_type: What the node says it is, such as g4dn.xlarge. node_share: fraction of the node that the trial held.
        started_at, finished_at: UTC, ISO 8601.
        checksum: Of everything else; only in a file, see `sealed`.
    """

    version: Literal[1, 2] = 2
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
        """As JSON that ends in a checksum of everything before it, so that a single flipped bit is found."""
        text = self.model_copy(update={"checksum": None}).model_dump_json().removesuffix(_UNSEALED)
        return f'{text},"checksum":"{_sum(text)}"}}'

    @classmethod
    def unsealed(cls, data: bytes) -> "Result":
        """Read what `sealed` of this version or an older one wrote. Raises ValueError if it is damaged."""
        result = cls.model_validate_json(data)
        if result.checksum is None:  # written before there were checksums
            return result
        text = data.decode().removesuffix(f',"checksum":"{result.checksum}"}}')
        if result.checksum != _sum(text):
            raise ValueError("its checksum is that of another result")
        return result.model_copy(update={"checksum": None})


def _sum(text: str) -> str:
    return hashlib.sha256(f"{text}}}".encode()).hexdigest()


class Exported(_Record):
    """The .json beside an exported model: everything that is needed to use it.

    Attributes:
        classes: Names, in the order of the model's output. With two, the one output is the probability of the second.
        image_size: (height, width) in pixels.
        scale: Factor for the model's input, once images are decoded to RGB 0..255 and resized.
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


def monitored(history: Sequence[Epoch]) -> list[float]:
    """For each epoch, the loss that decides on early stopping: val_loss, the lower the better.

    A trial that version 0.1.0 began keeps to the loss that it began with, which includes the penalties.
    """
    if any("val_objective" not in epoch.metrics for epoch in history):
        return [epoch.metrics.get("val_objective", epoch.metrics["val_loss"]) for epoch in history]
    return [epoch.metrics["val_loss"] for epoch in history]


def best_epoch(history: Sequence[Epoch], metric: str) -> Epoch:
    """The first epoch with the best value of a metric that epochs record. history: not empty."""
    sign = METRICS[metric].sign
    return max(history, key=lambda epoch: sign * epoch.metrics.get(metric, -sign * math.inf))


def read_off(history: Sequence[Epoch], restore_best: bool) -> Epoch:
    """The epoch whose figures a point's row shows: the last, or that of the lowest val_loss. history: not empty."""
    if not restore_best:
        return history[-1]
    losses = monitored(history)
    return history[losses.index(min(losses))]


def ranked_by(history: Sequence[Epoch], restore_best: bool, metric: str) -> Epoch:
    """The epoch that gave a point its rank, and whose weights are its model."""
    if best_of := METRICS[metric].best_of:
        return best_epoch(history, best_of)
    return read_off(history, restore_best)


def merit(history: Sequence[Epoch], restore_best: bool, metric: str) -> tuple[float, int]:
    """The sort key of points, lowest first: the metric, then the number of epochs trained."""
    row = METRICS[metric]
    value = ranked_by(history, restore_best, metric).metrics.get(row.recorded, -row.sign * math.inf)
    return -row.sign * value, len(history)
