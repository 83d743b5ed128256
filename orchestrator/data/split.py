"""Split: which images train, which validate, in which fold, and which only test the winner. Pure.

Each image gets a part: a number below `folds`, in which fold it validates, while it trains in all others; `folds`
itself, where it trains in every one; or TEST. Without folds there is one, of number 0.
"""

import hashlib
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.layout import TEST, TRAINING, VALIDATION
from orchestrator.data.listing import slices
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Data


def draw(text: str) -> int:
    """A number from 0 to 2^64 - 1, the same for a text on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def split(images: pa.Table, labels: np.ndarray, data: Data) -> np.ndarray:
    """The part of each image, (images,) int8. images: as layout.IMAGES; labels: (images,) positions of the classes.

    Where the data come with images for validation or for a test, these are taken, and the others are drawn: of each
    class its share, so that one more image moves few others. Images of one group are always in one part.
    """
    folds = data.folds or 1
    given = images["given"].to_numpy() if images["given"].null_count == 0 else np.full(len(images), TRAINING)
    part = np.full(len(images), folds, np.int8)
    part[given == TEST], part[given == VALIDATION] = TEST, 0
    open_ = np.flatnonzero(part == folds)
    _refuse_second(data, (given == VALIDATION).any(), (given == TEST).any())
    if (given == VALIDATION).any():
        return part
    if data.rule == 1 and data.split_by == "hash":
        limit = int(data.validation_split * 2**64)
        part[_draws(images["path"]) < limit] = 0
        return part
    test_split = 0.0 if (given == TEST).any() else data.test_split
    chosen, own = images.select(["path", "group"]), labels[open_]
    if len(open_) < len(part):
        chosen = chosen.take(pa.array(open_))
    if images["group"].null_count < len(images):
        part[open_] = _of_groups(chosen, own, data, test_split)
    else:
        order = _draws(chosen["path"]) if data.split_by == "hash" else _order(chosen["path"])
        part[open_] = _of_images(order, own, data, test_split)
    return part


def _refuse_second(data: Data, has_validation: bool, has_test: bool) -> None:
    """Raise BadInput where images that the data bring for something are to be drawn too."""
    if has_validation and data.folds:
        raise BadInput(
            f"data.folds must be left out where the data come with images for validation, got {data.folds}: put these "
            f"with those for training, and every image validates once"
        )
    if data.test_split and (has_validation or has_test):
        raise BadInput(
            f"data.test_split must be 0 where the data come split, got {data.test_split}: name a folder or a split test"
        )


def _of_images(order: np.ndarray, labels: np.ndarray, data: Data, test_split: float) -> np.ndarray:
    """Of each class, the first ones in this order validate, the next ones test, the others train."""
    counts = np.bincount(labels)[labels]  # of its class, for each image
    sequence = np.lexsort((order, labels))
    place = np.empty(len(labels), np.int64)
    place[sequence] = np.arange(len(labels)) - np.searchsorted(labels[sequence], labels[sequence])
    tested = _share(counts, test_split, data)
    if data.folds:
        fold = (place - tested) * data.folds // np.maximum(counts - tested, 1)
        return np.where(place < tested, TEST, fold).astype(np.int8)
    validating = _share(counts, data.validation_split, data)
    return np.select([place < validating, place < validating + tested], [0, TEST], 1).astype(np.int8)


def _share(counts: np.ndarray, share: float, data: Data) -> np.ndarray:
    """How many of so many images; by hash at least one. Keras, which the order is for, rounds down."""
    found = (counts * share).astype(np.int64)
    return np.maximum(found, 1) if share and data.split_by == "hash" else found


def _of_groups(images: pa.Table, labels: np.ndarray, data: Data, test_split: float) -> np.ndarray:
    """Whole groups, each put where the shares of the classes come nearest to what they should be."""
    names = pc.if_else(pc.is_null(images["group"]), images["path"], images["group"]).combine_chunks()
    coded = names.dictionary_encode() if isinstance(names, pa.Array) else names.chunk(0).dictionary_encode()
    groups = coded.indices.to_numpy()
    classes = int(labels.max()) + 1
    held = np.zeros((len(coded.dictionary), classes))  # images of each group and class
    np.add.at(held, (groups, labels), 1)
    totals = held.sum(0)
    if data.folds:
        shares = [(fold, (1 - test_split) / data.folds) for fold in range(data.folds)]
    else:
        shares = [(0, data.validation_split), (1, 1 - data.validation_split - test_split)]
    shares += [(TEST, test_split)] if test_split else []
    wanted = np.array([share * totals for _, share in shares])
    draws = np.array([draw(name) for name in coded.dictionary.to_pylist()], np.uint64)
    have, part = np.zeros_like(wanted), np.zeros(len(held), np.int8)
    for group in np.lexsort((draws, -held.sum(1))):  # the large ones first: the small ones even out what they leave
        lacking = (wanted - have) / np.maximum(totals, 1)
        best = int(np.argmax((lacking * held[group]).sum(1)))
        have[best] += held[group]
        part[group] = shares[best][0]
    return part[groups]


def _draws(texts: pa.ChunkedArray) -> np.ndarray:
    return np.fromiter(map(draw, itertools.chain.from_iterable(slices(texts))), np.uint64, len(texts))


def _order(paths: pa.ChunkedArray) -> np.ndarray:
    """Each image's place in Keras' order: folder by folder, a folder's own images before those of its subfolders."""
    parts = pc.extract_regex(paths, "(?s)^(?:(?P<folder>.*)/)?(?P<name>[^/]*)$")
    folders_and_names = pa.table([pc.struct_field(parts, [part]) for part in (0, 1)], ["folder", "name"])
    order = pc.sort_indices(folders_and_names, [("folder", "ascending"), ("name", "ascending")]).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place
