"""Model: the small CNN, the head on features, and building a user's own. Loads Keras only when a model is built."""

import importlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

from orchestrator.errors import BadInput
from orchestrator.spec.axes import Settings
from orchestrator.spec.code import local_imports, split_name


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


def build(settings: Settings, input_shape: tuple[int, ...], classes: int) -> "keras.Model":
    """Build the model that the settings name, as a functional one where it is not.

    Raises BadInput where there is no such function, what it returns takes or gives another shape, or is compiled for
    another training than that of the settings.
    """
    import keras

    from orchestrator.train.compiled import check_compiled

    name = settings.model
    module, function = split_name(name)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"model must name a function that exists, got {name}: {error}") from None
    keras.config.set_dtype_policy(settings.train.precision)
    try:
        model = found(input_shape=input_shape, classes=classes, **settings.model_args)
        if not isinstance(model, keras.Model):
            raise BadInput(
                f"model {name} must return a keras.Model, got {type(model).__name__}: end it in return MODEL"
            )
        check_compiled(model, name, settings.train)
        if not getattr(model, "output_shape", None):  # a subclass, or layers that do not know their input yet
            image = keras.Input(input_shape)
            model = keras.Model(image, model(image))
    finally:
        keras.config.set_dtype_policy("float32")
    taken = tuple(model.input_shape)
    if len(taken) != len(input_shape) + 1 or any(
        a not in (b, None) for a, b in zip(taken[1:], input_shape, strict=True)
    ):
        raise BadInput(
            f"model {name} must take input of shape {(None, *input_shape)}, got {taken}: begin it with "
            f"keras.Input(input_shape)"
        )
    wanted = (None, 1 if classes == 2 else classes)
    if (got := tuple(model.output_shape)) != wanted:
        raise BadInput(
            f"model {name} must build a Keras model with output shape {wanted} for {classes} classes, got {got}: "
            f"{last_layer(classes)}"
        )
    return model


def last_layer(classes: int) -> str:
    """What a person should write, where the output of a model is not what it must be."""
    units, activation = (1, "sigmoid") if classes == 2 else (classes, "softmax")
    return f'end it in keras.layers.Dense({units}, activation="{activation}")'


def own_objects(name: str) -> dict[str, Any]:
    """Classes and functions that the module of the model `name`, and those of the user's that it imports, have.

    By their names, those of the module itself first. Imports, and so runs, the module.
    """
    module = importlib.import_module(split_name(name)[0])
    modules = [*(sys.modules[each] for each in local_imports(name) if each in sys.modules), module]
    return {
        key: found
        for each in modules
        for key, found in vars(each).items()
        if isinstance(found, type) or inspect.isfunction(found)
    }


def class_probabilities(output: np.ndarray) -> np.ndarray:
    """A model's output as (images, classes) probabilities: for two classes the model gives only the second's."""
    return np.concatenate([1 - output, output], axis=1) if output.shape[1] == 1 else output


def predicted_classes(probabilities: np.ndarray) -> np.ndarray:
    """(images,) position of the class that the model says; of two, the second must be above one half."""
    return (probabilities[:, 1] > 0.5).astype(int) if probabilities.shape[1] == 2 else probabilities.argmax(axis=1)
