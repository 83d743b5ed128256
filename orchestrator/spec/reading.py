"""Reading: YAML and overrides -> Spec, with errors that name the field and say what to do. Pure."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import BadInput
from orchestrator.metrics import shown
from orchestrator.spec.axes import (
    AXIS_PATHS,
    RESERVED_AXES,
    SECTIONS,
    backbone_names,
    canonical,
    models,
    pairs,
    resolve,
)
from orchestrator.spec.backbones import APPLICATIONS, changes, is_file
from orchestrator.spec.explaining import explain
from orchestrator.spec.notation import parse, quoted, show, write
from orchestrator.spec.own_models import OWN_MODELS
from orchestrator.spec.presets import left_to_preset, with_preset
from orchestrator.spec.ranges import Range, ends
from orchestrator.spec.sampled import check_sample, read_range
from orchestrator.spec.schedules import PARAMETERS, READS
from orchestrator.spec.sections import (
    AUTO,
    MOST_GUARDED,
    NO_BACKBONE,
    OwnModel,
    Scalar,
    Section,
    Spec,
    Train,
)
from orchestrator.words import did_you_mean

_PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")  # of a point; auto is for a whole run


def to_yaml(spec: Spec) -> str:
    """The spec as YAML, with every default written out, but for fields that an axis `preset` may set."""
    open_fields = set(left_to_preset(spec))
    return write(spec.model_dump(mode="json", exclude={"augment": open_fields} if open_fields else None))


def read_text(path: str | None) -> tuple[str, str]:
    """The text of a spec, and what to call it; None: of the one that is used when none is given. Raises BadInput."""
    if path is None:
        return (files("orchestrator") / "default.yaml").read_text(), "default.yaml"
    try:
        return Path(path).read_text(encoding="utf-8"), path
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"SPEC must be a YAML file, got {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        ) from None


def read_spec(path: str | None, overrides: Sequence[str], points: Sequence[Mapping[str, Any]] = ()) -> Spec:
    """The spec in a file, or the one that is used when none is given: see `load_spec`. Raises BadInput."""
    text, source = read_text(path)
    return load_spec(text, overrides, source, points)


def read_points(text: str, source: str) -> list[Any]:
    """The points in a file that holds these alone, as `--suggest` writes it. Raises BadInput."""
    tree = parse(text, source)
    if not isinstance(tree, dict) or tree.keys() != {"points"} or not isinstance(tree["points"], list):
        raise BadInput(f"{source} must hold the key points alone, with a list, got {show(tree)}")
    return tree["points"]


def load_spec(
    text: str, overrides: Sequence[str] = (), source: str = "spec", points: Sequence[Mapping[str, Any]] = ()
) -> Spec:
    """Parse a spec, apply `PATH=VALUE` overrides (VALUE is YAML), and add points that it does not hold already.

    Raises BadInput that names the field and says what to do.
    """
    tree = parse(text, source)
    if not isinstance(tree, dict):
        raise BadInput(f"{source} must be a mapping with the keys {', '.join(Spec.model_fields)}, got {show(tree)}")
    for override in overrides:
        path, equals, value = override.partition("=")
        path = path.strip()
        if path.startswith("notify") and path != "notify.on":
            raise BadInput(
                "--set takes no address of notify, as others see what stands on a command line: put it into the spec, "
                "or into the environment as ORCHESTRATOR_NOTIFY_URL"
            )
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", path):
            raise BadInput(f"--set must look like PATH=VALUE (say train.learning_rate=0.01), got {show(override)}")
        _put(tree, path.split("."), parse(value, f"--set {path}"))
    own = tree.get("points") or []
    if points and isinstance(own, list):
        tree["points"] = [*own, *(point for point in points if point not in own)]
    return validate(tree)


def validate(tree: Mapping[str, Any]) -> Spec:
    """A mapping of plain values -> Spec. Raises BadInput that names the first problem and counts the others."""
    try:
        spec = Spec.model_validate(tree)
    except ValidationError as error:
        raise BadInput(explain(error)) from None
    if spec.metric not in (ranking := shown("board")):
        close = did_you_mean(spec.metric, ranking)
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
    spec = _check_race(spec, points, grid)
    if spec.train.precision == AUTO and ("precision" in grid or any("precision" in point for point in points)):
        raise BadInput(
            f"train.precision must be one of {', '.join(_PRECISIONS)} where precision is an axis, got auto: name one"
        )
    if repeated := _first_repeat(spec.seeds):
        raise BadInput(f"seeds holds {repeated[1]} twice: each point would be trained twice; remove one")
    spec = spec.model_copy(update={"grid": grid, "points": points, "exclude": exclude})
    if "preset" not in spec.axes:
        spec = spec.model_copy(update={"augment": with_preset(spec.augment)})
    spec = _check_backbone(spec)
    _check_arguments(spec)
    _check_schedules(spec)
    check_sample(spec.grid, spec.sample, spec.exclude)
    return spec


def _check_schedules(spec: Spec) -> None:
    """Raises BadInput for a field that no point's schedule reads."""
    schedules = set(_values_of(spec, "schedule"))
    named = [*(f"train.{name}" for name in spec.train.model_fields_set), *(f"grid.{name}" for name in spec.axes)]
    for path in named:
        name = path.partition(".")[2]
        readers = [schedule for schedule, names in READS.items() if name in names]
        default = Train.model_fields[name].default if name in PARAMETERS else None
        if readers and not schedules.intersection(readers) and set(_values_of(spec, name)) != {default}:
            raise BadInput(
                f"{path} must have points that read it: set train.schedule to {' or '.join(readers)}, or leave it out"
            )


