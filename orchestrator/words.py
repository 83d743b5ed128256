"""Words: how names, counts and times are written in every message, table and page. Pure."""

import difflib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
_NO_CHARACTERS = re.compile(r"[\ud800-\udfff]")


def label(values: Mapping[str, Any], seed: int = 0, fold: int = 0) -> str:
    """`batch_size=5 dropout=0.5`: the values that identify a trial. Seed and fold are named unless they are 0."""
    parts = [f"{name}={plain(value)}" for name, value in values.items()]
    draws = [f"{name}={number}" for name, number in (("seed", seed), ("fold", fold)) if number]
    return " ".join([*parts, *draws]) or "every setting as in the spec"


def plain(value: Any) -> Any:
    """An axis' value as a message or a cell holds it: sizes as 64x64, weights of classes as {cat: 1, dog: 19}."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_short(each)}" for name, each in sorted(value.items())) + "}"
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else value


def _short(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean cat?)`, where a known name is close to this one; otherwise nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def plural(count: int, noun: str) -> str:
    """1 point, 2 points."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def clock(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 3 min 05 s, 2 h 10 min."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def now() -> str:
    """This moment in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def printable(text: str) -> str:
    """The text without line breaks and other characters that control a terminal, or the direction of what follows.

    Bytes that are no UTF-8, in names of files, become question marks.
    """
    return _CONTROLS.sub(" ", _NO_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text))


def last_line(error: BaseException) -> str:
    """An error in at most 500 characters: its type and the last line of its message, which may be a page long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:500]
