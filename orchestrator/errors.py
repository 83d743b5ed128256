"""What may go wrong, and how a command ends. Pure.

BadInput            something the person can mend: one line on stderr, exit 2, nothing written or lost
└── StoreError      a store said no, or cannot be reached          (store.py)
    ├── Missing     no such key
    └── Changed     the object is not the one that the index lists

Anything else that reaches the top is a bug of ours and keeps its traceback.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

DONE, FAILED, USED_UP, INTERRUPTED = 0, 1, 3, 130


class BadInput(Exception):
    """One clear line: what it must be, what it was, what to do."""


@contextlib.contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Around a command: BadInput becomes `error: ...` on stderr and exit status 2."""
    try:
        yield
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def exit_at_once(status: int) -> NoReturn:
    """End this process as it stands: Python's own way out calls every library once more, and may wait for it."""
    try:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, RuntimeError):  # nobody reads it any more, or it was just being written
                stream.flush()
    finally:
        os._exit(status)
