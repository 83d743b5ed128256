"""Samples: some training images with the changes that the first epochs make to them, as a sheet to look at."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf

from orchestrator.data.augmentation import Changes, with_partners
from orchestrator.data.image_files import Unreadable, admit
from orchestrator.data.pipeline import SCALE, Source, finish
from orchestrator.data.stream import Encoded, decode
from orchestrator.display.sheet import Row, as_png, as_webp, comment_of
from orchestrator.errors import BadInput
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import SAMPLES
from orchestrator.spec.axes import AXIS_PATHS, canonical, resolve
from orchestrator.words import label

_COLUMNS, _ROWS, _OF_ONE = 6, 12, 6  # draws of each image; rows in all, and at most of one configuration
_MOST_BYTES = 44_000  # of the WebP: as text in the page a third more
_seen: set[tuple[str, str]] = set()  # run folders with their sheets, which this process has looked at


def draw_png(context: WorkerContext) -> bytes:
    """The sheet of the run's samples, from images as they lie in the store. Raises BadInput and StoreError."""
    settings = resolve(context.spec, context.samples[0])
    encoded = Encoded(context.index, context.images, settings.data.exif)
    labels = tf.constant(context.index.labels)
    return as_png(*_sheet(context, Source(None, labels, settings.data, settings.augment, 0, 1, encoded)))


def write_samples(context: WorkerContext, source: Source) -> None:
    """Write the sheet for the page, if there is anything to see and the run folder has no such sheet.

    source: the images of a trial of this run. Raises StoreError.
    """
    if not context.samples:
        return
    text = canonical([context.index.digest, context.spec.augment.model_dump(), list(context.samples)])
    digest = hashlib.sha256(text.encode()).hexdigest()
    key = context.run.store.uri, digest
    if key not in _seen and comment_of(context.run.read_if_there(SAMPLES) or b"") != digest:
        context.run.store.write(SAMPLES, as_webp(*_sheet(context, source), _MOST_BYTES, digest))
    _seen.add(key)


def _sheet(context: WorkerContext, source: Source) -> tuple[list[str], list[Row]]:
    """What stands above the columns, and the rows: for each configuration some images, one class after the other."""
    shown = context.samples[:_ROWS]
    heads, rows = ["as it is"], list[Row]()
    for values in shown:
        settings = resolve(context.spec, values)
        training = context.index.training_rows(context.index.readable({}), settings.data.training_images)
        picked = _one_class_after_the_other(training, context.index.labels, min(_OF_ONE, _ROWS // len(shown)))
        own = replace(source, augment=settings.augment, seed=context.spec.seeds[0])
        epochs, what = range(_COLUMNS), "epoch"
        if settings.backbone and not settings.backbone.unfreeze:  # see train.inputs: a view for all seeds, none mixed
            alone = settings.augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
            own, epochs, what = (
                replace(own, augment=alone, seed=0),
                range(1, settings.backbone.views)[:_COLUMNS],
                "view",
            )
        if len(heads) == 1:
            heads += [f"{what} {epoch + 1}" for epoch in epochs]
        title = label({name: value for name, value in values.items() if AXIS_PATHS.get(name, ("",))[0] == "augment"})
        prefix = f"{title}: " if len(shown) > 1 else ""
        rows += [
            Row(f"{prefix}{context.index.classes[context.index.labels[row]]}", images, captions)
            for row, images, captions in zip(picked, *_drawn(context, own, picked, training, epochs), strict=True)
        ]
    width = len(heads)
    return heads, [row._replace(images=row.images[:width], captions=row.captions[:width]) for row in rows]


def _drawn(
    context: WorkerContext, source: Source, picked: np.ndarray, training: np.ndarray, epochs: Sequence[int]
) -> tuple[list[list[np.ndarray]], list[list[str]]]:
    """For each of the picked rows: the image as it is and in each epoch, and what is written below them."""
    index, rows = context.index, tf.constant(picked, tf.int64)
    drawn = [source.changes(tf.constant(epoch, tf.int64), tf.constant(training, tf.int64)) for epoch in epochs]
    reads = [with_partners(rows, changes.mixes) if changes.mixes else rows for changes in drawn]
    needed = np.unique(np.concatenate([picked, *(read.numpy() for read in reads)]))
    pixels = _pixels(context, source, needed)
    images = [[pixels[np.searchsorted(needed, row)]] for row in picked]
    captions = [[""] for _ in picked]
    for changes, read in zip(drawn, reads, strict=True):
        batch = finish(source, changes, read, tf.constant(pixels[np.searchsorted(needed, read.numpy())]))
        for i, image in enumerate(tf.cast(tf.round(batch[0] / SCALE), tf.uint8).numpy()):
            images[i].append(image)
            captions[i].append(_shares(changes, picked[i], index.labels, index.classes) if changes.mixes else "")
    return images, captions


def _shares(changes: Changes, row: int, labels: np.ndarray, classes: Sequence[str]) -> str:
    """`70% cat`, and in another line `30% dog`."""
    assert changes.mixes is not None
    own, other = labels[row], labels[int(changes.mixes.partners[row])]
    share = 1.0 if own == other else float(changes.mixes.share[row])
    parts = [(share, classes[own]), (1 - share, classes[other])]
    return "\n".join(f"{part:.0%} {name}" for part, name in sorted(parts, reverse=True) if part >= 0.005)


def _pixels(context: WorkerContext, source: Source, rows: np.ndarray) -> np.ndarray:
    """(rows, height, width, 3) uint8: from the node's cache where it keeps them, and else from the store."""
    if source.images is not None:
        return np.array(tf.gather(source.images, rows))
    assert source.encoded is not None
    found = []
    for row, blob in zip(rows, source.encoded.blobs(rows), strict=True):
        try:
            image = admit(blob, source.data.exif)
            found.append(decode(*image[:2], source.data.image_size, source.data.resize).numpy())
        except (Unreadable, tf.errors.OpError) as error:
            raise BadInput(f"{context.index.paths[row]}: must be an image that can be read: {error}") from None
    return np.stack(found)


def _one_class_after_the_other(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows: the first image of each class, then the second one, and so on."""
    turns = np.zeros(len(rows), int)
    for each in np.unique(labels[rows]):
        own = labels[rows] == each
        turns[own] = np.arange(own.sum())
    return rows[np.lexsort((labels[rows], turns))][:count]
