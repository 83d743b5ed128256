"""Stream: encoded images from the store, decoded and resized by tf.data."""

import contextlib
import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import tensorflow as tf

from orchestrator.data.image_files import Unreadable, admit
from orchestrator.data.index import Index
from orchestrator.data.shards import row_groups
from orchestrator.errors import BadInput
from orchestrator.store import Store

_JPEG = b"\xff\xd8\xff"
_CHUNK = 256
_CHUNK_BYTES = 32 * 2**20
_BATCH = 64
# by EXIF orientation: whether rows, columns and channels are reversed
_REVERSED = [(which in (3, 4, 7, 8), which in (2, 3, 6, 7), False) for which in range(9)]
WINDOW_BYTES = 64 * 2**20
CHUNK = (tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64))
Chunk = tuple[list[int], list[bytes], list[int]]  # rows, encoded images, and how each must be turned


class Blobs(Protocol):
    """Anything that yields the encoded images of given rows."""

    def blobs(self, rows: np.ndarray) -> Iterator[bytes]: ...


class Encoded:
    """The encoded images of an index, read from its store in any order.

    exif: as `data.exif` in the spec.

    Attributes:
        failures: Exceptions from `chunks`. tf.data hides them, so whoever reads through it must look here.
    """

    def __init__(self, index: Index, store: Store, exif: str = "apply") -> None:
        self._index, self._store, self._exif = index, store, exif
        self._groups = row_groups(index.objects, store) if index.packed else ()
        self._objects = () if index.packed else index.objects
        self.failures: list[Exception] = []

    @property
    def packed(self) -> bool:
        """True where the images are rows of Parquet shards."""
        return self._index.packed

    @property
    def group_of_row(self) -> np.ndarray:
        """(images,) int64: the row group that holds each image of a packed index."""
        return np.repeat(np.arange(len(self._groups)), [group.rows for group in self._groups])

    @property
    def group_bytes(self) -> np.ndarray:
        """(groups,) int64: what each row group counts for in a window."""
        return np.array([group.held for group in self._groups])

    def blobs(self, rows: np.ndarray) -> Iterator[bytes]:
        """The encoded images of these rows, in this order, with many requests in flight.

        Shards are read window by window: a window is a run of rows whose groups together take at most WINDOW_BYTES.
        """
        if not self._index.packed:
            objects = self._objects
            yield from self._store.read_many([objects[row] for row in rows])
            return
        starts = np.cumsum([0, *(group.rows for group in self._groups)])
        group_of = np.searchsorted(starts, rows, side="right") - 1
        places = zip(group_of.tolist(), (rows - starts[group_of]).tolist(), strict=True)
        # in reading order, each group is finished before the next begins: a window is one group
        window_bytes = WINDOW_BYTES if (np.diff(group_of) < 0).any() else 0
        windows = list(self._windows(group_of.tolist(), window_bytes))
        wanted = [self._groups[group] for groups, _ in windows for group in groups]
        ranges = [(group.shard, group.start, group.length) for group in wanted]
        with contextlib.closing(self._store.read_ranges(ranges)) as data:
            for groups, count in windows:
                held = {group: self._groups[group].images(next(data)) for group in groups}
                for group, row in itertools.islice(places, count):
                    yield held[group][row].as_py() or b""

    def _windows(self, group_of: list[int], window_bytes: int) -> Iterator[tuple[list[int], int]]:
        """Cut a sequence of groups, one for each row, into windows: (distinct groups, number of rows)."""
        groups: dict[int, None] = {}
        size_bytes = count = 0
        for group in group_of:
            more = 0 if group in groups else self._groups[group].held
            if groups and more and size_bytes + more > window_bytes:
                yield list(groups), count
                groups, size_bytes, count, more = {}, 0, 0, self._groups[group].held
            groups[group] = None
            size_bytes += more
            count += 1
        if count:
            yield list(groups), count

    def chunks(self, rows: np.ndarray) -> Iterator[Chunk]:
        """`blobs` in chunks of bounded size, for tf.data. An unreadable image ends them."""
        try:
            blobs = zip(rows.tolist(), self.blobs(rows), strict=True)
            yield from _in_chunks((row, *admit(blob, self._exif)) for row, blob in blobs)
        except (BadInput, Unreadable) as error:
            self.failures.append(error)
            raise


def _in_chunks(admitted: Iterable[tuple[int, bytes, int]]) -> Iterator[Chunk]:
    chunk: Chunk = ([], [], [])
    size_bytes = 0
    for row, blob, orientation in admitted:
        chunk[0].append(row)
        chunk[1].append(blob)
        chunk[2].append(orientation)
        size_bytes += len(blob)
        if len(chunk[0]) == _CHUNK or size_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, size_bytes = ([], [], []), 0
    yield chunk


