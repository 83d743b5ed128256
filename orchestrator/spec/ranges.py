"""Ranges: an axis of the grid as all numbers between two ends, from which points are drawn. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_PARTS = 4  # into which tables and figures divide a range
_FEW = 8  # whole numbers: each is shown alone


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from low to high, both among them; whole numbers alone where both are.

    Attributes:
        scale: log: as many points between 0.001 and 0.01 as between 0.01 and 0.1. linear: evenly.
    """

    low: int | float
    high: int | float
    scale: Literal["linear", "log"] = "linear"

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def count(self) -> float:
        """How many numbers it holds; infinity unless they are whole."""
        return self.high - self.low + 1 if self.whole else math.inf

    def tree(self) -> dict[str, Any]:
        """As it stands in a spec."""
        return {"from": self.low, "to": self.high, "scale": self.scale}

    def at(self, place: float) -> int | float:
        """The number at a place in [0, 1): rounded, and within the ends. Equal parts of places are equally many."""
        end = self.high + 1 if self.whole else self.high
        value = self.low * (end / self.low) ** place if self.scale == "log" else self.low + place * (end - self.low)
        return min(math.floor(value), self.high) if self.whole else self.rounded(value)

    def rounded(self, value: float) -> int | float:
        """The nearest number that is drawn.

        On a log scale numbers have 4 significant digits, on a linear one as many decimals as make 10,000 steps or more.
        """
        if self.whole:
            near: int | float = round(value)
        elif self.scale == "log":
            near = float(f"{value:.4g}")
        else:
            near = round(value, 4 - math.floor(math.log10(self.high - self.low)))
        return min(max(near, self.low), self.high)

    def holds(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    @property
    def edges(self) -> list[int | float]:
        """Where each quarter begins; empty where the range holds few whole numbers, of which each is shown alone."""
        if self.count <= _FEW:
            return []
        end = self.high + 1 if self.whole else self.high
        steps = [number / _PARTS for number in range(_PARTS)]
        if self.scale == "log":
            found = [self.low * (end / self.low) ** step for step in steps]
        else:
            found = [self.low + step * (end - self.low) for step in steps]
        return [math.ceil(round(edge, 9)) if self.whole else edge for edge in found]

    @property
    def parts(self) -> list[str]:
        """What the quarters are called, and before and after them what lies outside of the range."""
        if not (edges := self.edges):
            return []
        ends = [edge - 1 for edge in edges[1:]] if self.whole else edges[1:]
        named = [f"{_text(low)} to {_text(high)}" for low, high in zip(edges, [*ends, self.high], strict=True)]
        return [f"below {_text(self.low)}", *named, f"above {_text(self.high)}"]

    def part(self, value: int | float) -> str | int | float:
        """The quarter of the range in which a number lies, such as `0.001 to 0.00316`; a number of few is its own."""
        if not (edges := self.edges):
            return value
        return self.parts[sum(value >= edge for edge in edges) + (value > self.high)]


def _text(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def read_tree(tree: Mapping[str, Any]) -> Range:
    """The range that `Range.tree` wrote."""
    return Range(tree["from"], tree["to"], tree["scale"])


def ends(values: list[Any] | Range) -> list[Any]:
    """What a spec says of an axis: all values of a list, the two ends of a range."""
    return [values.low, values.high] if isinstance(values, Range) else values
