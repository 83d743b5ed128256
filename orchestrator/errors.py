"""Errors: what can go wrong, and how a command ends, whoever reads what it prints. Pure.

BadInput            something that a person can fix: one line on stderr, exit status 2, nothing written or lost
└── StoreError      a store refused, or cannot be reached          (store/interface.py)
    ├── Missing     no such key
    └── Changed     the object is not the one that was listed

Anything else that reaches the top is a bug and keeps its traceback.
"""

import contextlib
import io
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from orchestrator.documents import document
from orchestrator.words import last_line, printable

DONE, FAILED, USED_UP, INTERRUPTED = 0, 1, 3, 130


class BadInput(Exception):
    """One clear line: what something must be, what it was, and what to do."""


@contextlib.contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Around a command: BadInput becomes `error: ...` on stderr and exit status 2."""
    try:
        yield
    except BadInput as error:
        say_error(error)
        raise SystemExit(2) from None


def say_error(what: object) -> None:
    """One line on stderr: names in it, of files and classes, neither break it nor control the terminal."""
    print(f"error: {printable(str(what))}", file=sys.stderr)


class Output(io.FileIO):
    """A stream whose reader decides nothing: from the first byte that cannot be written, all is dropped.

    Attributes:
        lost: Why it cannot be written; None while it can.
        is_all: Whether what a command prints is all that it makes, so that it fails where that is lost.
    """

    lost: OSError | None = None
    is_all = True

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while left and not self.lost:
            try:
                written = super().write(left)
                if written is None:  # somebody made it non-blocking: there will be room again
                    select.select((), (self,), ())
                left = left[written or 0 :]
            except OSError as error:
                self.lost = error
        return size


def end_whoever_reads() -> None:
    """For a command that keeps what it makes in files: its status is their matter alone from now on."""
    Output.is_all = False


def _take_over(name: str) -> Output | None:
    """An Output in the place of sys.stdout or sys.stderr; where that was closed, what it is given goes nowhere.

    None where somebody has put something in its place that is no file.
    """
    stream = getattr(sys, name)
    if stream is None:
        stream = open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if not isinstance(stream, io.TextIOWrapper):
        return None
    with contextlib.suppress(OSError):
        stream.flush()
    output = Output(stream.fileno(), "w", closefd=False)
    buffer: Any = output if stream.write_through else io.BufferedWriter(output)
    how: Any = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, stream.errors, **how))
    return output


def run_command(main: Callable[..., None], **settings: Any) -> NoReturn:
    """A module's `main` as a command, from its arguments to its exit status. settings: see typer.Typer.command.

    With --json, whatever ends it before it has printed a document is one: bad input, Ctrl-C, a bug.

    Whoever reads what it prints may leave: it goes on in silence. Where a disk is full it goes on as well, and fails in
    the end, unless it called end_whoever_reads.

    The process does not leave through Python's own exit, which calls every library once more. If a thread of a library
    wakes up meanwhile (Arrow's release Python buffers late), it aborts a process that has done all its work.
    """
    import typer  # here, so that workers do not need it

    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # closed ones: the next files must not take their places
        pass
    os.close(number)
    output, _ = _take_over("stdout"), _take_over("stderr")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(**settings)(main)
    status, why = 1, None
    try:
        try:
            app()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            why = end.__context__  # None where the command came to its end, whatever that was
        except BaseException as bug:
            why = bug
            for line in traceback.format_exc().splitlines():
                print(printable(line), file=sys.stderr)
        if why and status and "--json" in sys.argv:
            print(_error_document(why, status))
        sys.stdout.flush()
        if output and output.lost and output.is_all and not isinstance(output.lost, BrokenPipeError):
            say_error(f"stdout must take what is written to it: {output.lost.strerror}")
            status = status or 2
    finally:
        exit_at_once(status)


def _error_document(why: BaseException, status: int) -> str:
    """See docs/json.md. why: what ended the command, or what Typer makes of it."""
    if status == INTERRUPTED:
        return error_document("interrupted", "interrupted", status)
    if status == 2:
        say = getattr(why, "format_message", None)  # Typer's, of arguments
        return error_document("bad_input", say() if say else str(why), status)
    return error_document("bug", last_line(why), status)


def error_document(type: str, message: str, status: int) -> str:
    """The document of a command that cannot give the one it was asked for."""
    return document("error", error={"type": type, "message": message, "exit_status": status})


def exit_at_once(status: int) -> NoReturn:
    """End this process now. Python's own exit calls every library once more, and may wait for one."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(RuntimeError):  # a write was interrupted
                stream.flush()
    finally:
        os._exit(status)
