"""Features: what a backbone makes of every image, made once for a run and shared by all of its trials and nodes.

In the run folder lie features/<id>/<chunk>.f32, each the features of some images and the SHA-256 of these bytes; and,
when all are there, features/<id>.json with every chunk's SHA-256. What lies there is what every trial of the run trains
on, whichever node made it: each node keeps a copy among its arrays.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.data.arrays import Stopped, Wanted, open_array
from orchestrator.store import Missing, Store

CHUNK = 512  # images: some megabytes, and some seconds of work
_SHA256_BYTES = 32


def is_made(store: Store, view_id: str) -> bool:
    """Whether all features of a view lie in the run folder."""
    return store.exists(_listing(view_id))


def read_width(store: Store, view_id: str) -> int | None:
    """How many features an image has, where all features of the view lie in the run folder."""
    try:
        return int(json.loads(store.read(_listing(view_id)))["width"])
    except (Missing, ValueError, KeyError, TypeError, RecursionError):
        return None


@dataclass(frozen=True)
class Maker:
    """How features are made.

    Attributes:
        make: (first, end) rows of the index -> (end - first, width) float32; zeros for images that cannot be read.
        width: Features of an image.
        images: How many there are.
        made: Called after each chunk with how many images are done. May raise Stopped.
        order: Where in the list of chunks this node begins; others begin elsewhere, so that nodes share the work.
    """

    make: Callable[[int, int], np.ndarray]
    width: int
    images: int
    made: Callable[[int], None]
    order: str


def open_features(
    store: Store,
    view_id: str,
    maker: Maker,
    limit_gb: float,
    say: Callable[[str], None],
    stopping: Callable[[], bool],
) -> np.ndarray:
    """The features of a view, (images, width) float32, mapped from this node's disk.

    store: the run folder. What is missing there is made, chunk by chunk. limit_gb: see open_array.
    Raises Stopped, StoreError, and BadInput if the disk is too small.
    """

    def fill(values: np.ndarray | None, old: np.ndarray | None) -> dict[str, Any]:
        assert values is not None
        return {"chunks": _gather(store, view_id, maker, values, old, say, stopping)}

    def is_current(meta: dict[str, Any]) -> bool:
        return meta.get("chunks") == (_read_listing(store, view_id) or "none yet")

    shape = (maker.images, maker.width)
    wanted = Wanted(f"{view_id}-features", shape, "float32", "features", fill, is_current)
    values = open_array(wanted, limit_gb, say, stopping).values
    assert values is not None
    return values


def _gather(
    store: Store,
    view_id: str,
    maker: Maker,
    values: np.ndarray,
    old: np.ndarray | None,
    say: Callable[[str], None],
    stopping: Callable[[], bool],
) -> list[str]:
    """Put every chunk into `values`: from the run folder, from `old`, or made now. Returns their SHA-256s.

    old: the same features as this node has them from another run; None: it has none.
    """
    starts = list(range(0, maker.images, CHUNK))
    turn = int(hashlib.sha256(maker.order.encode()).hexdigest(), 16) % max(1, len(starts))
    sums: dict[int, str] = {}
    for start in starts[turn:] + starts[:turn]:
        if stopping():
            raise Stopped
        rows = slice(start, min(start + CHUNK, maker.images))
        key = f"features/{view_id}/{start // CHUNK:05d}.f32"
        data = _read_chunk(store, key, values[rows].nbytes, say)
        if data is None:
            made = np.ascontiguousarray(maker.make(rows.start, rows.stop) if old is None else old[rows], "<f4")
            data = _keep_chunk(store, key, made.tobytes(), say)
        values[rows] = np.frombuffer(data, "<f4").reshape(values[rows].shape)
        sums[start] = hashlib.sha256(data).hexdigest()
        maker.made(min(len(sums) * CHUNK, maker.images))
    ordered = [sums[start] for start in starts]
    if _read_listing(store, view_id) != ordered:
        store.write(_listing(view_id), json.dumps({"chunks": ordered, "width": maker.width}).encode())
    return ordered


def _keep_chunk(store: Store, key: str, data: bytes, say: Callable[[str], None]) -> bytes:
    """Write a chunk into the run folder; where another node was faster, take what it wrote."""
    sealed = data + hashlib.sha256(data).digest()
    if store.write_if_absent(key, sealed) is None:
        if (theirs := _read_chunk(store, key, len(data), say)) is not None:
            return theirs
        store.write(key, sealed)  # what is there is damaged
    return data


def _read_chunk(store: Store, key: str, size_bytes: int, say: Callable[[str], None]) -> bytes | None:
    """A chunk's bytes from the run folder; None where it is missing or damaged."""
    try:
        sealed = store.read(key)
    except Missing:
        return None
    data, digest = sealed[:-_SHA256_BYTES], sealed[-_SHA256_BYTES:]
    if len(data) == size_bytes and hashlib.sha256(data).digest() == digest:
        return data
    say(f"{store.uri}/{key} was damaged, and is made anew")
    return None


def _listing(view_id: str) -> str:
    return f"features/{view_id}.json"


def _read_listing(store: Store, view_id: str) -> list[str] | None:
    """Every chunk's SHA-256; None where not all are there, or the listing is damaged."""
    try:
        return [str(each) for each in json.loads(store.read(_listing(view_id)))["chunks"]]
    except (Missing, ValueError, KeyError, TypeError, RecursionError):
        return None
