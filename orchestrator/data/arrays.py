"""Arrays: large arrays on this node's disk, each made once and mapped into the memory of every trial there.

An array is a folder <name>/ with the array and a meta.json. One process makes it while the others wait.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from orchestrator.errors import BadInput

_UNFINISHED, _DAMAGED = ".half", ".damaged"
_NAME = re.compile(rf"[0-9a-f]{{32}}(-checked|-features)?({_UNFINISHED}|{_DAMAGED})?")
_FILE_OF_TYPE = {"uint8": "images.u8", "float32": "features.f32"}
_FILES = (
    *_FILE_OF_TYPE.values(),
    "meta.json",
)  # removed in this order: meta.json shows that a half-removed one is ours


@dataclass(frozen=True)
class Array:
    """An array on this node's disk.

    Attributes:
        values: Mapped from the disk; None if only its meta is kept.
        meta: What `fill` said of it.
    """

    values: np.ndarray | None
    meta: dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """Which array is wanted, and how it is made.

    Attributes:
        name: 32 hex digits, the same for the same content; -checked or -features may follow.
        shape: None: only its meta is kept.
        dtype: uint8 or float32.
        what: What to call its content in messages.
        fill: Writes the values into an array of zeros, its first argument, and returns the meta. The second one is what
            this node has of that name, where it is not current. May raise anything.
        is_current: Whether an array with this meta is still the one that is wanted.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    what: str
    fill: Callable[[np.ndarray | None, np.ndarray | None], dict[str, Any]]
    is_current: Callable[[dict[str, Any]], bool] = lambda meta: True


class Stopped(Exception):
    """Somebody wants the trial to stop."""


def cache_folder() -> Path:
    """Where this node keeps its arrays: ORCHESTRATOR_CACHE_DIR, or ~/.cache/batch-orchestrator."""
    return Path(os.environ.get("ORCHESTRATOR_CACHE_DIR") or "~/.cache/batch-orchestrator").expanduser()


def open_array(
    wanted: Wanted, limit_gb: float, say: Callable[[str], None], stopping: Callable[[], bool] = lambda: False
) -> Array:
    """Open this node's array, making it first if there is none, or it is damaged or no longer wanted so.

    limit_gb: what all arrays of that type may take on the node; the least recently used ones go. say: called with a
    line that a person should read. stopping: asked each second while another process makes the array; where it says so,
    Stopped is raised. Raises BadInput if the disk is too small.
    """
    folder = cache_folder() / wanted.name
    try:
        array = _open(folder, wanted)  # without the lock, so that all processes can check it at once
        if array is None:
            with locked(wanted.name, stopping):
                array = _open(folder, wanted)  # another process may have made it meanwhile
                if array is None:
                    _make(folder, wanted, limit_gb, say)
                    array = _open(folder, wanted)
    except OSError as error:
        raise BadInput(
            f"the cache folder {folder.parent} must be writable: {error.strerror or error}; "
            f"set ORCHESTRATOR_CACHE_DIR to another"
        ) from None
    if array is None:
        raise BadInput(
            f"the cache {folder} was just written and reads back damaged: check the disk, "
            f"or set ORCHESTRATOR_CACHE_DIR to another"
        )
    return array


