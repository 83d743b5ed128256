"""Waiting for what tells nobody when it is there: asked again and again, for a bounded time."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
WAIT_S = 240.0


def pause(seconds: float) -> None:
    """Let time pass where time itself is what is wanted: a random moment, a lease that grows stale."""
    threading.Event().wait(seconds)


def eventually(what: Callable[[], Found], wait_s: float = WAIT_S) -> Found:
    """What the function gives, once that is true. Raises AssertionError where it does not come true in time."""
    deadline = time.monotonic() + wait_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"did not come true within {wait_s:.0f} s"
        pause(0.02)
    return found
