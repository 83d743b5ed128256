"""Layout: how images, classes and splits lie in a store: folders, a table of labels, or Parquet shards."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.listing import Listing, only
from orchestrator.errors import BadInput
from orchestrator.words import plural

TEST, VALIDATION, TRAINING = -1, 0, 1  # what an image is given for
SPLITS = {TRAINING: "training", VALIDATION: "validation", TEST: "test"}
_SPLIT_NAMES = {
    TRAINING: r"train|training",
    VALIDATION: r"val|valid|validation|validate|dev|development|eval|evaluation",
    TEST: r"test|testing|holdout",
}
OLDER_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")  # those of runs that 0.1.0 began
IMAGE_SUFFIXES = (*OLDER_SUFFIXES, ".jfif", ".mpo", ".tif", ".tiff", ".avif", ".heic", ".heif", ".ppm", ".pgm")
WHOLE_OBJECT = -1
IMAGES = pa.schema(
    [
        ("key", pa.string()),
        ("row", pa.int32()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("name", pa.string()),
        ("given", pa.int8()),
        ("group", pa.string()),
    ]
)


@dataclass(frozen=True)
class Found:
    """The images of a store, as its layout says.

    Attributes:
        images: IMAGES, sorted by key and row. row: of a shard, or -1 for an object that is one image; path: unique;
            name: of its class; given: what it is given for, null where that is to be drawn; group: null for none.
        what: How they are laid out, for a person.
        bad: What should be an image and is none, as (key, reason).
        ignored: How many objects lie beside.
        notes: What else a person should know, a line each.
        numbered: Names of the classes in the order of the numbers that the data give them; empty: they have none.
        grouped: Whether the data name groups.
    """

    images: pa.Table
    what: str
    bad: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0
    notes: list[str] = field(default_factory=list)
    numbered: Sequence[str] = ()
    grouped: bool = False


def split_of(name: str) -> int | None:
    """What a folder, a shard or a row with this name is for: `Training-Set` trains; None: the name does not say."""
    plain = re.sub(r"[\s_-]+|\d+$", "", name.lower())
    for split, names in _SPLIT_NAMES.items():
        if re.fullmatch(rf"(images|data)?({names})(set|data|images|split)?", plain):
            return split
    return None


def has_suffix(keys: pa.ChunkedArray, suffixes: Sequence[str]) -> pa.ChunkedArray:
    """For each key whether it ends as images do, in any case."""
    return pc.match_substring_regex(keys, f"(?i)({'|'.join(map(re.escape, suffixes))})$")


def find_folders(listing: Listing, layout: str, uri: str, suffixes: Sequence[str], plainly: bool = False) -> Found:
    """Images as <class>/<image>, or <split>/<class>/<image>; perhaps all of it in one more folder. Raises BadInput.

    layout: auto, classes or splits. suffixes: what images end in. plainly: as version 0.1.0 did.
    """
    objects = listing.objects
    keys = only(objects["key"], has_suffix(objects["key"], suffixes))
    prefix = "" if plainly else _wrapping(listing, keys)
    splits = _splits(keys, prefix, layout, uri)
    by_split = bool(splits)
    if not splits and layout == "auto" and not plainly:
        _refuse_alike(keys, prefix, uri)
    names, tops = _parts(objects["key"], prefix, int(by_split)), _parts(objects["key"], prefix, 0)
    deep = pc.is_valid(names)  # not beside the folders of classes
    if by_split:
        deep = pc.and_(deep, pc.is_in(tops, pa.array(splits)))
    inside, names, tops = only(objects, deep), only(names, deep), only(tops, deep)
    is_image = has_suffix(inside["key"], suffixes)
    fit = pc.and_(is_image, pc.greater(inside["size"], 0))
    reasons = pc.if_else(is_image, "empty", "not an image file").filter(pc.invert(fit)).to_pylist()
    bad = [*zip(inside["key"].filter(pc.invert(fit)).to_pylist(), reasons, strict=True)]
    depth = prefix.count("/") + by_split + 1
    bad += [(key, why) for key, why in listing.bad if key.startswith(prefix)]
    images = only(inside, fit).combine_chunks()
    beside = len(objects) - len(inside)
    notes = [f"{plural(beside, 'file')} beside the folders of classes: left out"] if beside else []
    empty = [f for f in listing.empty if f.startswith(prefix) and f.count("/") == depth]
    notes += [f"empty: {_named(empty)}"] if empty else []
    names = only(names, fit)
    given = _given(only(tops, fit)) if by_split else pa.nulls(len(images), pa.int8())
    table = whole_objects(images, names, given)
    parts = [key.removeprefix(prefix).split("/") for key, _ in bad]
    folders = {own[by_split] for own in parts if len(own) > by_split + 1} - {""}
    if not plainly:
        _refuse_lost(sorted(folders), bad, names, uri)
    what = f"folders of classes in those of splits ({_named(splits)})" if by_split else "folders of classes"
    what += f", in {prefix}" if prefix else ""
    return Found(table, what, bad, beside, notes)


def has_folders(listing: Listing, suffixes: Sequence[str]) -> bool:
    """Whether the images lie in several folders that may be classes."""
    keys = listing.objects["key"]
    images = keys.filter(has_suffix(keys, suffixes))
    prefix = _wrapping(listing, images)
    tops = [top for top in pc.unique(_parts(images, prefix, 0)).to_pylist() if top is not None]
    flat = _parts(images, prefix, 1).null_count == len(images)
    return len(tops) > 1 and not (flat and all(split_of(top) is not None for top in tops))


def one_name(names: pa.ChunkedArray, uri: str) -> pa.ChunkedArray:
    """Names of classes; those that differ only in how Unicode writes them are one. Raises BadInput for look-alikes."""
    raw = [name for name in pc.unique(names).to_pylist() if name is not None]
    plain = {name: unicodedata.normalize("NFC", name) for name in raw}
    alike: dict[str, str] = {}
    for name in sorted(set(plain.values())):
        other = alike.setdefault(name.casefold().strip(), name)
        if other != name:
            raise BadInput(
                f"classes of {uri} must have names that differ in more than case and spaces, got {other!r} and "
                f"{name!r}: rename one, so that they are one class or two"
            )
    if all(name == one for name, one in plain.items()):
        return names
    where = pc.index_in(names, value_set=pa.array(raw, pa.string()))
    return pc.take(pa.array([plain[name] for name in raw], pa.string()), where)


def whole_objects(objects: pa.Table, names: pa.ChunkedArray, given: pa.Array) -> pa.Table:
    """IMAGES, where each object is one image."""
    keys, count = objects["key"], len(objects)
    rows = pa.repeat(pa.scalar(WHOLE_OBJECT, pa.int32()), count)
    columns = [keys, rows, keys, objects["size"], objects["version"], names, given, pa.nulls(count, pa.string())]
    return pa.table(columns, schema=IMAGES)


def _parts(keys: pa.ChunkedArray, prefix: str, number: int) -> pa.ChunkedArray:
    """That folder of each key below the prefix, counted from 0; null where the key is not so deep."""
    pattern = f"^{re.escape(prefix)}(?:[^/]*/){{{number}}}(?P<name>[^/]*)/"
    return pc.struct_field(pc.extract_regex(keys, pattern), "name")


def _wrapping(listing: Listing, images: pa.ChunkedArray) -> str:
    """The folder that holds all others, as a prefix; "" for none. Unzipping often makes one more."""
    beside = [*(key for key, _ in listing.bad), *listing.empty]
    prefix = ""
    while True:
        tops = {top for top in pc.unique(_parts(listing.objects["key"], prefix, 0)).to_pylist() if top is not None}
        tops |= {key.removeprefix(prefix).split("/")[0] for key in beside if key.startswith(prefix)} - {""}
        if len(tops) != 1:
            return prefix
        inner = f"{prefix}{tops.pop()}/"
        inside = images.filter(pc.starts_with(images, inner))
        if not len(inside) or _parts(inside, inner, 0).null_count:
            return prefix
        prefix = inner


def _splits(images: pa.ChunkedArray, prefix: str, layout: str, uri: str) -> list[str]:
    """The first folders, where these are splits; none where they are classes. Raises BadInput if they may be either."""
    tops = _parts(images, prefix, 0)
    names = sorted(name for name in pc.unique(tops).to_pylist() if name is not None)
    splits = {name: split for name in names if (split := split_of(name)) is not None}
    if layout == "classes" or not (splits or layout == "splits"):
        return []
    put = f"have only <split>/<class>/<image> in {uri}, or name their labels in labels.csv"
    others = [name for name in names if name not in splits]
    in_folders = pc.unique(tops.filter(pc.is_valid(_parts(images, prefix, 1)))).to_pylist()
    flat = [name for name in splits if name not in in_folders]
    if not splits:
        raise BadInput(
            f"{uri} must hold folders of splits, such as train and test, got {_named(names) or 'none'}: {put}"
        )
    if others:
        only_trains = set(splits.values()) == {TRAINING} and flat == [*splits]
        if layout == "auto" and len(others) > 1 and only_trains:  # a train is also what a locomotive pulls
            return []
        raise BadInput(
            f"{uri} must hold splits or classes, got {_named([*splits])} beside {_named(others)}: say --set "
            f"data.layout=classes if each is a class, or {put}"
        )
    if flat:
        raise BadInput(f"{uri} must hold <split>/<class>/<image>, got images right in {_named(flat)}: {put}")
    if len(set(splits.values())) < len(splits) or TRAINING not in splits.values():
        raise BadInput(
            f"{uri} must hold a folder to train on, and one for each other split, got {_named(names)}: {put}"
        )
    return names


def _refuse_alike(images: pa.ChunkedArray, prefix: str, uri: str) -> None:
    """Raise BadInput where all first folders hold the same ones: these may be the classes, or the splits."""
    pairs = pa.table({"top": _parts(images, prefix, 0), "inner": _parts(images, prefix, 1)})
    inner: dict[str, set[str]] = {}
    for row in pairs.group_by(["top", "inner"]).aggregate([]).to_pylist():
        if row["top"] is not None:
            inner.setdefault(row["top"], set()).add(row["inner"])
    first = next(iter(inner.values()), set())
    if len(inner) > 1 and len(first) > 1 and None not in first and all(own == first for own in inner.values()):
        raise BadInput(
            f"{uri} must say which folders are classes, got {_named(sorted(first))} in {_named(sorted(inner))}: "
            f"say --set data.layout=classes if these are, or name them train, val and test"
        )


def _given(names: pa.ChunkedArray) -> pa.Array:
    known = pc.unique(names).to_pylist()
    where = pc.index_in(names, value_set=pa.array(known, pa.string()))
    return pc.take(pa.array([split_of(name) for name in known], pa.int8()), where)


def _refuse_lost(folders: Iterable[str], bad: Sequence[tuple[str, str]], names: pa.ChunkedArray, uri: str) -> None:
    """Raise BadInput for a folder of a class of which no file is an image."""
    classes = set(pc.unique(names).to_pylist())
    for folder in folders:
        if folder not in classes:
            own = [pair for pair in bad if folder in pair[0].split("/")[:-1]]
            raise BadInput(
                f"the class {folder} of {uri} must have images, and each of its {plural(len(own), 'file')} is left out "
                f"({own[0][0]}: {own[0][1]}): mend them, or move the folder away"
            )


def _named(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
