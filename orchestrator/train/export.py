"""Export: a point's model in the run folder, with all that using it takes; and back again. Knows Keras.

A model takes what it took in training: RGB pixels, resized as data.resize says and multiplied with 1/255. Beside it
lie the predictions for the validation images, as training had them at that epoch.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from orchestrator.data.pipeline import SCALE
from orchestrator.data.stream import decode
from orchestrator.errors import BadInput
from orchestrator.plan.points import points_of
from orchestrator.run.context import WorkerContext
from orchestrator.run.folder import CANDIDATES, KeepModels, versions
from orchestrator.run.result import Epoch, Exported, merit, ranked_by
from orchestrator.scratch import scratch
from orchestrator.store import StoreError
from orchestrator.train.model import read_classes

if TYPE_CHECKING:
    from orchestrator.train.trial import Training

_THUMBNAILS = 24
_checked: set[str] = set()


def check_savable(model: keras.Model, name: str) -> None:
    """Raise BadInput where Keras cannot save the model `name`. Tried once in each process."""
    if name in _checked:
        return
    try:
        _to_bytes(model)
    except (NotImplementedError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BadInput(
            f"model {name} must be one that Keras can save: {lines[0] if lines else type(error).__name__} "
            f"Mend it (layers of your own need get_config), or keep no models: --export-models none"
        ) from None
    _checked.add(name)


class Exporter:
    """Writes the models of one trial while it trains, as the run wants them kept.

    Of `all`, each milestone's; of `best`, the one milestone's that ranks first, among those of the candidates.
    """

    def __init__(self, training: "Training", work: WorkerContext, say: Callable[[str], None]) -> None:
        self._training, self._work, self._say = training, work, say
        self._prefix = "" if work.keep is KeepModels.all else CANDIDATES
        self._points = {point.epochs: point for point in points_of(training.trial, work.spec.axes)}
        self._there: set[int] = set()  # milestones whose models lie in the run folder

    def look(self) -> bool:
        """See what lies there already, after a checkpoint was taken. False where training must begin anew.

        That is: a model is wanted whose weights neither lie there nor can still be had. A mere candidate is not worth
        that: should it win, the driver has it made.
        """
        if not self._training.history or self._work.keep is KeepModels.none:
            return True
        for milestone, point in self._points.items():
            found = self._work.run.read_model(f"{self._prefix}{point.id}")
            if found and found.epoch == self._epoch(milestone).epoch:
                self._there.add(milestone)
        past = any(self._weights(milestone) is None for milestone in self._wanted())
        return not past or (self._work.keep is KeepModels.best and not self._work.again)

    def export(self) -> None:
        """Write what is wanted at this epoch and not there yet."""
        for milestone in self._wanted():
            weights = self._weights(milestone)
            if weights is None:
                continue
            try:
                self._write(milestone, *weights)
            except (StoreError, OSError) as error:  # training goes on: the driver finds that it is missing
                self._say(f"trial {self._training.trial.id}: no model written: {error}")

    def _wanted(self) -> list[int]:
        """Milestones that have been reached, and whose models are to be written."""
        if self._work.keep is KeepModels.none:
            return []
        training = self._training
        reached = [each for each in self._points if each <= len(training.history) or training.over]
        if reached and self._work.keep is KeepModels.best:
            reached = [min(reached, key=lambda each: merit(self._history(each), *self._ranking))]
        return [each for each in reached if each not in self._there]

    @property
    def _ranking(self) -> tuple[bool, str]:
        return self._training.restores_best, self._work.spec.metric

    def _history(self, milestone: int) -> Sequence[Epoch]:
        return self._training.history[:milestone]

    def _epoch(self, milestone: int) -> Epoch:
        return ranked_by(self._history(milestone), *self._ranking)

    def _weights(self, milestone: int) -> tuple[Sequence[np.ndarray] | None, np.ndarray | None] | None:
        """Weights and predictions of the epoch that ranks the milestone: (None, ...) are the model's own.

        None where they are past. Predictions may be None: then they are to be made again, from the weights.
        """
        training, epoch = self._training, self._epoch(milestone).epoch
        if training.kept and training.kept.epoch == epoch:
            return training.kept.weights, training.kept.probabilities
        if epoch == len(training.history) and training.step == 0:
            return None, training.probabilities
        return None

    def _write(self, milestone: int, weights: Sequence[np.ndarray] | None, probabilities: np.ndarray | None) -> None:
        training, epoch, spec = self._training, self._epoch(milestone), self._work.spec
        point = self._points[milestone]
        with _lent(training.model, weights):
            keras_file = _to_bytes(training.model)
            digest = weights_digest(training.model)
        if probabilities is None:
            _, probabilities = self._training.evaluate()
        facts = Exported(
            classes=list(self._work.index.classes),
            image_size=training.settings.data.image_size,
            resize=training.settings.data.resize,
            scale=SCALE,
            point_id=point.id,
            trial_id=point.trial_id,
            values=dict(point.values),
            seed=point.seed,
            epochs=point.epochs,
            epoch=epoch.epoch,
            metric=spec.metric,
            metrics={name: getattr(epoch, name) for name in ("val_accuracy", "val_loss", "accuracy", "loss")},
            weights=digest,
            index_digest=self._work.index.digest,
            spec=spec.model_dump(mode="json"),
            versions=versions(),
        )
        validation = self._validation(both(probabilities))
        self._work.run.write_model(f"{self._prefix}{facts.point_id}", keras_file, validation, facts)
        if self._work.keep is KeepModels.best:
            for beaten in self._there:
                self._work.run.delete_models([f"{self._prefix}{self._points[beaten].id}"])
            self._there.clear()
        self._there.add(milestone)

    def _validation(self, probabilities: np.ndarray) -> bytes:
        """A Parquet file: path, label, predicted, probabilities, thumbnail of the worst classified."""
        index, rows = self._work.index, self._training.validation_rows
        labels = index.labels[rows]
        of_truth = probabilities[np.arange(len(rows)), labels]
        worst = np.argsort(of_truth, kind="stable")[:_THUMBNAILS]
        thumbnails: list[bytes | None] = [None] * len(rows)
        for i, picture in zip(worst, self._pictures(rows[worst]), strict=True):
            thumbnails[i] = tf.io.encode_png(picture).numpy()
        paths = index.table["path"].take(pa.array(rows))
        table = pa.table(
            {
                "path": paths,
                "label": [index.classes[label] for label in labels],
                "predicted": [index.classes[label] for label in chosen(probabilities)],
                "probabilities": pa.array(list(probabilities), pa.list_(pa.float32())),
                "thumbnail": pa.array(thumbnails, pa.binary()),
            }
        )
        out = io.BytesIO()
        pq.write_table(table, out, write_page_checksum=True)
        return out.getvalue()

    def _pictures(self, rows: np.ndarray) -> Iterator[tf.Tensor]:
        source = self._training.source
        if source.images is not None:
            yield from (source.images[row] for row in rows.tolist())
        else:
            for _, blobs in source.encoded.chunks(rows):
                yield from (decode(tf.constant(b), source.data.image_size, source.data.resize) for b in blobs)


def weights_digest(model: keras.Model) -> str:
    """SHA-256 over every weight, in the model's order."""
    whole = hashlib.sha256()
    for weight in model.weights:
        whole.update(np.ascontiguousarray(weight).tobytes())
    return whole.hexdigest()


