"""Reading: YAML and overrides -> Spec, with errors that name the field and say what to do. Pure."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import BadInput
from orchestrator.metrics import shown
from orchestrator.spec.axes import AXIS_PATHS, RESERVED_AXES, SECTIONS, backbone_names, canonical, models
from orchestrator.spec.backbones import APPLICATIONS, changes, is_file
from orchestrator.spec.notation import parse, quoted, show
from orchestrator.spec.sections import NO_BACKBONE, Budget, EarlyStopping, Resources, Scalar, Section, Spec

_PARTS: dict[str, type[Section]] = {**SECTIONS, "resources": Resources, "budget": Budget}


def to_yaml(spec: Spec) -> str:
    """The spec as YAML, with every default written out."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, default_flow_style=None)


def load_spec(text: str, overrides: Sequence[str] = (), source: str = "spec") -> Spec:
    """Parse a spec and apply `PATH=VALUE` overrides (VALUE is YAML).

    Raises BadInput that names the field and says what to do.
    """
    tree = parse(text, source)
    if not isinstance(tree, dict):
        raise BadInput(f"{source} must be a mapping with the keys {', '.join(Spec.model_fields)}, got {show(tree)}")
    for override in overrides:
        path, equals, value = override.partition("=")
        path = path.strip()
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", path):
            raise BadInput(f"--set must look like PATH=VALUE (say train.learning_rate=0.01), got {show(override)}")
        _put(tree, path.split("."), parse(value, f"--set {path}"))
    return validate(tree)


def validate(tree: Mapping[str, Any]) -> Spec:
    """A mapping of plain values -> Spec. Raises BadInput that names the first problem and counts the others."""
    try:
        spec = Spec.model_validate(tree)
    except ValidationError as error:
        raise BadInput(_explain(error)) from None
    if spec.metric not in (ranking := shown("board")):
        close = _did_you_mean(spec.metric, ranking)
        raise BadInput(f"metric must be one of {', '.join(ranking)}, got {show(spec.metric)}{close}")
    grid = {name: _check_axis(name, values) for name, values in spec.grid.items()}
    points = [_check_point(f"points[{i}]", point) for i, point in enumerate(spec.points)]
    exclude = [_check_point(f"exclude[{i}]", point) for i, point in enumerate(spec.exclude)]
    _check_kinds(grid, {f"points[{i}]": point for i, point in enumerate(points)})
    if not grid and not points:
        raise BadInput("grid and points are both empty: give at least one axis, such as grid: {batch_size: [16, 32]}")
    for i, point in enumerate(exclude):
        if unknown := set(point) - set(grid) - {name for p in points for name in p}:
            raise BadInput(f"exclude[{i}].{sorted(unknown)[0]} must be an axis of the grid ({', '.join(grid)})")
    if repeated := _first_repeat(spec.seeds):
        raise BadInput(f"seeds holds {repeated[1]} twice: each point would be trained twice; remove one")
    return _check_backbone(spec.model_copy(update={"grid": grid, "points": points, "exclude": exclude}))


def _check_backbone(spec: Spec) -> Spec:
    """The spec with its model named, if every point has the same. Raises BadInput if model and backbone do not fit."""
    names = backbone_names(spec)
    for name in names:
        if name not in (NO_BACKBONE, *APPLICATIONS) and not is_file(name):
            raise BadInput(
                f"backbone must be a network of keras.applications or a .keras file, got {show(name)}"
                f"{_did_you_mean(name, APPLICATIONS)}; known: {', '.join(APPLICATIONS)}"
            )
    has_backbone = names != (NO_BACKBONE,)
    if spec.model == "head" and NO_BACKBONE in names:
        raise BadInput(
            "model head must have a backbone, whose features it takes: add one, such as backbone: MobileNetV2"
        )
    if spec.model == "small_cnn" and has_backbone:
        raise BadInput(
            "model must be head, or a function of your own, where there is a backbone: small_cnn takes images, not "
            "features; leave model out, and points with a backbone train a head, and others small_cnn"
        )
    if "fine_tune_learning_rate" in spec.axes and not any(_unfreeze_values(spec)):
        raise BadInput("grid.fine_tune_learning_rate must have points that unfreeze: add one, such as unfreeze: [10]")
    if not has_backbone and "unfreeze" in spec.axes:
        raise BadInput("grid.unfreeze must have a backbone to unfreeze: add one, such as backbone: MobileNetV2")
    one_view = spec.backbone is None or spec.backbone.views == 1
    if has_backbone and one_view and _augments(spec) and not all(_unfreeze_values(spec)):
        raise BadInput(
            "augment must be left out with backbone.views 1, as features are made of each image once: set "
            "backbone.views to how many versions of an image to keep, such as 8"
        )
    found = models(spec)
    return spec.model_copy(update={"model": found[0]}) if len(found) == 1 else spec


def _unfreeze_values(spec: Spec) -> list[int]:
    default = spec.backbone.unfreeze if spec.backbone else 0
    return [*spec.grid.get("unfreeze", [default]), *(point.get("unfreeze", default) for point in spec.points)]


def _augments(spec: Spec) -> bool:
    """Whether some point changes its training images."""
    own = [name for name, path in AXIS_PATHS.items() if path[0] == "augment" and name not in ("fill", "validation")]
    values = [value for name in own for value in spec.grid.get(name, [])]
    return changes(spec.augment) or any([*values, *(point.get(name) for point in spec.points for name in own)])


