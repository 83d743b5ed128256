"""Model: the small CNN, the head on features, and building a user's own. Loads Keras only when a model is built."""

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

from orchestrator.errors import BadInput
from orchestrator.spec.code import split_name


def small_cnn(input_shape: tuple[int, int, int], classes: int, dropout: float = 0.0, l2: float = 0.0) -> "keras.Model":
    """Two convolutions and two dense layers: the network of many a first notebook on cats and dogs.

    input_shape: (height, width, 3), pixels in [0, 1]. Returns a model with output (batch, 1) for two classes, the
    probability of the second, or (batch, classes). Every model function takes these two arguments and returns the same.
    """
    from keras import Input, Model, layers, regularizers

    image = Input(input_shape)
    x = image
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3)(x)
        x = layers.MaxPooling2D(2)(x)
        x = layers.ReLU()(x)  # after the pool: maximum and ReLU commute, and there is a quarter of the pixels left
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation="relu")(x)
    x = layers.Dropout(dropout)(x)
    units, activation = (1, "sigmoid") if classes == 2 else (classes, "softmax")
    x = layers.Dense(units, activation=activation, kernel_regularizer=regularizers.L2(l2), dtype="float32")(x)
    return Model(image, x)


def head(
    input_shape: tuple[int], classes: int, hidden: int = 0, dropout: float = 0.0, l2: float = 0.0
) -> "keras.Model":
    """What is trained on the features of a backbone: dropout, a hidden layer if `hidden` is not 0, and the classes.

    input_shape: (features,). hidden: units of the hidden layer. Returns a model as small_cnn does.
    """
    from keras import Input, Model, layers, regularizers

    features = Input(input_shape)
    x = layers.Dropout(dropout)(features)
    if hidden:
        x = layers.Dense(hidden, activation="relu", kernel_regularizer=regularizers.L2(l2))(x)
        x = layers.Dropout(dropout)(x)
    units, activation = (1, "sigmoid") if classes == 2 else (classes, "softmax")
    x = layers.Dense(units, activation=activation, kernel_regularizer=regularizers.L2(l2), dtype="float32")(x)
    return Model(features, x)


def build(name: str, input_shape: tuple[int, ...], classes: int, args: dict[str, Any]) -> "keras.Model":
    """Build the model `name`. Raises BadInput where there is no such function or its output has another shape."""
    module, function = split_name(name)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"model must name a function that exists, got {name}: {error}") from None
    model = found(input_shape=input_shape, classes=classes, **args)
    wanted = (None, 1 if classes == 2 else classes)
    got = tuple(getattr(model, "output_shape", None) or ())
    if got != wanted:
        raise BadInput(
            f"model {name} must build a Keras model with output shape {wanted} for {classes} classes, "
            f"got {got or type(model).__name__}: end it in a Dense layer of {wanted[1]}"
        )
    return model


def read_classes(name: str, base: type) -> dict[str, type]:
    """The classes below `base` that the module of the model `name` has, by name. Imports, and so runs, the module."""
    module = importlib.import_module(split_name(name)[0])
    return {key: found for key, found in vars(module).items() if isinstance(found, type) and issubclass(found, base)}


def class_probabilities(output: np.ndarray) -> np.ndarray:
    """A model's output as (images, classes) probabilities: for two classes the model gives only the second's."""
    return np.concatenate([1 - output, output], axis=1) if output.shape[1] == 1 else output


def predicted_classes(probabilities: np.ndarray) -> np.ndarray:
    """(images,) position of the class that the model says; of two, the second must be above one half."""
    return (probabilities[:, 1] > 0.5).astype(int) if probabilities.shape[1] == 2 else probabilities.argmax(axis=1)
