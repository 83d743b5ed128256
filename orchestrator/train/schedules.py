"""Schedules: the learning rate of every step, and steps that train with it."""

import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from orchestrator.plans.trials import Refit
from orchestrator.spec.schedules import stable_epochs
from orchestrator.spec.sections import Train
from orchestrator.train.steps import Step, plain

_MIN_DELTA = 1e-4  # by how much val_loss must be lower, as in Keras


def rates(train: Train, steps: int, epochs: int, val_losses: Sequence[float]) -> np.ndarray:
    """The learning rates of one epoch, (steps,) float32: those of Keras' schedule or callback of that kind.

    epochs: how many the trial has. val_losses: of the epochs that are over.
    """
    over = len(val_losses)
    position = np.arange(over * steps, (over + 1) * steps, dtype=np.float64)
    factors = np.ones(steps)
    warmup = train.warmup_epochs * steps if train.schedule in ("warmup", "cosine", "wsd") else 0
    if warmup:
        factors *= np.minimum(position / warmup, 1)
    match train.schedule:
        case "step":
            factors *= train.decay_factor ** (over // train.step_epochs)
        case "cosine":
            falling = np.clip((position - warmup) / max(1, epochs * steps - warmup), 0, 1)
            factors *= 0.5 * (1 + np.cos(math.pi * falling))
        case "plateau":
            return np.full(steps, _after_plateaus(train, val_losses), np.float32)
        case "wsd":
            stable = stable_epochs(train, epochs) * steps
            factors *= 1 - np.clip((position - stable) / (epochs * steps - stable), 0, 1)
    return (float(train.learning_rate) * factors).astype(np.float32)


def again_from(train: Train, refit: Refit, first: int, count: int) -> np.ndarray:
    """The rates of so many steps of a refit, (count,) float32: step by step those that the winner had."""
    epochs = range(first // refit.steps_per_epoch, -(-min(first + count, refit.steps) // refit.steps_per_epoch))
    found = [rates(train, refit.steps_per_epoch, refit.epochs, refit.val_losses[:epoch]) for epoch in epochs]
    own = np.concatenate(found)[first - epochs[0] * refit.steps_per_epoch :][:count]
    return np.pad(own, (0, count - len(own)), "edge")  # what lies behind the last step is not taken


def _after_plateaus(train: Train, val_losses: Sequence[float]) -> np.float32:
    """The rate once Keras' ReduceLROnPlateau has seen these."""
    rate, best, waited = np.float32(train.learning_rate), math.inf, 0
    for loss in val_losses:
        waited += 1
        if loss + _MIN_DELTA < best:
            best, waited = loss, 0
        elif waited >= train.plateau_patience:
            rate, waited = np.float32(float(rate) * train.decay_factor), 0
    return rate


def with_rates(
    step: Step, optimizer: keras.optimizers.Optimizer, of_epoch: tf.Variable, sums: tf.Variable, batch_size: int
) -> Step:
    """The step, taken with its own rate. of_epoch: what `rates` gives. sums: over the epoch so far, see Sums."""

    @plain
    def take(*batch: tf.Tensor) -> None:
        taken = tf.cast(sums[-1], tf.int64) // batch_size  # only an epoch's last batch is smaller
        optimizer.learning_rate.assign(of_epoch[taken])
        step(*batch)

    return take