def decoded(
    encoded: Blobs, images: int, image_size: tuple[int, int], resize: str, threads: int, exif: str = "apply"
) -> Iterator[tuple[np.ndarray, np.ndarray] | tuple[int, str]]:
    """Decode all `images` images, each once, in any order.

    exif: as `data.exif` in the spec.
    Yields (rows, images): (batch,) int64 positions in the index and (batch, height, width, 3) uint8; and, for each
    image that cannot be decoded, (row, reason). Raises StoreError if the store fails: no image is silently missing out.
    """
    unseen = np.ones(images, bool)
    broken: list[tuple[int, str]] = []
    failure: list[BaseException] = []

    def readable() -> Iterator[tuple[int, bytes, int]]:
        for row, blob in enumerate(encoded.blobs(np.arange(images))):
            try:
                yield row, *admit(blob, exif)
            except Unreadable as error:
                broken.append((row, str(error)))

    def chunks() -> Iterator[Chunk]:
        try:
            yield from _in_chunks(readable())
        except BaseException as error:  # tf.data would hide it: kept, and raised below
            failure.append(error)

    chain = (
        tf.data.Dataset.from_generator(chunks, output_signature=CHUNK)
        .prefetch(1)  # the next chunk is read while this one is decoded
        .unbatch()
        # more calls than threads: a decoded image occupies its call until it is collected
        .map(lambda row, blob, turn: (row, decode(blob, turn, image_size, resize)), 4 * threads, deterministic=False)
        .ignore_errors()  # an image that fails is missing afterwards, and is decoded alone below
        .batch(_BATCH)
        .with_options(thread_options(threads))
    )
    for rows, pixels in chain.as_numpy_iterator():
        unseen[rows] = False
        yield rows, pixels
    if failure:
        raise failure[0]
    unseen[[row for row, _ in broken]] = False
    yield from broken
    missing = np.flatnonzero(unseen)
    for row, blob in zip(missing, encoded.blobs(missing) if missing.size else (), strict=True):
        try:
            yield np.array([row]), decode(*admit(blob, exif), image_size, resize).numpy()[None]
        except Unreadable as error:  # its memory was there the first time
            yield int(row), str(error)
        except tf.errors.OpError as error:
            yield int(row), "cannot be decoded: " + re.sub(r"{{.*?}} | \[Op:\w+\].*", "", error.message)[:120]


def decode(
    blob: tf.Tensor | bytes, orientation: tf.Tensor | int, image_size: tuple[int, int], resize: str
) -> tf.Tensor:
    """One image that was admitted -> (height, width, 3) uint8. Works eagerly and inside Dataset.map.

    blob: scalar string. orientation: scalar int64, 1 to 8, as EXIF counts them: how it is turned before it is resized.
    A JPEG that is much larger than needed is scaled down by its decoder, but never below image_size.
    """
    orientation = tf.convert_to_tensor(orientation, tf.int64)
    image = tf.cond(
        tf.strings.substr(blob, 0, 3) == _JPEG,
        lambda: _decode_jpeg(blob, orientation, image_size, exact=resize == "nearest"),
        lambda: tf.io.decode_image(blob, channels=3, expand_animations=False),
    )
    image = tf.cond(orientation == 1, lambda: image, lambda: _turned(image, orientation))
    image.set_shape((None, None, 3))
    return fit(image, image_size, resize)


def fit(image: tf.Tensor, image_size: tuple[int, int], resize: str) -> tf.Tensor:
    """(..., any height, any width, 3) uint8 -> (..., height, width, 3) uint8. resize: as `data.resize` in the spec."""
    if resize == "nearest":
        return tf.ensure_shape(tf.image.resize(image, image_size, "nearest"), (*image.shape[:-3], *image_size, 3))
    resized = tf.image.resize(image, image_size, resize, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def _turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """The image as a viewer shows it: rows and columns swapped by some orientations, then either of them reversed."""
    sides = tf.where(orientation > 4, [1, 0, 2], [0, 1, 2])
    return tf.raw_ops.Reverse(tensor=tf.transpose(image, sides), dims=tf.gather(_REVERSED, orientation))


def thread_options(threads: int) -> tf.data.Options:
    """Options for a private pool of `threads`, without the graph rewrites that would copy captured tensors."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return options


def _decode_jpeg(blob: tf.Tensor, orientation: tf.Tensor, image_size: tuple[int, int], exact: bool) -> tf.Tensor:
    # TensorFlow's default is faster and less exact; this one agrees with Pillow to the bit
    read = functools.partial(tf.io.decode_jpeg, blob, channels=3, dct_method="INTEGER_ACCURATE")
    if exact:
        return read()
    shape = tf.io.extract_jpeg_shape(blob)
    ratio = tf.reduce_min(shape[:2] // tf.where(orientation > 4, image_size[::-1], image_size))
    branch = tf.where(ratio >= 8, 3, tf.where(ratio >= 4, 2, tf.where(ratio >= 2, 1, 0)))
    return tf.switch_case(branch, [functools.partial(read, ratio=ratio) for ratio in (1, 2, 4, 8)])
