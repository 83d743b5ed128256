"""Optimizers: Keras' own, made so that nothing of a trial stays in its worker, and Adam in one kernel per variable."""

from typing import Any

import keras
import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer

from orchestrator.spec.sections import Train


def make_optimizer(settings: Train) -> keras.optimizers.Optimizer:
    """The optimizer that the settings name; with mixed_float16 it scales the loss too, or small gradients become 0.

    settings.learning_rate: a number.
    """
    assert not isinstance(settings.learning_rate, str)
    options: dict[str, Any] = {"use_ema": True, "ema_momentum": settings.ema} if settings.ema else {}
    options |= {} if settings.weight_decay is None else {"weight_decay": settings.weight_decay}
    options |= {"momentum": settings.momentum} if settings.momentum else {}
    options |= {"global_clipnorm": settings.clip_norm} if settings.clip_norm else {}
    if settings.optimizer == "adam":
        optimizer = FusedAdam(settings.learning_rate, **options)
    else:
        base = type(keras.optimizers.get(settings.optimizer))
        optimizer = type(base.__name__, (base, OneDevice), {})(settings.learning_rate, **options)
    return keras.optimizers.LossScaleOptimizer(optimizer) if settings.precision == "mixed_float16" else optimizer


def averages(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The moving average of each trainable variable, in their order; none where the settings ask for none."""
    inner = optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer
    return list(inner._model_variables_moving_average) if inner.use_ema else []


class OneDevice(keras.optimizers.Optimizer):
    """The base of Keras' optimizers, but it updates without tf.distribute, which keeps every graph it is traced in."""

    _backend_update_step = BaseOptimizer._backend_update_step
    _apply_weight_decay = BaseOptimizer._apply_weight_decay


class FusedAdam(keras.optimizers.Adam, OneDevice):
    """Keras' Adam with one kernel per variable instead of a dozen; the same slots, and the same result to rounding."""

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable and its two moments. gradient: of the variable's shape."""
        i = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, variable.dtype)
        beta_1, beta_2 = (tf.cast(beta, variable.dtype) for beta in (self.beta_1, self.beta_2))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.value.handle,
            m=self._momentums[i].value.handle,
            v=self._velocities[i].value.handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, variable.dtype),
        )
