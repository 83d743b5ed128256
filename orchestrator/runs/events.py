"""Events: what happens in a run, a line of JSON each, in events.jsonl; see docs/json.md.

For who watches a run. It is never read back: what is trained is in trials/.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from orchestrator.documents import finite
from orchestrator.store import Store, StoreError

EVENTS = "events.jsonl"
_EVERY_S = 1.0
_SHARE = 0.05  # of the driver's time, at most: a bucket writes the whole record anew


class Events:
    """The record of a run, which goes on where the last driver's ended. Told by one thread at a time.

    What is told is kept until `write`: nothing is in the run folder before the run is taken.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lines: list[str] = []
        self._next_write_s = 0.0
        self._trouble = ""

    def tell(self, event: str, **fields: Any) -> None:
        """Something happened now. fields: plain values."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._lines.append(json.dumps({"time": at, "event": event, **finite(fields)}, separators=(",", ":")))

    def write_if_due(self, say: Callable[[str], None]) -> None:
        """Write what was told, unless that was done a moment ago."""
        if self._lines and time.monotonic() >= self._next_write_s:
            self.write(say)

    def write(self, say: Callable[[str], None]) -> None:
        """Write what was told. say: called with the reason if that fails, once; the next call writes it too."""
        lines, began = self._lines, time.monotonic()
        if not lines:
            return
        try:
            self._store.append_lines(EVENTS, "".join(f"{line}\n" for line in lines).encode())
            self._lines, self._trouble = self._lines[len(lines) :], ""
        except StoreError as error:
            if str(error) != self._trouble:
                say(f"{EVENTS} could not be written: {error}")
            self._trouble = str(error)
        took_s = time.monotonic() - began
        self._next_write_s = began + max(_EVERY_S, took_s / _SHARE)
