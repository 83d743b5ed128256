"""Stream: encoded images from the store, decoded and resized by tf.data. Knows TensorFlow."""

import functools
import io
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from orchestrator.dataset.index import Index, open_shard
from orchestrator.store import Missing, Store, raise_if_changed

MAX_PIXELS = 100_000_000
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
_JPEG = b"\xff\xd8\xff"
_CHUNK = 256
_CHUNK_BYTES = 32 * 2**20
_BATCH = 64
Image.MAX_IMAGE_PIXELS = None  # only headers are read with Pillow, and the limit here is ours


def decoded(
    index: Index,
    store: Store,
    image_size: tuple[int, int],
    resize: str,
    threads: int,
) -> Iterator[tuple[np.ndarray, np.ndarray] | tuple[int, str]]:
    """Every image of the index once, in any order.

    Yields (rows, images): (batch,) int64 positions in the index and (batch, height, width, 3) uint8; and, for each
    image that cannot be decoded, (row, reason). Raises StoreError where the store fails, never a silently shorter set.
    """
    unseen = np.ones(len(index), bool)
    broken: list[tuple[int, str]] = []
    failure: list[BaseException] = []

    def encoded() -> Iterator[tuple[list[int], list[bytes]]]:
        rows, blobs, size_bytes = [], [], 0
        try:
            for row, blob in enumerate(_blobs(index, store)):
                if reason := _refused(blob):
                    broken.append((row, reason))
                    continue
                rows.append(row)
                blobs.append(blob)
                size_bytes += len(blob)
                if len(rows) == _CHUNK or size_bytes >= _CHUNK_BYTES:
                    yield rows, blobs
                    rows, blobs, size_bytes = [], [], 0
            yield rows, blobs
        except BaseException as error:  # tf.data would bury it: kept, and raised below
            failure.append(error)

    chain = (
        tf.data.Dataset.from_generator(
            encoded, output_signature=(tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string))
        )
        .prefetch(1)  # the next chunk crosses the network while this one is decoded
        .unbatch()
        .map(lambda row, blob: (row, decode(blob, image_size, resize)), num_parallel_calls=threads, deterministic=False)
        .ignore_errors()  # an image that fails is missing below, and is looked at alone
        .batch(_BATCH)
        .with_options(thread_options(threads))
    )
    for rows, images in chain.as_numpy_iterator():
        unseen[rows] = False
        yield rows, images
    if failure:
        raise failure[0]
    unseen[[row for row, _ in broken]] = False
    yield from broken
    if unseen.any():
        for row, blob in zip(np.flatnonzero(unseen), _blobs(index, store, only=unseen), strict=True):
            try:
                yield np.array([row]), decode(tf.constant(blob), image_size, resize).numpy()[None]
            except tf.errors.OpError as error:
                yield int(row), "cannot be decoded: " + re.sub(r"{{.*?}} | \[Op:\w+\].*", "", error.message)[:120]


def decode(blob: tf.Tensor, image_size: tuple[int, int], resize: str) -> tf.Tensor:
    """One encoded image (scalar string) -> (height, width, 3) uint8. Works eagerly and inside Dataset.map.

    A JPEG much larger than asked for is scaled down by its own decoder, never below the size asked for.
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
    """A private pool of `threads`, and none of the rewrites that would copy captured tensors."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return options


def _decode_jpeg(blob: tf.Tensor, image_size: tuple[int, int], exact: bool) -> tf.Tensor:
    # TensorFlow's default is the quick and rough one; this gives what Pillow gives, to the bit
    read = functools.partial(tf.io.decode_jpeg, blob, channels=3, dct_method="INTEGER_ACCURATE")
    if exact:
        return read()
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(blob))
    ratio = tf.minimum(height // image_size[0], width // image_size[1])
    branch = tf.where(ratio >= 8, 3, tf.where(ratio >= 4, 2, tf.where(ratio >= 2, 1, 0)))
    return tf.switch_case(branch, [functools.partial(read, ratio=ratio) for ratio in (1, 2, 4, 8)])


def _refused(blob: bytes) -> str | None:
    """Why an image is not to be decoded, from its header alone."""
    try:
        with Image.open(io.BytesIO(blob), formats=_FORMATS) as image:
            width, height = image.size
            palette = image.format == "BMP" and image.mode in ("1", "P")
    except UnidentifiedImageError:
        return "not a JPEG, PNG, BMP, GIF or WebP image" if blob else "empty"
    except (OSError, ValueError, SyntaxError) as error:
        return f"corrupt: {error}"
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels: more than 100 megapixels are refused before decoding"
    # TensorFlow would take the numbers of its colours for shades of grey
    return "a BMP with a palette: save it as PNG" if palette else None


def _blobs(index: Index, store: Store, only: np.ndarray | None = None) -> Iterator[bytes]:
    """The encoded images in index order, or those of a (images,) bool mask."""
    if not index.packed:
        objects = index.objects
        yield from store.read_many(
            objects if only is None else [o for o, wanted in zip(objects, only, strict=True) if wanted]
        )
        return
    _raise_if_shards_changed(index, store)
    row = 0
    for shard in index.objects:
        with open_shard(store, shard) as parquet:
            for batch in parquet.iter_batches(batch_size=_CHUNK, columns=["image.bytes"]):
                for blob in batch.column("image").field("bytes"):
                    if only is None or only[row]:
                        yield blob.as_py() or b""
                    row += 1
    _raise_if_shards_changed(index, store)


def _raise_if_shards_changed(index: Index, store: Store) -> None:
    """A ranged read says nothing of versions, so compare the listing, before and after."""
    now = {found.key: found for found in store.list()}
    for shard in index.objects:
        if shard.key not in now:
            raise Missing(f"{store.uri}/{shard.key}: read failed: there is no such object")
        raise_if_changed(store.uri, shard, now[shard.key].size, now[shard.key].version)
