"""Labels: a table that names each image's class, and perhaps its split and group: CSV, TSV, JSON lines or Parquet."""

import io
import os
import posixpath
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from orchestrator.data.layout import SPLITS, TRAINING, Found, has_suffix, split_of, whole_objects
from orchestrator.data.listing import Listing, slices
from orchestrator.data.unpacking import read_parquet
from orchestrator.errors import BadInput
from orchestrator.store import Store, open_store
from orchestrator.words import plural

_NAMES = r"(?i)(labels|metadata)\.(csv|tsv|jsonl|parquet)"
# What people call the columns; the first one that the table has is taken.
_COLUMNS = {
    "path": ("path", "file_name", "filename", "file", "image_path", "image", "id"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "subset", "partition"),
    "group": ("group",),
}


def find_tables(listing: Listing) -> list[str]:
    """The key of the table of labels that lies on top, or of one in each folder of a split; none: there is none."""
    keys = listing.objects["key"]
    found = keys.filter(pc.match_substring_regex(keys, f"^{_NAMES}$")).to_pylist()
    if found:
        return found[:1]
    inside = keys.filter(pc.match_substring_regex(keys, f"^[^/]*/{_NAMES}$")).to_pylist()
    first = {key.split("/")[0]: key for key in reversed(inside)}
    return sorted(first.values()) if all(split_of(folder) is not None for folder in first) else []


def beside_folders(store: Store, table: str) -> str | None:
    """A note on a table beside folders of classes that names no labels; None where it does, or ought to by its name."""
    if not posixpath.basename(table).lower().startswith("metadata."):
        return None
    try:
        rows = read_table(store, table)
    except BadInput as error:
        return f"{table} is not used: {error}"
    lacking = [what for what in ("path", "label") if not _find_column(rows, what)]
    return f"{table} is not used: it has no column for each image's {' and '.join(lacking)}" if lacking else None


def find_labelled(
    store: Store, listing: Listing, tables: Sequence[str], group_by: str | None, suffixes: Sequence[str]
) -> Found:
    """The images that tables of labels name. Raises BadInput.

    tables: their keys, or an address. group_by: the column with the groups, where it is not `group`.
    """
    table = " and ".join(tables)
    keys = listing.objects["key"]
    parts, places, grouped = [], [], False
    for each in tables:
        rows = read_table(store, each)
        by_column = group_by is None or _find_column(rows, "group", group_by) is not None
        group = _column(rows, "group", each, group_by) if by_column else None
        grouped = grouped or group is not None
        parts.append(_named(rows, group, each, store.uri))
        places += _find_keys(parts[-1]["path"], keys, "" if _is_elsewhere(each) else posixpath.dirname(each))
    named, where = pa.concat_tables(parts).combine_chunks(), pa.array(places, pa.int32())
    lost = named["path"].filter(pc.is_null(where)).to_pylist()
    why = dict(listing.bad)
    bad = [(path, why.get(path, f"in {table}, and there is no such file, or several")) for path in lost]
    rows = named.append_column("where", where).filter(pc.is_valid(where))
    rows = rows.group_by(rows.column_names[1:]).aggregate([]).sort_by("where")
    if twice := _first_repeat(rows["where"]):
        raise BadInput(
            f"{table} must name each image once, got {keys[twice].as_py()} twice with different values: keep one"
        )
    objects = listing.objects.take(rows["where"])
    is_image = has_suffix(objects["key"], suffixes)
    fit = pc.and_(is_image, pc.greater(objects["size"], 0))
    reasons = pc.if_else(is_image, "empty", "not an image file").filter(pc.invert(fit)).to_pylist()
    bad += zip(objects["key"].filter(pc.invert(fit)).to_pylist(), reasons, strict=True)
    given = rows["given"] if rows["given"].null_count < len(rows) else _given_by_folder(objects["key"])
    images = whole_objects(objects, rows["label"], given.combine_chunks())
    images = images.set_column(images.schema.get_field_index("group"), "group", rows["group"]).filter(fit)
    all_images = pc.sum(has_suffix(keys, suffixes)).as_py() or 0
    beside = (
        all_images - len(images) - pc.sum(pc.and_(is_image, pc.invert(fit))).as_py() if len(objects) else all_images
    )
    notes = [f"{plural(beside, 'image')} not in {table}: left out"] if beside else []
    return Found(
        images,
        f"{'tables' if len(tables) > 1 else 'a table'}, {table}",
        bad,
        len(keys) - len(images),
        notes,
        grouped=grouped,
    )


