"""Index: the list of images in a store: key, size, version, label, split; and its digest. Needs no TensorFlow."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.shards import class_names, open_shard
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Data
from orchestrator.store import Object, Store

_SLICE = 10_000  # values that are Python objects at a time; the others stay in Arrow
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
WHOLE_OBJECT = -1
_OBJECTS = pa.schema([("key", pa.string()), ("size", pa.int64()), ("version", pa.string())])
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("row", pa.int32()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("label", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Index:
    """Every image of a data set, in reading order.

    Attributes:
        table: One row per image. key: object in the store; row: row of a Parquet shard, or -1 for an object that is one
            image; path: name of the image, unique; size and version: of the object; label: position in `classes`.
        validation: (images,) bool, True for images that validate; the others train.
        classes: Class names, sorted.
        bad: Listed objects that cannot be images, as (key, reason); not in the table.
        ignored: How many objects are in no class folder, or, in a packed data set, are not shards.
    """

    table: pa.Table
    validation: np.ndarray
    classes: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    ignored: int

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def labels(self) -> np.ndarray:
        """(images,) int32, positions in `classes`."""
        return self.table["label"].to_numpy()

    @property
    def paths(self) -> list[str]:
        return self.table["path"].to_pylist()

    @property
    def packed(self) -> bool:
        """True where the images are rows of Parquet shards."""
        return self.table["row"][0].as_py() != WHOLE_OBJECT

    @property
    def objects(self) -> list[Object]:
        """The objects to read, in order: one per image, or one per shard."""
        table = (
            self.table.group_by(["key", "size", "version"], use_threads=False).aggregate([])
            if self.packed
            else self.table
        )
        columns = (table[name].to_pylist() for name in ("key", "size", "version"))
        return [Object(*values) for values in zip(*columns, strict=True)]

    def readable(self, unreadable: Iterable[int]) -> np.ndarray:
        """(images,) bool, False for these rows."""
        readable = np.ones(len(self), bool)
        readable[list(unreadable)] = False
        return readable

    def training_rows(self, readable: np.ndarray, limit: int | None = None) -> np.ndarray:
        """(n,) int64, rows of the images that train. readable: (images,) bool.

        limit: take so many, of each class its share, drawn by a hash of the path: the same ones on every machine, and
        of two limits the larger one takes all that the smaller one does.
        """
        rows = np.flatnonzero(~self.validation & readable)
        if limit is None or limit >= len(rows):
            return rows
        paths, labels = self.table["path"].take(pa.array(rows)).to_pylist(), self.labels[rows]
        draws = np.array([int.from_bytes(hashlib.sha256(path.encode()).digest()[:8]) for path in paths], np.uint64)
        share = np.empty(len(rows))
        for label in range(len(self.classes)):
            members = np.flatnonzero(labels == label)
            share[members[np.argsort(draws[members])]] = (np.arange(len(members)) + 0.5) / max(1, len(members))
        return np.sort(rows[np.lexsort((draws, share))[:limit]])

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the classes and every column of the table: the identity of the data."""
        digest = hashlib.sha256(f"[{json.dumps(self.classes)}, [".encode())
        for number, column in enumerate(self.table.columns):
            digest.update(b", [" if number else b"[")
            for part, values in enumerate(_slices(column)):
                digest.update((", " * bool(part) + json.dumps(values)[1:-1]).encode())
            digest.update(b"]")
        digest.update(b"]]")
        return digest.hexdigest()


