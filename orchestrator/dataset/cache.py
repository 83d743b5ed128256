"""Cache: the decoded images of one index on one node, one memory-mapped array shared by every trial there."""

import hashlib
import json
import os
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from orchestrator.dataset.index import Index
from orchestrator.errors import BadInput
from orchestrator.store import Store

_FORMAT = 1  # a new number where the same image would decode to other pixels


@dataclass(frozen=True)
class Cache:
    """Decoded images. Attributes: images: (images, height, width, 3) uint8, on the page cache; bad: row -> reason."""

    images: np.ndarray
    bad: dict[int, str]
    built_s: float


def cache_folder() -> Path:
    """Where this node keeps its caches: ORCHESTRATOR_CACHE_DIR, or ~/.cache/batch-orchestrator."""
    return Path(os.environ.get("ORCHESTRATOR_CACHE_DIR") or "~/.cache/batch-orchestrator").expanduser()


def open_cache(index: Index, store: Store, image_size: tuple[int, int], resize: str) -> Cache:
    """Open this node's cache of the index, building it first if there is none or it is damaged.

    One process builds while the others wait. Raises BadInput where the disk is too small,
    StoreError where a read fails.
    """
    identity = f"{_FORMAT} {store.uri} {index.digest} {image_size} {resize}"
    folder = cache_folder() / hashlib.sha256(identity.encode()).hexdigest()[:32]
    shape = (len(index), *image_size, 3)
    started = time.perf_counter()
    try:
        cache = _open(folder, shape)  # without the lock: whole or not, it is read alike by all at once
        if cache is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                started = time.perf_counter()
                cache = _open(folder, shape)  # another process may have built it meanwhile
                if cache is None:
                    _build(folder, shape, index, store, image_size, resize)
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
    return Cache(*cache, built_s=time.perf_counter() - started)


def _open(folder: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, dict[int, str]] | None:
    """None where there is no cache, or one that is not whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        # mode "c" shares the pages and lets numpy hand them to TensorFlow, which refuses a read-only array
        images = np.memmap(folder / "images.u8", dtype=np.uint8, mode="c", shape=shape)
        bad = {int(row): str(reason) for row, reason in meta["bad"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = os.path.getsize(folder / "images.u8") == images.nbytes and zlib.crc32(images) == meta.get("crc32")
    return (images, bad) if whole else None


def _build(
    folder: Path, shape: tuple[int, ...], index: Index, store: Store, image_size: tuple[int, int], resize: str
) -> None:
    from orchestrator.dataset import stream  # here, so that only a worker loads TensorFlow

    half = folder.with_suffix(".half")
    for stale in (half, folder):
        shutil.rmtree(stale, ignore_errors=True)
    size_bytes = int(np.prod(shape, dtype=np.int64))
    free_bytes = shutil.disk_usage(folder.parent).free
    if size_bytes > free_bytes:
        raise BadInput(
            f"the cache folder {folder.parent} must have {size_bytes / 1e6:.0f} MB free for the decoded "
            f"images, got {free_bytes / 1e6:.0f} MB: free some, or set ORCHESTRATOR_CACHE_DIR to another"
        )
    half.mkdir()
    bad: dict[int, str] = {}
    with open(half / "images.u8", "xb") as file:
        file.truncate(size_bytes)
        if hasattr(os, "posix_fallocate"):  # a disk that fills up under a map would kill the process
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    images = np.memmap(half / "images.u8", dtype=np.uint8, mode="r+", shape=shape)
    for rows, what in stream.decoded(index, store, image_size, resize, threads=os.cpu_count() or 1):
        if isinstance(what, str):
            bad[int(rows)] = what
        else:
            images[rows] = what
    images.flush()
    (half / "meta.json").write_text(json.dumps({"crc32": zlib.crc32(images), "bad": bad}))
    os.replace(half, folder)
