"""Pipeline: cached or streamed images -> shuffled, augmented batches. One chain of tf.data, to be read top to bottom.

Stateless: the content of a batch depends only on (seed, epoch, example), never on what was read before. So a trial can
stop anywhere and resume exactly there.
"""

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from orchestrator.data.stream import CHUNK, WINDOW_BYTES, Encoded, decode, thread_options
from orchestrator.spec.backbones import VALIDATION_DRAW
from orchestrator.spec.sections import Augment, Data

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
        threads: How many threads decode and augment.
    """

    images: tf.Tensor | None
    labels: tf.Tensor
    data: Data
    augment: Augment
    seed: int
    threads: int
    encoded: Encoded | None = None

    def lay_out_epoch(self, rows: tf.Tensor, epoch: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The epoch's order of `rows` ((n,) int64), and the matrices that augment the images ((images, 6))."""
        epoch = tf.cast(epoch, tf.int64)
        matrices = _matrices(_draws(self, epoch), *self.data.image_size, self.augment)
        return _shuffled(self, rows, epoch), matrices

    def batch_at(
        self, order: tf.Tensor, matrices: tf.Tensor, first: tf.Tensor, size: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What training_batches yields for `size` images from position `first` of the order, on the caller's device."""
        picked = order[first : first + size]
        return _finish(self, matrices, picked, tf.gather(self.images, picked))


@dataclass(frozen=True)
class FeatureSource:
    """The features that a trial trains on, all of them in the memory of its device.

    Attributes:
        views: (n, features) float32 each; epoch e trains on view e mod views.
        validation: (n, features) float32: the view that is validated on.
        labels: As in Source.
        device: TensorFlow's name of the one in whose memory they are.
    """

    views: tuple[tf.Tensor, ...]
    validation: tf.Tensor
    labels: tf.Tensor
    seed: int
    device: str

    def lay_out_epoch(self, rows: tf.Tensor, epoch: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The epoch's order of `rows` ((n,) int64), and its view."""
        return _in_random_order(rows, self.seed, tf.constant(epoch, tf.int64)), self.views[epoch % len(self.views)]

    def batch_at(self, order: tf.Tensor, view: tf.Tensor, first: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        """(size, features) float32 and (size,) labels from position `first` of the order."""
        with tf.device(self.device):  # else all of them would be copied to a GPU that has no room for them
            picked = order[first : first + size]
            return tf.gather(view, picked), tf.gather(self.labels, picked)


def training_batches(
    source: Source, rows: np.ndarray, batch_size: int, start_step: int, epochs: int
) -> tf.data.Dataset:
    """Batches of all epochs in one stream, from `start_step` on, which counts over all epochs.

    rows: positions of the training images.
    Yields ((batch, height, width, 3) float32 in [0, 1], (batch,) labels); the last batch of an epoch may be smaller.
    """
    steps = math.ceil(len(rows) / batch_size)
    rows = tf.constant(rows, tf.int64)

    @_plain
    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        first = tf.where(epoch == start_step // steps, tf.constant(start_step % steps, tf.int64), 0)
        order, matrices = source.lay_out_epoch(rows, epoch)
        return _batches(source, order[first * batch_size :], batch_size, matrices)

    return (
        tf.data.Dataset.range(start_step // steps, epochs)
        .flat_map(one_epoch)
        .prefetch(4)
        .with_options(thread_options(source.threads))
    )


def validation_batches(source: Source, rows: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Batches of the images of `rows`, each once and in this order, as training_batches yields them."""
    return view_batches(source, rows, batch_size, VALIDATION_DRAW if source.augment.validation else None)


def view_batches(source: Source, rows: np.ndarray, batch_size: int, draw: int | None) -> tf.data.Dataset:
    """The same with the random changes that an epoch of the number `draw` has; None: as they are."""
    matrices = None
    if draw is not None:
        matrices = _matrices(_draws(source, draw), *source.data.image_size, source.augment)
    chain = _batches(source, tf.constant(rows, tf.int64), batch_size, matrices)
    return chain.prefetch(2).with_options(thread_options(source.threads))


def _batches(source: Source, order: tf.Tensor, batch_size: int, matrices: tf.Tensor | None) -> tf.data.Dataset:
    """Batches of the images in `order`, augmented by the matrices ((n, 6), one for every image of the source)."""
    parallel = source.threads if source.threads > 1 else None  # batches stay in order either way
    if source.images is not None:

        @_plain
        def pick(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            picked = order[step * batch_size : (step + 1) * batch_size]
            return _finish(source, matrices, picked, tf.gather(source.images, picked))

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
        .map(_plain(lambda picked, images: _finish(source, matrices, picked, images)))
    )


def _finish(
    source: Source, matrices: tf.Tensor | None, picked: tf.Tensor, images: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The picked images, augmented and scaled, and their labels."""
    if matrices is None:
        augmented = tf.cast(images, tf.float32)
    else:
        augmented = _resample(images, tf.gather(matrices, picked), source.augment)
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


def _in_random_order(values: tf.Tensor, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    # -1 - epoch: with the epoch itself, the order would use the same random bits as the draws
    return tf.random.experimental.stateless_shuffle(values, tf.stack([tf.constant(seed, tf.int64), -1 - epoch]))


def transform(batch: tf.Tensor, draws: tf.Tensor, augment: Augment) -> tf.Tensor:
    """Rotate, shift and flip each image by its own draws, in one bilinear resampling.

    batch: (batch, height, width, 3), any type. Returns float32 of the same scale.
    draws: (batch, 4) in [0, 1): rotation, shift down, shift across, flip.
    Ranges as in Keras' ImageDataGenerator: +-rotation_deg, +-shift of the side, a flip with probability one half.
    """
    return _resample(batch, _matrices(draws, batch.shape[1], batch.shape[2], augment), augment)


def _resample(batch: tf.Tensor, matrices: tf.Tensor, augment: Augment) -> tf.Tensor:
    if augment.rotation_deg or augment.width_shift or augment.height_shift or augment.horizontal_flip:
        return _bilinear(batch, matrices, augment.fill)
    return tf.cast(batch, tf.float32)


# ImageProjectiveTransformV3 takes four times as long: it computes each coordinate again for every channel
@tf.function(jit_compile=True, autograph=False)
def _bilinear(batch: tf.Tensor, matrices: tf.Tensor, fill: str) -> tf.Tensor:
    height, width = batch.shape[1:3]
    y, x = tf.meshgrid(tf.range(height, dtype=tf.float32), tf.range(width, dtype=tf.float32), indexing="ij")
    a, b, c, d, e, f = (matrices[:, i, None, None] for i in range(6))
    source_x, source_y = a * x + b * y + c, d * x + e * y + f
    left, top = tf.floor(source_x), tf.floor(source_y)
    across, down = (source_x - left)[..., None], (source_y - top)[..., None]
    column, row = tf.cast(left, tf.int32), tf.cast(top, tf.int32)
    pixels = tf.reshape(batch, [-1, batch.shape[3]])
    first = tf.range(tf.shape(batch)[0])[:, None, None] * (height * width)

    def at(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        row_inside, column_inside = _inside(row, height, fill), _inside(column, width, fill)
        values = tf.cast(tf.gather(pixels, first + row_inside * width + column_inside), tf.float32)
        if fill == "constant":
            values *= tf.cast((row == row_inside) & (column == column_inside), tf.float32)[..., None]
        return values

    upper = at(row, column) * (1 - across) + at(row, column + 1) * across
    lower = at(row + 1, column) * (1 - across) + at(row + 1, column + 1) * across
    return upper * (1 - down) + lower * down


def _inside(index: tf.Tensor, side: int, fill: str) -> tf.Tensor:
    if fill == "wrap":
        return index % side
    if fill == "reflect":  # d c b a | a b c d | d c b a
        index %= 2 * side
        return tf.minimum(index, 2 * side - 1 - index)
    return tf.clip_by_value(index, 0, side - 1)


def _matrices(draws: tf.Tensor, height: int, width: int, augment: Augment) -> tf.Tensor:
    """(batch, 6): where each output pixel (column, row) is read from; flip, rotation and shift combined."""
    angle, down, across, flip = tf.unstack(draws, axis=1)
    angle = (2 * angle - 1) * (augment.rotation_deg * math.pi / 180)
    down = (2 * down - 1) * (augment.height_shift * height)
    across = (2 * across - 1) * (augment.width_shift * width)
    mirror = tf.where(flip < 0.5, -1.0, 1.0) if augment.horizontal_flip else tf.ones_like(flip)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    cos, sin = tf.cos(angle), tf.sin(angle)
    # source = R (output - middle + shift) + middle, and a flip reads the output's columns from the other side
    shift_x = sin * (down - middle_y) + cos * (across - middle_x) + middle_x
    shift_y = cos * (down - middle_y) - sin * (across - middle_x) + middle_y
    zero = tf.zeros_like(angle)
    flipped_x = tf.where(mirror < 0, cos * (width - 1), zero)
    flipped_y = tf.where(mirror < 0, -sin * (width - 1), zero)
    return tf.stack([cos * mirror, sin, shift_x + flipped_x, -sin * mirror, cos, shift_y + flipped_y], axis=1)


def _draws(source: Source, epoch: int | tf.Tensor) -> tf.Tensor:
    """(n, 4) float32 in [0, 1), the same for an example whatever its batch or the machine."""
    key = tf.stack([tf.constant(source.seed, tf.int64), epoch])
    return tf.random.stateless_uniform([source.labels.shape[0], 4], key)
