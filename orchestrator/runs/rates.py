"""Rates: what range tests found, in the run folder: rates/<id>.json, one for each test."""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from orchestrator.runs.folder import Run
from orchestrator.runs.result import SealedRecord
from orchestrator.store import Missing

_FOLDER = "rates/"


class RateFound(SealedRecord):
    """What a range test found.

    Attributes:
        test_id: See plans.rates.RangeTest; values: as there.
        rate: The learning rate that it found.
        rates: Those that were tried, ascending. losses: what the model reached with each; None: no number.
    """

    version: int = Field(1, ge=1, le=1)
    test_id: str
    values: dict[str, Any]
    rate: float = Field(gt=0)
    rates: list[float]
    losses: list[float | None]
    checksum: str | None = None


def is_found(run: Run, test_id: str) -> bool:
    """Whether there is a file of what a test found."""
    return run.store.exists(_key(test_id))


def read_rate(run: Run, test_id: str, say: Callable[[str], None] = lambda line: None) -> RateFound | None:
    """What a test found; None where nobody has made it, or its file is damaged, of which `say` tells."""
    key = _key(test_id)
    try:
        return RateFound.unsealed(run.store.read(key))
    except Missing:
        return None
    except ValueError:
        say(f"{run.store.uri}/{key} was damaged, and is made anew")
        return None


def keep_rate(run: Run, found: RateFound) -> RateFound:
    """Write what a test found; where another worker was faster, take what it wrote."""
    key, data = _key(found.test_id), found.sealed().encode()
    if run.store.write_if_absent(key, data) is None:
        if (theirs := read_rate(run, found.test_id)) is not None:
            return theirs
        run.store.write(key, data)  # what is there is damaged
    return found


def read_rates(run: Run) -> list[RateFound]:
    """What every test found whose file can be read."""
    names = [each.key.removeprefix(_FOLDER).removesuffix(".json") for each in run.store.list(_FOLDER)]
    return [found for name in names if (found := read_rate(run, name))]


def _key(test_id: str) -> str:
    return f"{_FOLDER}{test_id}.json"
