"""Order: which of many trials start first, so that every value is trained early. Pure."""

from collections import Counter
from collections.abc import Hashable, Sequence


def in_rounds(values: Sequence[Sequence[Hashable]]) -> list[int]:
    """The places of all trials in the order in which they start. values: of each trial, those on its axes.

    In each round, first those start of whose values none has started as often as the round asks for, then those of
    which some has not; it asks for 1, 2, 4, … Of equals, the earlier place comes first. Takes n log n.
    """
    left, asked, started = list(range(len(values))), 1, Counter[Hashable]()
    ordered: list[int] = []
    while left:
        for enough in (all, any):
            later = []
            for place in left:
                if not values[place] or enough(started[value] < asked for value in values[place]):
                    started.update(values[place])
                    ordered.append(place)
                else:
                    later.append(place)
            left = later
        asked *= 2
    return ordered
