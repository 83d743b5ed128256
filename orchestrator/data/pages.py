"""Pages: where the columns of a Parquet file lie, and what they unpack to by the headers of their pages. Pure.

A footer may say anything. Arrow makes room for a page by the page's own header, and refuses one that unpacks to more.
pyarrow itself is not asked where a column lies, nor to write a footer: where it is damaged, both end the process.
"""

from typing import Any, NamedTuple

import pyarrow as pa

# Thrift's compact form, in which footers and headers are written: types
_BOOLS, _BYTE, _I32, _I64, _DOUBLE, _BINARY, _LIST, _STRUCT = (1, 2), 3, 5, 6, 7, 8, 9, 12
_INTEGERS = (4, _I32, _I64)
_DEEPEST = 16
_TAIL_BYTES = 2**16  # what Arrow reads first as well
# fields, each with its type; of a footer, a row group, a column in it, and what is said of that
_GROUPS, _COLUMNS, _SAID, _PATH = (4, _LIST), (1, _LIST), (3, _STRUCT), (3, _LIST)
_VALUES, _UNPACKED, _PACKED, _DATA, _DICTIONARY = (5, _I64), (6, _I64), (7, _I64), (9, _I64), (11, _I64)
# of the header of a page
_KIND, _PAGE_UNPACKED, _PAGE_PACKED, _PAGE_VALUES = (1, _I32), (2, _I32), (3, _I32), (1, _I32)
_DATA_PAGES = {0: ((5, _STRUCT), (2, _I32)), 3: ((8, _STRUCT), (4, _I32))}  # what is said of it, and there its encoding
_DICTIONARY_PAGE, _BY_DICTIONARY, _BY_THE_VALUE_BEFORE = 2, (2, 8), 7
_DAMAGED = (IndexError, KeyError, TypeError, ValueError)

_Fields = dict[tuple[int, int], Any]


class Column(NamedTuple):
    """A column of a row group: `length` bytes from `start` on. All of it is what the footer says.

    Attributes:
        path: Its name, after those of the structs that it is in, with dots between.
    """

    path: str
    values: int
    start: int
    length: int
    unpacked_bytes: int


class Unpacked(NamedTuple):
    """What a column's pages unpack to, and what a value may take that repeats what is there once; 0 where none does."""

    once_bytes: int
    repeats_bytes: int


def columns(source: pa.NativeFile) -> list[list[Column]]:
    """The columns of each row group of a Parquet file. Raises ArrowInvalid where its footer is damaged."""
    tail = read(source, max(0, source.size() - _TAIL_BYTES), _TAIL_BYTES)
    length = int.from_bytes(tail[-8:-4], "little")
    is_there = length + 8 <= len(tail)
    found = tail[-8 - length : -8] if is_there else read(source, max(0, source.size() - 8 - length), length)
    try:
        footer, _ = _struct(found, 0)
        return [[_column(column[_SAID]) for column in group[_COLUMNS]] for group in footer[_GROUPS]]
    except _DAMAGED:
        raise pa.ArrowInvalid("its footer is damaged") from None


def read(source: pa.NativeFile, start: int, length: int) -> memoryview:
    """So many bytes of a file, or as many as there are."""
    source.seek(start)
    return memoryview(source.read_buffer(length)).cast("B")  # Arrow's own are signed


def _column(said: _Fields) -> Column:
    start, path = said[_DATA], [bytes(part).decode() for part in said[_PATH]]
    if 0 < said.get(_DICTIONARY, 0) < start:
        start = said[_DICTIONARY]
    column = Column(".".join(path), said[_VALUES], start, said[_PACKED], said[_UNPACKED])
    if min(column[1:]) < 0:
        raise ValueError
    return column


def unpacked(pages: memoryview, values: int) -> Unpacked:
    """pages: of a column, as in the file. values: how many Arrow will read. Raises ArrowInvalid for damaged headers."""
    at = once_bytes = repeats_bytes = dictionary_bytes = seen = 0
    while seen < values and at < len(pages):
        try:
            header, at = _struct(pages, at)
            kind, page_bytes, packed_bytes = header[_KIND], header[_PAGE_UNPACKED], header[_PAGE_PACKED]
            count = encoding = 0
            if kind in _DATA_PAGES:
                said, encoded = _DATA_PAGES[kind]
                count, encoding = header[said][_PAGE_VALUES], header[said][encoded]
            if min(page_bytes, packed_bytes, count) < 0:
                raise ValueError
        except _DAMAGED:
            raise pa.ArrowInvalid("the header of a page is damaged") from None
        at, seen, once_bytes = at + packed_bytes, seen + count, once_bytes + page_bytes
        if kind == _DICTIONARY_PAGE:
            dictionary_bytes = max(dictionary_bytes, page_bytes)
        elif encoding in _BY_DICTIONARY:
            repeats_bytes = max(repeats_bytes, dictionary_bytes)
        elif encoding == _BY_THE_VALUE_BEFORE:
            repeats_bytes = max(repeats_bytes, page_bytes)
    return Unpacked(once_bytes, repeats_bytes)


def _struct(data: memoryview, at: int, depth: int = 0) -> tuple[_Fields, int]:
    """Its fields by number and type, and where it ends. Raises one of _DAMAGED."""
    fields: _Fields = {}
    field = 0
    while head := data[at]:
        at, kind = at + 1, head & 15
        field += head >> 4
        if not head >> 4:
            field, at = _integer(data, at, 16)
        if kind in _BOOLS:
            fields[field, kind] = kind == _BOOLS[0]
        else:
            fields[field, kind], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: memoryview, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise ValueError
    if kind in _INTEGERS:
        return _integer(data, at, 64 if kind == _I64 else 32)
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    if kind == _LIST:
        size, kind, at = data[at] >> 4, data[at] & 15, at + 1
        if size == 15:
            size, at = _varint(data, at, 32)
        values = []
        for _ in range(size):
            value, at = (data[at], at + 1) if kind in _BOOLS else _value(data, at, kind, depth + 1)
            values.append(value)
        return values, at
    if kind not in (_BYTE, _DOUBLE, _BINARY):
        raise ValueError
    size, at = _varint(data, at, 32) if kind == _BINARY else (8 if kind == _DOUBLE else 1, at)
    return data[at : at + size], at + size


def _integer(data: memoryview, at: int, bits: int) -> tuple[int, int]:
    number, at = _varint(data, at, bits)
    return number >> 1 ^ -(number & 1), at


def _varint(data: memoryview, at: int, bits: int) -> tuple[int, int]:
    number = shift = 0
    while data[at] & 128:
        number, at, shift = number | (data[at] & 127) << shift, at + 1, shift + 7
    number |= data[at] << shift
    if number >> bits:  # Arrow would cut it
        raise ValueError
    return number, at + 1
