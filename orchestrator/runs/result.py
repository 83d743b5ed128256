"""Result: what one trial gives back, and which of its epochs count for a point. Pure."""

import base64
import hashlib
import math
import zlib
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.metrics import METRICS
from orchestrator.spec.sections import Train

_MOST_IMAGES = 10**8
_UNSEALED = ',"checksum":null}'


class Record(BaseModel):
    """What is written into the run folder as JSON, checked as it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SealedRecord(Record):
    """One whose file ends in a checksum. Its last field must be `checksum: str | None = None`."""

    def sealed(self) -> str:
        """As JSON that ends in a checksum of everything before it, so that a single flipped bit is found."""
        text = self.model_copy(update={"checksum": None}).model_dump_json().removesuffix(_UNSEALED)
        return f'{text},"checksum":"{_sum(text)}"}}'

    @classmethod
    def unsealed(cls, data: bytes) -> Self:
        """Read what `sealed` of this version or an older one wrote. Raises ValueError if it is damaged."""
        record = cls.model_validate_json(data)
        if (checksum := getattr(record, "checksum", None)) is None:  # written before there were checksums
            return record
        text = data.decode().removesuffix(f',"checksum":"{checksum}"}}')
        if checksum != _sum(text):
            raise ValueError("its checksum is that of another record")
        return record.model_copy(update={"checksum": None})


def _sum(text: str) -> str:
    return hashlib.sha256(f"{text}}}".encode()).hexdigest()


class Epoch(Record):
    """One epoch of one trial.

    Attributes:
        metrics: Name -> value, with the names of metrics.METRICS. Results of 0.1.0 have no objectives, as their losses
            include the penalties of the model's regularizers, and nothing that is computed from predictions.
        train_s: Seconds of training, without validate_s.
        learning_rate: Of its last step, where it changes; otherwise None.
    """

    epoch: int = Field(ge=1)
    metrics: dict[str, float]
    train_s: float = Field(ge=0)
    images_per_s: float = Field(ge=0)
    validate_s: float = Field(0.0, ge=0)
    learning_rate: float | None = Field(None, ge=0, exclude_if=lambda rate: rate is None)

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
        rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        return {**self.metrics, **times, **rate}


class Right(Record):
    """In how many epochs of a window the model was right about each validation image.

    Attributes:
        epoch: The last epoch of the window. window: How many epochs it has, at most 255.
        counts: A byte for each image, in the order of the index; zlib, in base64.
    """

    epoch: int = Field(ge=1)
    window: int = Field(ge=1, le=255)
    counts: str

    @classmethod
    def of(cls, epoch: int, window: int, counts: bytes) -> "Right":
        return cls(epoch=epoch, window=window, counts=base64.b64encode(zlib.compress(counts, 9)).decode())

    def unpacked(self) -> bytes:
        """A byte for each image. Raises ValueError where they are damaged."""
        stream = zlib.decompressobj()
        try:
            counts = stream.decompress(base64.b64decode(self.counts), _MOST_IMAGES)
        except zlib.error as error:
            raise ValueError(f"its counts are damaged: {error}") from None
        if not stream.eof:
            raise ValueError(f"its counts are cut short, or of more than {_MOST_IMAGES:,} images")
        return counts


class Result(SealedRecord):
    """What a trial gives back: its history, or the error that ended it.

    Attributes:
        epochs: How many epochs were asked for; the history is shorter only if early stopping ended it, or if it failed:
            then it is that of the epochs before.
        digests: Epoch -> SHA-256 of the weights after it, for each milestone.
        right: Epoch -> what the model had right in the epochs that rank it then, for each milestone and for the last
            epoch. Empty before version 3.
        rate_used: What stood for learning_rate, where that is auto or scaled.
        parameters: Numbers that the model holds; of a head, without those of its backbone; older results do not say.
        validation_images: How many images each epoch was validated on; older results do not say.
        peak_memory_mb: Most memory that the worker process held during the trial.
        node_type: What the node says it is, such as g4dn.xlarge. node_share: fraction of the node that the trial held.
        started_at, finished_at: UTC, ISO 8601.
        checksum: Of everything else; only in a file, see `sealed`.
    """

    version: Literal[1, 2, 3] = 3
    trial_id: str
    status: Literal["ok", "failed"]
    epochs: int = Field(ge=1)
    history: list[Epoch] = []
    digests: dict[int, str] = {}
    right: dict[int, Right] = {}
    steps_per_epoch: int | None = None
    rate_used: float | None = Field(None, gt=0)
    parameters: int | None = None
    validation_images: int | None = None
    peak_memory_mb: float | None = None
    device: str | None = None
    node: str | None = None
    node_type: str | None = None
    node_share: float | None = Field(None, gt=0, le=1)
    error: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    checksum: str | None = None

    def covers(self, epochs: int) -> bool:
        """Whether a point of so many epochs is ok: a leg that failed leaves what came before it as it was."""
        return (self.epochs if self.status == "ok" else len(self.history)) >= epochs


class Tested(Record):
    """What the winner reaches on images that nothing was trained on, and by which nothing was chosen.

    Attributes:
        images: How many there are.
        metric, value: The run's metric on them. low, high: the ends of its 95% interval, for these weights and other
            images like these.
        validation: The same metric of the same weights on the validation images, by which they were chosen.
        looks: How many winners have seen these images so far: the more, the more of an optimist's figure it is.
        weights: SHA-256 over the weights. opened_at: UTC, ISO 8601.
    """

    images: int
    metric: str
    value: float
    low: float
    high: float
    validation: float
    looks: int
    weights: str
    point_id: str
    opened_at: str


class Threshold(Record):
    """Why a model says the second of two classes from another probability on than one half.

    Attributes:
        metric: What it is best for. at_half, at_threshold: its value with one half, and with the threshold.
        images: How many validation images these values are of.
    """

    metric: str
    at_half: float
    at_threshold: float
    images: int
    note: str = "chosen on these very validation images: on others it gains less"


class Refitted(Record):
    """How the winner was trained once more.

    Attributes:
        images: How many it was trained on, those that validated it before among them.
        steps: How many it took: as many as the winner.
    """

    images: int
    steps: int
    note: str = "trained on the validation images too: its metrics are those of training, and nothing validates it"


class Exported(Record):
    """The .json beside an exported model: everything that is needed to use it.

    Attributes:
        classes: Names, in the order of the model's output. With two, the one output is the probability of the second.
        image_size: (height, width) in pixels.
        scale: Factor for the model's input, once images are decoded to RGB 0..255 and resized.
        epochs: How many epochs the point was asked to train.
        epoch: After which epoch the weights were taken; metrics are those of this epoch.
        rate_used: See Result.
        weights: SHA-256 over the weights.
        test: What the winner reaches on the test images; None where there are none, or nobody has looked.
        threshold: Of two classes, the second is said where its probability is above this; None: one half, as in
            training.
        threshold_chosen: Why it is another than one half.
        refit: In models/refit.json; its metrics are those of its training, and its threshold is the winner's.
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
    fold: int = 0
    epochs: int
    epoch: int
    metric: str
    metrics: dict[str, float]
    rate_used: float | None = None
    weights: str
    index_digest: str
    spec: dict[str, Any]
    versions: dict[str, str]
    test: Tested | None = None
    threshold: float | None = Field(None, ge=0, le=1)
    threshold_chosen: Threshold | None = None
    refit: Refitted | None = None

    @property
    def model(self) -> str:
        """Name of the model function, as the spec or its axis has it."""
        return str(self.values.get("model", self.spec.get("model")))


