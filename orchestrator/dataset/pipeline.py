"""Pipeline: cached images -> shuffled, augmented batches. tf.data, one chain read top to bottom.

Stateless: what a batch holds depends on (seed, epoch, example) alone, never on what was read before it, so a trial can
stop anywhere and go on exactly there.
"""

import math

import numpy as np
import tensorflow as tf

from orchestrator.dataset.stream import thread_options
from orchestrator.spec import Augment

_VALIDATION_DRAW = 2**31 - 1  # an "epoch" of its own, so that augmented validation is the same in every epoch


def shared_tensor(images: np.ndarray) -> tf.Tensor:
    """The array as a CPU tensor on the same memory: all trials of a node read one copy."""
    return tf.experimental.dlpack.from_dlpack(np.asarray(images).__dlpack__())


def training_batches(
    images: tf.Tensor,
    labels: tf.Tensor,
    rows: np.ndarray,
    augment: Augment,
    batch_size: int,
    seed: int,
    start_step: int,
    epochs: int,
    threads: int,
) -> tf.data.Dataset:
    """Batches of all epochs in one stream, from `start_step` (counted over all epochs) on.

    images: (n, height, width, 3) uint8. labels: (n,) any. rows: positions of the training images.
    Yields ((batch, height, width, 3) float32 in [0, 1], (batch,) labels); each epoch ends in what remains of it.
    """
    steps = math.ceil(len(rows) / batch_size)
    rows = tf.constant(rows, tf.int64)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(rows, key)
        draws = _draws(images, key)
        first = tf.where(epoch == start_step // steps, tf.constant(start_step % steps, tf.int64), 0)
        return tf.data.Dataset.range(first, steps).map(
            lambda step: _batch(order[step * batch_size : (step + 1) * batch_size], draws)
        )

    def _batch(picked: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return transform(_floats(images, picked), tf.gather(draws, picked), augment), tf.gather(labels, picked)

    return (
        tf.data.Dataset.range(start_step // steps, epochs)
        .flat_map(one_epoch)
        .prefetch(4)
        .with_options(thread_options(threads))
    )


def validation_batch(images: tf.Tensor, picked: tf.Tensor, augment: Augment, seed: int) -> tf.Tensor:
    """Images of one large validation batch: (batch, height, width, 3) float32 in [0, 1]."""
    batch = _floats(images, picked)
    if not augment.validation:
        return batch
    return transform(batch, tf.gather(_draws(images, tf.constant([seed, _VALIDATION_DRAW], tf.int64)), picked), augment)


def transform(batch: tf.Tensor, draws: tf.Tensor, augment: Augment) -> tf.Tensor:
    """Rotate, shift and flip each image as its own draws say, in one bilinear resampling.

    batch: (batch, height, width, 3) float32. draws: (batch, 4) in [0, 1): rotation, shift down, shift across, flip.
    The ranges are those of Keras' ImageDataGenerator: +-rotation_deg, +-shift of the side, every second image flipped.
    """
    if not (augment.rotation_deg or augment.width_shift or augment.height_shift or augment.horizontal_flip):
        return batch
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=batch,
        transforms=_matrices(draws, batch.shape[1], batch.shape[2], augment),
        output_shape=batch.shape[1:3],
        interpolation="BILINEAR",
        fill_mode=augment.fill.upper(),
        fill_value=0.0,
    )


def _matrices(draws: tf.Tensor, height: int, width: int, augment: Augment) -> tf.Tensor:
    """(batch, 8): where each output pixel (column, row) is read from; flip, rotation and shift in one."""
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
    return tf.stack(
        [cos * mirror, sin, shift_x + flipped_x, -sin * mirror, cos, shift_y + flipped_y, zero, zero], axis=1
    )


def _draws(images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """(n, 4) float32 in [0, 1), the same for an example whatever the batch or the machine."""
    return tf.random.stateless_uniform([images.shape[0], 4], key)


def _floats(images: tf.Tensor, picked: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.gather(images, picked), tf.float32) * (1 / 255)
