"""Cache: the decoded images of one index on one node, one memory-mapped array shared by every trial there."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator import machine
from orchestrator.data.arrays import Wanted, open_array
from orchestrator.data.index import Index
from orchestrator.spec.sections import Data, is_streamed
from orchestrator.store import Store

# Raise it whenever the same image would decode to other pixels. That of shards is one more: before, they were now and
# then read in another order than that of the index.
_FORMAT = 1


@dataclass(frozen=True)
class Cache:
    """The decoded images of an index on this node.

    Attributes:
        images: (images, height, width, 3) uint8, mapped from the disk; None if there are too many to keep.
        bad: Row of the index -> why the image cannot be read.
    """

    images: np.ndarray | None
    bad: dict[int, str]


def open_cache(
    index: Index,
    store: Store,
    data: Data,
    say: Callable[[str], None] = print,
    stopping: Callable[[], bool] = lambda: False,
) -> Cache:
    """Open this node's cache of the index, building it first if there is none or it is damaged.

    One process builds while the others wait. A data set that is streamed (see `is_streamed`) is also read once, but
    only the list of its bad images is kept. say: called with a line that a person should read. stopping: see
    open_array. Raises BadInput if the disk is too small, StoreError if a read fails.
    """
    known = index.content is not None and not index.content.null_count  # the same bytes are the same wherever they lie
    identity = f"{_FORMAT + index.packed} {'' if known else store.uri} {index.digest} {data.image_size} {data.resize}"
    identity += " exif" if data.exif == "apply" else ""  # without it as it was before there was a choice
    streamed = is_streamed(data, len(index))
    name = hashlib.sha256(identity.encode()).hexdigest()[:32] + ("-checked" if streamed else "")
    shape = None if streamed else (len(index), *data.image_size, 3)

    def fill(images: np.ndarray | None, old: np.ndarray | None) -> dict[str, Any]:
        return {"bad": _fill(images, index, store, data)}

    array = open_array(Wanted(name, shape, "uint8", "decoded images", fill), data.cache_limit_gb, say, stopping)
    return Cache(array.values, {int(row): str(reason) for row, reason in array.meta["bad"].items()})


def _fill(images: np.ndarray | None, index: Index, store: Store, data: Data) -> dict[int, str]:
    """Decode every image, into `images` where they are kept. Returns row of the index -> why it cannot be read."""
    from orchestrator.data import stream  # here, so that only a worker loads TensorFlow

    bad: dict[int, str] = {}
    encoded = stream.Encoded(index, store)
    threads = 2 * machine.cpus()  # some of them wait for the network
    for rows, content in stream.decoded(encoded, len(index), data.image_size, data.resize, threads, data.exif):
        if isinstance(content, str):
            bad[int(rows)] = content
        elif images is not None:
            images[rows] = content
    return bad
