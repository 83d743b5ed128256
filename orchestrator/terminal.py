"""Terminal: where commands print, and how wide."""

import contextlib
import os
import sys
from collections.abc import Iterator

from rich.console import Console


def make_console(stderr: bool = False) -> Console:
    """As wide as the terminal; 200 columns and no colours if the output goes to a file or a job log."""
    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        return Console(file=stream, highlight=False, markup=False)
    return Console(file=stream, highlight=False, markup=False, width=200, color_system=None, force_terminal=False)


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Discard stderr: no setting silences what TensorFlow's libraries print about processors and drivers on loading."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
