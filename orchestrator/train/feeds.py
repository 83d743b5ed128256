"""Feeds: what brings batches to a model inside TensorFlow, many steps at a time: from tf.data, or from memory.

A feed is built from the source of one trial, and may begin again with that of another which differs in its seed alone:
what was traced is used again.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from orchestrator.data.augmentation import Changes
from orchestrator.data.pipeline import Batch, FeatureSource, Source, training_batches, validation_batches
from orchestrator.train.steps import Step, judging, plain

VALIDATION_BATCH = 64  # larger ones were no faster on a CPU, and hold more memory

_F = TypeVar("_F", bound=Callable[..., Any])
_in_graph: Callable[[_F], _F] = tf.function(jit_compile=False)


class PipedFeed:
    """Trains on batches from tf.data, which prepares the next ones meanwhile."""

    def __init__(self, source: Source, rows: np.ndarray, batch_size: int, step: Step) -> None:
        self._seed, self._position, self._epochs = (_number() for _ in range(3))
        self._all = training_batches(replace(source, seed=self._seed), rows, batch_size, self._position, self._epochs)
        self._batches: Iterator[Batch] = iter(())

        @plain
        def one_step(batch: Batch, size: int) -> None:
            step(*_of_size(batch, size))

        @_in_graph
        def train(batches: Iterator[Batch], count: tf.Tensor, size: int) -> None:
            for _ in tf.range(count):
                one_step(next(batches), size)

        self._train = train

    def begin(self, source: Source) -> None:
        """Bring these images from now on, which are the same in another order."""
        self.close()
        self._seed.assign(source.seed)

    def open(self, position: int, epochs: int) -> None:
        """Go on from that many steps, counted over all epochs, to the end of a trial of so many epochs."""
        self.close()
        self._position.assign(position)
        self._epochs.assign(epochs)
        self._batches = iter(self._all)

    def take(self, position: int, count: int, size: int) -> None:
        """Train on the next `count` batches, each of `size` images."""
        self._train(self._batches, tf.constant(count), size)

    def close(self) -> None:
        """Read nothing ahead any more."""
        self._batches = iter(())


class ResidentFeed:
    """The same from images or features that lie in the memory of the device: picked, and augmented, there."""

    def __init__(self, source: Source | FeatureSource, rows: np.ndarray, batch_size: int, step: Step) -> None:
        self._source, self._rows = source, tf.constant(rows, tf.int64)
        self._batch_size, self._steps = batch_size, math.ceil(len(rows) / batch_size)
        self._epoch = -1
        self._layout: tuple[tf.Tensor, Changes] | None = None  # that epoch's order, and its changes or its view
        pick = plain(source.batch_at)

        @plain
        def one_step(batch: Batch, size: int) -> None:
            step(*_of_size(batch, size))

        @_in_graph
        def train(order: tf.Tensor, view: Changes, first: tf.Tensor, count: tf.Tensor, size: int) -> None:
            for i in tf.range(count):
                one_step(pick(order, view, first + i * size, size), size)

        self._train = train

    def begin(self, source: Source | FeatureSource) -> None:
        """Bring these from now on, which are the same in another order."""
        self.close()
        self._source = source

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

    def close(self) -> None:
        """Keep no epoch's order."""
        self._epoch, self._layout = -1, None


def _number() -> tf.Variable:
    """A whole number that tf.data reads, which it does on the CPU."""
    with tf.device("CPU:0"):
        return tf.Variable(0, dtype=tf.int64)


def _of_size(batch: Batch, size: int) -> Iterator[tf.Tensor]:
    """The parts of a batch whose size the graph is to know."""
    return (tf.ensure_shape(part, (size, *part.shape[1:])) for part in batch)


class PipedValidation:
    """Validates on batches from tf.data."""

    def __init__(self, source: Source, rows: np.ndarray, model: keras.Model) -> None:
        self._rows, self._all = rows, validation_batches(source, rows, VALIDATION_BATCH)
        self._batches: Iterator[Batch] = iter(())
        self._validate = _validating(model, lambda batches, i: batches.get_next())

    def begin(self, source: Source) -> None:
        """Bring these images from now on, which are the same, augmented with another seed if they are."""
        self.close()
        if source.augment.validation:  # their changes are drawn already
            self._all = validation_batches(source, self._rows, VALIDATION_BATCH)

    def open(self) -> None:
        """Begin with the first batch."""
        self._batches = iter(self._all)

    def take(self, done: int, count: int, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The next `count` batches: the sums with theirs added, and the model's outputs for them, one row per image."""
        return self._validate(self._batches, tf.constant(count), sums)

    def close(self) -> None:
        """Read nothing ahead any more."""
        self._batches = iter(())


class ResidentValidation:
    """The same on features, picked where they lie."""

    def __init__(self, source: FeatureSource, rows: np.ndarray, model: keras.Model) -> None:
        order, size = tf.constant(rows, tf.int64), VALIDATION_BATCH

        def pick(place: tuple[tf.Tensor, tf.Tensor], i: tf.Tensor) -> Batch:
            view, first = place
            return source.batch_at(order, Changes(view, None), (first + i) * size, size)

        self._validate = _validating(model, pick)
        self.begin(source)

    def begin(self, source: FeatureSource) -> None:
        """Bring these from now on, which are the same."""
        self._view = source.validation

    def open(self) -> None:
        """Nothing to prepare: any batch can be picked at any time."""

    def take(self, done: int, count: int, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The same for `count` batches after the first `done`."""
        return self._validate((self._view, tf.constant(done)), tf.constant(count), sums)

    def close(self) -> None:
        """Nothing is read ahead."""


def _validating(
    model: keras.Model, pick: Callable[[Any, tf.Tensor], Batch]
) -> Callable[[Any, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Takes a place, a count and sums: the sums with those of so many batches added, and the outputs for them.

    pick: gives the i-th batch of a place.
    """
    judge, width, batch_of = judging(model), model.output_shape[1], plain(pick)

    @_in_graph
    def validate(place: Any, count: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=(None, width))
        for i in tf.range(count):
            output, of_batch = judge(*batch_of(place, i))
            outputs = outputs.write(i, output)
            sums += of_batch  # in the same order, wherever the stretches end
        return sums, outputs.concat()

    return validate
