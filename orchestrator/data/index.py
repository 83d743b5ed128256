"""Index: the list of images in a store, with the label and the part of the split of each; its digest. No TensorFlow."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.layout import TEST, WHOLE_OBJECT
from orchestrator.data.listing import first_of_each, objects_of, slices
from orchestrator.data.split import draw
from orchestrator.errors import BadInput
from orchestrator.store import Object


@dataclass(frozen=True)
class Index:
    """Every image of a data set, in reading order.

    Attributes:
        table: One row per image. key: object in the store; row: row of a Parquet shard, or -1 for an object that is one
            image; path: name of the image, unique; size and version: of the object; label: position in `classes`.
        part: (images,) int8: what each image is for; see data/split.py.
        classes: Class names, in the order of their numbers, or else sorted.
        bad: Listed objects that cannot be images, as (key, reason); not in the table.
        ignored: How many objects lie beside the images. litter: how many of them no person put there.
        folds: How many times the images are split. given: what for some images came, and were not drawn.
        groups: How many groups there are, each in one part. grouped: whether the data name them.
        content: For each image a text that is equal for equal bytes, where another than the version is known; or None.
        what: How the images are laid out. notes: what else a person should know, a line each.
        rule: See spec.sections.Data.
    """

    table: pa.Table
    part: np.ndarray
    classes: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    ignored: int
    litter: int = 0
    folds: int = 1
    given: tuple[int, ...] = ()
    groups: int = 0
    grouped: bool = False
    content: pa.Array | pa.ChunkedArray | None = None
    what: str = ""
    notes: tuple[str, ...] = ()
    rule: int = 2

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
        return objects_of(self.table.take(first_of_each(self.table["key"])) if self.packed else self.table)

    @property
    def tests(self) -> np.ndarray:
        """(images,) bool, True for images that only the winner sees."""
        return self.part == TEST

    @property
    def judged(self) -> np.ndarray:
        """(images,) bool, True for images that validate, in whichever fold."""
        return (self.part != TEST) & (self.part < self.folds)

    def validates(self, fold: int = 0) -> np.ndarray:
        """(images,) bool, True for images that validate in this fold."""
        return self.part == fold

    def trains(self, fold: int = 0) -> np.ndarray:
        """(images,) bool, True for images that train in this fold."""
        return (self.part != fold) & (self.part != TEST)

    def readable(self, unreadable: Iterable[int]) -> np.ndarray:
        """(images,) bool, False for these rows."""
        readable = np.ones(len(self), bool)
        readable[list(unreadable)] = False
        return readable

    def training_rows(self, readable: np.ndarray, limit: int | None = None, fold: int = 0) -> np.ndarray:
        """(n,) int64, rows of the images that train in this fold. readable: (images,) bool.

        limit: take so many, of each class its share, drawn by a hash of the path: the same ones on every machine, and
        of two limits the larger one takes all that the smaller one does.
        """
        rows = np.flatnonzero(self.trains(fold) & readable)
        if limit is None or limit >= len(rows):
            return rows
        paths, labels = self.table["path"].take(pa.array(rows)).to_pylist(), self.labels[rows]
        draws = np.array([draw(path) for path in paths], np.uint64)
        share = np.empty(len(rows))
        for label in range(len(self.classes)):
            members = np.flatnonzero(labels == label)
            share[members[np.argsort(draws[members])]] = (np.arange(len(members)) + 0.5) / max(1, len(members))
        return np.sort(rows[np.lexsort((draws, share))[:limit]])

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the classes and every column of the table: the identity of the data.

        Where it is known which bytes an image has, these count, and not the version of its object.
        """
        columns = dict(zip(self.table.column_names, self.table.columns, strict=True))
        if (known := self.content) is not None:
            known = known if isinstance(known, pa.ChunkedArray) else pa.chunked_array([known])
            columns["version"] = pc.coalesce(known, columns["version"]) if known.null_count else known
        digest = hashlib.sha256(f"[{json.dumps(self.classes)}, [".encode())
        for number, column in enumerate(columns.values()):
            digest.update(b", [" if number else b"[")
            for part, values in enumerate(slices(column)):
                digest.update((", " * bool(part) + json.dumps(values)[1:-1]).encode())
            digest.update(b"]")
        digest.update(b"]]")
        return digest.hexdigest()

    @cached_property
    def split_digest(self) -> str | None:
        """SHA-256 over what each image is for; None for runs that 0.1.0 began, whose ids do not have it."""
        return None if self.rule == 1 else hashlib.sha256(self.part.tobytes()).hexdigest()


def check_split(index: Index, good: np.ndarray, uri: str) -> None:
    """Raise BadInput unless every class trains and validates on some of the `good` images ((images,) bool)."""
    for fold in range(index.folds):
        for what, members in (("training", index.trains(fold)), ("validation", index.validates(fold))):
            counts = np.bincount(index.labels[members & good], minlength=len(index.classes))
            if counts.all():
                continue
            name = index.classes[int(np.argmin(counts))]
            total = int((index.labels == index.classes.index(name)).sum())
            where = f" in fold {fold}" if index.folds > 1 else ""
            cure = "add images" if index.given else "add images, or change how they are split"
            raise BadInput(
                f"class {name!r} of {uri} must have at least one image for {what}{where}, got none of its {total}: "
                f"{cure if index.folds == 1 else 'add images, or take fewer data.folds'}"
            )


def describe_bad(bad: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> str:
    """One line naming the first ten bad files and the way to skip them."""
    names = "; ".join(f"{key} ({reason})" for key, reason in bad[:10])
    more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
    return (
        f"every file must be a readable image, got {len(bad)} that {'is' if len(bad) == 1 else 'are'} not: "
        f"{names}{more}. Fix or remove them, or skip them with --set data.on_bad_image=skip"
    )
