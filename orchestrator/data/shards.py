"""Shards: Parquet files of encoded images, read by ranges. Damage and decompression bombs are refused."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.unpacking import MOST_BYTES, read_parquet, unpacked_bytes
from orchestrator.errors import BadInput
from orchestrator.store import Object, Store

_IMAGE = ["image.bytes"]
_PACKS_WELL = 4  # times: encoded images hardly pack at all
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last for names of columns that are not UTF-8


@contextlib.contextmanager
def open_shard(store: Store, shard: Object) -> Iterator[pq.ParquetFile]:
    """Open a Parquet shard, which is read by ranges. Raises BadInput if it is not Parquet, inside the block too."""
    source = pa.PythonFile(_Ranged(shard, lambda at, size: store.read_range(shard, at, size)), mode="r")
    try:
        with pq.ParquetFile(source) as parquet:
            _refuse_bomb(shard, parquet.metadata)
            yield parquet
    except UNREADABLE as error:
        raise BadInput(not_parquet(shard, error)) from None


def _refuse_bomb(shard: Object, metadata: pq.FileMetaData) -> None:
    """Raise BadInput for a small file that would fill the memory when unpacked."""
    groups = (metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    largest = max(groups, default=0)
    if metadata.num_rows > shard.size or largest > MOST_BYTES:
        raise BadInput(
            f"{shard.key} must have fewer rows than bytes and row groups of at most {MOST_BYTES / 1e9:.0f} GB "
            f"unpacked, got {metadata.num_rows} rows in {shard.size} bytes and {largest / 1e9:.1f} GB: pack it anew"
        )


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Where the images of one row group are: `rows` images, in `length` bytes of a shard from byte `start` on.

    Attributes:
        held: Bytes that it counts for in a window: its length, by which older runs drew their order, but where it
            unpacks to much more.
    """

    shard: Object
    metadata: pq.FileMetaData
    number: int
    start: int
    length: int
    rows: int
    held: int

    def images(self, data: memoryview) -> pa.ChunkedArray:
        """The encoded images in `data`, the bytes read from there. Raises BadInput if they are damaged."""
        try:
            read = _Ranged(self.shard, lambda at, size: data[at - self.start : at - self.start + size])
            source = pa.PythonFile(read, mode="r")
            with pq.ParquetFile(source, metadata=self.metadata) as parquet:
                table = read_parquet(parquet, _IMAGE, [self.number])
        except UNREADABLE as error:
            raise BadInput(not_parquet(self.shard, error)) from None
        return pa.chunked_array([piece.field("bytes") for piece in table["image"].chunks])


def row_groups(shards: Sequence[Object], store: Store) -> tuple[RowGroup, ...]:
    """The row groups of the shards of a packed index, in its order."""
    groups = []
    for shard in shards:
        with open_shard(store, shard) as parquet:
            metadata = parquet.metadata
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            columns = (group.column(i) for i in range(group.num_columns))
            column = next(column for column in columns if column.path_in_schema in _IMAGE)
            start = column.data_page_offset
            if column.has_dictionary_page:
                start = min(start, column.dictionary_page_offset)
            unpacked, length = unpacked_bytes(metadata, number, _IMAGE)
            held = unpacked if unpacked > _PACKS_WELL * length else length
            groups.append(RowGroup(shard, metadata, number, start, length, group.num_rows, held))
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