def _check_race(spec: Spec, points: Sequence[Mapping[str, Any]], grid: Mapping[str, list[Any] | Range]) -> Spec:
    """The spec with the values of race.keep checked. Raises BadInput for what no point has, or for trials unlike."""
    if spec.race is None:
        return spec
    values: dict[str, list[Any]] = {name: list(ends(found)) for name, found in grid.items()}
    for point in points:
        for name, value in point.items():
            values.setdefault(name, []).append(value)
    axes = ", ".join(name for name in values if name != "epochs")
    keep = [_check_point(f"race.keep[{i}]", rule) for i, rule in enumerate(spec.race.keep)]
    named = [
        (f"race.keep[{i}].{quoted(name)}", name, value) for i, rule in enumerate(keep) for name, value in rule.items()
    ]
    guard = spec.race.guard if isinstance(spec.race.guard, list) else []
    for path, name, value in [*named, *((f"race.guard[{i}]", name, None) for i, name in enumerate(guard))]:
        if name not in values or name == "epochs":
            raise BadInput(f"{path} must be an axis of the grid other than epochs ({axes}), got {show(name)}")
        known = dict.fromkeys(map(canonical, values[name]))
        drawn = grid.get(name)
        if isinstance(drawn, Range) and value is not None and drawn.holds(value):
            continue
        if isinstance(drawn, Range) and value is None:
            raise BadInput(f"{path} must be an axis of at most {MOST_GUARDED} values, not the range of {name}")
        if value is not None and canonical(value) not in known:
            raise BadInput(f"{path} must be a value that a point has ({', '.join(known)}), got {show(value)}")
        if value is None and len(known) > MOST_GUARDED:
            raise BadInput(f"{path} must have at most {MOST_GUARDED} values, got {len(known)} of {name}: leave it out")
    unfreeze = set(values.get("unfreeze", []))
    if len({bool(value) for value in unfreeze}) > 1:
        raise BadInput(
            "race must not compare points that unfreeze with points that do not, as they go on from heads that are "
            "trained to the end: race them in runs of their own"
        )
    return spec.model_copy(update={"race": spec.race.model_copy(update={"keep": keep})})