def build_index(store: Store, data: Data) -> Index:
    """List `store` as <class>/<image> or Parquet shards. Raises BadInput if that is not a usable data set."""
    objects = _list(store)
    is_shard = pc.ends_with(pc.utf8_lower(objects["key"]), ".parquet")
    shards = [Object(**shard) for shard in objects.filter(is_shard).to_pylist()]
    bad: list[tuple[str, str]] = []
    if shards:
        (table, classes), ignored = _index_shards(store, shards), len(objects) - len(shards)
    else:
        table, classes, bad, ignored = _index_folders(objects)
    if bad and data.on_bad_image == "fail":
        raise BadInput(describe_bad(bad))
    if not table.num_rows:
        raise BadInput(
            f"{store.uri} must hold images as <class>/<image> or Parquet shards, got "
            f"{len(objects)} other object{'s' * (len(objects) != 1)}: check data.uri"
        )
    if len(classes) < 2:
        raise BadInput(
            f"{store.uri} must hold at least two classes, got one ({classes[0]}): "
            f"put each class into a folder of its own"
        )
    index = Index(table, _split(table, data), classes, tuple(bad), ignored)
    check_split(index, np.ones(len(index), bool), store.uri)
    return index


def check_split(index: Index, good: np.ndarray, uri: str) -> None:
    """Raise BadInput unless every class trains and validates on some of the `good` images ((images,) bool)."""
    for part, members in (("training", ~index.validation), ("validation", index.validation)):
        counts = np.bincount(index.labels[members & good], minlength=len(index.classes))
        if not counts.all():
            name = index.classes[int(np.argmin(counts))]
            total = int((index.labels == index.classes.index(name)).sum())
            raise BadInput(
                f"class {name!r} of {uri} must have at least one image for {part}, got none of its {total}: "
                f"add images or change data.validation_split"
            )


