"""Pipeline: cached or streamed images -> shuffled, augmented batches. One chain of tf.data, to be read top to bottom.

Stateless: the content of a batch depends only on (seed, epoch, example), never on what was read before. So a trial can
stop anywhere and resume exactly there.
"""

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from orchestrator.data.augmentation import Changes, changed, draw_mixes, draw_numbers, mixed, with_partners
from orchestrator.data.stream import CHUNK, WINDOW_BYTES, Encoded, decode, thread_options
from orchestrator.spec.backbones import VALIDATION_DRAW
from orchestrator.spec.sections import Augment, Data

Batch = tuple[tf.Tensor, ...]  # images and labels; where images are mixed, the others' labels and their own's share too
_plain = tf.autograph.experimental.do_not_convert  # nothing needs AutoGraph, and looking takes time
SCALE = 1 / 255  # from decoded pixels to the input of a model


def shared_tensor(images: np.ndarray) -> tf.Tensor:
    """The array as a CPU tensor that shares its memory: all trials of a node read one copy.

    images: must begin at a multiple of 64 bytes, as a memory map does: TensorFlow would abort on any other.
    """
    if images.ctypes.data % 64:
        raise ValueError(f"images must begin at a multiple of 64 bytes, got address {images.ctypes.data}")
    return tf.experimental.dlpack.from_dlpack(np.asarray(images).__dlpack__())


@dataclass(frozen=True)
class Source:
    """Where a trial's images come from.

    Attributes:
        images: (n, height, width, 3) uint8, all of them; None: they are streamed from `encoded` in every epoch.
        labels: (n,) or (n, 1), any type.
        seed: A variable, int64, where the same batches are to be had with other seeds later.
        threads: How many threads decode and augment.
    """

    images: tf.Tensor | None
    labels: tf.Tensor
    data: Data
    augment: Augment
    seed: int | tf.Variable
    threads: int
    encoded: Encoded | None = None

    def lay_out_epoch(self, rows: tf.Tensor, epoch: int | tf.Tensor) -> tuple[tf.Tensor, Changes]:
        """The epoch's order of `rows` ((n,) int64), and the random changes of the images."""
        epoch = tf.cast(epoch, tf.int64)
        return _shuffled(self, rows, epoch), self.changes(epoch, rows)

    def changes(self, epoch: int | tf.Tensor, rows: tf.Tensor | None) -> Changes:
        """The random changes of the images in an epoch. rows: those that others are mixed with; None: nothing is."""
        images, size, key = self.labels.shape[0], self.data.image_size, (self.seed, epoch)
        numbers = draw_numbers(self.augment, size, images, key)
        return Changes(numbers, None if rows is None else draw_mixes(self.augment, size, rows, images, key))

    def batch_at(self, order: tf.Tensor, changes: Changes, first: tf.Tensor, size: int) -> Batch:
        """What training_batches yields for `size` images from position `first` of the order, on the caller's device."""
        picked = order[first : first + size]
        if changes.mixes:
            picked = with_partners(picked, changes.mixes)
        return finish(self, changes, picked, tf.gather(self.images, picked))


@dataclass(frozen=True)
class FeatureSource:
    """The features that a trial trains on, all of them in the memory of its device.

    Attributes:
        views: (n, features) float32 each; epoch e trains on view e mod views.
        validation: (n, features) float32: the view that is validated on.
        labels: As in Source.
        device: TensorFlow's name of the one in whose memory they are.
        augment: Of which only mixup counts here.
    """

    views: tuple[tf.Tensor, ...]
    validation: tf.Tensor
    labels: tf.Tensor
    seed: int
    device: str
    augment: Augment

    def lay_out_epoch(self, rows: tf.Tensor, epoch: int) -> tuple[tf.Tensor, Changes]:
        """The epoch's order of `rows` ((n,) int64), and its view, with what is mixed."""
        number = tf.constant(epoch, tf.int64)
        mixes = draw_mixes(self.augment, (1, 1), rows, self.labels.shape[0], (self.seed, number))
        return _in_random_order(rows, self.seed, number), Changes(self.views[epoch % len(self.views)], mixes)

    def batch_at(self, order: tf.Tensor, view: Changes, first: tf.Tensor, size: int) -> Batch:
        """(size, features) float32 and (size,) labels from position `first` of the order, and what Batch has else."""
        with tf.device(self.device):  # else all of them would be copied to a GPU that has no room for them
            picked = order[first : first + size]
            features, labels = tf.gather(view.numbers, picked), tf.gather(self.labels, picked)
            if view.mixes is None:
                return features, labels
            others, share = tf.gather(view.mixes.partners, picked), tf.gather(view.mixes.share, picked)
            features = features * share[:, None] + tf.gather(view.numbers, others) * (1 - share[:, None])
            return features, labels, tf.gather(self.labels, others), share