@contextlib.contextmanager
def locked(name: str, stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold this node's lock of that name. Raises Stopped where `stopping` says so while another process has it."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    lock = FileLock((cache_folder() / name).with_suffix(".lock"))
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            if stopping():
                raise Stopped from None
    try:
        yield
    finally:
        lock.release()


def _open(folder: Path, wanted: Wanted) -> Array | None:
    """Open an array and mark it as used. None if there is none, or it is damaged or no longer wanted so."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        {int(row) for row in meta["bad"]}
        values = None
        if wanted.shape is not None:
            path = folder / _FILE_OF_TYPE[wanted.dtype]
            # mode "c" shares the pages and lets numpy hand them to TensorFlow, which refuses a read-only array
            values = np.memmap(path, dtype=wanted.dtype, mode="c", shape=wanted.shape)
            if os.path.getsize(path) != values.nbytes or _crc32(values) != meta.get("crc32"):
                return None
        if not wanted.is_current(meta):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    with contextlib.suppress(OSError):  # a read-only cache is used all the same
        os.utime(folder / "meta.json")
    return Array(values, meta)


def _make(folder: Path, wanted: Wanted, limit_gb: float, say: Callable[[str], None]) -> None:
    unfinished, damaged = folder.with_suffix(_UNFINISHED), folder.with_suffix(_DAMAGED)
    _remove(unfinished)
    old = _open(folder, replace(wanted, is_current=lambda meta: True))
    if folder.exists() and old is None:
        _remove(damaged)
        os.replace(folder, damaged)
        say(f"the cache {folder} on {platform.node()} was damaged: it is in {damaged} now, and is made anew")
    if wanted.shape is not None:
        size_bytes = int(np.prod(wanted.shape, dtype=np.int64)) * np.dtype(wanted.dtype).itemsize
        _make_room(folder.parent, size_bytes, limit_gb, wanted)
    try:
        unfinished.mkdir()
        values = None
        if wanted.shape is not None:
            values = _new_array(unfinished / _FILE_OF_TYPE[wanted.dtype], wanted.shape, wanted.dtype)
        meta = wanted.fill(values, old.values if old else None)
        # no flush to the disk: if the machine dies before the data is there, the checksum shows it
        crc32 = None if values is None else _crc32(values)
        (unfinished / "meta.json").write_text(json.dumps({"crc32": crc32, "bad": {}, **meta}))
    except BaseException:
        _remove(unfinished)  # a full disk needs its space
        raise
    _remove(folder)
    os.replace(unfinished, folder)


def _crc32(values: np.ndarray) -> int:
    return zlib.crc32(values.data)


def _make_room(parent: Path, size_bytes: int, limit_gb: float, wanted: Wanted) -> None:
    """Delete the least recently used arrays until all of that type fit. Raises BadInput if the disk is full.

    size_bytes: of the array to be made. Damaged ones go first, and also if only the disk is full. Unfinished ones
    that killed processes left always go. Anything else in the folder is not ours: it is neither deleted nor counted.
    """
    ours = [folder for folder in parent.iterdir() if _is_ours(folder)]
    for unfinished in (folder for folder in ours if folder.suffix == _UNFINISHED):
        with contextlib.suppress(Timeout, OSError), FileLock(unfinished.with_suffix(".lock"), timeout=0):
            _remove(unfinished)
    features = _FILE_OF_TYPE["float32"]
    alike = [folder for folder in ours if (folder / features).exists() == (wanted.dtype == "float32")]
    finished = [folder for folder in alike if folder.suffix != _UNFINISHED]
    arrays = sorted((folder.suffix != _DAMAGED, _used_at(folder), folder) for folder in finished)
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in finished}
    for whole, _, folder in arrays:
        fits = sum(sizes.values()) + size_bytes <= limit_gb * 1e9
        if fits and (whole or shutil.disk_usage(parent).free >= size_bytes):
            break
        _remove(folder)  # a trial that still reads it keeps its pages
        del sizes[folder]
    free_bytes = shutil.disk_usage(parent).free
    if size_bytes > free_bytes:
        cure = ", or stream them anew each epoch with --set data.cache_limit_gb=0" if wanted.dtype == "uint8" else ""
        raise BadInput(
            f"the cache folder {parent} must have {size_bytes / 1e6:.0f} MB free for the {wanted.what}, got "
            f"{free_bytes / 1e6:.0f} MB: free some, set ORCHESTRATOR_CACHE_DIR to another{cure}"
        )


def _is_ours(folder: Path) -> bool:
    """Whether this package made the folder, judged by its name and everything in it."""
    try:
        if not _NAME.fullmatch(folder.name) or folder.is_symlink() or {*os.listdir(folder)} - {*_FILES}:
            return False
        if not folder.suffix:
            meta = json.loads((folder / "meta.json").read_text())
            return isinstance(meta["bad"], dict) and "crc32" in meta
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def _remove(folder: Path) -> None:
    """Remove an array, unfinished and damaged ones too. Does nothing if it is not ours, or cannot be removed."""
    if _is_ours(folder):
        with contextlib.suppress(OSError):
            for name in _FILES:
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def _used_at(folder: Path) -> float:
    try:
        return (folder / "meta.json").stat().st_mtime
    except OSError:
        return 0.0


def _new_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with open(path, "xb") as file:
        file.truncate(size_bytes)
        if hasattr(os, "posix_fallocate"):  # else a disk that fills up later would kill the process
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)
