"""Axes: which field of the spec an axis sets, and the settings of one trial. Pure."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.metrics import METRICS
from orchestrator.spec.presets import left_to_preset, with_preset
from orchestrator.spec.ranges import ends
from orchestrator.spec.sections import NO_BACKBONE, Augment, Backbone, Data, Scalar, Section, Spec, Train


@dataclass(frozen=True, slots=True)
class Settings:
    """What one trial trains with: the shared sections of the spec, with the axis values put in.

    Attributes:
        model: Name of the model function; never `auto`.
        model_args: Axis values that belong to no section; passed to the model function by name.
    """

    data: Data
    augment: Augment
    backbone: Backbone | None
    train: Train
    model: str
    model_args: dict[str, Scalar]


# Axis name -> section and field of its value. Whatever is not listed here is an argument of the model function.
AXIS_PATHS: dict[str, tuple[str, str]] = {
    "image_size": ("data", "image_size"),
    "training_images": ("data", "training_images"),
    "model": ("spec", "model"),
    "backbone": ("backbone", "name"),
    "unfreeze": ("backbone", "unfreeze"),
    **{name: ("augment", name) for name in Augment.model_fields},
    **{name: ("train", name) for name in Train.model_fields if name not in ("early_stopping", "checkpoint_every_s")},
}
SECTIONS: dict[str, type[Section]] = {
    "spec": Spec,
    "data": Data,
    "augment": Augment,
    "backbone": Backbone,
    "train": Train,
}
# Fields that came after 0.1.0 -> the value at which they change nothing: not named in ids then, so that older runs can
# go on.
LATER = {
    "data.training_images": None,
    "data.group_by": None,
    "data.exif": "ignore",
    "data.test_split": 0.0,
    "data.folds": None,
    "data.rule": 1,
    "augment.vertical_flip": False,
    "augment.zoom": 0.0,
    "augment.shear": 0.0,
    "augment.crop": 0.0,
    "augment.brightness": 0.0,
    "augment.contrast": 0.0,
    "augment.cutout": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "train.fine_tune_learning_rate": None,
    "train.lr_scale": "none",
    "train.lr_base_batch": 32,
    "train.class_weight": "none",
    "train.schedule": "constant",
    "train.warmup_epochs": 1,
    "train.step_epochs": 5,
    "train.plateau_patience": 3,
    "train.decay_factor": 0.1,
    "train.decay_share": 0.2,
    "train.weight_decay": None,
    "train.momentum": 0.0,
    "train.clip_norm": 0.0,
    "train.label_smoothing": 0.0,
    "train.ema": 0.0,
}
# Fields of data that say which images there are, which is in the index, or only where and how they are read.
_NOT_SHARED = {"uri", "layout", "labels", "on_bad_image", "on_duplicate", "cache_limit_gb"}
# Names that an axis cannot have: the fields of train that are not axes, the arguments of every model function, keys of
# the plan as JSON, columns of the leaderboard.
RESERVED_AXES = (
    {"early_stopping", "checkpoint_every_s", "input_shape", "classes", "id", "milestones", "forecast_s"}
    | {"branches_from", "forks_from", "rate_test", "rate_used"}
    | {
        "rank",
        "point_id",
        "trial_id",
        "status",
        "seed",
        "fold",
        "best_epoch",
        "epochs_trained",
        "steps_per_epoch",
        "train_s",
    }
    | {"parameters", "model_mb", "ms_per_image"}
    | {"images_per_s", "peak_memory_mb", "device", "node", "error", "started_at", "finished_at", "cost_usd", "run"}
    | {"seeds", "folds", "verdict", "score", "stopped_because", *METRICS}
)


def axis_path(name: str) -> str:
    """The `section.field` that an axis sets."""
    return ".".join(AXIS_PATHS.get(name, ("model", name)))


def resolve(spec: Spec, values: Mapping[str, Any]) -> Settings:
    """Put one point's axis values into the sections they belong to."""
    updates: dict[str, dict[str, Any]] = {section: {} for section in (*SECTIONS, "model")}
    for name, value in values.items():
        section, field = AXIS_PATHS.get(name, ("model", name))
        updates[section][field] = value
    backbone = spec.backbone
    if updates["backbone"]:
        backbone = (backbone or Backbone(name=NO_BACKBONE)).model_copy(update=updates["backbone"])
    if backbone and backbone.name == NO_BACKBONE:
        backbone = None
    return Settings(
        data=spec.data.model_copy(update=updates["data"]),
        augment=with_preset(spec.augment.model_copy(update=updates["augment"])),
        backbone=backbone,
        train=spec.train.model_copy(update=updates["train"]),
        model=_named(updates["spec"].get("model", spec.model), backbone is not None),
        model_args=updates["model"],
    )


