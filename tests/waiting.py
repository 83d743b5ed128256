"""Waiting for conditions that nobody announces: they are checked again and again, for a limited time."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")
WAIT_S = 240.0


def pause(seconds: float) -> None:
    """Let time pass when a test needs just that: a random moment, a lease that becomes stale."""
    threading.Event().wait(seconds)


def eventually(what: Callable[[], Found], wait_s: float = WAIT_S) -> Found:
    """The value of the function, once it is true. Raises AssertionError if it is not true in time."""
    deadline = time.monotonic() + wait_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"did not come true within {wait_s:.0f} s"
        pause(0.02)
    return found
