"""Arguments: those of `orchestrator.run` -> Spec."""

import os
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.api.functions import name_of
from orchestrator.errors import BadInput
from orchestrator.spec.axes import AXIS_PATHS
from orchestrator.spec.notation import parse
from orchestrator.spec.reading import read_text, validate
from orchestrator.spec.sections import AUTO, Spec


def read(spec: str | os.PathLike[str] | Mapping[str, Any] | None, fields: Mapping[str, Any]) -> Spec:
    """See orchestrator.run. Raises BadInput."""
    tree = {} if spec is None and "data" in fields else _tree(spec)
    axes = [name for name in fields if name not in Spec.model_fields and not _is_of_run(name, fields[name])]
    if spec is None and axes:
        tree.pop("grid", None)  # of the example: what is asked for is all that is trained
    for name in sorted(fields, key=axes.__contains__):  # first the grid, then what goes into it
        if fields[name] is not None:
            _put(tree, name, fields[name])
    if "name" not in tree and isinstance(tree.get("data"), Mapping):
        tree["name"] = _name(str(tree["data"].get("uri", "")))
    return validate(tree)


def _tree(spec: str | os.PathLike[str] | Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(spec, Mapping):
        return _copied(spec)
    text, source = read_text(None if spec is None else os.fspath(spec))
    tree = parse(text, source)
    if not isinstance(tree, dict):
        raise BadInput(f"{source} must be a mapping, such as {{name: pets, grid: {{epochs: [10]}}}}, got {tree!r}")
    return tree


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The mappings are copied, for they are changed here; the values are not."""
    return {name: _copied(value) if isinstance(value, Mapping) else value for name, value in tree.items()}


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    """One argument: a field of the spec, or an axis. It replaces what is there."""
    if name == "model":
        value = [_model(each) for each in value] if _are_several(name, value) else _model(value)
    if _is_of_run(name, value):
        tree["train"] = {**(tree.get("train") or {}), name: value}
    elif name == "data" and not isinstance(value, Mapping):
        tree["data"] = {**(tree.get("data") or {}), "uri": os.fspath(value)}
    elif name in Spec.model_fields and not (name in AXIS_PATHS and _are_several(name, value)):
        tree[name] = _copied(value) if isinstance(value, Mapping) else os.fspath(value) if name == "output" else value
    else:  # an axis, of the model's own perhaps; whether there is one of this name is told later
        several = _are_several(name, value)
        values = dict(value) if several and isinstance(value, Mapping) else list(value) if several else [value]
        tree["grid"] = {**(tree.get("grid") or {}), name: values}


def _is_of_run(name: str, value: Any) -> bool:
    """Whether it is no axis although it has the name of one: auto stands for one precision, in all of a run."""
    return name == "precision" and isinstance(value, str) and value == AUTO


def _model(value: Any) -> Any:
    """A function as the spec names it."""
    return name_of(value) if callable(value) else value


def _are_several(name: str, value: Any) -> bool:
    """Whether these are values of an axis, or a range of them, and not one: a size is a pair of numbers."""
    if isinstance(value, Mapping):
        return {"from", "to"} <= value.keys()
    is_size = name == "image_size" and isinstance(value, list | tuple) and all(isinstance(each, int) for each in value)
    return isinstance(value, list | tuple | range) and not is_size


def _name(uri: str) -> str:
    """A name for the run: that of the folder of images."""
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", uri.rstrip("/").rpartition("/")[2]).strip("-._")
    return last[:100] or "run"
