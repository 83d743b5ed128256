"""Model file: a Keras model as the bytes of a .keras file and back, with no code run from the file."""

import hashlib

import keras
import numpy as np

from orchestrator.errors import BadInput
from orchestrator.scratch import scratch
from orchestrator.train.model import read_classes

# What Keras raises for a file that is none of its own, or does not fit
UNLOADABLE = (TypeError, ValueError, KeyError, IndexError, AttributeError, OSError, RuntimeError, ImportError)
_checked: set[str] = set()


def to_bytes(model: keras.Model) -> bytes:
    """The model as a .keras file. Raises what Keras raises where it cannot save it."""
    with scratch() as folder:
        path = folder / "model.keras"
        model.save(path)
        return path.read_bytes()


def check_savable(model: keras.Model, name: str) -> None:
    """Raises BadInput where Keras cannot save the model `name`. Tried once in each process."""
    if name in _checked:
        return
    try:
        to_bytes(model)
    except (NotImplementedError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise BadInput(
            f"model {name} must be one that Keras can save: {first_line(error)} "
            f"Mend it (layers of your own need get_config), or keep no models: --export-models none"
        ) from None
    _checked.add(name)


def load(data: bytes, name: str, model: str) -> keras.Model:
    """A .keras file -> the model, in Keras' safe mode: nothing in the file is run.

    name: what to call it in errors. model: the model function's name in the spec. Where the file has layers that Keras
    does not know, they are looked for in that function's module. Raises BadInput.
    """
    try:
        return _load(data, {})
    except UNLOADABLE as first:
        error: Exception = first
    if "Lambda" in str(error):
        raise BadInput(
            f"{name} holds a Lambda layer, that is code, and no code is run from a file: build the model of other "
            f"layers, and train it anew"
        )
    if ":" in model:
        try:
            return _load(data, read_classes(model, keras.layers.Layer))
        except UNLOADABLE as second:
            error = second
    raise BadInput(
        f"{name} must be a model that Keras can load: {first_line(error)[:300]}; layers of your "
        f"own must be found in the module {model.partition(':')[0]}, in the current folder as in training"
    )


def _load(data: bytes, custom: dict[str, type]) -> keras.Model:
    with scratch() as folder:
        path = folder / "model.keras"
        path.write_bytes(data)
        return keras.saving.load_model(path, custom_objects=custom, compile=False, safe_mode=True)


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def weights_digest(model: keras.Model) -> str:
    """SHA-256 over every weight, in the model's order."""
    whole = hashlib.sha256()
    for weight in model.weights:
        whole.update(np.ascontiguousarray(weight).tobytes())
    return whole.hexdigest()
