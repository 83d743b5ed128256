"""Scratch: temporary folders that do not outlive their process for long, however it ends.

Each is $TMPDIR/batch-orchestrator-<32 hex digits>/, with a file of the same name in it, the mark, and files/ for the
caller. Its process locks the folder before it makes the mark, and until it ends. So a folder that has the mark but no
lock is left over. Nothing else is ever removed, whatever its name.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "batch-orchestrator-"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder. It is removed at the end, or by a later sweep if the process is killed."""
    folder = Path(tempfile.gettempdir(), f"{_PREFIX}{secrets.token_hex(16)}")
    folder.mkdir(0o700)
    with _opened(folder) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)  # first the lock, then the mark: a sweep that looks in between finds no mark
        (folder / "files").mkdir()
        (folder / folder.name).touch()
        try:
            yield folder / "files"
        finally:
            _remove(folder, fd)


def sweep() -> None:
    """Remove what killed processes of this machine left behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if re.fullmatch(f"{_PREFIX}[0-9a-f]{{32}}", folder.name):
            with contextlib.suppress(OSError), _opened(folder) as fd:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISREG(os.stat(folder.name, dir_fd=fd, follow_symlinks=False).st_mode):
                    _remove(folder, fd)


def _remove(folder: Path, fd: int) -> None:
    """The mark is removed last, so that a folder that was only half removed is still recognised."""
    shutil.rmtree("files", ignore_errors=True, dir_fd=fd)
    if os.listdir(fd) == [folder.name]:
        os.unlink(folder.name, dir_fd=fd)
        folder.rmdir()


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)
