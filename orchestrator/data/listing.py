"""Listing: the objects of a store that may be data. Litter, and what the run itself writes there, is left aside."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.store import Aside, Object, Store

SLICE = 10_000  # values that are Python objects at a time; the others stay in Arrow
OBJECTS = pa.schema([("key", pa.string()), ("size", pa.int64()), ("version", pa.string())])
# What Windows, macOS, a Synology, Hadoop, editors and Python leave in folders, beside names that begin with "."
_LITTER = (
    r"(?i)(^|/)(__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|System Volume Information|lost\+found|__pycache__)/"
    r"|(^|/)(Thumbs\.db(:\w+)?|ehthumbs(_vista)?\.db|desktop\.ini|Picasa\.ini|Icon\r|~\$[^/]*|[^/]*_\$folder\$"
    r"|[^/]*(:Zone\.Identifier|~|\.part|\.crdownload|\.AAE|\.xmp))$"
)


@dataclass(frozen=True)
class Listing:
    """What a store holds.

    Attributes:
        objects: key, size, version; sorted by key, in UTF-8 byte order.
        bad: Names that not every store can hold, and links that lead nowhere, as (key, reason).
        empty: Folders that hold nothing, as keys that end in "/".
        litter: How many files are of the system or of an editor, and not the person's.
    """

    objects: pa.Table
    bad: list[tuple[str, str]]
    empty: list[str]
    litter: int


def list_objects(store: Store, own: str = "", plainly: bool = False) -> Listing:
    """Every object of a store that may be data; only SLICE of them are Python objects at a time.

    own: what the run writes: keys that begin so are left out. plainly: as version 0.1.0 did, with all litter.
    """
    aside = None if plainly else Aside()
    listed, batches = store.list(aside=aside), []
    while chunk := list(itertools.islice(listed, SLICE)):
        kept = [o for o in chunk if not (own and o.key.startswith(own))]
        columns = [[o.key for o in kept], [o.size for o in kept], [o.version for o in kept]]
        batches.append(pa.record_batch(columns, schema=OBJECTS))
    objects = pa.Table.from_batches(batches, OBJECTS)
    if aside is None:
        return Listing(objects.sort_by("key"), [], [], 0)  # Arrow sorts by UTF-8 bytes
    is_litter = pc.match_substring_regex(objects["key"], _LITTER)
    bad = [(key, reason) for key, reason in aside.odd if not (own and key.startswith(own))]
    names = pa.array([key.encode(errors="replace").decode() for key, _ in bad], pa.string())
    odd_litter = pc.match_substring_regex(names, _LITTER).to_pylist()
    hidden = sum(not (own and key.startswith(own)) for key in aside.hidden)
    return Listing(
        only(objects, pc.invert(is_litter)).sort_by("key"),
        [pair for pair, litters in zip(bad, odd_litter, strict=True) if not litters],
        [folder for folder in aside.empty if not (own and folder.startswith(own))],
        hidden + sum(odd_litter) + (pc.sum(is_litter).as_py() or 0),
    )


def only(values: Any, wanted: pa.ChunkedArray) -> Any:
    """A table's rows, or an array's values, that are wanted; themselves, and no copy, where all are."""
    return values if pc.all(wanted, min_count=0).as_py() else values.filter(wanted)


def below(inner: str, outer: str) -> str | None:
    """The prefix of what lies in the folder or bucket `inner`, as keys of `outer`; None where it lies elsewhere."""
    one, other = (uri if "://" in uri else os.path.realpath(uri) for uri in (inner, outer))
    one, other = f"{one.rstrip('/')}/", f"{other.rstrip('/')}/"
    return one.removeprefix(other) if one.startswith(other) else None


def first_of_each(keys: pa.ChunkedArray) -> np.ndarray:
    """Where each run of equal keys begins. Arrow's group_by would put them in an order of its own, now and then."""
    ends = pc.run_end_encode(keys.combine_chunks()).run_ends.to_numpy()
    return np.concatenate([[0], ends[:-1]]).astype(np.int64)


def objects_of(table: pa.Table) -> list[Object]:
    """The rows of a table with the columns key, size and version."""
    columns = (table[name].to_pylist() for name in ("key", "size", "version"))
    return [Object(*values) for values in zip(*columns, strict=True)]


def slices(column: pa.Array | pa.ChunkedArray) -> Iterator[list[Any]]:
    """A column's values as Python objects, SLICE of them at a time."""
    for start in range(0, len(column), SLICE):
        yield column.slice(start, SLICE).to_pylist()