def monitored(history: Sequence[Epoch]) -> list[float]:
    """For each epoch, the loss that decides on early stopping: val_loss, the lower the better.

    A trial that version 0.1.0 began keeps to the loss that it began with, which includes the penalties.
    """
    if any("val_objective" not in epoch.metrics for epoch in history):
        return [epoch.metrics.get("val_objective", epoch.metrics["val_loss"]) for epoch in history]
    return [epoch.metrics["val_loss"] for epoch in history]


def lacks(history: Sequence[Epoch], metric: str) -> bool:
    """Whether some epochs do not have what the metric is read from: an older version trained them."""
    return any(METRICS[metric].recorded not in epoch.metrics for epoch in history)


def best_epoch(history: Sequence[Epoch], metric: str) -> Epoch:
    """The first epoch with the best value of a metric that epochs record. history: not empty."""
    sign = METRICS[metric].sign
    return max(history, key=lambda epoch: sign * epoch.metrics.get(metric, -sign * math.inf))


def restores_best(train: Train) -> bool:
    """Whether a point's figures are those of its lowest val_loss, not of its last epoch."""
    return bool(train.early_stopping and train.early_stopping.restore_best)


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


def window_of(epoch: int, metric: str) -> int:
    """How many epochs, up to this one, the score is the mean of: the last fifth, or one where the best epoch counts.

    One epoch's figure is a draw; on recorded grids the mean named winners that were better: see docs/decisions.md.
    """
    return 1 if METRICS[metric].best_of else min(255, max(1, epoch // 5))


def score(history: Sequence[Epoch], restore_best: bool, metric: str) -> float:
    """What a point is ranked by: the mean of the metric over its window. history: not empty.

    The window ends with the epoch whose weights are the point's model: see `ranked_by`.
    """
    row, last = METRICS[metric], ranked_by(history, restore_best, metric).epoch
    epochs = history[last - window_of(last, metric) : last]
    return math.fsum(epoch.metrics.get(row.recorded, -row.sign * math.inf) for epoch in epochs) / len(epochs)


def what_ranks(result: Result, epochs: int, restore_best: bool, metric: str) -> Right | None:
    """What the model had right in the epochs that its score after `epochs` is the mean of; None if not recorded."""
    history = result.history[:epochs]
    last = ranked_by(history, restore_best, metric).epoch
    right = result.right.get(len(history))
    return right if right and (right.epoch, right.window) == (last, window_of(last, metric)) else None


def merit(history: Sequence[Epoch], restore_best: bool, metric: str) -> tuple[float, int]:
    """The sort key of points, lowest first: the score, then the number of epochs trained."""
    return -METRICS[metric].sign * score(history, restore_best, metric), len(history)
