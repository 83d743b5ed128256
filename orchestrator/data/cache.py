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

_FORMAT = 1  # raise it whenever the same image would decode to other pixels
_UNFINISHED, _DAMAGED = ".half", ".damaged"
_NAME = re.compile(rf"[0-9a-f]{{32}}(-checked)?({_UNFINISHED}|{_DAMAGED})?")
_FILES = ("images.u8", "meta.json")  # removed in this order: meta.json shows that a half-removed cache is ours


@dataclass(frozen=True)
class Cache:
    """The decoded images of an index on this node.

    Attributes:
        images: (images, height, width, 3) uint8, mapped from the disk; None if there are too many to keep.
        bad: Row of the index -> why the image cannot be read.
    """

    images: np.ndarray | None
    bad: dict[int, str]


def cache_folder() -> Path:
    """Where this node keeps its caches: ORCHESTRATOR_CACHE_DIR, or ~/.cache/batch-orchestrator."""
    return Path(os.environ.get("ORCHESTRATOR_CACHE_DIR") or "~/.cache/batch-orchestrator").expanduser()


def open_cache(index: Index, store: Store, data: Data, say: Callable[[str], None] = print) -> Cache:
    """Open this node's cache of the index, building it first if there is none or it is damaged.

    One process builds while the others wait. A data set that is streamed (see `is_streamed`) is also read once, but
    only the list of its bad images is kept. say: called with a line that a person should read.
    Raises BadInput if the disk is too small, StoreError if a read fails.
    """
    identity = f"{_FORMAT} {store.uri} {index.digest} {data.image_size} {data.resize}"
    streamed = is_streamed(data, len(index))
    name = hashlib.sha256(identity.encode()).hexdigest()[:32] + ("-checked" if streamed else "")
    folder = cache_folder() / name
    shape = None if streamed else (len(index), *data.image_size, 3)
    try:
        cache = _open(folder, shape)  # without the lock, so that all processes can check it at once
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
    """Open a cache and mark it as used. None if there is none, or it is damaged."""
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
    with contextlib.suppress(OSError):  # a read-only cache is used all the same
        os.utime(folder / "meta.json")
    return Cache(images, bad)


def _build(
    folder: Path, shape: tuple[int, ...] | None, index: Index, store: Store, data: Data, say: Callable[[str], None]
) -> None:
    unfinished, damaged = folder.with_suffix(_UNFINISHED), folder.with_suffix(_DAMAGED)
    _remove(unfinished)
    if folder.exists():
        _remove(damaged)
        os.replace(folder, damaged)
        say(f"the cache {folder} on {platform.node()} was damaged: it is in {damaged} now, and is made anew")
    if shape is not None:
        _make_room(folder.parent, int(np.prod(shape, dtype=np.int64)), data.cache_limit_gb)
    try:
        _fill(unfinished, shape, index, store, data)
    except BaseException:
        _remove(unfinished)  # a full disk needs its space
        raise
    os.replace(unfinished, folder)


def _fill(unfinished: Path, shape: tuple[int, ...] | None, index: Index, store: Store, data: Data) -> None:
    from orchestrator.data import stream  # here, so that only a worker loads TensorFlow

    unfinished.mkdir()
    images = None if shape is None else _new_array(unfinished / "images.u8", shape)
    bad: dict[int, str] = {}
    encoded = stream.Encoded(index, store)
    threads = 2 * (os.cpu_count() or 1)  # some of them wait for the network
    chunks = stream.decoded(encoded, len(index), data.image_size, data.resize, threads)
    for rows, content in chunks:
        if isinstance(content, str):
            bad[int(rows)] = content
        elif images is not None:
            images[rows] = content
    # no flush to the disk: if the machine dies before the data is there, the checksum shows it
    crc32 = None if images is None else zlib.crc32(images.data)
    (unfinished / "meta.json").write_text(json.dumps({"crc32": crc32, "bad": bad}))


def _make_room(parent: Path, size_bytes: int, limit_gb: float) -> None:
    """Delete the least recently used caches until all of them fit into limit_gb. Raises BadInput if the disk is full.

    size_bytes: of the cache to be built. Damaged caches go first, and also if only the disk is full. Unfinished ones
    that killed processes left always go. Anything else in the folder is not ours: it is neither deleted nor counted.
    """
    ours = [folder for folder in parent.iterdir() if _is_ours(folder)]
    for unfinished in (folder for folder in ours if folder.suffix == _UNFINISHED):
        with contextlib.suppress(Timeout, OSError), FileLock(unfinished.with_suffix(".lock"), timeout=0):
            _remove(unfinished)
    finished = [folder for folder in ours if folder.suffix != _UNFINISHED]
    caches = sorted((folder.suffix != _DAMAGED, _used_at(folder), folder) for folder in finished)
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in finished}
    for whole, _, folder in caches:
        fits = sum(sizes.values()) + size_bytes <= limit_gb * 1e9
        if fits and (whole or shutil.disk_usage(parent).free >= size_bytes):
            break
        _remove(folder)  # a trial that still reads it keeps its pages
        del sizes[folder]
    free_bytes = shutil.disk_usage(parent).free
    if size_bytes > free_bytes:
        raise BadInput(
            f"the cache folder {parent} must have {size_bytes / 1e6:.0f} MB free for the decoded images, got "
            f"{free_bytes / 1e6:.0f} MB: free some, set ORCHESTRATOR_CACHE_DIR to another, or stream them anew each "
            f"epoch with --set data.cache_limit_gb=0"
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
    """Remove a cache, unfinished and damaged ones too. Does nothing if it is not ours, or cannot be removed."""
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
        if hasattr(os, "posix_fallocate"):  # else a disk that fills up later would kill the process
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)
