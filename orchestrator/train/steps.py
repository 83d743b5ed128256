"""Steps: one batch through a model: a training step, or what the model says of it, and the sums of both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

Step = Callable[..., None]  # takes the parts of a Batch
# only loops over steps need autograph: converting all that they call took 0.4 s of a worker's first trial
plain: Callable[..., Any] = tf.autograph.experimental.do_not_convert


class Sums(NamedTuple):
    """Sums over images: of their objectives and losses, as metrics.METRICS has them; of the correct ones; of all."""

    objective: float
    loss: float
    correct: float
    images: float


def training_step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    sums: tf.Variable,
    weights: np.ndarray | None = None,
    smoothing: float = 0.0,
) -> Step:
    """Trains the model on a batch, and adds what it said of the batch to the sums.

    weights: (classes,) float32, what the loss of an image of each class counts for in the objective; None: all alike.
    smoothing: share of each label that goes to all classes alike, in the objective.
    """
    score, variables = _score_of(model), model.trainable_variables

    @plain
    def judged(labels: tf.Tensor, output: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """For each image: its loss, what is made smaller, and whether the output is right."""
        losses, correct = score(labels, output)
        trained = _smooth(losses, output, smoothing) if smoothing else losses
        return losses, trained if weights is None else trained * _weight_of(labels, weights), correct

    @plain
    def step(images: tf.Tensor, labels: tf.Tensor, *mixed: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            output = tf.cast(model(images, training=True), tf.float32)
            losses, trained, correct = judged(labels, output)
            if mixed:
                others, share = mixed
                *parts, others_correct = judged(others, output)
                losses, trained = (
                    share * own + (1 - share) * other for own, other in zip((losses, trained), parts, strict=True)
                )
                # of the label that counts for more
                correct = tf.where(tf.reshape(share < 0.5, tf.shape(correct)), others_correct, correct)
            loss = tf.reduce_mean(losses)
            objective = (tf.reduce_mean(trained) if smoothing or weights is not None else loss) + _penalty(model)
            scaled = optimizer.scale_loss(objective)
        optimizer.apply(tape.gradient(scaled, variables), variables)
        count = tf.cast(tf.shape(images)[0], tf.float64)
        sums.assign_add(_sums(tf.cast(objective, tf.float64) * count, tf.cast(loss, tf.float64) * count, correct))

    return step


def judging(model: keras.Model) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """What the model says of a batch, one row per image, and the batch's sums."""
    score = _score_of(model)

    @plain
    def judge(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        output = tf.cast(model(images, training=False), tf.float32)
        losses, correct = score(labels, output)
        loss = tf.cast(tf.reduce_sum(losses), tf.float64)
        penalty = tf.cast(_penalty(model), tf.float64) * tf.cast(tf.size(correct), tf.float64)
        return output, _sums(loss + penalty, loss, correct)

    return judge


def no_sums() -> tf.Tensor:
    return tf.zeros(len(Sums._fields), tf.float64)


def _sums(objective: tf.Tensor, loss: tf.Tensor, correct: tf.Tensor) -> tf.Tensor:
    """Sums of one batch, (4,) float64. objective, loss: their sums, float64. correct: 1.0 or 0.0 for each image."""
    return tf.stack(
        [objective, loss, tf.cast(tf.reduce_sum(correct), tf.float64), tf.cast(tf.size(correct), tf.float64)]
    )


def _weight_of(labels: tf.Tensor, weights: np.ndarray) -> tf.Tensor:
    """(batch,) float32. labels: as the model's loss takes them. weights: (classes,) float32."""
    return tf.gather(tf.constant(weights), tf.cast(tf.reshape(labels, [-1]), tf.int32))


def _smooth(losses: tf.Tensor, p: tf.Tensor, smoothing: float) -> tf.Tensor:
    """(batch,) losses of smoothed labels: as cross-entropy is linear in labels, part of it is that of a uniform one."""
    if p.shape[1] == 1:
        uniform = keras.losses.binary_crossentropy(tf.fill(tf.shape(p), 0.5), p)
    else:
        uniform = keras.losses.categorical_crossentropy(tf.fill(tf.shape(p), 1 / p.shape[1]), p)
    return (1 - smoothing) * losses + smoothing * uniform


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