def _given_by_folder(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """What images are given for by their first folder, where all of these are splits; otherwise nulls."""
    tops = pc.struct_field(pc.extract_regex(keys, "^(?P<name>[^/]*)/"), "name")
    splits = {top: split_of(top) if top else None for top in pc.unique(tops).to_pylist()}
    if len(set(splits.values())) < 2 or None in splits.values() or TRAINING not in splits.values():
        return pa.chunked_array([pa.nulls(len(keys), pa.int8())])
    return pa.chunked_array([pa.array([splits[top] for top in tops.to_pylist()], pa.int8())])


def _named(rows: pa.Table, group: pa.ChunkedArray | None, table: str, uri: str) -> pa.Table:
    """path, label, given and group of each row. Raises BadInput for a row without a path or a label."""
    path, label = (_column(rows, what, table) for what in ("path", "label"))
    split = _column(rows, "split", table)
    paths = pa.array([_relative(text, uri) for text in path.to_pylist()] if path else [], pa.string())
    label = pc.utf8_trim_whitespace(label)
    nothing = pc.or_(pc.equal(pc.fill_null(label, ""), ""), pc.is_null(paths))
    for number, missing in enumerate(nothing.to_pylist(), start=1):
        if missing:
            raise BadInput(f"{table} must name a path and a label in every row, got none of one in row {number}")
    none = pa.nulls(len(paths), pa.string())
    given = pa.array(_splits(split.to_pylist(), table), pa.int8()) if split else pa.nulls(len(paths), pa.int8())
    columns = {"path": paths, "label": label, "given": given, "group": none if group is None else group}
    return pa.table(columns)


def _find_keys(paths: pa.ChunkedArray, keys: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """Each path's place among the keys: from the table or from the top, or by a name that is unique; null for none."""
    plain = pa.array([posixpath.normpath(posixpath.join(folder, path)) for path in paths.to_pylist()], pa.string())
    known = keys.combine_chunks()
    where = pc.coalesce(pc.index_in(plain, value_set=known), pc.index_in(paths.combine_chunks(), value_set=known))
    if not where.null_count:
        return where
    names: dict[str, int | None] = {}
    for number, key in enumerate(key for part in slices(keys) for key in part):
        name = _plainly(posixpath.basename(key))
        for each in {_plainly(key), name, posixpath.splitext(name)[0]}:
            names[each] = None if each in names else number

    def place(path: str) -> int | None:
        found = names.get(_plainly(posixpath.normpath(path).lstrip("/")))
        return names.get(_plainly(posixpath.basename(path))) if found is None else found

    pairs = zip(paths.to_pylist(), where.to_pylist(), strict=True)
    return pa.array([place(path) if found is None else found for path, found in pairs], pa.int32())


def _plainly(path: str) -> str:
    """As it reads on any system: Macs write an accent as a letter of its own, and Windows knows no case."""
    return unicodedata.normalize("NFC", path).casefold()


def _first_repeat(sorted_values: pa.ChunkedArray) -> int | None:
    values = sorted_values.to_numpy()
    again = np.flatnonzero(values[1:] == values[:-1])
    return int(values[again[0]]) if len(again) else None


def read_table(store: Store, table: str) -> pa.Table:
    """A table of labels. Raises BadInput. table: its key, or an address of its own."""
    where = _address(store, table)
    folder, _, name = where.rpartition("/")
    data = open_store(folder or "/").read(name) if _is_elsewhere(where) else store.read(where)
    kind = name.lower().rpartition(".")[2]
    try:
        if kind == "parquet":
            found = read_parquet(pa.BufferReader(data))
        elif kind == "jsonl":
            found = pyarrow.json.read_json(io.BytesIO(data), pyarrow.json.ReadOptions(use_threads=False))
        elif kind in ("csv", "tsv"):
            found = _read_csv(data)
        else:
            raise BadInput(f"data.labels must be a .csv, .tsv, .jsonl or .parquet file, got {table}")
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{table} must be a table that can be read, in UTF-8: {str(error).splitlines()[0]}") from None
    if not found.num_rows:
        raise BadInput(f"{table} must hold at least one row, got none")
    if twice := sorted({name for name in found.column_names if found.column_names.count(name) > 1}):
        raise BadInput(f"{table} must have columns of different names, got {twice[0]} twice: rename one")
    return found


def _address(store: Store, table: str) -> str:
    """The key of a table in the store, or its address where that leads out of it."""
    path = os.path.expanduser(table)
    if _is_elsewhere(path):
        return path
    plain = posixpath.normpath(path)
    return posixpath.normpath(posixpath.join(store.uri, plain)) if plain.startswith("../") else plain


def _is_elsewhere(table: str) -> bool:
    return "://" in table or table.startswith("/")


def _read_csv(data: bytes) -> pa.Table:
    data = data.lstrip(b"\r\n")
    head = data.split(b"\n", 1)[0]
    delimiter = max(",;\t", key=lambda each: head.count(each.encode()))  # whichever its first line has most of
    columns = [name.strip(' "\r') for name in head.decode("utf-8-sig").split(delimiter)]
    return pyarrow.csv.read_csv(
        io.BytesIO(data),
        pyarrow.csv.ReadOptions(use_threads=False, column_names=columns, skip_rows=1),
        pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _column(rows: pa.Table, what: str, table: str, name: str | None = None) -> pa.ChunkedArray | None:
    """One column as text. None for a split or a group that the table does not have. name: it must be this one."""
    names = (name,) if name else _COLUMNS[what]
    found = _find_column(rows, what, name)
    if found is None:
        if name or what in ("path", "label"):
            raise BadInput(
                f"{table} must have a column {' or '.join(names)}, got {', '.join(rows.column_names)}: rename one"
            )
        return None
    return as_text(rows[found], f"{table}: column {found}")


def _find_column(rows: pa.Table, what: str, name: str | None = None) -> str | None:
    by_name = {column.strip().lower(): column for column in rows.column_names}
    names = (name,) if name else _COLUMNS[what]
    return next((by_name[each.lower()] for each in names if each.lower() in by_name), None)


def as_text(values: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Names of classes as text: of whole numbers, truth values, texts of any width, and dictionaries of these.

    Raises BadInput for any other type. where: what to call them in the message.
    """
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_floating(kind) and pc.all(pc.equal(pc.floor(values), values), min_count=0).as_py():
        values, kind = values.cast(pa.int64()), pa.int64()  # whole numbers with gaps, as pandas keeps them
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(test(kind) for test in (pa.types.is_integer, pa.types.is_boolean, *texts)):
        raise BadInput(f"{where} must hold whole numbers or strings, got {values.type}")
    return values.cast(kind).cast(pa.string())


def _relative(path: Any, uri: str) -> str | None:
    """A path as people write it, below the store: with backslashes, a leading ./ or the store's whole address."""
    if path is None:
        return None
    plain = re.sub(r"^(\./)+", "", path.strip().replace("\\", "/"))
    return plain.removeprefix(f"{uri.rstrip('/')}/")


def _splits(values: list[str | None], table: str) -> list[int]:
    """What each row is given for. Raises BadInput for a word that names no split."""
    known = {value: split_of(value) if value else None for value in set(values)}
    for row, value in enumerate(values, start=1):
        if known[value] is None:
            got = "none" if value is None else repr(value)
            raise BadInput(f"{table} must have {', '.join(SPLITS.values())} as splits, got {got} in row {row}")
    return [split for value in values if (split := known[value]) is not None]
