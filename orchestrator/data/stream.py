"""Stream: encoded images from the store, decoded and resized by tf.data."""

import contextlib
import functools
import io
import itertools
import re
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from orchestrator.data.index import Index
from orchestrator.data.shards import row_groups
from orchestrator.errors import BadInput
from orchestrator.store import Store

MAX_PIXELS = 100_000_000
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
_JPEG = b"\xff\xd8\xff"
_CHUNK = 256
_CHUNK_BYTES = 32 * 2**20
_BATCH = 64
WINDOW_BYTES = 64 * 2**20
CHUNK = (tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string))
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is the limit here, checked in _admitted


class _Unreadable(ValueError):
    """The image must not or cannot be decoded; the text says why."""


def _admitted(blob: bytes) -> bytes:
    """The encoded image, after a check of its header. Raises _Unreadable."""
    try:
        with Image.open(io.BytesIO(blob), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _Unreadable(f"{width} x {height} pixels: more than 100 megapixels are refused before decoding")
            if image.format == "BMP" and image.mode in ("1", "P"):
                # TensorFlow would read the indices of its palette as shades of grey
                plain = io.BytesIO()
                image.convert("RGB").save(plain, "PNG", compress_level=1)
                return plain.getvalue()
    except UnidentifiedImageError:
        raise _Unreadable("not a JPEG, PNG, BMP, GIF or WebP image" if blob else "empty") from None
    except (OSError, SyntaxError) as error:
        raise _Unreadable(f"corrupt: {error}") from None
    return blob


class Blobs(Protocol):
    """Anything that yields the encoded images of given rows."""

    def blobs(self, rows: np.ndarray) -> Iterator[bytes]: ...


class Encoded:
    """The encoded images of an index, read from its store in any order.

    Attributes:
        failures: Exceptions from `chunks`. tf.data hides them, so whoever reads through it must look here.
    """

    def __init__(self, index: Index, store: Store) -> None:
        self._index, self._store = index, store
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
        """(groups,) int64: encoded bytes of each row group."""
        return np.array([group.length for group in self._groups])

    def blobs(self, rows: np.ndarray) -> Iterator[bytes]:
        """The encoded images of these rows, in this order, with many requests in flight.

        Shards are read window by window: a window is a run of rows whose groups together have at most WINDOW_BYTES.
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
            more = 0 if group in groups else self._groups[group].length
            if groups and more and size_bytes + more > window_bytes:
                yield list(groups), count
                groups, size_bytes, count, more = {}, 0, 0, self._groups[group].length
            groups[group] = None
            size_bytes += more
            count += 1
        if count:
            yield list(groups), count

    def chunks(self, rows: np.ndarray) -> Iterator[tuple[list[int], list[bytes]]]:
        """`blobs` in chunks of bounded size, (rows, encoded images), for tf.data. An unreadable image ends them."""
        chunk: tuple[list[int], list[bytes]] = ([], [])
        size_bytes = 0
        try:
            for row, blob in zip(rows.tolist(), self.blobs(rows), strict=True):
                chunk[0].append(row)
                chunk[1].append(_admitted(blob))
                size_bytes += len(blob)
                if len(chunk[0]) == _CHUNK or size_bytes >= _CHUNK_BYTES:
                    yield chunk
                    chunk, size_bytes = ([], []), 0
        except (BadInput, _Unreadable) as error:
            self.failures.append(error)
            raise
        yield chunk


def decoded(
    encoded: Blobs, images: int, image_size: tuple[int, int], resize: str, threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray] | tuple[int, str]]:
    """Decode all `images` images, each once, in any order.

    Yields (rows, images): (batch,) int64 positions in the index and (batch, height, width, 3) uint8; and, for each
    image that cannot be decoded, (row, reason). Raises StoreError if the store fails: no image is silently missing out.
    """
    unseen = np.ones(images, bool)
    broken: list[tuple[int, str]] = []
    failure: list[BaseException] = []

    def admitted() -> Iterator[tuple[list[int], list[bytes]]]:
        rows, blobs, size_bytes = [], [], 0
        try:
            for row, blob in enumerate(encoded.blobs(np.arange(images))):
                try:
                    blobs.append(_admitted(blob))
                except _Unreadable as error:
                    broken.append((row, str(error)))
                    continue
                rows.append(row)
                size_bytes += len(blob)
                if len(rows) == _CHUNK or size_bytes >= _CHUNK_BYTES:
                    yield rows, blobs
                    rows, blobs, size_bytes = [], [], 0
            yield rows, blobs
        except BaseException as error:  # tf.data would hide it: kept, and raised below
            failure.append(error)

    chain = (
        tf.data.Dataset.from_generator(admitted, output_signature=CHUNK)
        .prefetch(1)  # the next chunk is read while this one is decoded
        .unbatch()
        # more calls than threads: a decoded image occupies its call until it is collected
        .map(lambda row, blob: (row, decode(blob, image_size, resize)), 4 * threads, deterministic=False)
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
            yield np.array([row]), decode(tf.constant(_admitted(blob)), image_size, resize).numpy()[None]
        except tf.errors.OpError as error:
            yield int(row), "cannot be decoded: " + re.sub(r"{{.*?}} | \[Op:\w+\].*", "", error.message)[:120]


def decode(blob: tf.Tensor, image_size: tuple[int, int], resize: str) -> tf.Tensor:
    """One encoded image (scalar string) -> (height, width, 3) uint8. Works eagerly and inside Dataset.map.

    A JPEG that is much larger than needed is scaled down by its decoder, but never below image_size.
    """
    image = tf.cond(
        tf.strings.substr(blob, 0, 3) == _JPEG,
        lambda: _decode_jpeg(blob, image_size, exact=resize == "nearest"),
        lambda: tf.io.decode_image(blob, channels=3, expand_animations=False),
    )
    image.set_shape((None, None, 3))
    if resize == "nearest":
        return tf.ensure_shape(tf.image.resize(image, image_size, "nearest"), (*image_size, 3))
    resized = tf.image.resize(image, image_size, resize, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def thread_options(threads: int) -> tf.data.Options:
    """Options for a private pool of `threads`, without the graph rewrites that would copy captured tensors."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return options


def _decode_jpeg(blob: tf.Tensor, image_size: tuple[int, int], exact: bool) -> tf.Tensor:
    # TensorFlow's default is faster and less exact; this one agrees with Pillow to the bit
    read = functools.partial(tf.io.decode_jpeg, blob, channels=3, dct_method="INTEGER_ACCURATE")
    if exact:
        return read()
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(blob))
    ratio = tf.minimum(height // image_size[0], width // image_size[1])
    branch = tf.where(ratio >= 8, 3, tf.where(ratio >= 4, 2, tf.where(ratio >= 2, 1, 0)))
    return tf.switch_case(branch, [functools.partial(read, ratio=ratio) for ratio in (1, 2, 4, 8)])
