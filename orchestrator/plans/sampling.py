"""Sampling: which combinations of a grid's values are drawn. Pure.

Each number is a function of the sample's seed, its own index and the name of its axis. So more points keep those that
are there, and so does another axis, or another order of the axes.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.spec.ranges import Range
from orchestrator.spec.sections import Sample

_BITS = 32
# Axis -> its dimension of Sobol's sequence, by its place: what people search most comes first, as the first dimensions
# are spread best in pairs. New names go to the end, or the points of those behind them would move.
_FIRST = (
    "learning_rate",
    "l2",
    "dropout",
    "batch_size",
    "weight_decay",
    "hidden",
    "rotation_deg",
    "width_shift",
    "height_shift",
    "zoom",
    "label_smoothing",
    "momentum",
    "optimizer",
    "epochs",
    "image_size",
    "horizontal_flip",
)
# Of each dimension but the first: a primitive polynomial, its coefficients as bits, and the first direction numbers.
# From Joe and Kuo, 2008, Constructing Sobol sequences with better two-dimensional projections, table new-joe-kuo-6.
_TABLE = """
    3 1, 7 1 3, 11 1 3 1, 13 1 1 1, 19 1 1 3 3, 25 1 3 5 13, 37 1 1 5 5 17, 41 1 1 5 5 5, 47 1 1 7 11 19,
    55 1 1 5 1 1, 59 1 1 1 3 11, 61 1 3 5 5 31, 67 1 3 3 9 7 49, 91 1 1 1 15 21 21, 97 1 3 1 13 27 49,
    103 1 1 1 15 7 5, 109 1 3 1 15 13 25, 115 1 1 5 5 19 61, 131 1 3 7 11 23 15 103, 137 1 3 7 13 13 15 69,
    143 1 1 3 13 7 35 63, 145 1 3 5 9 1 25 53, 157 1 3 1 13 9 35 107, 167 1 3 1 5 27 61 31,
    171 1 1 5 11 19 41 61, 185 1 3 5 3 3 13 69, 191 1 1 7 13 1 19 1, 193 1 3 7 5 13 19 59, 203 1 1 3 9 25 29 41,
    211 1 3 5 13 23 1 55, 213 1 3 7 3 13 59 17, 229 1 3 1 3 5 53 69, 239 1 1 5 5 23 33 13, 241 1 1 7 7 1 61 123,
    247 1 1 7 9 13 61 49, 253 1 3 3 5 3 55 33, 285 1 3 1 15 31 13 49 245, 299 1 3 5 15 31 59 63 97,
    301 1 3 1 11 11 11 77 249, 333 1 3 1 11 27 43 71 9, 351 1 1 7 15 21 11 81 45, 355 1 3 7 3 25 31 65 79,
    357 1 3 1 1 19 11 3 205, 361 1 1 5 9 19 21 29 157, 369 1 3 7 11 1 33 89 185, 391 1 3 3 3 15 9 79 71,
    397 1 3 7 11 15 39 119 27, 425 1 1 3 1 11 31 97 225, 451 1 1 1 3 23 43 57 177, 463 1 3 7 7 17 17 37 71,
    487 1 3 1 5 27 63 123 213, 501 1 1 3 5 11 43 53 133, 529 1 3 5 5 29 17 47 173 479,
    539 1 3 3 11 3 1 109 9 69, 545 1 1 1 5 17 39 23 5 343, 557 1 3 1 5 25 15 31 103 499,
    563 1 1 1 11 11 17 63 105 183, 601 1 1 5 11 9 29 97 231 363, 607 1 1 5 15 19 45 41 7 383,
    617 1 3 7 7 31 19 83 137 221, 623 1 1 1 3 23 15 111 223 83, 631 1 1 5 13 31 15 55 25 161,
    637 1 1 3 13 25 47 39 87 257
"""
DIMENSIONS = 1 + _TABLE.count(",") + 1


def draw(grid: Mapping[str, list[Any] | Range], sample: Sample) -> Iterator[dict[str, Any]]:
    """Axis -> value, one combination after the other, without end; some come more than once.

    Of a list, each value is drawn equally often in the long run. Raises BadInput for more axes than there are
    dimensions of Sobol's sequence here.
    """
    places = _sobol(tuple(grid), sample.seed) if sample.method == "sobol" else _random(tuple(grid), sample.seed)
    for index in range(1 << _BITS):
        yield {name: _value(values, place(index)) for (name, values), place in zip(grid.items(), places, strict=True)}


def _value(values: list[Any] | Range, place: float) -> Any:
    return values.at(place) if isinstance(values, Range) else values[int(place * len(values))]


def _hash(*of: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, of)).encode()).digest()[:4])


def _random(names: Sequence[str], seed: int) -> list[Callable[[int], float]]:
    """For each axis, index -> a place in [0, 1), each drawn alone."""
    return [partial(_alone, name, seed) for name in names]


def _alone(name: str, seed: int, index: int) -> float:
    return _hash(seed, name, index) / (1 << _BITS)


def _sobol(names: Sequence[str], seed: int) -> list[Callable[[int], float]]:
    """For each axis, index -> a place in [0, 1), by Sobol's sequence with a digital shift of the axis' own.

    Of the first 2^m points, each of 2^k equal parts of an axis holds equally many, for k up to m.
    """
    return [_shifted(directions(number), _hash(seed, name)) for name, number in _dimensions(names).items()]


def _shifted(of: Sequence[int], shift: int) -> Callable[[int], float]:
    def place(index: int) -> float:
        bits = shift
        for number in range(index.bit_length()):
            if index >> number & 1:
                bits ^= of[number]
        return bits / (1 << _BITS)

    return place


def _dimensions(names: Sequence[str]) -> dict[str, int]:
    """Axis -> its dimension: a fixed one for what people search most, by a hash of its name for another.

    Where two of these meet, the later of the grid takes the next that is free.
    """
    if len(names) > DIMENSIONS - len(_FIRST):
        raise BadInput(
            f"sample.method must be random for more than {DIMENSIONS - len(_FIRST)} axes, got {len(names)} with sobol"
        )
    found: dict[str, int] = {}
    for name in names:
        number = _FIRST.index(name) if name in _FIRST else None
        if number is None:
            number = len(_FIRST) + _hash(name) % (DIMENSIONS - len(_FIRST))
            while number in found.values():
                number = number + 1 if number + 1 < DIMENSIONS else len(_FIRST)
        found[name] = number
    return found


@cache
def directions(dimension: int) -> tuple[int, ...]:
    """The direction numbers of one dimension of Sobol's sequence, from 0 on: 32 whole numbers of 32 bits."""
    if dimension == 0:
        return tuple(1 << _BITS - 1 - bit for bit in range(_BITS))
    polynomial, *first = map(int, _TABLE.split(",")[dimension - 1].split())
    degree = polynomial.bit_length() - 1
    found = [number << _BITS - 1 - bit for bit, number in enumerate(first)]
    for bit in range(degree, _BITS):
        new = found[bit - degree] ^ found[bit - degree] >> degree
        for back in range(1, degree):
            if polynomial >> degree - back & 1:
                new ^= found[bit - back]
        found.append(new)
    return tuple(found)
