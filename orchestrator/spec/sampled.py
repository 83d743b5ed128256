"""Sampled: what a spec says of ranges, and of the sample that draws from them, is read and checked here. Pure."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from orchestrator.errors import BadInput
from orchestrator.spec.axes import AXIS_PATHS, SECTIONS, canonical
from orchestrator.spec.notation import quoted, show
from orchestrator.spec.ranges import Range
from orchestrator.spec.sections import OwnModel, Sample
from orchestrator.words import did_you_mean

_KEYS = ("from", "to", "scale")


def read_range(name: str, tree: Mapping[str, Any], check: Callable[[str, Any, str], Any]) -> Range:
    """The range of an axis. check: axis, value, place in the spec -> the value, checked. Raises BadInput."""
    path = f"grid.{quoted(name)}"
    if unknown := [key for key in tree if key not in _KEYS]:
        raise BadInput(
            f"{path}.{unknown[0]} is not a known key of a range{did_you_mean(str(unknown[0]), _KEYS)}; known: "
            f"{', '.join(_KEYS)}"
        )
    if missing := [key for key in _KEYS[:2] if key not in tree]:
        raise BadInput(f"{path}.{missing[0]} is missing: a range has two ends, such as {{from: 0.0001, to: 0.01}}")
    if (scale := tree.get("scale", "linear")) not in ("linear", "log"):
        raise BadInput(f"{path}.scale must be one of 'linear' or 'log', got {show(scale)}")
    low, high = (check(name, tree[key], f"{path}.{key}") for key in _KEYS[:2])
    for key, end in (("from", low), ("to", high)):
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise BadInput(f"{path}.{key} must be a number, got {show(tree[key])}: give other values as a list")
    if low >= high:
        raise BadInput(f"{path}.to must be above from, {canonical(low)}, got {canonical(high)}")
    if scale == "log" and low <= 0:
        raise BadInput(f"{path}.from must be above 0 on a log scale, got {canonical(low)}")
    whole = isinstance(low, int) and isinstance(high, int) and not _takes_fractions(name)
    return Range(low, high, scale) if whole else Range(float(low), float(high), scale)


def check_sample(grid: Mapping[str, list[Any] | Range], sample: Sample | None, exclude: list[dict[str, Any]]) -> None:
    """Raises BadInput for ranges without a sample, and for one that asks for more than there is."""
    ranges = [name for name, values in grid.items() if isinstance(values, Range)]
    if sample is None:
        if ranges:
            raise BadInput(
                f"sample must say how many points to draw, as grid.{quoted(ranges[0])} is a range: add "
                f"sample: {{points: 64}}, or give a list of values"
            )
        return
    drawn = list(drawn_axes(grid))
    if not drawn:
        raise BadInput("sample must have an axis of the grid other than epochs to draw from: add one, or leave it out")
    most = math.prod(_count(grid[name]) for name in drawn)
    if sample.points > most:
        raise BadInput(
            f"sample.points must be at most {most:,.0f}, as the grid has no more combinations, got {sample.points:,}: "
            f"leave sample out to train them all"
        )
    for i, rule in enumerate(exclude):
        for name, value in rule.items():
            values = grid.get(name)
            if values is not None and not may_be(values, value):
                raise BadInput(f"exclude[{i}].{quoted(name)} must be a value that the grid has, got {show(value)}")


def drawn_axes(grid: Mapping[str, list[Any] | Range]) -> Iterator[str]:
    """The axes that a sample draws from: all but a list of epochs, which one trial serves."""
    return (name for name, values in grid.items() if name != "epochs" or isinstance(values, Range))


def _count(values: list[Any] | Range) -> float:
    return values.count if isinstance(values, Range) else len(values)


def may_be(values: list[Any] | Range, value: Any) -> bool:
    """Whether the axis may have the value: it is in the list, or in the range."""
    return values.holds(value) if isinstance(values, Range) else canonical(value) in map(canonical, values)


def _takes_fractions(name: str) -> bool:
    """Whether the axis is known to take numbers other than whole ones."""
    if name in AXIS_PATHS:
        section, field = AXIS_PATHS[name]
        return float in _types(SECTIONS[section].model_fields[field].annotation)
    return name in OwnModel.model_fields and float in _types(OwnModel.model_fields[name].annotation)


def _types(annotation: Any) -> list[Any]:
    """All that an annotation names, however deep."""
    return [annotation, *(found for part in get_args(annotation) for found in _types(part))]
