"""Index: the list of images in a store: key, size, version, label, split; and its digest. Needs no TensorFlow."""

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.errors import BadInput
from orchestrator.spec.sections import Data
from orchestrator.store import Object, Store

_SLICE = 10_000  # objects that stand as Python's at a time
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
WHOLE_OBJECT = -1
_ROW_GROUP_BYTES = 2 * 10**9  # ours have some ten MB; one is unpacked as a whole
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last for the names of columns
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
        validation: (images,) bool, the images that validate; the others train.
        classes: Class names, sorted.
        bad: Listed objects that cannot be images, as (key, reason); not in the table.
        ignored: How many objects lie beside the class folders, or beside the shards.
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

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the classes and every image's key, size, version and label: the identity of the data."""
        digest = hashlib.sha256(f"[{json.dumps(self.classes)}, [".encode())
        for number, column in enumerate(self.table.columns):
            digest.update(b", [" if number else b"[")
            for part, values in enumerate(_slices(column)):
                digest.update((", " * bool(part) + json.dumps(values)[1:-1]).encode())
            digest.update(b"]")
        digest.update(b"]]")
        return digest.hexdigest()


def build_index(store: Store, data: Data) -> Index:
    """List `store` as <class>/<image> or Parquet shards. Raises BadInput where that does not make a data set."""
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
    """Every object's key, size and version, in the order of their keys; few of them stand as Python's at a time."""
    listed, batches = store.list(), []
    while chunk := list(itertools.islice(listed, _SLICE)):
        columns = [[o.key for o in chunk], [o.size for o in chunk], [o.version for o in chunk]]
        batches.append(pa.record_batch(columns, schema=_OBJECTS))
    return pa.Table.from_batches(batches, _OBJECTS).sort_by("key")  # as Arrow sorts texts: by their UTF-8 bytes


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
    """Each image's position among the classes, and these, sorted."""
    classes = sorted(pc.unique(names).to_pylist())
    return pc.index_in(names, value_set=pa.array(classes, pa.string())), tuple(classes)


def _slices(column: pa.ChunkedArray) -> Iterator[list[Any]]:
    """A column's values as Python's, not all at once."""
    for start in range(0, len(column), _SLICE):
        yield column.slice(start, _SLICE).to_pylist()


def _index_shards(store: Store, shards: list[Object]) -> tuple[pa.Table, tuple[str, ...]]:
    table = pa.concat_tables(_index_shard(store, shard) for shard in shards).combine_chunks()
    by_row = pc.binary_join_element_wise(table["key"], pc.utf8_lpad(table["row"].cast(pa.string()), 8, "0"), "#")
    paths = pc.if_else(pc.equal(pc.fill_null(table["path"], ""), ""), by_row, table["path"])
    if pc.count_distinct(paths).as_py() < len(table):  # two shards may each hold "0.png": the shard makes it unique
        paths = by_row
    labels, classes = _labels(table["name"])
    columns = [table["key"], table["row"], paths, table["size"], table["version"], labels]
    return pa.table(columns, schema=_SCHEMA), classes


def _index_shard(store: Store, shard: Object) -> pa.Table:
    """A shard's part of the table, with the names of classes in place of labels."""
    pairs = list(_read_shard(store, shard))
    paths, names = [path for path, _ in pairs], [name for _, name in pairs]
    key, size, version = ([value] * len(pairs) for value in (shard.key, shard.size, shard.version))
    schema = _SCHEMA.set(_SCHEMA.get_field_index("label"), pa.field("name", pa.string()))
    return pa.table([key, range(len(pairs)), paths, size, version, names], schema=schema)


def _read_shard(store: Store, shard: Object) -> Iterator[tuple[str | None, str]]:
    """(path, class name) of each row. Raises BadInput."""
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
    names = _class_names(schema) if pa.types.is_integer(label) else None
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


@contextlib.contextmanager
def open_shard(store: Store, shard: Object) -> Iterator[pq.ParquetFile]:
    """A Parquet shard read by ranges. Raises BadInput, from the block too, where it is not Parquet."""
    source = pa.PythonFile(_Ranged(shard, lambda at, size: store.read_range(shard, at, size)), mode="r")
    try:
        with pq.ParquetFile(source) as parquet:
            _refuse_bomb(shard, parquet.metadata)
            yield parquet
    except _UNREADABLE as error:
        raise BadInput(_not_parquet(shard, error)) from None