def both(output: np.ndarray) -> np.ndarray:
    """A model's output as (images, classes) probabilities: of two classes, it gives only the second's."""
    return np.concatenate([1 - output, output], axis=1) if output.shape[1] == 1 else output


def chosen(probabilities: np.ndarray) -> np.ndarray:
    """(images,) position of the class that the model says; of two, the second must be above one half."""
    return (probabilities[:, 1] > 0.5).astype(int) if probabilities.shape[1] == 2 else probabilities.argmax(axis=1)


def load(data: bytes, name: str, model: str) -> keras.Model:
    """A .keras file -> the model, in Keras' safe mode: nothing in the file is run.

    name: what to call it. model: the model function's name in the spec; where the file has layers that Keras does not
    know, they are looked for in its module. Raises BadInput.
    """
    try:
        return _load(data, {})
    except (TypeError, ValueError, KeyError, AttributeError, OSError, RuntimeError, ImportError) as first:
        error: Exception = first
    if "Lambda" in str(error):
        raise BadInput(
            f"{name} holds a Lambda layer, that is code, and no code is run from a file: build the model of other "
            f"layers, and train it anew"
        )
    if model != "small_cnn":
        try:
            return _load(data, read_classes(model, keras.layers.Layer))
        except (TypeError, ValueError, KeyError, AttributeError, OSError, RuntimeError, ImportError) as second:
            error = second
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raise BadInput(
        f"{name} must be a model that Keras can load: {(lines or [type(error).__name__])[0][:300]}; layers of your "
        f"own must be found in the module {model.partition(':')[0]}, in the current folder as in training"
    ) from None


def _load(data: bytes, custom: dict[str, type]) -> keras.Model:
    with scratch() as folder:
        path = folder / "model.keras"
        path.write_bytes(data)
        return keras.saving.load_model(path, custom_objects=custom, compile=False, safe_mode=True)


def _to_bytes(model: keras.Model) -> bytes:
    with scratch() as folder:
        path = folder / "model.keras"
        model.save(path)
        return path.read_bytes()


@contextlib.contextmanager
def _lent(model: keras.Model, weights: Sequence[np.ndarray] | None) -> Iterator[None]:
    """The model with other weights for a while."""
    if weights is None:
        yield
        return
    own = [np.array(variable) for variable in model.variables]
    _assign(model, weights)
    try:
        yield
    finally:
        _assign(model, own)


def _assign(model: keras.Model, weights: Sequence[np.ndarray]) -> None:
    for variable, value in zip(model.variables, weights, strict=True):
        variable.assign(value)
