"""Words: how names, counts and times are written in every message, table and page. Pure."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def label(values: Mapping[str, Any], seed: int) -> str:
    """`batch_size=5 dropout=0.5`: the values that identify a trial. The seed is named unless it is 0."""
    parts = [
        f"{name}={'x'.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in values.items()
    ]
    return " ".join([*parts, *([f"seed={seed}"] if seed else [])]) or "every setting as in the spec"


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
    """The text without line breaks and other characters that control a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)


def last_line(error: BaseException) -> str:
    """An error in at most 500 characters: its type and the last line of its message, which may be a page long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:500]
