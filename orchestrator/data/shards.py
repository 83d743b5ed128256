"""Shards: Parquet files of encoded images, read by ranges. Damage and decompression bombs are refused."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.pages import Column, columns
from orchestrator.data.unpacking import MOST_BYTES, read_group, read_parquet
from orchestrator.errors import BadInput
from orchestrator.store import Object, Store

_IMAGE = ["image.bytes"]
_HELD_READS = 4  # footer and columns are looked into, and then read by Arrow
_PACKS_WELL = 4  # times: encoded images hardly pack at all
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last for names of columns that are not UTF-8


class Opened(NamedTuple):
    """A shard that is read by ranges."""

    parquet: pq.ParquetFile
    source: pa.NativeFile

    def read(self, names: Sequence[str]) -> pa.Table:
        """All rows of these columns. Raises what open_shard turns into BadInput."""
        rows, table = self.parquet.metadata.num_rows, read_parquet(self.source, names, metadata=self.parquet.metadata)
        if len(table) != rows:
            raise pa.ArrowInvalid(f"its footer tells of {rows} rows, and it has {len(table)}")
        return table


@contextlib.contextmanager
def open_shard(store: Store, shard: Object) -> Iterator[Opened]:
    """Open a Parquet shard. Raises BadInput if it is not Parquet, inside the block too."""

    @functools.lru_cache(_HELD_READS)
    def read(at: int, size: int) -> memoryview:
        return store.read_range(shard, at, size)

    source = pa.PythonFile(_Ranged(shard, read), mode="r")
    try:
        with pq.ParquetFile(source) as parquet:
            _refuse_bomb(shard, parquet.metadata)
            yield Opened(parquet, source)
    except UNREADABLE as error:
        raise BadInput(not_parquet(shard, error)) from None


def _refuse_bomb(shard: Object, metadata: pq.FileMetaData) -> None:
    """Raise BadInput for a small file that would fill the memory when unpacked."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    if metadata.num_rows > shard.size or largest > MOST_BYTES:
        raise BadInput(
            f"{shard.key} must have fewer rows than bytes and row groups of at most {MOST_BYTES / 1e9:.0f} GB "
            f"unpacked, got {metadata.num_rows} rows in {shard.size} bytes and {largest / 1e9:.1f} GB: pack it anew"
        )
    rows = [group.num_rows for group in groups]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise pa.ArrowInvalid(f"its footer tells of {metadata.num_rows} rows, and of others in its row groups")


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Where the images of one row group are: `rows` of them, in `column` of a shard.

    Attributes:
        held: Bytes that it counts for in a window: its length, by which older runs drew their order, but where it
            unpacks to much more.
    """

    shard: Object
    metadata: pq.FileMetaData
    number: int
    column: Column
    rows: int
    held: int

    def images(self, data: memoryview) -> pa.ChunkedArray:
        """The encoded images in `data`, the bytes read from there. Raises BadInput if they are damaged."""
        try:
            start = self.column.start
            read = _Ranged(self.shard, lambda at, size: data[at - start : at - start + size])
            with pq.ParquetFile(pa.PythonFile(read, mode="r"), metadata=self.metadata) as parquet:
                pieces = read_group(parquet, self.number, [(self.column, data)], _IMAGE)
            if (rows := sum(map(len, pieces))) != self.rows:
                raise pa.ArrowInvalid(f"its footer tells of {self.rows} images in a row group that has {rows}")
        except UNREADABLE as error:
            raise BadInput(not_parquet(self.shard, error)) from None
        return pa.chunked_array([piece["image"].field("bytes") for piece in pieces] or [pa.array([], pa.binary())])


def row_groups(shards: Sequence[Object], store: Store) -> tuple[RowGroup, ...]:
    """The row groups of the shards of a packed index, in its order."""
    groups = []
    for shard in shards:
        with open_shard(store, shard) as opened:
            metadata = opened.parquet.metadata
            for number, found in enumerate(columns(opened.source)):
                column = next((each for each in found if each.path in _IMAGE), None)
                if column is None:
                    raise pa.ArrowInvalid(f"a row group has no column {_IMAGE[0]}")
                if column.start + column.length > shard.size:
                    raise pa.ArrowInvalid("its footer tells of bytes that it does not have")
                is_usual = column.unpacked_bytes <= _PACKS_WELL * column.length
                held = column.length if is_usual else column.unpacked_bytes
                groups.append(RowGroup(shard, metadata, number, column, metadata.row_group(number).num_rows, held))
    return tuple(groups)


def class_names(schema: pa.Schema) -> list[str] | None:
    """The class names in a shard's metadata, as Hugging Face's data sets keep them; None if there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def not_parquet(shard: Object, error: Exception) -> str:
    return f"{shard.key} must be a Parquet file, and cannot be read as one: {str(error).splitlines()[0]}"


class _Ranged:
    """A read-only file over ranged reads, as pyarrow wants it."""

    def __init__(self, shard: Object, read_range: Callable[[int, int], memoryview]) -> None:
        self._size, self._read_range, self._at, self.closed = shard.size, read_range, 0, False

    def read(self, size: int = -1) -> memoryview:
        left = max(0, self._size - self._at)
        size = left if size is None or size < 0 else min(size, left)
        data = self._read_range(self._at, size) if size else memoryview(b"")
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
