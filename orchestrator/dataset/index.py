"""Index: the list of images in a store: key, size, version, label, split; and its digest. Needs no TensorFlow."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import BadInput
from orchestrator.spec import Data
from orchestrator.store import Object, Store

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
WHOLE_OBJECT = -1
_ROW_GROUP_BYTES = 2 * 10**9  # ours have some ten MB; one is unpacked as a whole
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
        columns = [column.to_pylist() for column in self.table.columns]
        return hashlib.sha256(json.dumps([self.classes, columns]).encode()).hexdigest()


def build_index(store: Store, data: Data) -> Index:
    """List `store` as <class>/<image> or Parquet shards. Raises BadInput where that does not make a data set."""
    objects = sorted(store.list(), key=lambda o: o.key.encode())
    shards = [o for o in objects if o.key.lower().endswith(".parquet")]
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
        f"{names}{more}. Mend or remove them, or skip them with --set data.on_bad_image=skip"
    )


def _index_folders(objects: list[Object]) -> tuple[pa.Table, tuple[str, ...], list[tuple[str, str]], int]:
    inside = [o for o in objects if "/" in o.key]
    bad = [(o.key, reason) for o in inside if (reason := _unfit(o))]
    unfit = {key for key, _ in bad}
    images = [o for o in inside if o.key not in unfit]
    classes = tuple(sorted({o.key.split("/", 1)[0] for o in images}))
    number = {name: i for i, name in enumerate(classes)}
    keys = [o.key for o in images]
    table = pa.table(
        [
            keys,
            [WHOLE_OBJECT] * len(keys),
            keys,
            [o.size for o in images],
            [o.version for o in images],
            [number[key.split("/", 1)[0]] for key in keys],
        ],
        schema=_SCHEMA,
    )
    return table, classes, bad, len(objects) - len(inside)


def _unfit(o: Object) -> str | None:
    if not o.key.lower().endswith(IMAGE_SUFFIXES):
        return "not an image file"
    return "empty" if o.size == 0 else None


def _index_shards(store: Store, shards: list[Object]) -> tuple[pa.Table, tuple[str, ...]]:
    parts = [
        (shard.key, row, path or f"{shard.key}#{row:08d}", shard.size, shard.version, name)
        for shard in shards
        for row, (path, name) in enumerate(_read_shard(store, shard))
    ]
    if len({part[2] for part in parts}) < len(parts):  # two shards may each hold "0.png": the shard makes it unique
        parts = [(*part[:2], f"{part[0]}#{part[1]:08d}", *part[3:]) for part in parts]
    classes = tuple(sorted({part[-1] for part in parts}))
    number = {name: i for i, name in enumerate(classes)}
    columns = list(zip(*((*part[:-1], number[part[-1]]) for part in parts), strict=True)) or [[]] * len(_SCHEMA)
    return pa.table([list(column) for column in columns], schema=_SCHEMA), classes


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
    except (pa.ArrowException, OSError) as error:
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
        except (pa.ArrowException, OSError) as error:
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
    paths = table["path"].to_pylist()
    if data.split_by == "hash":
        limit = int(data.validation_split * 2**64)
        draws = (int.from_bytes(hashlib.sha256(path.encode()).digest()[:8]) for path in paths)
        return np.fromiter((draw < limit for draw in draws), bool, len(paths))
    validation = np.zeros(len(paths), bool)
    labels = table["label"].to_numpy()
    # as Keras walks: folder by folder, and a folder's own images before those of its sub-folders
    order = np.array(sorted(range(len(paths)), key=lambda row: paths[row].rpartition("/")[::2]), dtype=np.int64)
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
