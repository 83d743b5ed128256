"""Loop: training and validation inside TensorFlow, many steps at a time.

Python takes part once per stretch, which is about a second long, not once per step.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np
import tensorflow as tf

from orchestrator.data.pipeline import FeatureSource, Source, training_batches, validation_batches

_VALIDATION_BATCH = 64  # larger ones were no faster on a CPU, and hold more memory
_STRETCH_S = 1.0

_F = TypeVar("_F", bound=Callable[..., Any])
_in_graph: Callable[[_F], _F] = tf.function(jit_compile=False)
# only the loops need autograph: converting all that they call took 0.4 s of a worker's first trial
_plain: Callable[[_F], _F] = tf.autograph.experimental.do_not_convert

_Batch = tuple[tf.Tensor, tf.Tensor]  # images and labels
_Step = Callable[[tf.Tensor, tf.Tensor], None]


class Sums(NamedTuple):
    """Sums over images: of their objectives and losses, as metrics.METRICS has them; of the correct ones; of all."""

    objective: float
    loss: float
    correct: float
    images: float


class Validated(NamedTuple):
    """Sums over the validation images; and outputs, (images, model outputs) float32: what the model says of each."""

    sums: Sums
    outputs: np.ndarray


@dataclass(frozen=True)
class TrialImages:
    """What a trial trains on.

    Attributes:
        source: The images.
        resident: What is picked from the memory of the device that trains: the images on a GPU, where they fit, or the
            features of a backbone; None: tf.data brings the images, batch by batch.
        rows, validation_rows: (n,) int64, positions in the source.
    """

    source: Source
    resident: Source | FeatureSource | None
    rows: np.ndarray
    validation_rows: np.ndarray

    @property
    def features(self) -> FeatureSource | None:
        """The features, where it trains on these."""
        return self.resident if isinstance(self.resident, FeatureSource) else None


class Loop:
    """Trains and validates one model.

    Attributes:
        steps: Steps of an epoch. The last one takes what images remain.
        sums: Variable, (4,) float64: Sums over the steps taken of the epoch at work. A checkpoint must hold it.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        images: TrialImages,
        batch_size: int,
        epochs: int,
    ) -> None:
        """optimizer: built for the model. epochs: how many the trial has at most."""
        self._images, self._batch_size, self._epochs = images, batch_size, epochs
        self.steps = math.ceil(len(images.rows) / batch_size)
        self.sums = tf.Variable(_no_sums())
        step = _training_step(model, optimizer, self.sums)
        self._feed: _ResidentFeed | _PipedFeed
        if images.resident:
            self._feed = _ResidentFeed(images.resident, images.rows, batch_size, step)
        else:
            self._feed = _PipedFeed(images.source, images.rows, batch_size, step)
        self._position: int | None = None  # where the feed stands, in steps over all epochs
        self._stretch, self._validation_stretch = _Stretch(), _Stretch()
        self._validation: _ResidentValidation | _PipedValidation
        if images.features:
            self._validation = _ResidentValidation(images.features, images.validation_rows, model)
        else:
            self._validation = _PipedValidation(images.source, images.validation_rows, model)

    def train(self, epoch: int, step: int) -> tuple[int, float]:
        """Take a stretch of steps within one epoch.

        epoch: how many are over. step: how many steps of the next one are taken, below `steps`.
        Returns how many more it took, and the seconds that they lasted.
        """
        position = epoch * self.steps + step
        if position != self._position:  # the first time, maybe after a checkpoint
            self._feed.open(position, self._epochs)
        full_steps, rest = divmod(len(self._images.rows), self._batch_size)
        size, ahead = (self._batch_size, full_steps - step) if step < full_steps else (rest, 1)
        with self._stretch.of(ahead) as count:
            self._feed.take(position, count, size)
        self._position = position + count
        return count, self._stretch.took_s

    def take_sums(self) -> Sums:
        """The sums over the epoch that was just trained; they start again at zero."""
        sums = Sums(*self.sums.numpy().tolist())
        self.sums.assign(_no_sums())
        return sums

    def validate(self, stopped: Callable[[], bool] = lambda: False) -> Validated | None:
        """Let the model judge every validation image.

        stopped: asked after each stretch but the last; where it says so, None is returned.
        """
        batches = math.ceil(len(self._images.validation_rows) / _VALIDATION_BATCH)
        sums, outputs, done = _no_sums(), [], 0
        self._validation.open()
        while True:
            with self._validation_stretch.of(batches - done) as count:
                sums, output = self._validation.take(done, count, sums)
            outputs.append(output.numpy())
            done += count
            if done == batches:
                return Validated(Sums(*sums.numpy().tolist()), np.concatenate(outputs))
            if stopped():
                return None


