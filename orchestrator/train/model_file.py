"""Model file: a Keras model as the bytes of a .keras file and back, with no code run from the file."""

import hashlib
import re
from typing import Any

import keras
import numpy as np

from orchestrator.errors import BadInput
from orchestrator.scratch import scratch
from orchestrator.train.model import own_objects

# What Keras raises for a file that is none of its own, or does not fit
UNLOADABLE = (TypeError, ValueError, KeyError, IndexError, AttributeError, OSError, RuntimeError, ImportError)


def to_bytes(model: keras.Model) -> bytes:
    """The model as a .keras file. Raises what Keras raises where it cannot save it."""
    with scratch() as folder:
        path = folder / "model.keras"
        model.save(path)
        return path.read_bytes()


def load(data: bytes, name: str, model: str) -> keras.Model:
    """A .keras file -> the model, in Keras' safe mode: nothing in the file is run.

    name: what to call it in errors. model: the model function's name in the spec. Classes and functions that Keras does
    not know are looked for in that function's module, and in those of the user's that it imports. Raises BadInput.
    """
    try:
        return _load(data, {})
    except UNLOADABLE as first:
        error: Exception = first
    if ":" in model:
        try:
            return _load(data, own_objects(model))
        except UNLOADABLE as second:
            error = second
    raise BadInput(f"{name} must be a model that Keras can load: {_why_unloadable(error, model)}")


def _why_unloadable(error: Exception, model: str) -> str:
    """What is wrong, and what to do about it."""
    text = str(error)
    if "lambda" in text.lower() or "{'value': ['4w" in text:  # so begins the code of a function, as Keras writes it
        return (
            "it holds a lambda or a Lambda layer, that is code, and no code is run from a file: make it a function "
            "with a name, or a layer of a class of your own, and train it anew"
        )
    if isinstance(error, ImportError):
        return f"{error}: call it in the folder where that lies, or put that folder into PYTHONPATH"
    unknown = re.search(r"Could not locate \w+ '(.+?)'", text)
    what = f"{unknown[1]} is not known" if unknown else first_line(text.rpartition("Exception encountered: ")[2])[:300]
    return (
        f"{what}; what is your own must be defined at the top of the module {model.partition(':')[0]}, or of one in "
        f"your folder that it imports, found as in training, and must take in __init__ what its get_config gives"
    )


def _load(data: bytes, custom: dict[str, Any]) -> keras.Model:
    with scratch() as folder:
        path = folder / "model.keras"
        path.write_bytes(data)
        return keras.saving.load_model(path, custom_objects=custom, compile=False, safe_mode=True)


def first_line(error: Exception | str) -> str:
    """The first line of what an error says, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def weights_digest(model: keras.Model) -> str:
    """SHA-256 over every weight, in the model's order."""
    whole = hashlib.sha256()
    for weight in model.weights:
        whole.update(np.ascontiguousarray(weight).tobytes())
    return whole.hexdigest()
