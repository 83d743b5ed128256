"""Cache: the decoded images of one index on one node, one memory-mapped array shared by every trial there."""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from orchestrator.data.index import Index
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Data, is_streamed
from orchestrator.store import Store

_FORMAT = 1  # a new number where the same image would decode to other pixels
_HALF, _DAMAGED = ".half", ".damaged"
_NAME = re.compile(rf"[0-9a-f]{{32}}(-checked)?({_HALF}|{_DAMAGED})?")
_FILES = ("images.u8", "meta.json")  # they go in this order: what is half removed still has what tells whose it is


@dataclass(frozen=True)
class Cache:
    """What a node knows of an index.

    Attributes:
        images: (images, height, width, 3) uint8, on the page cache; None where they are too many to be kept.
        bad: Row of the index -> why the image cannot be read.
    """

    images: np.ndarray | None
    bad: dict[int, str]


def cache_folder() -> Path:
    """Where this node keeps its caches: ORCHESTRATOR_CACHE_DIR, or ~/.cache/batch-orchestrator."""
    return Path(os.environ.get("ORCHESTRATOR_CACHE_DIR") or "~/.cache/batch-orchestrator").expanduser()


def open_cache(index: Index, store: Store, data: Data, say: Callable[[str], None] = print) -> Cache:
    """Open this node's cache of the index, building it first if there is none or it is damaged.

    One process builds while the others wait. A data set that is_streamed is read once all the same, to know its bad
    images, and only these are kept. say: called with a line that a person should read.
    Raises BadInput where the disk is too small, StoreError where a read fails.
    """
    identity = f"{_FORMAT} {store.uri} {index.digest} {data.image_size} {data.resize}"
    streamed = is_streamed(data, len(index))
    name = hashlib.sha256(identity.encode()).hexdigest()[:32] + ("-checked" if streamed else "")
    folder = cache_folder() / name
    shape = None if streamed else (len(index), *data.image_size, 3)
    try:
        cache = _open(folder, shape)  # without the lock: whole or not, it is read alike by all at once
        if cache is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                cache = _open(folder, shape)  # another process may have built it meanwhile
                if cache is None:
                    _build(folder, shape, index, store, data, say)
                    cache = _open(folder, shape)
    except OSError as error:
        raise BadInput(
            f"the cache folder {folder.parent} must be writable: {error.strerror or error}; "
            f"set ORCHESTRATOR_CACHE_DIR to another"
        ) from None
    if cache is None:
        raise BadInput(
            f"the cache {folder} was just written and reads back damaged: check the disk, "
            f"or set ORCHESTRATOR_CACHE_DIR to another"
        )
    return cache


def _open(folder: Path, shape: tuple[int, ...] | None) -> Cache | None:
    """None where there is no cache, or one that is not whole. Marks it as used."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        bad = {int(row): str(reason) for row, reason in meta["bad"].items()}
        if shape is None:
            return Cache(None, bad)
        # mode "c" shares the pages and lets numpy hand them to TensorFlow, which refuses a read-only array
        images = np.memmap(folder / "images.u8", dtype=np.uint8, mode="c", shape=shape)
        if os.path.getsize(folder / "images.u8") != images.nbytes or zlib.crc32(images.data) != meta.get("crc32"):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    with contextlib.suppress(OSError):  # a cache that may only be read is never in the way
        os.utime(folder / "meta.json")
    return Cache(images, bad)


def _build(
    folder: Path, shape: tuple[int, ...] | None, index: Index, store: Store, data: Data, say: Callable[[str], None]
) -> None:
    half, damaged = folder.with_suffix(_HALF), folder.with_suffix(_DAMAGED)
    _remove(half)
    if folder.exists():
        _remove(damaged)
        os.replace(folder, damaged)
        say(f"the cache {folder} on {platform.node()} was damaged: it is in {damaged} now, and is made anew")
    if shape is not None:
        _make_room(folder.parent, int(np.prod(shape, dtype=np.int64)), data.cache_limit_gb)
    try:
        _fill(half, shape, index, store, data)
    except BaseException:
        _remove(half)  # on a full disk, its place is needed
        raise
    os.replace(half, folder)


def _fill(half: Path, shape: tuple[int, ...] | None, index: Index, store: Store, data: Data) -> None:
    from orchestrator.data import stream  # here, so that only a worker loads TensorFlow

    half.mkdir()
    images = None if shape is None else _new_array(half / "images.u8", shape)
    bad: dict[int, str] = {}
    encoded = stream.Encoded(index, store)
    threads = 2 * (os.cpu_count() or 1)  # some of them wait for the network
    found = stream.decoded(encoded, len(index), data.image_size, data.resize, threads)
    for rows, what in found:
        if isinstance(what, str):
            bad[int(rows)] = what
        elif images is not None:
            images[rows] = what
    # not flushed to the disk: the checksum tells, should the machine die before it is
    crc32 = None if images is None else zlib.crc32(images.data)
    (half / "meta.json").write_text(json.dumps({"crc32": crc32, "bad": bad}))


def _make_room(parent: Path, size_bytes: int, limit_gb: float) -> None:
    """Where all caches together would be more than limit_gb, those go that were unused for longest. Raises BadInput.

    Damaged ones go first, on a full disk too; what killed builders left half-made goes in any case. What else lies in
    the folder is none of ours: it neither goes nor counts.
    """
    ours = [folder for folder in parent.iterdir() if _is_ours(folder)]
    for half in (folder for folder in ours if folder.suffix == _HALF):
        with contextlib.suppress(Timeout, OSError), FileLock(half.with_suffix(".lock"), timeout=0):
            _remove(half)
    found = [folder for folder in ours if folder.suffix != _HALF]
    caches = sorted((folder.suffix != _DAMAGED, _used_at(folder), folder) for folder in found)
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in found}
    for whole, _, folder in caches:
        fits = sum(sizes.values()) + size_bytes <= limit_gb * 1e9
        if fits and (whole or shutil.disk_usage(parent).free >= size_bytes):
            break
        _remove(folder)  # a trial that reads it keeps its pages until it ends
        del sizes[folder]
    free_bytes = shutil.disk_usage(parent).free
    if size_bytes > free_bytes:
        raise BadInput(
            f"the cache folder {parent} must have {size_bytes / 1e6:.0f} MB free for the decoded images, got "
            f"{free_bytes / 1e6:.0f} MB: free some, set ORCHESTRATOR_CACHE_DIR to another, or stream them anew each "
            f"epoch with --set data.cache_limit_gb=0"
        )


def _is_ours(folder: Path) -> bool:
    """Whether this package made the folder: its name, and all that it holds, say so."""
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
    """Remove a cache, a half or a damaged one; nothing where it is not ours, or cannot be removed."""
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


def _new_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    size_bytes = int(np.prod(shape, dtype=np.int64))
    with open(path, "xb") as file:
        file.truncate(size_bytes)
        if hasattr(os, "posix_fallocate"):  # a disk that fills up under a map would kill the process
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)
