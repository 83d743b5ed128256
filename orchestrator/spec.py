"""Spec: the YAML file a user writes, validated, with every default written out. Pure: text in, values out."""

import difflib
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from orchestrator.errors import BadInput

Scalar = bool | int | float | str


class Section(BaseModel):
    """A part of the spec: immutable, strictly typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _pair(value: Any) -> Any:
    """64 means [64, 64]; lists become tuples, so that sizes can be compared and hashed."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    return tuple(value) if isinstance(value, list) else value


Side = Annotated[int, Field(ge=8, le=2048)]
ImageSize = Annotated[tuple[Side, Side], BeforeValidator(_pair)]


class Data(Section):
    """Which images, and how they are split. image_size is (height, width) in pixels.

    cache_limit_gb: GB (10^9 bytes) that decoded images may take on a node's disk; a larger data set is streamed anew in
    every epoch.
    """

    uri: str = Field(min_length=1)
    image_size: ImageSize = (64, 64)
    resize: Literal["nearest", "bilinear", "area"] = "bilinear"
    validation_split: float = Field(0.2, gt=0, lt=1)
    split_by: Literal["order", "hash"] = "order"
    on_bad_image: Literal["fail", "skip"] = "fail"
    cache_limit_gb: float = Field(20.0, ge=0)


class Augment(Section):
    """Random changes to training images. Shifts are fractions of the side; rotation is drawn from +-rotation_deg."""

    rotation_deg: float = Field(0.0, ge=0, le=180)
    width_shift: float = Field(0.0, ge=0, lt=1)
    height_shift: float = Field(0.0, ge=0, lt=1)
    horizontal_flip: bool = False
    fill: Literal["nearest", "reflect", "wrap", "constant"] = "nearest"
    validation: bool = False


class EarlyStopping(Section):
    """Stop after `patience` epochs without a lower val_loss; restore_best reads off the best epoch, not the last."""

    patience: int = Field(5, ge=1)
    restore_best: bool = True


class Train(Section):
    """How one trial trains."""

    batch_size: int = Field(32, ge=1, lt=2**31)
    epochs: int = Field(10, ge=1, lt=2**31)
    optimizer: Literal["adam", "adamw", "nadam", "rmsprop", "sgd", "adagrad"] = "adam"
    learning_rate: float = Field(0.001, gt=0)
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    early_stopping: EarlyStopping | None = None
    checkpoint_every_s: float = Field(60.0, gt=0)


