"""Unpacking: reading what is packed, up to a bound: a file of some kilobytes may unpack to a memory full."""

import io
import zipfile
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

MOST_BYTES = 2 * 10**9  # that one file, or one row group of images, may unpack to
_PIECE_BYTES, _PIECE_ROWS = 10**9, 1024
_RATIO = 20  # tables and encoded images seldom pack better than that
_CONFIG_BYTES = 10**8


def unpacked_bytes(metadata: pq.FileMetaData, group: int, columns: Sequence[str] | None = None) -> tuple[int, int]:
    """What these columns of a row group take unpacked and packed, as the file's footer says. columns: None for all."""
    row_group = metadata.row_group(group)
    found = [row_group.column(i) for i in range(row_group.num_columns)]
    own = [each for each in found if columns is None or each.path_in_schema in columns]
    return sum(each.total_uncompressed_size for each in own), sum(each.total_compressed_size for each in own)


def read_parquet(
    parquet: pq.ParquetFile, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None
) -> pa.Table:
    """These columns of these row groups, or all of them. Raises ArrowInvalid beyond MOST_BYTES.

    Read in pieces: where rows are equal, the file has them once, and its footer does not say what they take in memory.
    """
    metadata = parquet.metadata
    pieces, size_bytes = [], 0
    for group in range(metadata.num_row_groups) if groups is None else groups:
        unpacked, packed = unpacked_bytes(metadata, group, columns)
        rows = _PIECE_BYTES // max(1, unpacked)  # if each had all that there is
        rows = max(1, _PIECE_ROWS if unpacked <= _RATIO * packed else 1, min(rows, metadata.row_group(group).num_rows))
        _check(size_bytes + unpacked)
        for piece in parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
            size_bytes += piece.nbytes
            _check(size_bytes)
            pieces.append(piece)
    return pa.Table.from_batches(pieces) if pieces else parquet.read(columns=columns, use_threads=False)


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
