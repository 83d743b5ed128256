"""Compiled: how a user's function compiled its model. Trials train as the spec says, so both must be the same."""

import math
from typing import Any, get_args

import keras

from orchestrator.errors import BadInput
from orchestrator.spec.sections import Train

_OPTIMIZERS = get_args(Train.model_fields["optimizer"].annotation)
_LOSSES = (
    keras.losses.BinaryCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
)
_FUNCTIONS = (
    keras.losses.binary_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
)
_ACCURACIES = ("acc", "accuracy", "BinaryAccuracy", "CategoricalAccuracy", "SparseCategoricalAccuracy")
_STEPS = ("train_step", "test_step", "compute_loss")
_REMOVE = "leave model.compile out"


def check_compiled(model: keras.Model, name: str, train: Train) -> None:
    """Raise BadInput where the model is made to be trained otherwise than its trials are.

    Where the spec itself names the optimizer and the rate, these count, whatever is compiled.
    """
    if own := [step for step in _STEPS if getattr(type(model), step) is not getattr(keras.Model, step)]:
        raise BadInput(f"model {name} must not have a {own[0]} of its own, which no trial calls: train without it")
    if not model.compiled:
        return
    config = model.get_compile_config()
    lost = {
        **_optimizer(model.optimizer, train),
        **{f"the loss {what}": _REMOVE for what in _losses(model.loss)},
        **{
            f"the metric {what}": _REMOVE
            for what in map(_name, _listed(config.get("metrics")))
            if what not in _ACCURACIES
        },
        **{key: _REMOVE for key in ("loss_weights", "weighted_metrics") if config.get(key)},
    }
    if lost:
        cures = ", ".join(dict.fromkeys(lost.values()))
        raise BadInput(
            f"model {name} must be compiled as its trials train, or not at all, got {', '.join(lost)}: {cures}"
        )


def _optimizer(optimizer: keras.optimizers.Optimizer, train: Train) -> dict[str, str]:
    """What of the optimizer would be lost -> what to do."""
    said = train.model_fields_set
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    if {"optimizer", "learning_rate"} <= said:
        return {}
    kind, lost = type(optimizer).__name__, dict[str, str]()
    if kind.lower() == train.optimizer:
        cure = "name train.optimizer and train.learning_rate in the spec, and the rest is as Keras has it"
        lost |= dict.fromkeys(_differences(optimizer), cure)
    elif "optimizer" not in said:
        known = kind.lower() in _OPTIMIZERS
        cure = f"set train.optimizer to {kind.lower() if known else 'one of ' + ', '.join(_OPTIMIZERS)}"
        lost[f"the optimizer {kind}"] = cure
    if "learning_rate" not in said:
        rate = optimizer.get_config()["learning_rate"]
        if isinstance(rate, dict):
            lost[f"the schedule {rate['class_name']}"] = "set train.learning_rate and train.schedule"
        elif not math.isclose(rate, float(train.learning_rate), rel_tol=1e-6):  # it is float32 here
            lost[f"the learning rate {rate:.6g}"] = f"set train.learning_rate to {rate:.6g}"
    return lost


def _losses(losses: Any) -> list[str]:
    """Those that are not cross-entropy of probabilities as it is, with what is special about them."""
    found = []
    for each in _listed(losses):
        loss = keras.losses.get(each)
        if type(loss) in _LOSSES:
            found += [f"{type(loss).__name__} with {what}" for what in _differences(loss)]
        elif loss not in _FUNCTIONS:
            found.append(getattr(loss, "__name__", type(loss).__name__))
    return found


def _differences(made: Any) -> list[str]:
    """What an object of Keras has been made with that is not the default, such as momentum=0.9."""
    default = type(made)().get_config()
    return [f"{k}={v}" for k, v in made.get_config().items() if k not in ("name", "learning_rate") and v != default[k]]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _name(metric: Any) -> str:
    """Of a metric as it stands in a compile config."""
    if isinstance(metric, dict):
        return str(metric["config"] if metric["class_name"] == "function" else metric["class_name"])
    return str(metric)