def _named(model: str, has_backbone: bool) -> str:
    return model if model != "auto" else "head" if has_backbone else "small_cnn"


def pairs(spec: Spec) -> tuple[tuple[str, str], ...]:
    """(model, backbone) of every point of the spec: never `auto`, but NO_BACKBONE where a point has none."""
    model, backbone = spec.model, spec.backbone.name if spec.backbone else NO_BACKBONE
    found = [(point.get("model", model), point.get("backbone", backbone)) for point in spec.points]
    if spec.grid or not spec.points:
        found[:0] = itertools.product(
            ends(spec.grid.get("model", [model])), ends(spec.grid.get("backbone", [backbone]))
        )
    return tuple(dict.fromkeys((_named(each, name != NO_BACKBONE), name) for each, name in found))


def backbone_names(spec: Spec) -> tuple[str, ...]:
    """Every backbone that some point may name, NO_BACKBONE among them where a point may have none."""
    return tuple(dict.fromkeys(backbone for _, backbone in pairs(spec)))


def models(spec: Spec) -> tuple[str, ...]:
    """Every model that some point may train."""
    return tuple(dict.fromkeys(model for model, _ in pairs(spec)))


def shared_settings(spec: Spec) -> dict[str, Any]:
    """`section.field` -> value, for every setting that all trials share and that affects their weights.

    Fields that an axis sets are left out, and so are those that only say where, when or how fast, and those in LATER at
    their default; and the preset, whose values stand in its place. A run folder with the same shared settings can take
    this spec's points.
    """
    flat = deciding(spec)
    for name in spec.axes:
        flat.pop(axis_path(name), None)
    return flat


def deciding(sections: Spec | Settings) -> dict[str, Any]:
    """`section.field` -> value, for every setting of data, augment and train that affects weights, but epochs.

    Those in LATER are left out at their default, and so is the preset, whose values stand in its place.
    """
    left = left_to_preset(sections) if isinstance(sections, Spec) else ()
    kept = {
        "data": sections.data.model_dump(exclude=_NOT_SHARED),
        "augment": sections.augment.model_dump(exclude={"preset", *left}),
        "train": sections.train.model_dump(exclude={"epochs", "checkpoint_every_s"}),
    }
    flat = {f"{section}.{field}": value for section, fields in kept.items() for field, value in fields.items()}
    return {name: value for name, value in flat.items() if not changes_nothing(name, canonical(value))}


def changes_nothing(path: str, text: str) -> bool:
    """Whether the field came after 0.1.0 and has, as canonical text, the value at which trials are as they were."""
    return path in LATER and text == canonical(LATER[path])


def as_begun(spec: Spec, shared: Mapping[str, Any]) -> Spec:
    """The spec with the defaults that its run folder was begun with, where it does not say otherwise.

    shared: what the trials there share; see Plan.shared.
    """
    if "data.split_by" not in shared or "data.rule" in shared or spec.data.rule == 1:
        return spec
    older = {"split_by": shared["data.split_by"], "exif": "ignore"}
    kept = {name: value for name, value in older.items() if name not in spec.data.model_fields_set}
    return spec.model_copy(update={"data": spec.data.model_copy(update={**kept, "rule": 1})})


def canonical(value: Any) -> str:
    """The same text for equal values: 0 and 0.0 train alike, so both give "0"."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {canonical(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(canonical, value)) + "]"
    return repr(value)