def _check_axis(name: str, values: list[Any]) -> list[Any]:
    path = f"grid.{quoted(name)}"
    if not values:
        raise BadInput(f"{path} must hold at least one value, got an empty list: add values or remove the axis")
    checked = [_check_value(name, value, f"{path}[{i}]") for i, value in enumerate(values)]
    if repeated := _first_repeat([canonical(value) for value in checked]):
        raise BadInput(f"{path}[{repeated[0]}] repeats the value {repeated[1]}: remove one of them")
    if len({_kind(value) for value in checked}) > 1:
        raise BadInput(f"{path} must hold values of one type, got {show(values)}")
    return checked


def _kind(value: Any) -> type:
    """The type of an axis' values; whole numbers are numbers like others."""
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _check_kinds(grid: Mapping[str, list[Any]], points: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises BadInput for a point whose value is of another type than its axis. points: by their place in the spec."""
    kinds = {name: _kind(values[0]) for name, values in grid.items()}
    for place, point in points.items():
        for name, value in point.items():
            if value is not None and kinds.setdefault(name, _kind(value)) is not _kind(value):
                others = grid.get(name) or [other[name] for other in points.values() if name in other]
                raise BadInput(
                    f"{place}.{quoted(name)} must be of one type with the other values of {name} "
                    f"({', '.join(map(show, others[:3]))}), got {show(value)}: put texts such as off in quotes"
                )


def _check_point(path: str, point: Mapping[str, Any]) -> dict[str, Any]:
    if not point:
        raise BadInput(f"{path} must name at least one axis, such as {{batch_size: 16, epochs: 10}}, got {{}}")
    return {name: _check_value(name, value, f"{path}.{quoted(name)}") for name, value in point.items()}


def _check_value(name: str, value: Any, path: str) -> Any:
    if name in AXIS_PATHS:
        try:
            return _adapter(name).validate_python(value)
        except ValidationError as error:
            raise BadInput(_explain(error, path)) from None
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in RESERVED_AXES:
        raise BadInput(
            f"{path}: {show(name)} cannot be an axis{_did_you_mean(name, AXIS_PATHS)}: axes are "
            f"{', '.join(AXIS_PATHS)}, and the arguments of the model function"
        )
    if not isinstance(value, get_args(Scalar)) or (isinstance(value, float) and not math.isfinite(value)):
        raise BadInput(f"{path} must be a number, a text or true/false, got {show(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # what a column of the leaderboard can hold
        raise BadInput(f"{path} must be a whole number of at most 64 bits, got {show(value)}")
    return value


@cache
def _adapter(axis: str) -> TypeAdapter[Any]:
    section, field = AXIS_PATHS[axis]
    info = SECTIONS[section].model_fields[field]
    annotation: Any = Annotated[info.annotation, *info.metadata, None]
    return TypeAdapter(annotation, config=Section.model_config)


def _first_repeat(values: Sequence[Any]) -> tuple[int, Any] | None:
    seen = set()
    for i, value in enumerate(values):
        if value in seen:
            return i, value
        seen.add(value)
    return None


def _explain(error: ValidationError, prefix: str = "") -> str:
    """The first problem as one line: what the value must be, and what it was."""
    problems = error.errors(include_url=False)
    # an unknown key first: if it is a misspelt one, it is the reason why another is missing
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    context = first.get("ctx", {})
    kind = first["type"]
    loc = first["loc"]
    if kind == "missing" and loc and isinstance(loc[-1], int):  # [64], where [64, 64] must be
        loc, kind = loc[:-1], "tuple_type"
    path = prefix
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(("function-", "literal[", "constrained-", "tuple[")) and part != "float":
            path += f".{quoted(part)}" if path else quoted(part)
    got = show(first["input"])
    if kind == "extra_forbidden":
        section: Any = _PARTS.get(str(loc[0]) if len(loc) > 1 else "", Spec)
        section = EarlyStopping if "early_stopping" in loc[:-1] else section
        line = (
            f"{path} is not a known key{_did_you_mean(str(loc[-1]), section.model_fields)}; "
            f"known: {', '.join(section.model_fields)}"
        )
    elif kind == "missing":
        line = f"{path} is missing: add it to the spec"
    else:
        line = f"{path} must be {_must_be(kind, context)}, got {got}"
    if path.startswith("resources.gpus_per_trial"):
        line = f"resources.gpus_per_trial must be auto or a number of at least 0, got {got}"
        problems = problems[:1]
    rest = [each["loc"] for each in problems if each is not first]
    others = dict.fromkeys(".".join(quoted(part) for part in loc if isinstance(part, str)) for loc in rest)
    return line + (f"; also wrong: {', '.join(others)}" if others else "")


def _must_be(kind: str, context: Mapping[str, Any]) -> str:
    whole = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "a text",
        "finite_number": "a finite number",
        "list_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping",
        "model_attributes_type": "a mapping",
        "tuple_type": "[height, width], such as [64, 64]",
        "too_long": "[height, width], such as [64, 64]",
        "string_pattern_mismatch": "auto, head, small_cnn or package.module:function",
    }
    if kind == "literal_error":
        return f"one of {context['expected']}"
    if kind == "too_short":
        return "a list with at least one value"
    if kind == "string_too_short":
        return "a non-empty text"
    if kind == "string_pattern_mismatch" and "small_cnn" not in context["pattern"]:
        return "letters, digits, '.', '_' and '-' (at most 100, the first a letter or digit)"
    for op, word in (("ge", "of at least"), ("gt", "above"), ("le", "of at most"), ("lt", "below")):
        if op in context:
            return f"{'a whole number' if isinstance(context[op], int) else 'a number'} {word} {canonical(context[op])}"
    return whole.get(kind, f"valid ({kind})")


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise BadInput(
                f"--set {'.'.join(keys)}: {'.'.join(keys[: depth + 1])} must be a mapping, got {show(tree)}: "
                f"set it as a whole"
            )
    tree[keys[-1]] = value
