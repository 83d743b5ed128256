"""Content: what tells equal bytes without reading them each time, and pictures that stand in two parts of a split."""

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.layout import SPLITS, TEST
from orchestrator.data.listing import objects_of, slices
from orchestrator.errors import BadInput
from orchestrator.store import Store, StoreError
from orchestrator.words import plural

_CHEAP_BYTES = 10**9  # of a folder: about a second to read what the disk's cache holds
_SHOWN = 3


@dataclass(frozen=True)
class Duplicates:
    """Pictures that stand in two parts of a split.

    Attributes:
        pairs: (n, 2) int64, rows: of a picture, and of the same picture in a part that is to be kept rather.
        relabelled: How many of these pairs have two labels.
    """

    pairs: np.ndarray
    relabelled: int


def contents(store: Store, objects: pa.Table, whatever_it_takes: bool = False) -> pa.Array | pa.ChunkedArray | None:
    """For each object a text that is equal for equal bytes, null where that is not known.

    None where finding out is not cheap, as in a large folder. Buckets tell of objects that were uploaded in one piece.
    whatever_it_takes: read a folder of any size. Raises StoreError then.
    """
    if is_bucket(store):
        versions = objects["version"]
        whole = pc.match_substring_regex(versions, "^[0-9a-f]{32}$")
        return versions if pc.all(whole).as_py() else pc.if_else(whole, versions, pa.scalar(None, pa.string()))
    if not whatever_it_takes and (pc.sum(objects["size"]).as_py() or 0) > _CHEAP_BYTES:
        return None
    try:
        blobs = store.read_many(objects_of(objects))
        return pa.array([hashlib.blake2b(blob, digest_size=16).hexdigest() for blob in blobs], pa.string())
    except StoreError:
        if whatever_it_takes:
            raise
        return None  # whoever trains on the file names it


def is_bucket(store: Store) -> bool:
    """Whether reading all of it to compare would cost time and money."""
    return "://" in store.uri and not store.uri.startswith("sample://")


def find_duplicates(content: pa.Array | pa.ChunkedArray, part: np.ndarray, labels: np.ndarray) -> Duplicates:
    """Pictures that stand in two parts of a split. part, labels: (images,).

    Kept is the copy that is tested, or else one that validates: an image that trains is missed least.
    """
    twice = _twice(content)
    if not len(twice):
        return Duplicates(np.empty((0, 2), np.int64), 0)
    texts = pa.array(content.take(pa.array(twice)).to_pylist(), pa.string())
    codes = texts.dictionary_encode().indices.to_numpy()
    part_of, rank = part[twice], np.where(part[twice] == TEST, -1, part[twice])
    order = np.lexsort((twice, rank, codes))
    first = order[np.searchsorted(codes[order], codes[order])]
    pairs = np.stack([twice[order], twice[first]], axis=1)[part_of[order] != part_of[first]]
    return Duplicates(pairs, int((labels[pairs[:, 0]] != labels[pairs[:, 1]]).sum()))


def _twice(content: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Rows whose text another row has too, by way of 60 bits of each: a table of a million texts would take 60 MB."""
    texts = itertools.chain.from_iterable(slices(content))
    found = (-row if text is None else int(text[:15], 16) for row, text in enumerate(texts, 1))
    numbers = np.fromiter(found, np.int64, len(content))
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    same = numbers[1:] == numbers[:-1]
    return np.sort(order[np.concatenate([same, [False]]) | np.concatenate([[False], same])])


def describe_duplicates(found: Duplicates, paths: pa.ChunkedArray, part: np.ndarray, folds: int) -> str:
    """One line on the pictures that stand in two parts, with the first of them."""

    def name(row: int) -> str:
        return f"{paths[row].as_py()} ({part_name(int(part[row]), folds)})"

    shown = "; ".join(f"{name(one)} is {name(other)}" for one, other in found.pairs[:_SHOWN].tolist())
    more = "; …" if len(found.pairs) > _SHOWN else ""
    labels = f", {found.relabelled} of them under another class" if found.relabelled else ""
    return f"{plural(len(found.pairs), 'picture')} in two parts of the split{labels}: {shown}{more}"


def refuse_duplicates(line: str) -> None:
    """Raise BadInput for what `describe_duplicates` says."""
    raise BadInput(
        f"no picture may stand in two parts of the split, got {line}. Remove one, or --set data.on_duplicate=drop"
    )


def part_name(part: int, folds: int) -> str:
    """What an image of this part is for, in a word or two."""
    if part == TEST:
        return SPLITS[TEST]
    return f"fold {part}" if folds > 1 else "validation" if part == 0 else "training"
