"""Dials: numbers of a model and its optimizer that graphs read from variables, so that one graph serves many values.

A graph with dials gives the same bits as one with the numbers in their place.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

_OF_OPTIMIZERS = ("momentum", "weight_decay", "global_clipnorm")


class Dial(float):
    """A number that is a float to Python, and to a graph what its variable holds.

    Keras and TensorFlow compare it, multiply tensors by it, subtract it from a number and divide a number by it.
    Whatever else is done with it takes the float, and does not follow the variable.
    """

    dtype = "float32"  # what Keras takes it for, among tensors
    _read: Callable[[], tf.Tensor]

    def __new__(cls, value: float, read: Callable[[], tf.Tensor]) -> "Dial":
        """read: gives the value in a graph, float64: as precise as Python's floats, until it becomes a tensor."""
        dial = super().__new__(cls, value)
        dial._read = read
        return dial

    def __tf_tensor__(self, dtype: tf.DType | None = None, name: str | None = None) -> tf.Tensor:
        return tf.cast(self._read(), dtype or tf.float32)

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        """A copy, as in the file of a model, is a float."""
        return float, (float(self),)

    def __rsub__(self, other: float) -> "Dial":
        return Dial(other - float(self), lambda: other - self._read())

    def __rtruediv__(self, other: float) -> "Dial":
        return Dial(other / float(self), lambda: other / self._read())


class Dials:
    """Those of a model and its optimizer.

    They take the place of the rate of Dropout between 0 and 1, the factor of L2, and the optimizer's momentum, weight
    decay and clip norm, where these are not 0.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        """To be made before anything is traced."""
        self._places = list(_places(model, optimizer))
        values = dial_values(model, optimizer)
        self._variables = [tf.Variable(value, dtype=tf.float64, trainable=False) for value in values]
        self.turn(values)

    def turn(self, values: Sequence[float]) -> None:
        """Set them to what dial_values gives for another model and optimizer, which are like these but for dials."""
        for (owner, name), variable, value in zip(self._places, self._variables, values, strict=True):
            variable.assign(value)
            setattr(owner, name, Dial(value, variable.read_value))


def dial_values(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> list[float]:
    """What the dials of these are set to, or would be."""
    return [float(getattr(owner, name)) for owner, name in _places(model, optimizer)]


@contextlib.contextmanager
def all_alike(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Iterator[list[str]]:
    """For a while, all that may become dials has one value, so that configs tell nothing of it. Gives their names."""
    places, values = list(_places(model, optimizer)), dial_values(model, optimizer)
    try:
        for owner, name in places:
            setattr(owner, name, 0.5)
        yield [f"{type(owner).__name__}.{name}" for owner, name in places]
    finally:
        for (owner, name), value in zip(places, values, strict=True):
            setattr(owner, name, value)


def _places(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Iterator[tuple[Any, str]]:
    """Whose attributes, and which."""
    for layer in model.layers:
        if type(layer) is keras.layers.Dropout and 0 < layer.rate < 1:  # 0 and 1 have graphs of their own in Keras
            yield layer, "rate"
        regularizers = [each for name, each in sorted(vars(layer).items()) if name.endswith("_regularizer")]
        yield from ((each, "l2") for each in regularizers if type(each) is keras.regularizers.L2)
    inner = optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer
    yield from ((inner, name) for name in _OF_OPTIMIZERS if getattr(inner, name, None))
