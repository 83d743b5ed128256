"""Changes: what a run remembers of its images, and how images of now differ from them. No TensorFlow."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data.index import Index
from orchestrator.data.listing import first_of_each
from orchestrator.words import plural

_SHOWN = 2  # names of each kind of change


def remember(index: Index) -> pa.Table:
    """One row per image, or per shard of packed ones: its name, its class (of an image), what it is for, and its bytes.

    version, content: 64 bits of a hash of Index.table's version and of Index.content; null where that is not known.
    """
    if index.packed:
        rows = first_of_each(index.table["key"])
        names, labels, parts = index.table["key"].take(pa.array(rows)), None, None
    else:
        rows = np.arange(len(index))
        names, parts = index.table["path"], pa.array(index.part)
        labels = pa.DictionaryArray.from_arrays(pa.array(index.labels), pa.array(index.classes, pa.string()))
    content = pa.nulls(len(rows), pa.string()) if index.content is None else index.content.take(pa.array(rows))
    return pa.table(
        {
            "name": names,
            "label": pa.nulls(len(rows), pa.string()) if labels is None else labels,
            "part": pa.nulls(len(rows), pa.int8()) if parts is None else parts,
            "version": _hashes(index.table["version"].take(pa.array(rows)).to_pylist()),
            "content": _hashes(content.to_pylist()),
        }
    )


def _hashes(texts: Sequence[str | None]) -> pa.Array:
    hashes = (text and int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) for text in texts)
    return pa.array(hashes, pa.uint64())


def describe_changes(before: pa.Table, now: Index) -> str:
    """How many images were added, removed and changed, with the first names of each. before: of `remember`."""
    old, new = _by_name(before), _by_name(remember(now))
    both = [name for name in new if name in old]
    found = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "with other bytes": [name for name in both if not _same_bytes(old[name], new[name])],
        "of another class": [name for name in both if old[name]["label"] != new[name]["label"]],
        "in another part of the split": [name for name in both if old[name]["part"] != new[name]["part"]],
    }
    if found["added"] or found["removed"]:  # the split follows from them
        del found["in another part of the split"]
    noun = "shard" if now.packed else "image"
    return ", ".join(
        f"{plural(len(names), noun)} {what} ({', '.join(names[:_SHOWN])}{', …' * (len(names) > _SHOWN)})"
        for what, names in found.items()
        if names
    )


def _by_name(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in table.to_pylist()}


def _same_bytes(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    known = None not in (one["content"], other["content"])
    return bool(one["content"] == other["content"] if known else one["version"] == other["version"])


def describe_counts(before: Mapping[str, Mapping[str, int]], now: Index) -> str:
    """How many images each class has now and had before, where they differ: all that runs of before remember.

    before: class -> part of the split -> images that could be read.
    """
    new = dict(zip(now.classes, np.bincount(now.labels, minlength=len(now.classes)).tolist(), strict=True))
    old = {name: sum(parts.values()) for name, parts in before.items()}
    lines = [
        f"{name} {old.get(name, 0)} -> {new.get(name, 0)}"
        for name in (*old, *(name for name in new if name not in old))
        if old.get(name, 0) != new.get(name, 0)
    ]
    counts = ", ".join(lines) or "as many of each class as before"
    return f"{counts}; which ones, this run did not record"
