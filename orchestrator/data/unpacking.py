"""Unpacking: reading what is packed, up to a bound: a file of some kilobytes may unpack to a memory full."""

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.pages import Column, columns, read, unpacked

MOST_BYTES = 2 * 10**9  # that one file, or one row group of images, may unpack to
_PIECE_BYTES = 10**8
_CONFIG_BYTES = 10**8


def read_parquet(source: pa.NativeFile, names: Sequence[str] | None = None, **how: Any) -> pa.Table:
    """These columns of a file, or all. Raises ArrowInvalid beyond MOST_BYTES. how: see pyarrow's ParquetFile."""
    pieces: list[pa.RecordBatch] = []
    with pq.ParquetFile(source, **how) as parquet:
        for group, found in enumerate(columns(source)):
            own = [each for each in found if names is None or f"{each.path}.".startswith(tuple(f"{n}." for n in names))]
            pieces += read_group(parquet, group, [(each, _pages(source, each)) for each in own], names)
            _check(sum(piece.nbytes for piece in pieces))
        return pa.Table.from_batches(pieces) if pieces else parquet.read(columns=names, use_threads=False)


def read_group(
    parquet: pq.ParquetFile, group: int, pages: Sequence[tuple[Column, memoryview]], names: Sequence[str] | None
) -> list[pa.RecordBatch]:
    """A row group of a file, or these columns of it, whose pages are given. Raises ArrowInvalid beyond MOST_BYTES.

    In pieces: where values are equal, the file has them once, and nothing says what they take in memory.
    """
    found = [unpacked(data, column.values) for column, data in pages]
    _check(sum(each.once_bytes for each in found))
    rows = _PIECE_BYTES // max(1, sum(each.repeats_bytes for each in found))
    rows = max(1, min(rows, parquet.metadata.row_group(group).num_rows))
    pieces, size_bytes = [], 0
    for piece in parquet.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
        size_bytes += piece.nbytes
        _check(size_bytes)
        pieces.append(piece)
    return pieces


def _pages(source: pa.NativeFile, column: Column) -> memoryview:
    if column.start + column.length > source.size():
        raise pa.ArrowInvalid("its footer tells of bytes that it does not have")
    return read(source, column.start, column.length)


def _check(size_bytes: int) -> None:
    if size_bytes > MOST_BYTES:
        raise pa.ArrowInvalid(f"it unpacks to more than {MOST_BYTES / 1e9:.0f} GB: pack it anew, in smaller row groups")


def read_config(keras_file: bytes) -> bytes:
    """The config.json of a .keras file. Raises what zipfile and zlib raise, KeyError, and ValueError for one too large.

    Keras itself refuses what else in there would unpack to too much.
    """
    with zipfile.ZipFile(io.BytesIO(keras_file)) as parts:
        if parts.getinfo("config.json").file_size > _CONFIG_BYTES:
            raise ValueError("its config.json is too large")
        return parts.read("config.json")