def _every(value: Any) -> Any:
    """One price is that of every node."""
    return {"*": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Resources(Section):
    """What one trial gets. gpus_per_trial `auto`: a share of a GPU where the cluster has any, else none.

    node_type: what the nodes are, such as g4dn.xlarge, where they do not say so themselves.
    usd_per_hour: node type -> USD an hour, in place of its list price; one number, or `*`, for every other type.
    """

    cpus_per_trial: int = Field(1, ge=1)
    gpus_per_trial: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    max_concurrent: int | None = Field(None, ge=1)
    node_type: str | None = Field(None, min_length=1)
    usd_per_hour: Annotated[dict[str, Annotated[float, Field(ge=0)]], BeforeValidator(_every)] = {}


class Budget(Section):
    """What one command may take. A trial that would not end within it is not begun; null: no limit.

    max_usd: price of the nodes for the time that trials run on them. max_hours: from the command's start.
    """

    max_usd: float | None = Field(None, gt=0)
    max_hours: float | None = Field(None, gt=0)


class Spec(Section):
    """A whole run. `grid` is a product of axes; `points` stand beside it, `exclude` takes combinations out."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    data: Data
    augment: Augment = Augment()
    model: str = Field("small_cnn", pattern=r"^(small_cnn|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)$")
    train: Train = Train()
    grid: dict[str, list[Any]] = {}
    points: list[dict[str, Any]] = []
    exclude: list[dict[str, Any]] = []
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field([0], min_length=1)
    metric: Literal["val_accuracy", "best_val_accuracy", "val_loss", "accuracy", "loss"] = "val_accuracy"
    resources: Resources = Resources()
    budget: Budget = Budget()
    output: str = Field("./runs", min_length=1)

    @property
    def axes(self) -> tuple[str, ...]:
        """Every axis, in the order of the spec: those of the grid, then those that only single points name."""
        return tuple(dict.fromkeys([*self.grid, *(name for point in self.points for name in point)]))


def is_streamed(data: Data, images: int) -> bool:
    """Whether that many decoded images are more than the node cache may hold."""
    return images * 3 * math.prod(data.image_size) > data.cache_limit_gb * 1e9


@dataclass(frozen=True, slots=True)
class Settings:
    """What one trial trains with: the shared sections of the spec, with the axis values put in.

    Attributes:
        model_args: Axis values that no section knows; handed to the model function by name.
    """

    data: Data
    augment: Augment
    train: Train
    model: str
    model_args: dict[str, Scalar]


# Axis name -> where the value goes. Whatever is not listed here is an argument of the model function.
AXIS_PATHS: dict[str, tuple[str, str]] = {
    "image_size": ("data", "image_size"),
    **{name: ("augment", name) for name in Augment.model_fields},
    **{name: ("train", name) for name in Train.model_fields if name not in ("early_stopping", "checkpoint_every_s")},
}
_SECTIONS: dict[str, type[Section]] = {"data": Data, "augment": Augment, "train": Train}
_PARTS: dict[str, type[Section]] = {**_SECTIONS, "resources": Resources, "budget": Budget}
# Names that an axis cannot have: fields of train that are none, what every model function takes, keys of the plan as
# JSON, columns of the leaderboard.
_RESERVED_AXES = (
    {"early_stopping", "checkpoint_every_s", "input_shape", "classes", "id", "milestones", "forecast_s"}
    | {"rank", "point_id", "trial_id", "status", "seed", "val_accuracy", "val_loss", "accuracy", "loss", "best_epoch"}
    | {"best_val_accuracy", "epochs_trained", "steps_per_epoch", "train_s", "images_per_s", "peak_memory_mb"}
    | {"device", "node", "error", "started_at", "finished_at", "cost_usd", "run", "seeds", "verdict"}
)


def axis_path(name: str) -> str:
    """The `section.field` that an axis sets."""
    return ".".join(AXIS_PATHS.get(name, ("model", name)))


def settle(spec: Spec, values: Mapping[str, Any]) -> Settings:
    """Put one point's axis values into the sections they belong to."""
    updates: dict[str, dict[str, Any]] = {"data": {}, "augment": {}, "train": {}, "model": {}}
    for name, value in values.items():
        section, field = AXIS_PATHS.get(name, ("model", name))
        updates[section][field] = value
    return Settings(
        data=spec.data.model_copy(update=updates["data"]),
        augment=spec.augment.model_copy(update=updates["augment"]),
        train=spec.train.model_copy(update=updates["train"]),
        model=spec.model,
        model_args=updates["model"],
    )


def shared_settings(spec: Spec) -> dict[str, Any]:
    """Flat `section.field` -> value of all that every trial shares and that decides its weights.

    Fields that an axis sets are left out, and so is what only says where, when or how fast: a run folder with the same
    shared settings can take this spec's points.
    """
    kept = {
        "data": spec.data.model_dump(exclude={"uri", "on_bad_image", "cache_limit_gb"}),
        "augment": spec.augment.model_dump(),
        "train": spec.train.model_dump(exclude={"epochs", "checkpoint_every_s"}),
    }
    flat = {f"{section}.{field}": value for section, fields in kept.items() for field, value in fields.items()}
    for name in spec.axes:
        flat.pop(axis_path(name), None)
    return {"model": spec.model, **flat}


def to_yaml(spec: Spec) -> str:
    """The resolved spec, every default written out."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, default_flow_style=None)


def load_spec(text: str, overrides: Sequence[str] = (), source: str = "spec") -> Spec:
    """Parse a spec and apply `PATH=VALUE` overrides (VALUE is YAML). Raises BadInput naming the field and the cure."""
    tree = _parse(text, source)
    if not isinstance(tree, dict):
        raise BadInput(f"{source} must be a mapping with the keys {', '.join(Spec.model_fields)}, got {_show(tree)}")
    for override in overrides:
        path, equals, value = override.partition("=")
        path = path.strip()
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", path):
            raise BadInput(f"--set must look like PATH=VALUE (say train.learning_rate=0.01), got {_show(override)}")
        _put(tree, path.split("."), _parse(value, f"--set {path}"))
    return validate(tree)


def validate(tree: Mapping[str, Any]) -> Spec:
    """A mapping of plain values -> Spec. Raises BadInput for the first thing that is wrong, and says how many more."""
    try:
        spec = Spec.model_validate(tree)
    except ValidationError as error:
        raise BadInput(_explain(error)) from None
    grid = {name: _check_axis(name, values) for name, values in spec.grid.items()}
    points = [_check_point(f"points[{i}]", point) for i, point in enumerate(spec.points)]
    exclude = [_check_point(f"exclude[{i}]", point) for i, point in enumerate(spec.exclude)]
    if not grid and not points:
        raise BadInput("grid and points are both empty: give at least one axis, such as grid: {batch_size: [16, 32]}")
    for i, point in enumerate(exclude):
        if unknown := set(point) - set(grid) - {name for p in points for name in p}:
            raise BadInput(f"exclude[{i}].{sorted(unknown)[0]} must be an axis of the grid ({', '.join(grid)})")
    if repeated := _first_repeat(spec.seeds):
        raise BadInput(f"seeds holds {repeated[1]} twice: each point would be trained twice; remove one")
    return spec.model_copy(update={"grid": grid, "points": points, "exclude": exclude})


def canonical(value: Any) -> str:
    """A text that is equal for equal values: 0 and 0.0 train alike, so they read alike."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {canonical(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(canonical, value)) + "]"
    return repr(value)