def describe_bad(bad: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> str:
    """One line naming the first ten bad files and the way to skip them."""
    names = "; ".join(f"{key} ({reason})" for key, reason in bad[:10])
    more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
    return (
        f"every file must be a readable image, got {len(bad)} that {'is' if len(bad) == 1 else 'are'} not: "
        f"{names}{more}. Fix or remove them, or skip them with --set data.on_bad_image=skip"
    )


def _list(store: Store) -> pa.Table:
    """Every object's key, size and version, sorted by key; only _SLICE of them are Python objects at a time."""
    listed, batches = store.list(), []
    while chunk := list(itertools.islice(listed, _SLICE)):
        columns = [[o.key for o in chunk], [o.size for o in chunk], [o.version for o in chunk]]
        batches.append(pa.record_batch(columns, schema=_OBJECTS))
    return pa.Table.from_batches(batches, _OBJECTS).sort_by("key")  # Arrow sorts by UTF-8 bytes


def _index_folders(objects: pa.Table) -> tuple[pa.Table, tuple[str, ...], list[tuple[str, str]], int]:
    inside = objects.filter(pc.match_substring(objects["key"], "/"))
    is_image = pc.match_substring_regex(inside["key"], f"(?i)({'|'.join(map(re.escape, IMAGE_SUFFIXES))})$")
    fit = pc.and_(is_image, pc.greater(inside["size"], 0))
    reasons = pc.if_else(is_image, "empty", "not an image file")
    bad = list(zip(*(column.filter(pc.invert(fit)).to_pylist() for column in (inside["key"], reasons)), strict=True))
    images = inside.filter(fit).combine_chunks()
    names = pc.struct_field(pc.extract_regex(images["key"], "^(?P<name>[^/]*)/"), "name")
    labels, classes = _labels(names)
    keys = images["key"]
    rows = pa.repeat(pa.scalar(WHOLE_OBJECT, pa.int32()), len(images))
    table = pa.table([keys, rows, keys, images["size"], images["version"], labels], schema=_SCHEMA)
    return table, classes, bad, len(objects) - len(inside)


def _labels(names: pa.ChunkedArray) -> tuple[pa.ChunkedArray, tuple[str, ...]]:
    """Each image's position among the class names, and those names, sorted."""
    classes = sorted(pc.unique(names).to_pylist())
    return pc.index_in(names, value_set=pa.array(classes, pa.string())), tuple(classes)


def _slices(column: pa.ChunkedArray) -> Iterator[list[Any]]:
    """A column's values as Python objects, _SLICE of them at a time."""
    for start in range(0, len(column), _SLICE):
        yield column.slice(start, _SLICE).to_pylist()


def _index_shards(store: Store, shards: list[Object]) -> tuple[pa.Table, tuple[str, ...]]:
    table = pa.concat_tables(_index_shard(store, shard) for shard in shards).combine_chunks()
    by_row = pc.binary_join_element_wise(table["key"], pc.utf8_lpad(table["row"].cast(pa.string()), 8, "0"), "#")
    paths = pc.if_else(pc.equal(pc.fill_null(table["path"], ""), ""), by_row, table["path"])
    if pc.count_distinct(paths).as_py() < len(table):  # two shards may each hold "0.png": use shard and row instead
        paths = by_row
    labels, classes = _labels(table["name"])
    columns = [table["key"], table["row"], paths, table["size"], table["version"], labels]
    return pa.table(columns, schema=_SCHEMA), classes


def _index_shard(store: Store, shard: Object) -> pa.Table:
    """A shard's part of the table, with class names instead of labels."""
    pairs = list(_read_shard(store, shard))
    paths, names = [path for path, _ in pairs], [name for _, name in pairs]
    key, size, version = ([value] * len(pairs) for value in (shard.key, shard.size, shard.version))
    schema = _SCHEMA.set(_SCHEMA.get_field_index("label"), pa.field("name", pa.string()))
    return pa.table([key, range(len(pairs)), paths, size, version, names], schema=schema)


def _read_shard(store: Store, shard: Object) -> Iterator[tuple[str | None, str]]:
    """(path, class name) of each row. Raises BadInput if a column is missing or holds something else."""
    with open_shard(store, shard) as parquet:
        schema = parquet.schema_arrow
        if not {"image", "label"} <= set(schema.names):
            raise BadInput(f"{shard.key} must have the columns image and label, got {', '.join(schema.names)}")
        image, label = schema.field("image").type, schema.field("label").type
        fields = {field.name: field.type for field in image} if pa.types.is_struct(image) else {}
        if fields.get("bytes") not in (pa.binary(), pa.large_binary()):
            raise BadInput(f"{shard.key}: column image must be a struct of bytes (binary) and path, got {image}")
        if not (pa.types.is_integer(label) or label in (pa.string(), pa.large_string())):
            raise BadInput(f"{shard.key}: column label must hold whole numbers or strings, got {label}")
        read = parquet.read(columns=["label", "image.path"] if "path" in fields else ["label"])
    names = class_names(schema) if pa.types.is_integer(label) else None
    labels = read["label"].to_pylist()
    paths = read["image"].combine_chunks().field("path").to_pylist() if "path" in fields else [None] * len(labels)
    for row, (path, number) in enumerate(zip(paths, labels, strict=True)):
        if number is None:
            raise BadInput(f"{shard.key}: every row must have a label, got null in row {row} ({path or 'no path'})")
        if names and not 0 <= number < len(names):
            raise BadInput(
                f"{shard.key}: every label must be from 0 to {len(names) - 1}, as its metadata names {len(names)} "
                f"classes, got {number} in row {row} ({path or 'no path'})"
            )
        yield path, names[number] if names else str(number)


def _split(table: pa.Table, data: Data) -> np.ndarray:
    """(images,) bool, True for images that validate. See `split_by` in the spec."""
    if data.split_by == "hash":
        limit = int(data.validation_split * 2**64)
        paths = itertools.chain.from_iterable(_slices(table["path"]))
        draws = (int.from_bytes(hashlib.sha256(path.encode()).digest()[:8]) for path in paths)
        return np.fromiter((draw < limit for draw in draws), bool, len(table))
    # Keras' order: folder by folder, and a folder's own images before those of its subfolders
    parts = pc.extract_regex(table["path"], "(?s)^(?:(?P<folder>.*)/)?(?P<name>[^/]*)$")
    folders_and_names = pa.table([pc.struct_field(parts, [part]) for part in (0, 1)], ["folder", "name"])
    order = pc.sort_indices(folders_and_names, [("folder", "ascending"), ("name", "ascending")]).to_numpy()
    validation = np.zeros(len(table), bool)
    labels = table["label"].to_numpy()
    for label in np.unique(labels):
        members = order[labels[order] == label]
        validation[members[: int(data.validation_split * len(members))]] = True
    return validation