def _training_step(model: keras.Model, optimizer: keras.optimizers.Optimizer, sums: tf.Variable) -> _Step:
    """Trains the model on a batch, and adds what it said of the batch to the sums."""
    score, variables = _score_of(model), model.trainable_variables

    @_plain
    def step(images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            losses, correct = score(labels, tf.cast(model(images, training=True), tf.float32))
            loss = tf.reduce_mean(losses)
            objective = loss + _penalty(model)
            scaled = optimizer.scale_loss(objective)
        optimizer.apply(tape.gradient(scaled, variables), variables)
        count = tf.cast(tf.shape(images)[0], tf.float64)
        sums.assign_add(_sums(tf.cast(objective, tf.float64) * count, tf.cast(loss, tf.float64) * count, correct))

    return step


def _judging(model: keras.Model) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """What the model says of a batch, one row per image, and the batch's sums."""
    score = _score_of(model)

    @_plain
    def judge(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        output = tf.cast(model(images, training=False), tf.float32)
        losses, correct = score(labels, output)
        loss = tf.cast(tf.reduce_sum(losses), tf.float64)
        penalty = tf.cast(_penalty(model), tf.float64) * tf.cast(tf.size(correct), tf.float64)
        return output, _sums(loss + penalty, loss, correct)

    return judge


class _PipedValidation:
    """Validates on batches from tf.data."""

    def __init__(self, source: Source, rows: np.ndarray, model: keras.Model) -> None:
        self._all = validation_batches(source, rows, _VALIDATION_BATCH)
        self._batches: Iterator[_Batch] = iter(())
        judge, width = _judging(model), model.output_shape[1]

        @_in_graph
        def validate(batches: Iterator[_Batch], count: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            outputs = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=(None, width))
            for i in tf.range(count):
                output, of_batch = judge(*next(batches))
                outputs = outputs.write(i, output)
                sums += of_batch  # in the same order, wherever the stretches end
            return sums, outputs.concat()

        self._validate = validate

    def open(self) -> None:
        """Begin with the first batch."""
        self._batches = iter(self._all)

    def take(self, done: int, count: int, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The next `count` batches: the sums with theirs added, and the model's outputs for them, one row per image."""
        result: tuple[tf.Tensor, tf.Tensor] = self._validate(self._batches, tf.constant(count), sums)
        return result


class _ResidentValidation:
    """The same on features, picked where they lie."""

    def __init__(self, source: FeatureSource, rows: np.ndarray, model: keras.Model) -> None:
        judge, width, pick = _judging(model), model.output_shape[1], _plain(source.batch_at)
        order, size = tf.constant(rows, tf.int64), _VALIDATION_BATCH

        @_in_graph
        def validate(
            view: tf.Tensor, first: tf.Tensor, count: tf.Tensor, sums: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            outputs = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=(None, width))
            for i in tf.range(count):
                output, of_batch = judge(*pick(order, view, (first + i) * size, size))
                outputs = outputs.write(i, output)
                sums += of_batch
            return sums, outputs.concat()

        self._view, self._validate = source.validation, validate

    def open(self) -> None:
        """Nothing to prepare: any batch can be picked at any time."""

    def take(self, done: int, count: int, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The same for `count` batches after the first `done`."""
        result: tuple[tf.Tensor, tf.Tensor] = self._validate(self._view, tf.constant(done), tf.constant(count), sums)
        return result


def _no_sums() -> tf.Tensor:
    return tf.zeros(len(Sums._fields), tf.float64)


def _sums(objective: tf.Tensor, loss: tf.Tensor, correct: tf.Tensor) -> tf.Tensor:
    """Sums of one batch, (4,) float64. objective, loss: their sums, float64. correct: 1.0 or 0.0 for each image."""
    return tf.stack(
        [objective, loss, tf.cast(tf.reduce_sum(correct), tf.float64), tf.cast(tf.size(correct), tf.float64)]
    )


def _penalty(model: keras.Model) -> tf.Tensor:
    """What the model's regularizers add to the loss, a float32 scalar."""
    parts = [tf.cast(part, tf.float32) for part in model.losses]  # those of activations may be half as wide
    return tf.add_n(parts) if parts else tf.constant(0.0)


def _score_of(model: keras.Model) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    return _score_binary if model.output_shape[1] == 1 else _score_categorical


def _score_binary(labels: tf.Tensor, p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Loss and correctness per image. labels, p: (batch, 1) float32."""
    return keras.losses.binary_crossentropy(labels, p), tf.cast((p > 0.5) == (labels > 0.5), tf.float32)


def _score_categorical(labels: tf.Tensor, p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Loss and correctness per image. labels: (batch,) int32. p: (batch, classes) float32."""
    correct = tf.argmax(p, axis=1, output_type=tf.int32) == labels
    return keras.losses.sparse_categorical_crossentropy(labels, p), tf.cast(correct, tf.float32)


class _PipedFeed:
    """Trains on batches from tf.data, which prepares the next ones meanwhile."""

    def __init__(self, source: Source, rows: np.ndarray, batch_size: int, step: _Step) -> None:
        self._source, self._rows, self._batch_size = source, rows, batch_size
        self._batches: Iterator[_Batch] = iter(())

        @_plain
        def one_step(batch: _Batch, size: int) -> None:
            step(*_of_size(batch, size))

        @_in_graph
        def train(batches: Iterator[_Batch], count: tf.Tensor, size: int) -> None:
            for _ in tf.range(count):
                one_step(next(batches), size)

        self._train = train

    def open(self, position: int, epochs: int) -> None:
        """Go on from that many steps, counted over all epochs, to the end of a trial of so many epochs."""
        self._batches = iter(training_batches(self._source, self._rows, self._batch_size, position, epochs))

    def take(self, position: int, count: int, size: int) -> None:
        """Train on the next `count` batches, each of `size` images."""
        self._train(self._batches, tf.constant(count), size)


class _ResidentFeed:
    """The same from images or features that lie in the memory of the device: picked, and augmented, there."""

    def __init__(self, source: Source | FeatureSource, rows: np.ndarray, batch_size: int, step: _Step) -> None:
        self._source, self._rows = source, tf.constant(rows, tf.int64)
        self._batch_size, self._steps = batch_size, math.ceil(len(rows) / batch_size)
        self._epoch = -1
        self._layout: tuple[tf.Tensor, tf.Tensor] | None = None  # that epoch's order, and its changes or its view
        pick = _plain(source.batch_at)

        @_plain
        def one_step(batch: _Batch, size: int) -> None:
            step(*_of_size(batch, size))

        @_in_graph
        def train(order: tf.Tensor, view: tf.Tensor, first: tf.Tensor, count: tf.Tensor, size: int) -> None:
            for i in tf.range(count):
                one_step(pick(order, view, first + i * size, size), size)

        self._train = train

    def open(self, position: int, epochs: int) -> None:
        """Nothing to prepare: any batch can be picked at any time."""

    def take(self, position: int, count: int, size: int) -> None:
        """Train on `count` batches, each of `size` images, from that many steps on, counted over all epochs."""
        epoch, step = divmod(position, self._steps)
        if epoch != self._epoch or self._layout is None:
            self._layout = None  # the last epoch's goes before this one's comes
            self._epoch, self._layout = epoch, self._source.lay_out_epoch(self._rows, epoch)
        order, view = self._layout
        first = tf.constant(step * self._batch_size, tf.int64)
        self._train(order, view, first, tf.constant(count, tf.int64), size)


def _of_size(batch: _Batch, size: int) -> Iterator[tf.Tensor]:
    """Images and labels of a batch whose size the graph is to know."""
    return (tf.ensure_shape(part, (size, *part.shape[1:])) for part in batch)


class _Stretch:
    """How many steps to take at once inside TensorFlow: as many as last about a second."""

    def __init__(self) -> None:
        self._steps, self.took_s = 1, 0.0

    @contextlib.contextmanager
    def of(self, ahead: int) -> Iterator[int]:
        """Take as many steps as it gives, at most `ahead`; afterwards `took_s` says how long they lasted."""
        count = min(self._steps, ahead)
        began = time.perf_counter()
        yield count
        self.took_s = time.perf_counter() - began
        if self.took_s > 2 * _STRETCH_S:
            self._steps = max(1, self._steps // 2)
        elif count == self._steps and self.took_s < _STRETCH_S / 2:
            self._steps *= 2