def _refuse_bomb(shard: Object, metadata: pq.FileMetaData) -> None:
    """Raise BadInput for a small file that would unpack to a memory full."""
    groups = (metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    largest = max(groups, default=0)
    if metadata.num_rows > shard.size or largest > _ROW_GROUP_BYTES:
        raise BadInput(
            f"{shard.key} must have fewer rows than bytes and row groups of at most {_ROW_GROUP_BYTES / 1e9:.0f} GB "
            f"unpacked, got {metadata.num_rows} rows in {shard.size} bytes and {largest / 1e9:.1f} GB: pack it anew"
        )


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Where one row group's images lie: `length` bytes from `start` of a shard, `rows` of them."""

    shard: Object
    metadata: pq.FileMetaData
    number: int
    start: int
    length: int
    rows: int

    def images(self, data: memoryview) -> pa.Array:
        """The encoded images in the bytes read from there. Raises BadInput where they are damaged."""
        try:
            read = _Ranged(self.shard, lambda at, size: data[at - self.start : at - self.start + size])
            source = pa.PythonFile(read, mode="r")
            with pq.ParquetFile(source, metadata=self.metadata) as parquet:
                table = parquet.read_row_group(self.number, columns=["image.bytes"], use_threads=False)
        except _UNREADABLE as error:
            raise BadInput(_not_parquet(self.shard, error)) from None
        return table["image"].combine_chunks().field("bytes")


def row_groups(index: Index, store: Store) -> tuple[RowGroup, ...]:
    """The row groups of a packed index, in its order."""
    groups = []
    for shard in index.objects:
        with open_shard(store, shard) as parquet:
            metadata = parquet.metadata
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            columns = (group.column(i) for i in range(group.num_columns))
            column = next(column for column in columns if column.path_in_schema == "image.bytes")
            start = column.data_page_offset
            if column.has_dictionary_page:
                start = min(start, column.dictionary_page_offset)
            groups.append(RowGroup(shard, metadata, number, start, column.total_compressed_size, group.num_rows))
    return tuple(groups)


def _not_parquet(shard: Object, error: Exception) -> str:
    return f"{shard.key} must be a Parquet file, and cannot be read as one: {str(error).splitlines()[0]}"


def _class_names(schema: pa.Schema) -> list[str] | None:
    """The names that Hugging Face's data sets keep in a shard's metadata, if any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _split(table: pa.Table, data: Data) -> np.ndarray:
    """(images,) bool: who validates. See the spec's `split_by`."""
    if data.split_by == "hash":
        limit = int(data.validation_split * 2**64)
        paths = itertools.chain.from_iterable(_slices(table["path"]))
        draws = (int.from_bytes(hashlib.sha256(path.encode()).digest()[:8]) for path in paths)
        return np.fromiter((draw < limit for draw in draws), bool, len(table))
    # as Keras walks: folder by folder, and a folder's own images before those of its sub-folders
    parts = pc.extract_regex(table["path"], "(?s)^(?:(?P<folder>.*)/)?(?P<name>[^/]*)$")
    folders_and_names = pa.table([pc.struct_field(parts, [part]) for part in (0, 1)], ["folder", "name"])
    order = pc.sort_indices(folders_and_names, [("folder", "ascending"), ("name", "ascending")]).to_numpy()
    validation = np.zeros(len(table), bool)
    labels = table["label"].to_numpy()
    for label in np.unique(labels):
        members = order[labels[order] == label]
        validation[members[: int(data.validation_split * len(members))]] = True
    return validation


class _Ranged:
    """A read-only file over ranged reads, as pyarrow wants it."""

    def __init__(self, shard: Object, read_range: Callable[[int, int], bytes]) -> None:
        self._size, self._read_range, self._at, self.closed = shard.size, read_range, 0, False

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        size = left if size is None or size < 0 else min(size, left)
        data = self._read_range(self._at, size) if size else b""
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
