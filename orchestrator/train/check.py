"""Check: a model of the user's own is built, saved, loaded and asked once before anything is trained with it."""

import keras
import numpy as np

from orchestrator.errors import BadInput
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import KeepModels
from orchestrator.spec.axes import Settings
from orchestrator.spec.code import BUILT_IN
from orchestrator.train.inputs import feature_width
from orchestrator.train.model import build, last_layer
from orchestrator.train.model_file import UNLOADABLE, first_line, load, to_bytes

_CURE = "Mend it (layers of your own need get_config), or keep no models: --export-models none"
_ROUNDING = 0.02  # how far half precision may be off
_checked: set[tuple[object, ...]] = set()


def check_model(settings: Settings, context: WorkerContext) -> None:
    """Raise BadInput where the model says no probabilities, or is not the same once it is saved and loaded.

    Done in each process once for each choice of texts and switches among its arguments, with a model of its own, so
    that the trial's is built as if there were no check. Numbers count by whether they are 0. Raises what building does.
    """
    name, keep = settings.model, context.keep is not KeepModels.none
    choices = {key: value if isinstance(value, str) else bool(value) for key, value in settings.model_args.items()}
    key = (name, keep, settings.backbone is None, settings.train.precision, *sorted(choices.items()))
    if name in BUILT_IN or key in _checked:
        return
    shape = (feature_width(context, settings),) if settings.backbone else (*settings.data.image_size, 3)
    classes = len(context.index.classes)
    try:
        model = build(settings, shape, classes)
        inputs = np.random.default_rng(0).random((4, *shape), np.float32)
        if keep:
            _check_file(model, name, inputs)
        if not _says_probabilities(model, inputs):
            raise BadInput(
                f"model {name} must give probabilities of {classes} classes, and gives other numbers: "
                f"{last_layer(classes)}"
            )
    finally:
        keras.backend.clear_session()
    _checked.add(key)


def _check_file(model: keras.Model, name: str, inputs: np.ndarray) -> None:
    """Raise BadInput where the model cannot be saved and loaded, or says something else then."""
    try:
        data = to_bytes(model)
    except UNLOADABLE as error:
        raise BadInput(f"model {name} must be one that Keras can save: {first_line(error)} {_CURE}") from None
    registered = keras.saving.get_custom_objects()
    for key in [key for key, found in registered.items() if "<locals>" in found.__qualname__]:
        del registered[key]  # a class made in a function, which no other process would have
    try:
        loaded = load(data, f"model {name}, saved,", name)
    except BadInput as error:
        raise BadInput(f"{error}; or keep no models: --export-models none") from None
    before, after, again = (_ask(each, inputs) for each in (model, loaded, model))
    if _alike(before, again) and not _alike(before, after):  # what is drawn anew each time cannot be compared
        raise BadInput(
            f"model {name} must say the same once it is saved and loaded, and does not: get_config of its layers must "
            f"give all that __init__ takes, and their weights must be made with add_weight. {_CURE}"
        )


def _says_probabilities(model: keras.Model, inputs: np.ndarray) -> bool:
    """Whether outputs are at least 0, at most 1, and add up to 1 where there are several. Changes the weights."""
    said = _ask(model, inputs)
    if np.any(abs(said - 0.5) > 0.5 + _ROUNDING):  # which NaN is not: a trial says when it diverges
        return False
    if said.shape[1] > 1:
        return not np.any(abs(said.sum(axis=1) - 1) > _ROUNDING)
    for variable in model.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    said = _ask(model, inputs)  # 0.5 from a sigmoid, 0 without an activation, 1 from a softmax over one unit
    return not np.any((said == 0) | (said == 1))


def _ask(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """(images, outputs) float32: what the model says of these inputs."""
    return np.asarray(keras.ops.cast(model(inputs, training=False), "float32"))


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return np.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True)
