"""Indexing: what lies in a store -> its index: laid out, labelled, split, and without what stands in two parts."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.content import contents, describe_duplicates, find_duplicates, is_bucket, refuse_duplicates
from orchestrator.data.groups import groups_apart, with_groups
from orchestrator.data.index import Index, check_split, describe_bad
from orchestrator.data.labels import beside_folders, find_labelled, find_tables
from orchestrator.data.layout import IMAGE_SUFFIXES, OLDER_SUFFIXES, TEST, Found, find_folders, has_folders, one_name
from orchestrator.data.listing import Listing, first_of_each, list_objects
from orchestrator.data.packed import find_packed
from orchestrator.data.split import split
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Data
from orchestrator.store import Store
from orchestrator.words import plural

_COLUMNS = ("key", "row", "path", "size", "version")


def build_index(store: Store, data: Data, own: str = "") -> Index:
    """List the images in `store` and split them. Raises BadInput if that is not a usable data set.

    own: what the run itself writes there: keys that begin so are left out.
    """
    if data.rule == 1:
        _refuse_newer(data)
    listing = list_objects(store, own, plainly=data.rule == 1)
    found = _find(store, listing, data)
    if found.bad and data.on_bad_image == "fail":
        raise BadInput(describe_bad(found.bad))
    if not len(found.images):
        others = plural(len(listing.objects), "other object")
        raise BadInput(
            f"{store.uri} must hold images as <class>/<image> or Parquet shards, got {others}: check data.uri"
        )
    index = _without_duplicates(_split_up(store, found, listing.litter, data), store, data)
    if is_bucket(store):  # their versions say the same
        index = replace(index, content=None)
    check_split(index, np.ones(len(index), bool), store.uri)
    return index


def _split_up(store: Store, found: Found, litter: int, data: Data) -> Index:
    """The images with their labels, and what each is for. Raises BadInput."""
    names = found.images["name"] if data.rule == 1 else one_name(found.images["name"], store.uri)
    classes = _in_order(pc.unique(names).to_pylist(), found.numbered, data.rule)
    if len(classes) < 2:
        raise BadInput(
            f"{store.uri} must hold at least two classes, got one ({classes[0]}): "
            f"put each class into a folder of its own"
        )
    labels = pc.index_in(names, value_set=pa.array(classes, pa.string()))
    table = found.images.select(_COLUMNS).append_column("label", labels)
    images = with_groups(found.images, data.group_by, found.grouped, store.uri)
    part = split(images, labels.to_numpy(), data)
    if data.test_split and not (part == TEST).any():
        raise BadInput(
            f"data.test_split must leave images for a test, got none of {len(part)} with {data.test_split}: take more"
        )
    return Index(
        table=table,
        part=part,
        classes=classes,
        bad=tuple(found.bad),
        ignored=found.ignored,
        litter=litter,
        folds=data.folds or 1,
        given=tuple(sorted(set(images["given"].to_numpy().tolist()))) if not images["given"].null_count else (),
        groups=pc.count_distinct(images["group"]).as_py(),
        grouped=found.grouped,
        content=_content(store, table) if data.rule > 1 else None,
        what=found.what,
        notes=(*found.notes, *groups_apart(images, part)),
        rule=data.rule,
    )


def find_labelled_images(store: Store) -> Found:
    """All images of a store with their classes, whatever they are for. Raises BadInput where it has no known layout."""
    return _find(store, list_objects(store), Data(uri=store.uri))


def _find(store: Store, listing: Listing, data: Data) -> Found:
    """The images, in whichever layout they are. Raises BadInput where they may be in two."""
    keys, layout = listing.objects["key"], data.layout
    suffixes = OLDER_SUFFIXES if data.rule == 1 else IMAGE_SUFFIXES
    if data.labels and layout not in ("auto", "table"):
        raise BadInput(f"data.labels must be left out with data.layout {layout}, got {data.labels}")
    looked_for = layout == "table" or (layout == "auto" and data.rule > 1)
    tables = [data.labels] if data.labels else find_tables(listing) if looked_for else []
    if tables and (layout == "table" or data.labels):
        return find_labelled(store, listing, tables, data.group_by, suffixes)
    if layout == "table":
        raise BadInput(
            f"{store.uri} must hold labels.csv (or .tsv, .jsonl, .parquet), got none: name one as data.labels"
        )
    shards = listing.objects.filter(pc.ends_with(pc.utf8_lower(keys), ".parquet"))
    shards = shards.filter(pc.invert(pc.is_in(shards["key"], pa.array(tables, pa.string()))))
    has_classes = layout == "auto" and data.rule > 1 and has_folders(listing, suffixes)
    note = None
    if tables and has_classes and (note := beside_folders(store, tables[0])) is None:
        raise BadInput(
            f"{store.uri} must hold a table of labels or folders of classes, got {tables[0]} beside folders: say "
            f"--set data.layout=table or --set data.layout=classes"
        )
    if tables and not has_classes:
        return find_labelled(store, listing, tables, data.group_by, suffixes)
    if len(shards) and has_classes:
        raise BadInput(
            f"{store.uri} must hold Parquet shards or folders of classes, got {shards['key'][0].as_py()} beside "
            f"folders: say --set data.layout=shards or --set data.layout=classes"
        )
    if layout == "shards" or (layout == "auto" and len(shards)):
        if not len(shards):
            raise BadInput(f"{store.uri} must hold Parquet shards, got none: check data.uri and data.layout")
        return find_packed(store, listing, shards, by_name=data.rule > 1)
    layout = "classes" if data.rule == 1 else layout
    found = find_folders(listing, layout, store.uri, suffixes, plainly=data.rule == 1)
    return replace(found, notes=[*found.notes, note]) if note else found


def _in_order(names: list[str], numbered: Sequence[str], rule: int) -> tuple[str, ...]:
    """Class names: as the data number them, as numbers where all are whole numbers, or else sorted."""
    if rule > 1 and numbered:
        place = {unicodedata.normalize("NFC", name): number for number, name in enumerate(numbered)}
        return tuple(sorted(names, key=lambda name: place.get(name, len(place))))
    if rule > 1 and all(re.fullmatch(r"-?\d{1,18}", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _content(store: Store, table: pa.Table) -> pa.Array | pa.ChunkedArray | None:
    """Index.content, found out once for each object."""
    first = first_of_each(table["key"])
    found = contents(store, table if len(first) == len(table) else table.take(first))
    if found is None or len(found) == len(table):
        return found
    return found.take(pa.array(np.searchsorted(first, np.arange(len(table)), side="right") - 1))


def _refuse_newer(data: Data) -> None:
    """Raise BadInput for what the rules of version 0.1.0 do not know."""
    newer = {
        "layout": "auto",
        "labels": None,
        "group_by": None,
        "test_split": 0.0,
        "folds": None,
        "on_duplicate": "say",
    }
    if given := [name for name, nothing in newer.items() if getattr(data, name) != nothing]:
        raise BadInput(
            f"data.{given[0]} must be left out in a run that version 0.1.0 began, got {getattr(data, given[0])}: give "
            f"this one another --name"
        )


def _without_duplicates(index: Index, store: Store, data: Data) -> Index:
    """The index with a note on pictures in two parts of its split, or without them. Raises BadInput."""
    on_duplicate, content = data.on_duplicate, index.content
    if index.packed:
        content = None
    elif content is None and on_duplicate != "say":
        content = contents(store, index.table, whatever_it_takes=True)
    if content is None:
        if on_duplicate != "say":
            raise BadInput(
                f"data.on_duplicate must be say for Parquet shards, got {on_duplicate}: nothing compares images there"
            )
        return index
    found = find_duplicates(content, index.part, index.labels)
    if not len(found.pairs):
        return index
    line = describe_duplicates(found, index.table["path"], index.part, index.folds)
    if on_duplicate == "fail":
        refuse_duplicates(line)
    if on_duplicate == "say":
        return replace(index, notes=(*index.notes, f"{line} (data.on_duplicate: drop leaves them out)"))
    kept = index.readable(found.pairs[:, 0])
    rows = pa.array(np.flatnonzero(kept))
    return replace(
        index,
        table=index.table.take(rows),
        part=index.part[kept],
        content=None if index.content is None else index.content.take(rows),
        notes=(*index.notes, f"dropped: {line}"),
    )
