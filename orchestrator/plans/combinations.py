"""Combinations: the values of every point that a spec asks for, as a product, as a sample, and one by one. Pure."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.plans.sampling import draw
from orchestrator.spec.axes import AXIS_PATHS, canonical
from orchestrator.spec.networks import Networks
from orchestrator.spec.ranges import ends
from orchestrator.spec.sampled import drawn_axes
from orchestrator.spec.sections import NO_BACKBONE, Backbone, Spec

_OF_GRID = "a point of the grid"
_MISSED = 1000  # draws in a row that find nothing new; more the more there are


@dataclass(frozen=True, slots=True)
class Combination:
    """Axis -> value, without seeds; the same as canonical text; and its place in the spec."""

    values: Mapping[str, Any]
    texts: Mapping[str, str]
    where: str


def product(spec: Spec, defaults: Mapping[str, Any]) -> Iterator[Combination]:
    """Every combination of the grid. Raises BadInput for an exclusion that removes nothing."""
    used = [False] * len(spec.exclude)
    if spec.grid:
        fixed = _fill([name for name in spec.axes if name not in spec.grid], defaults, _OF_GRID, spec)
        fixed_texts = {name: canonical(value) for name, value in fixed.items()}
        as_lists = [ends(values) for values in spec.grid.values()]
        as_texts = ([canonical(value) for value in values] for values in as_lists)
        excludes = excluded_by(spec)
        for chosen, texts in zip(itertools.product(*as_lists), itertools.product(*as_texts), strict=True):
            grid_texts = dict(zip(spec.grid, texts, strict=True))
            for i in (hits := excludes(grid_texts)):
                used[i] = True
            if not hits:
                values = dict(zip(spec.grid, chosen, strict=True)) | fixed
                yield Combination(values, grid_texts | fixed_texts, _OF_GRID)
    if not all(used):
        i = used.index(False)
        raise BadInput(
            f"exclude[{i}] must match at least one point of the grid, got {spec.exclude[i]}: fix or remove it"
        )


def drawn(spec: Spec, defaults: Mapping[str, Any], is_new: Callable[[Combination], bool]) -> Iterator[Combination]:
    """As many combinations as the sample asks for: those that are excluded, or there already, are passed over.

    Each comes with every number of epochs, where the grid lists several. Raises BadInput where no more are found.
    """
    assert spec.sample
    fixed = _fill([name for name in spec.axes if name not in spec.grid], defaults, _OF_GRID, spec)
    axes = {name: spec.grid[name] for name in drawn_axes(spec.grid)}
    listed = [{"epochs": each} for each in ends(spec.grid["epochs"])] if axes.keys() < spec.grid.keys() else [{}]
    found, missed, excludes = 0, 0, excluded_by(spec)
    for chosen in draw(axes, spec.sample):
        group = []
        for epochs in listed:
            values = {name: {**chosen, **epochs}[name] for name in spec.grid} | fixed
            texts = {name: canonical(value) for name, value in values.items()}
            if not excludes({name: texts[name] for name in spec.grid}):
                group.append(Combination(values, texts, _OF_GRID))
        if group and all(map(is_new, group)):
            yield from group
            found, missed = found + 1, 0
        else:
            missed += 1
        if found == spec.sample.points:
            return
        if missed > _MISSED + 10 * found:
            raise BadInput(
                f"sample.points must be at most {found:,}, as no more are found that are new and not excluded, got "
                f"{spec.sample.points:,}: ask for fewer, or give wider ranges"
            )


def single(spec: Spec, defaults: Mapping[str, Any]) -> Iterator[Combination]:
    """Those that the spec names one by one. A point that does not name an axis gets its default."""
    for i, given in enumerate(spec.points):
        values = _fill([name for name in spec.axes if name not in given], defaults, f"points[{i}]", spec) | given
        values = {name: values[name] for name in spec.axes}
        yield Combination(values, {name: canonical(value) for name, value in values.items()}, f"points[{i}]")


def excluded_by(spec: Spec) -> Callable[[Mapping[str, str]], list[int]]:
    """A function: the values of a point of the grid, as canonical text -> which rules of exclude it meets."""
    rules = [{name: canonical(value) for name, value in rule.items()}.items() for rule in spec.exclude]
    return lambda texts: [i for i, rule in enumerate(rules) if rule <= texts.items()]


def _fill(names: Iterable[str], defaults: Mapping[str, Any], where: str, spec: Spec) -> dict[str, Any]:
    """Axis -> default, for axes that a point does not name. Raises BadInput if one has no default."""
    for name in names:
        if name not in defaults:
            raise BadInput(f"{where} must name {name}, to which the model {spec.model} gives no plain default")
    return {name: defaults[name] for name in names}


def defaults_of(spec: Spec, networks: Networks) -> dict[str, Any]:
    """Axis -> its value in a point that does not name it."""
    backbone = spec.backbone or Backbone(name=NO_BACKBONE)
    sections = {"data": spec.data, "augment": spec.augment, "backbone": backbone, "train": spec.train}
    of_model = {name: value for code in networks.codes.values() for name, value in code.defaults.items()}
    return of_model | {name: getattr(sections[part], field) for name, (part, field) in AXIS_PATHS.items()}
