"""Errors: what can go wrong, and how a command ends. Pure.

BadInput            something that a person can fix: one line on stderr, exit status 2, nothing written or lost
└── StoreError      a store refused, or cannot be reached          (store/interface.py)
    ├── Missing     no such key
    └── Changed     the object is not the one that was listed

Anything else that reaches the top is a bug and keeps its traceback.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

DONE, FAILED, USED_UP, INTERRUPTED = 0, 1, 3, 130


class BadInput(Exception):
    """One clear line: what something must be, what it was, and what to do."""


@contextlib.contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Around a command: BadInput becomes `error: ...` on stderr and exit status 2."""
    try:
        yield
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def run_command(main: Callable[..., None], **settings: Any) -> NoReturn:
    """A module's `main` as a command, from its arguments to its exit status. settings: see typer.Typer.command.

    The process does not leave through Python's own exit, which calls every library once more. If a thread of a library
    wakes up meanwhile (Arrow's release Python buffers late), it aborts a process that has done all its work.
    """
    import typer  # here, so that workers do not need it

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(**settings)(main)
    status = 1
    try:
        try:
            app()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        status = status or 1  # as Typer does if it happens earlier
    except OSError as error:
        print(f"error: stdout must take what is written to it: {error.strerror or error}", file=sys.stderr)
        status = status or 2
    finally:
        exit_at_once(status)


def exit_at_once(status: int) -> NoReturn:
    """End this process now. Python's own exit calls every library once more, and may wait for one."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError, RuntimeError):  # nobody reads it any more, or a write was interrupted
                stream.flush()
    finally:
        os._exit(status)