def training_batches(
    source: Source, rows: np.ndarray, batch_size: int, start_step: int | tf.Variable, epochs: int | tf.Variable
) -> tf.data.Dataset:
    """Batches of all epochs in one stream, from `start_step` on, which counts over all epochs.

    rows: positions of the training images. Variables, int64, are read whenever somebody begins to read the stream.
    Yields ((batch, height, width, 3) float32 in [0, 1], (batch,) labels), and what Batch has else; the last batch of an
    epoch may be smaller.
    """
    steps = math.ceil(len(rows) / batch_size)
    rows = tf.constant(rows, tf.int64)

    def start() -> tf.Tensor:
        return tf.convert_to_tensor(start_step, tf.int64)

    @_plain
    def all_epochs(_: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.range(start() // steps, tf.convert_to_tensor(epochs, tf.int64))

    @_plain
    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        first = tf.where(epoch == start() // steps, start() % steps, 0)
        order, changes = source.lay_out_epoch(rows, epoch)
        return _batches(source, order[first * batch_size :], batch_size, changes)

    return (
        tf.data.Dataset.range(1)
        .flat_map(all_epochs)
        .flat_map(one_epoch)
        .prefetch(4)
        .with_options(thread_options(source.threads))
    )


def validation_batches(source: Source, rows: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Batches of the images of `rows`, each once and in this order, as training_batches yields them."""
    return view_batches(source, rows, batch_size, VALIDATION_DRAW if source.augment.validation else None)


def view_batches(source: Source, rows: np.ndarray, batch_size: int, draw: int | None) -> tf.data.Dataset:
    """The same with the random changes that an epoch of the number `draw` has; None: as they are."""
    changes = None if draw is None else source.changes(draw, None)
    chain = _batches(source, tf.constant(rows, tf.int64), batch_size, changes)
    return chain.prefetch(2).with_options(thread_options(source.threads))


def _batches(source: Source, order: tf.Tensor, batch_size: int, changes: Changes | None) -> tf.data.Dataset:
    """Batches of the images in `order`, with these changes; None: as they are."""
    if changes and changes.mixes:
        order, batch_size = with_partners(order, changes.mixes), 2 * batch_size
    parallel = source.threads if source.threads > 1 else None  # batches stay in order either way
    if source.images is not None:

        @_plain
        def pick(step: tf.Tensor) -> Batch:
            picked = order[step * batch_size : (step + 1) * batch_size]
            return finish(source, changes, picked, tf.gather(source.images, picked))

        steps = -(-tf.size(order, tf.int64) // batch_size)
        return tf.data.Dataset.range(steps).map(pick, num_parallel_calls=parallel)
    encoded, size, resize = source.encoded, source.data.image_size, source.data.resize
    assert encoded is not None
    return (
        tf.data.Dataset.from_generator(encoded.chunks, args=(order,), output_signature=CHUNK)
        .prefetch(1)  # the next chunk is read while this one is decoded
        .unbatch()
        .map(_plain(lambda row, blob, turn: (row, decode(blob, turn, size, resize))), num_parallel_calls=parallel)
        .batch(batch_size)
        .map(_plain(lambda picked, images: finish(source, changes, picked, images)))
    )


def finish(source: Source, changes: Changes | None, picked: tf.Tensor, images: tf.Tensor) -> Batch:
    """The picked images, augmented and scaled, and their labels.

    picked: (n,) int64, their rows; with partners, where images are mixed. images: (n, height, width, 3), any type.
    """
    if changes is None:
        augmented = tf.cast(images, tf.float32)
    else:
        augmented = changed(images, tf.gather(changes.numbers, picked), source.augment)
        if changes.mixes:
            own, others = picked[::2], picked[1::2]
            _, level, box, share = (tf.gather(part, own) for part in changes.mixes)
            labels, other_labels = tf.gather(source.labels, own), tf.gather(source.labels, others)
            return mixed(augmented, level, box) * SCALE, labels, other_labels, share
    return augmented * SCALE, tf.gather(source.labels, picked)


def _shuffled(source: Source, rows: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
    """The rows in this epoch's order.

    Streamed shards cannot be read at random: their row groups are shuffled, and rows only within a window of groups.
    """
    order = _in_random_order(rows, source.seed, epoch)
    if source.encoded is None or not source.encoded.packed:
        return order
    group_of_row, group_bytes = source.encoded.group_of_row, source.encoded.group_bytes
    groups = _in_random_order(tf.range(len(group_bytes)), source.seed, epoch)
    window_of_group = tf.scatter_nd(
        groups[:, None],
        tf.cumsum(tf.gather(tf.constant(group_bytes), groups)) // (WINDOW_BYTES // 2),
        tf.constant([len(group_bytes)]),
    )
    windows = tf.gather(window_of_group, tf.gather(tf.constant(group_of_row), order))
    return tf.gather(order, tf.argsort(windows, stable=True))


def _in_random_order(values: tf.Tensor, seed: int | tf.Variable, epoch: tf.Tensor) -> tf.Tensor:
    # -1 - epoch: with the epoch itself, the order would use the same random bits as the draws
    return tf.random.experimental.stateless_shuffle(
        values, tf.stack([tf.convert_to_tensor(seed, tf.int64), -1 - epoch])
    )
