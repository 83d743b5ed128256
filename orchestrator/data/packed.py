"""Packed: the images in Parquet shards, as Hugging Face lays them out, and what each shard is given for."""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.labels import as_text
from orchestrator.data.layout import IMAGES, Found, split_of
from orchestrator.data.listing import Listing, objects_of
from orchestrator.data.shards import class_names, open_shard
from orchestrator.errors import BadInput
from orchestrator.store import Object, Store

_BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())


def find_packed(store: Store, listing: Listing, shards: pa.Table, by_name: bool) -> Found:
    """The images in the rows of these shards. Raises BadInput.

    by_name: shards whose names say so, such as test-00000-of-00002.parquet, are given for that.
    """
    objects = objects_of(shards)
    splits = _splits(objects, store.uri) if by_name else [None] * len(objects)
    numbered: dict[str, None] = {}
    parts = []
    for shard, split in zip(objects, splits, strict=True):
        part, names = _read(store, shard)
        numbered.update(dict.fromkeys(names))
        parts.append(part.set_column(6, "given", pa.repeat(pa.scalar(split, pa.int8()), len(part))))
    table = pa.concat_tables(parts).combine_chunks()
    by_row = pc.binary_join_element_wise(table["key"], pc.utf8_lpad(table["row"].cast(pa.string()), 8, "0"), "#")
    paths = pc.if_else(pc.equal(pc.fill_null(table["path"], ""), ""), by_row, table["path"])
    if pc.count_distinct(paths).as_py() < len(table):  # two shards may each hold "0.png": use shard and row instead
        paths = by_row
    bad = [pair for pair in listing.bad if pair[0].lower().endswith(".parquet")] if by_name else []
    what = "Parquet shards" + (", split by their names" if splits[0] is not None else "")
    ignored = len(listing.objects) - len(objects)
    return Found(table.set_column(2, "path", paths), what, bad, ignored, _missing(objects), tuple(numbered))


def _splits(shards: Sequence[Object], uri: str) -> list[int | None]:
    """What each shard is given for by its name or folder; None for all where none, or only one split, is named."""
    found = {shard.key: _split(shard.key) for shard in shards}
    places = {tuple(part for part in key.split("/")[:-1] if split_of(part) is None) for key in found}
    if len(places) > 1 and None not in found.values():
        raise BadInput(
            f"{uri} must hold one data set, got {' and '.join('/'.join(place) for place in sorted(places)[:2])}"
        )
    if len(set(found.values())) == 1:
        return [None] * len(shards)
    named = [key for key, split in found.items() if split is not None]
    if unnamed := [key for key in found if key not in named]:
        raise BadInput(
            f"{uri} must hold shards that all name a split, such as train-00000-of-00002.parquet, or none that does, "
            f"got {unnamed[0]} beside {named[0]}: rename or move some"
        )
    return list(found.values())


def _missing(shards: Sequence[Object]) -> list[str]:
    """A note where names such as train-00000-of-00002.parquet say that there are more."""
    found = [match for shard in shards if (match := re.search(r"^(.*)-\d+-of-(\d+)\.parquet$", shard.key))]
    whole = {match[1]: int(match[2]) for match in found}
    here = {name: sum(match[1] == name for match in found) for name in whole}
    return [f"{here[name]} of {count} shards of {name} are here" for name, count in whole.items() if here[name] < count]


def _split(key: str) -> int | None:
    *folders, name = key.removesuffix(".parquet").split("/")
    words = [re.split(r"[-._]\d+", name)[0], *re.split(r"[-._]", name)]
    return next((split for part in (*words, *reversed(folders)) if (split := split_of(part)) is not None), None)


def _read(store: Store, shard: Object) -> tuple[pa.Table, list[str]]:
    """A shard's part of IMAGES, and the names of its numbers. Raises BadInput for columns of other types, or none."""
    with open_shard(store, shard) as opened:
        schema = opened.parquet.schema_arrow
        if len({*schema.names}) < len(schema.names):
            raise BadInput(f"{shard.key} must have columns of different names, got {', '.join(schema.names)}")
        if not {"image", "label"} <= set(schema.names):
            raise BadInput(f"{shard.key} must have the columns image and label, got {', '.join(schema.names)}")
        image = schema.field("image").type
        fields = {field.name: field.type for field in image} if pa.types.is_struct(image) else {}
        if fields.get("bytes") not in _BYTES:
            raise BadInput(f"{shard.key}: column image must be a struct of bytes (binary) and path, got {image}")
        read = opened.read(["label", "image.path"] if "path" in fields else ["label"])
    texts, kind = as_text(read["label"], f"{shard.key}: column label"), schema.field("label").type
    paths = read["image"].combine_chunks().field("path") if "path" in fields else pa.nulls(len(read), pa.string())
    names = (class_names(schema) or []) if pa.types.is_integer(kind) else []
    _check_labels(shard, texts, paths, names)
    if names:
        texts = pc.take(pa.array(names, pa.string()), read["label"].cast(pa.int64()))
    alike = [shard.key, None, None, shard.size, shard.version, None, None, None]
    columns = [pa.repeat(pa.scalar(value, kind), len(read)) for value, kind in zip(alike, IMAGES.types, strict=True)]
    columns[1], columns[2], columns[5] = pa.array(range(len(read)), pa.int32()), paths.cast(pa.string()), texts
    return pa.table(columns, schema=IMAGES), names


def _check_labels(shard: Object, texts: pa.ChunkedArray, paths: pa.Array, names: Sequence[str]) -> None:
    """Raise BadInput for a row without a label, or with a number that has no name."""
    known = pa.array([str(number) for number in range(len(names))], pa.string())
    wrong = pc.invert(pc.is_in(texts, known)) if names else pc.is_null(texts)
    row = pc.index(wrong, True).as_py()
    if row < 0:
        return
    where = f"in row {row} ({paths[row].as_py() or 'no path'})"
    if texts[row].as_py() is None:
        raise BadInput(f"{shard.key}: every row must have a label, got null {where}")
    raise BadInput(
        f"{shard.key}: every label must be from 0 to {len(names) - 1}, as its metadata names {len(names)} "
        f"classes, got {texts[row].as_py()} {where}: leave out what has no label"
    )
