"""Backbone: where the weights of a spec's backbones are, and what their files say of them. Needs no Keras."""

import difflib
import hashlib
import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from orchestrator.data.unpacking import read_config
from orchestrator.errors import BadInput
from orchestrator.spec.axes import AXIS_PATHS, LATER, axis_path, backbone_names, models
from orchestrator.spec.backbones import APPLICATIONS, Pretrained, is_file, preprocessing_by_name
from orchestrator.spec.code import lies_in, look_in, read_code
from orchestrator.spec.networks import Networks
from orchestrator.spec.sections import NO_BACKBONE, Backbone, Spec
from orchestrator.store import Missing, Store, open_store

_GMACS_PER_MB = 0.04  # of a file's weights, for 224 x 224: a guess, between 0.02 (EfficientNet) and 0.09 (DenseNet)


@dataclass(frozen=True)
class WeightsFile:
    """A file with the weights of a backbone. Attributes: sha256: in hex, as it was when the run was planned."""

    store: Store
    key: str
    sha256: str

    def read(self) -> bytes:
        """Its bytes. Raises StoreError, and BadInput where it has changed."""
        data = self.store.read(self.key)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise BadInput(f"{self.store.uri}/{self.key} must not change while a grid runs, and has: start it again")
        return data


def find_networks(spec: Spec, folder: str = ".") -> tuple[Networks, dict[str, WeightsFile]]:
    """What the trials of a spec are made of; and the file of each backbone whose weights Keras does not fetch, by name.

    folder: where the code may lie besides the current folder. Runs and loads none of it. Raises BadInput where code or
    a file is missing, or cannot be what it should be.
    """
    arguments = [axis for axis in spec.axes if axis not in AXIS_PATHS]
    look_in(folder)
    codes = {model: read_code(model, arguments) for model in models(spec)}
    for model, code in codes.items():
        for axis in spec.axes:
            if axis_path(axis) in LATER and axis in code.defaults:  # the axis was the model's before it was a field
                raise BadInput(
                    f"grid.{axis} sets {axis_path(axis)}, so {axis} must not be an argument of the model {model} too, "
                    f"which would stay {code.defaults[axis]}: give the argument another name"
                )
    backbones, files = {}, {}
    for name in backbone_names(spec):
        if name != NO_BACKBONE:
            section = spec.backbone or Backbone(name=name)
            backbones[name], file = _find(section.model_copy(update={"name": name}))
            if file:
                files[name] = file
    beside = any(lies_in(folder, model) for model in codes)
    return Networks(codes, backbones, folder if beside else "."), files


def _find(backbone: Backbone) -> tuple[Pretrained, WeightsFile | None]:
    asked = None if backbone.preprocessing == "auto" else backbone.preprocessing
    if is_file(backbone.name):
        return _find_file(backbone, asked)
    known = APPLICATIONS[backbone.name]
    says = "as backbone.preprocessing says" if asked else f"as {backbone.name} does"
    features = known.features if backbone.layer is None else None
    facts = (asked or known.preprocessing, says, features, known.gmacs, known.least_side)
    if backbone.weights == "imagenet":
        return Pretrained(f"{backbone.name} imagenet keras {version('keras')}", *facts), None
    if not backbone.weights.endswith((".h5", ".keras")):
        raise BadInput(
            f"backbone.weights must be imagenet or a file of weights (.h5, .weights.h5, .keras), got {backbone.weights}"
        )
    file, _ = _read(backbone.weights, "backbone.weights must be imagenet or a file of weights")
    return Pretrained(f"{backbone.name} {file.sha256}", *facts), file


def _find_file(backbone: Backbone, asked: str | None) -> tuple[Pretrained, WeightsFile]:
    name, layer = backbone.name, backbone.layer
    if backbone.weights != "imagenet":
        raise BadInput(f"backbone.weights must be left out, as {name} holds its own, got {backbone.weights}")
    file, data = _read(name, "backbone must be a network of keras.applications or a .keras file")
    config = _config(data, name)
    layers = config["config"]["layers"]
    if layer is not None and layer not in (names := [_name(each) for each in layers]):
        close = difflib.get_close_matches(layer, names, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise BadInput(
            f"backbone.layer must be a layer of {name}, got {layer!r}{hint}; its last ones are {', '.join(names[-5:])}"
        )
    preprocessing, says = (asked, "as backbone.preprocessing says") if asked else _preprocessing(config)
    gmacs = len(data) / 1e6 * _GMACS_PER_MB
    return Pretrained(file.sha256, preprocessing, says, _features(layers, layer), gmacs), file


def _read(uri: str, must_be: str) -> tuple[WeightsFile, bytes]:
    folder, key = os.path.split(uri)
    try:
        store = open_store(folder or ".")
        data = store.read(key)
    except Missing:
        raise BadInput(f"{must_be} that is there, got {uri}: there is no such file") from None
    return WeightsFile(store, key, hashlib.sha256(data).hexdigest()), data


def _config(data: bytes, name: str) -> dict[str, Any]:
    """What a .keras file says of its model."""
    try:
        config = json.loads(read_config(data))
        if all(isinstance(layer["config"], dict) for layer in config["config"]["layers"]):
            return dict(config)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, KeyError, ValueError, TypeError, AttributeError):
        pass
    raise BadInput(
        f"backbone {name} must be a Keras model of layers (Functional or Sequential), saved as a .keras file, "
        f"and is none: save it with model.save('{os.path.basename(name)}')"
    )


def _name(layer: dict[str, Any]) -> str:
    return str(layer.get("name") or layer["config"].get("name"))


def _preprocessing(config: dict[str, Any]) -> tuple[str, str]:
    """What pixels the network in a file takes, and why that is thought."""
    layers: list[dict[str, Any]] = config["config"]["layers"]
    first = next((each for each in layers if not str(each.get("class_name")).startswith(("Input", "Random"))), {})
    kind, own = first.get("class_name"), first.get("config", {})
    if kind in ("Rescaling", "Normalization"):
        given = own.get("scale") if kind == "Rescaling" else own.get("mean")
        numbers = np.array([] if given is None else given, float)
        is_unit = numbers.size and ((numbers >= 1).all() if kind == "Rescaling" else (numbers <= 1).all())
        return "0..1" if is_unit else "0..255", f"as its first layer is {kind}"
    nested = [str(each["config"].get("name")) for each in layers if "layers" in each["config"]]
    for name in (str(config["config"].get("name")), *nested):
        if mode := preprocessing_by_name(name):
            return mode, f"as it is called {name}"
    return "0..1", "as it does not say; backbone.preprocessing would"


def _features(layers: list[dict[str, Any]], layer: str | None) -> int | None:
    """Channels of the layer's output, or of the last one's, where a layer before it says so."""
    names = [_name(each) for each in layers]
    end = names.index(layer) + 1 if layer in names else len(layers)
    for each in reversed(layers[:end]):
        found = each["config"]
        if each.get("class_name") == "Concatenate" or "layers" in found:
            return None
        if each.get("class_name") == "Dense" and layer is None and found.get("activation") in ("softmax", "sigmoid"):
            continue  # the classifier, which is cut off
        if isinstance(width := found.get("filters", found.get("units")), int):
            return width
    return None