def _check_axis(name: str, values: list[Any]) -> list[Any]:
    path = f"grid.{_key(name)}"
    if not values:
        raise BadInput(f"{path} must hold at least one value, got an empty list: add values or remove the axis")
    checked = [_check_value(name, value, f"{path}[{i}]") for i, value in enumerate(values)]
    if repeated := _first_repeat([canonical(value) for value in checked]):
        raise BadInput(f"{path}[{repeated[0]}] repeats the value {repeated[1]}: remove one of them")
    kinds = {float if isinstance(v, int | float) and not isinstance(v, bool) else type(v) for v in checked}
    if len(kinds) > 1:
        raise BadInput(f"{path} must hold values of one type, got {_show(values)}")
    return checked


def _check_point(path: str, point: Mapping[str, Any]) -> dict[str, Any]:
    if not point:
        raise BadInput(f"{path} must name at least one axis, such as {{batch_size: 16, epochs: 10}}, got {{}}")
    return {name: _check_value(name, value, f"{path}.{_key(name)}") for name, value in point.items()}


def _check_value(name: str, value: Any, path: str) -> Any:
    if name in AXIS_PATHS:
        try:
            return _adapter(name).validate_python(value)
        except ValidationError as error:
            raise BadInput(_explain(error, path)) from None
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in _RESERVED_AXES:
        raise BadInput(
            f"{path}: {_show(name)} cannot be an axis{_did_you_mean(name, AXIS_PATHS)}: axes are "
            f"{', '.join(AXIS_PATHS)}, and the arguments of the model function"
        )
    if not isinstance(value, get_args(Scalar)) or (isinstance(value, float) and not math.isfinite(value)):
        raise BadInput(f"{path} must be a number, a text or true/false, got {_show(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # what a column of the leaderboard can hold
        raise BadInput(f"{path} must be a whole number of at most 64 bits, got {_show(value)}")
    return value


@cache
def _adapter(axis: str) -> TypeAdapter:
    section, field = AXIS_PATHS[axis]
    info = _SECTIONS[section].model_fields[field]
    return TypeAdapter(Annotated[info.annotation, *info.metadata, None], config=Section.model_config)


def _first_repeat(values: Sequence[Any]) -> tuple[int, Any] | None:
    seen = set()
    for i, value in enumerate(values):
        if value in seen:
            return i, value
        seen.add(value)
    return None


def _explain(error: ValidationError, prefix: str = "") -> str:
    """The first problem as one line: what it must be, what it was."""
    problems = error.errors(include_url=False)
    # a misspelt key first: it is why another is missing
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
            path += f".{_key(part)}" if path else _key(part)
    got = _show(first["input"])
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
    return line + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


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
        "string_pattern_mismatch": "small_cnn or package.module:function",
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


class _Brief(reprlib.Repr):
    """A short repr in YAML's words, at a small price even where aliases make the value huge."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80

    def repr1(self, x: Any, level: int) -> str:
        if x is None or isinstance(x, bool):
            return "null" if x is None else str(x).lower()
        if isinstance(x, int) and abs(x) >= 2**63:
            return f"a number of {x.bit_length()} bits"
        return super().repr1(x, level)


def _show(value: Any) -> str:
    text = _Brief().repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _key(name: str) -> str:
    """A key as it stands in a path: quoted where that must be, so that a message stays one line."""
    return name if re.fullmatch(r"[\w.-]{1,60}", name) else _show(name)


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise BadInput(
                f"--set {'.'.join(keys)}: {'.'.join(keys[: depth + 1])} must be a mapping, got {_show(tree)}: "
                f"set it as a whole"
            )
    tree[keys[-1]] = value


_UNUSED_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "merge", "value")}


class _Loader(yaml.SafeLoader):
    """Plain YAML: no tags, no merged mappings, no repeated keys; 1e-3 is a number and 2024-01-31 a text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag not in _UNUSED_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if tag := getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem=f"the tag {tag!r} has no place here", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                got = key.value if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
                problem = f"a key must be a text, got {got}: put it in quotes"
            elif key.value in seen:
                problem = f"the key {_show(key.value)} stands twice: keep one"
            else:
                seen.add(key.value)
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1} column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadInput(f"{source} must be YAML{where}: {problem}") from None
