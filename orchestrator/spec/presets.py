"""Presets: augmentations by name, and the fields of `augment` that each one stands for. Pure."""

from orchestrator.spec.sections import Augment, Spec

# Never change one: grids and results name them. A better one gets a new name.
PRESETS: dict[str, dict[str, float | bool]] = {
    "none": {},
    "light": {
        "rotation_deg": 5.0,
        "width_shift": 0.05,
        "height_shift": 0.05,
        "zoom": 0.05,
        "brightness": 0.1,
        "contrast": 0.1,
        "horizontal_flip": True,
    },
    "medium": {
        "rotation_deg": 15.0,
        "width_shift": 0.1,
        "height_shift": 0.1,
        "zoom": 0.15,
        "shear": 5.0,
        "brightness": 0.2,
        "contrast": 0.2,
        "horizontal_flip": True,
    },
    "strong": {
        "rotation_deg": 25.0,
        "width_shift": 0.15,
        "height_shift": 0.15,
        "zoom": 0.2,
        "shear": 10.0,
        "crop": 0.3,
        "brightness": 0.3,
        "contrast": 0.3,
        "cutout": 0.3,
        "horizontal_flip": True,
    },
}


def with_preset(augment: Augment) -> Augment:
    """The same with the values of its preset in the fields that nobody named."""
    given = PRESETS[augment.preset]
    return augment.model_copy(
        update={name: value for name, value in given.items() if name not in augment.model_fields_set}
    )


def left_to_preset(spec: Spec) -> tuple[str, ...]:
    """Where the preset is an axis: the fields of `augment` that it may set, as neither the spec nor an axis does."""
    if "preset" not in spec.axes:
        return ()
    given = dict.fromkeys(name for preset in PRESETS.values() for name in preset)
    return tuple(name for name in given if name not in spec.augment.model_fields_set and name not in spec.axes)