def _check_backbone(spec: Spec) -> Spec:
    """The spec with its model named, if every point has the same. Raises BadInput if model and backbone do not fit."""
    names = backbone_names(spec)
    for name in names:
        if name not in (NO_BACKBONE, *APPLICATIONS) and not is_file(name):
            raise BadInput(
                f"backbone must be a network of keras.applications or a .keras file, got {show(name)}"
                f"{did_you_mean(name, APPLICATIONS)}; known: {', '.join(APPLICATIONS)}"
            )
    has_backbone = names != (NO_BACKBONE,)
    for model, backbone in pairs(spec):
        if model == "head" and backbone == NO_BACKBONE:
            raise BadInput(
                "model head must have a backbone, whose features it takes: add one, such as backbone: MobileNetV2"
            )
        if model in OWN_MODELS and backbone != NO_BACKBONE:
            raise BadInput(
                f"model must be head, or a function of your own, where there is a backbone: {model} takes images, not "
                f"features; leave model out, and points with a backbone train a head, and others small_cnn"
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


def _check_arguments(spec: Spec) -> None:
    """Raises BadInput for a value that the package's own models do not take; those of other models nobody knows."""
    if all(":" in model for model in models(spec)):
        return
    given = [
        (f"grid.{quoted(name)}{place}", name, value)
        for name, found in spec.grid.items()
        for place, value in zip(_places(found), ends(found), strict=True)
    ]
    given += [
        (f"points[{i}].{quoted(name)}", name, v) for i, each in enumerate(spec.points) for name, v in each.items()
    ]
    for path, name, value in given:
        if name in OwnModel.model_fields:
            _check_field(OwnModel, name, value, path)


def _unfreeze_values(spec: Spec) -> list[int]:
    return _values_of(spec, "unfreeze", spec.backbone.unfreeze if spec.backbone else 0)


def _values_of(spec: Spec, name: str, default: Any = None) -> list[Any]:
    """The values of an axis that points have. default: of those that do not name it; None: that of train."""
    default = getattr(spec.train, name) if default is None else default
    return [*ends(spec.grid.get(name, [default])), *(point.get(name, default) for point in spec.points)]


def _augments(spec: Spec) -> bool:
    """Whether some point changes its training images."""
    names = [name for name, path in AXIS_PATHS.items() if path[0] == "augment"]
    values = [{name: value} for name in names for value in ends(spec.grid.get(name, []))]
    values += [{name: value} for point in spec.points for name, value in point.items() if name in names]
    return any(changes(resolve(spec, each).augment) for each in [{}, *values])


def _places(values: list[Any] | Range) -> list[str]:
    """Where each of the `ends` stands, below the axis."""
    return [".from", ".to"] if isinstance(values, Range) else [f"[{i}]" for i in range(len(values))]


def _check_axis(name: str, values: Any) -> list[Any] | Range:
    path = f"grid.{quoted(name)}"
    if isinstance(values, Mapping):
        return read_range(name, values, _check_value)
    if not isinstance(values, list):
        raise BadInput(f"{path} must be a list, got {show(values)}")
    if not values:
        raise BadInput(f"{path} must hold at least one value, got an empty list: add values or remove the axis")
    checked = [_check_value(name, value, f"{path}[{i}]") for i, value in enumerate(values)]
    if repeated := _first_repeat([canonical(value) for value in checked]):
        raise BadInput(f"{path}[{repeated[0]}] repeats the value {repeated[1]}: remove one of them")
    if len({_kind(value, name) for value in checked}) > 1:
        raise BadInput(f"{path} must hold values of one type, got {show(values)}")
    return checked


def _kind(value: Any, axis: str) -> type:
    """The type of an axis' values; whole numbers are numbers like others.

    Weights of classes stand beside names, and the learning rate auto beside numbers.
    """
    if axis == "learning_rate":
        return float
    if isinstance(value, dict):
        return str
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _check_kinds(grid: Mapping[str, list[Any] | Range], points: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises BadInput for a point whose value is of another type than its axis. points: by their place in the spec."""
    kinds = {name: _kind(ends(values)[0], name) for name, values in grid.items()}
    for place, point in points.items():
        for name, value in point.items():
            kind = _kind(value, "" if isinstance(grid.get(name), Range) else name)  # no auto in a range
            if value is not None and kinds.setdefault(name, kind) is not kind:
                others = ends(grid.get(name, [])) or [other[name] for other in points.values() if name in other]
                raise BadInput(
                    f"{place}.{quoted(name)} must be of one type with the other values of {name} "
                    f"({', '.join(map(show, others[:3]))}), got {show(value)}: put texts such as off in quotes"
                )


def _check_point(path: str, point: Mapping[str, Any]) -> dict[str, Any]:
    if not point:
        raise BadInput(f"{path} must name at least one axis, such as {{batch_size: 16, epochs: 10}}, got {{}}")
    return {name: _check_value(name, value, f"{path}.{quoted(name)}") for name, value in point.items()}


def _check_value(name: str, value: Any, path: str) -> Any:
    if name == "precision" and value not in _PRECISIONS:
        instead = ", which is for a whole run: set train.precision to it" if value == AUTO else ""
        raise BadInput(f"{path} must be one of {', '.join(_PRECISIONS)}, got {show(value)}{instead}")
    if name in AXIS_PATHS:
        section, field = AXIS_PATHS[name]
        return _check_field(SECTIONS[section], field, value, path)
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in RESERVED_AXES:
        raise BadInput(
            f"{path}: {show(name)} cannot be an axis{did_you_mean(name, AXIS_PATHS)}: axes are "
            f"{', '.join(AXIS_PATHS)}, and the arguments of the model function"
        )
    if not isinstance(value, get_args(Scalar)) or (isinstance(value, float) and not math.isfinite(value)):
        raise BadInput(f"{path} must be a number, a text or true/false, got {show(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # what a column of the leaderboard can hold
        raise BadInput(f"{path} must be a whole number of at most 64 bits, got {show(value)}")
    return value


def _check_field(section: type[Section], field: str, value: Any, path: str) -> Any:
    try:
        return _adapter(section, field).validate_python(value)
    except ValidationError as error:
        raise BadInput(explain(error, path)) from None


@cache
def _adapter(section: type[Section], field: str) -> TypeAdapter[Any]:
    info = section.model_fields[field]
    annotation: Any = Annotated[info.annotation, *info.metadata, None]
    return TypeAdapter(annotation, config=Section.model_config)


def _first_repeat(values: Sequence[Any]) -> tuple[int, Any] | None:
    seen = set()
    for i, value in enumerate(values):
        if value in seen:
            return i, value
        seen.add(value)
    return None


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        if tree.get(key) is None or tree[key] is True:  # as in race: true
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise BadInput(
                f"--set {'.'.join(keys)}: {'.'.join(keys[: depth + 1])} must be a mapping, got {show(tree)}: "
                f"set it as a whole"
            )
    tree[keys[-1]] = value
