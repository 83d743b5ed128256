"""stream: every image once, decoded as Pillow would, from every store; and what happens to those that cannot be."""

import functools
import io
import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from images import as_shards, class_folder, encoded, fill, picture, shard
from PIL import Image

from orchestrator import machine
from orchestrator.data import stream
from orchestrator.data.index import Index
from orchestrator.data.indexing import build_index
from orchestrator.data.stream import Encoded, _decode_jpeg, decode, decoded
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Data
from orchestrator.store import Changed, Missing, Object, Store, StoreError, open_store
from orchestrator.store.folder import Folder

SIZE = (24, 32)
PNG = encoded(picture(0))


def index_of(store: Store) -> Index:
    return build_index(store, Data(uri="unused", validation_split=0.4))


def collect(index: Index, store: Store, threads: int = 2) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Row -> pixels, and row -> reason; no row may come twice or not at all."""
    images: dict[int, np.ndarray] = {}
    bad: dict[int, str] = {}
    for rows, what in decoded(Encoded(index, store), len(index), SIZE, "bilinear", threads):
        found = [(rows, what)] if isinstance(what, str) else zip(rows.tolist(), what, strict=True)
        for row, value in found:
            assert row not in images
            assert row not in bad
            (bad if isinstance(value, str) else images)[row] = value
    assert sorted([*images, *bad]) == list(range(len(index)))
    return images, bad


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "images"), create=True)


@pytest.fixture(params=["folder", "bucket", "shards", "shards in a bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, bool]:
    """A store to fill, and whether the images go there as Parquet shards."""
    uri = request.getfixturevalue("bucket") if "bucket" in request.param else str(tmp_path / "images")
    return open_store(uri, create=True), "shards" in request.param


class TestStream:
    """All images of an index."""

    def test_images_that_would_fill_the_memory_are_decoded_alone(
        self, folder: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One by one after the others, to the same pixels: a PNG of some kilobytes may unpack to 300 MB."""
        large = {f"cat/{form}.{form}": encoded(picture(1, 90, 120), form) for form in ("png", "bmp", "jpeg")}
        fill(folder, class_folder({"cat": 2, "dog": 2}) | large)
        index = index_of(folder)
        together, _ = collect(index, folder)
        monkeypatch.setattr(machine, "free_mb", lambda: 0.0)
        monkeypatch.setattr(stream, "_SMALL_BYTES", 24 * 32 * 3)
        sizes = [len(rows) for rows, _ in decoded(Encoded(index, folder), len(index), SIZE, "bilinear", 2)]
        assert sizes == [5, 1, 1], "the decoder of JPEG scales down"
        alone, _ = collect(index, folder)
        assert all(np.array_equal(together[row], alone[row]) for row in together)

    def test_every_image_once(self, place: tuple[Store, bool]) -> None:
        """From a folder, a bucket and shards in both, each image arrives once and is its own."""
        store, packed = place
        files = class_folder({"größe a+b": 40, "shirt": 33})
        index = index_of(fill(store, as_shards(files, 2) if packed else files))
        images, bad = collect(index, store)
        assert bad == {}
        for row, path in enumerate(index.paths):
            assert np.array_equal(images[row], np.asarray(Image.open(io.BytesIO(files[path])))), path

    def test_more_than_a_chunk_on_any_number_of_threads(self, folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither threads nor the size of a chunk, in images or bytes, change what arrives."""
        index = index_of(fill(folder, class_folder({"a": 300, "b": 20})))
        expected, _ = collect(index, folder, threads=1)
        for threads, chunk_bytes in ((1, 5000), (4, 2**20)):
            monkeypatch.setattr(stream, "_CHUNK_BYTES", chunk_bytes)
            images, _ = collect(index, folder, threads)
            assert all(np.array_equal(images[row], expected[row]) for row in expected)

    def test_may_be_left_early(self, folder: Store, recwarn: pytest.WarningsRecorder) -> None:
        """Who stops reading gets no complaint."""
        index = index_of(fill(folder, class_folder({"a": 600, "b": 20}, 2, 2)))
        images = decoded(Encoded(index, folder), len(index), SIZE, "bilinear", 1)
        next(images)
        images.close()
        assert len(recwarn) == 0


def forged_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


def forged_jpeg(width: int, height: int) -> bytes:
    data = encoded(picture(0), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


BAD = {
    "a/corrupt.png": (PNG[:60] + bytes(40) + PNG[100:], "cannot be decoded: "),
    "a/cut.png": (PNG[: len(PNG) // 2], "cannot be decoded: "),
    "a/cut.jpg": (encoded(picture(0), "JPEG", quality=95)[:-300], "cannot be decoded: jpeg::Uncompress failed"),
    "a/cut-progressive.jpg": (encoded(picture(0), "JPEG", quality=95, progressive=True)[:-300], "cannot be decoded: "),
    "a/cut.bmp": (encoded(picture(0), "BMP")[:-300], "corrupt: image file is truncated"),
    "a/cut.gif": (encoded(picture(0), "GIF", "P")[:-300], "corrupt: image file is truncated"),
    "a/cut.webp": (encoded(picture(0), "WEBP", lossless=True)[:-300], "corrupt: "),
    "a/header-only.png": (PNG[:33], "cannot be decoded: Invalid PNG"),
    "a/header-only.jpg": (b"\xff\xd8\xff\xe0", "corrupt: no JPEG image can be read from it"),
    "a/text.jpg": (
        b"not an image at all",
        "not a JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF, HEIC or PPM image: it begins ",
    ),
    "a/huge.png": (forged_png(20_000, 20_000), "20000 x 20000 pixels: more than 100 megapixels"),
    "a/huge.jpg": (forged_jpeg(65_000, 65_000), "65000 x 65000 pixels: more than 100 megapixels"),
}


class TestBadImages:
    """What cannot be decoded is reported, and nothing else suffers."""

    @pytest.mark.parametrize("packed", [False, True])
    def test_each_is_reported(self, folder: Store, packed: bool) -> None:
        """Each by row with its reason, in one line, while all the others come through."""
        good = class_folder({"a": 20, "b": 20})
        files = {**good, **{key: data for key, (data, _) in BAD.items()}}
        index = index_of(fill(folder, as_shards(files, 2) if packed else files))
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        images, bad = collect(index, folder)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000, "the huge ones take 1.2 GB"
        reasons = {index.paths[row]: reason for row, reason in bad.items()}
        assert reasons.keys() == BAD.keys()
        for key, (_, reason) in BAD.items():
            assert reasons[key].startswith(reason), key
            assert "\n" not in reasons[key]
            assert "{{" not in reasons[key]
        assert {index.paths[row] for row in images} == good.keys()

    def test_empty_in_a_shard(self, folder: Store) -> None:
        """A row without bytes, or with none in them, is empty."""
        rows = [(f"{i}.png", PNG, i % 2) for i in range(10)]
        fill(folder, {"x.parquet": shard([*rows, ("null.png", None, 0), ("empty.png", b"", 1)])})
        assert collect(index_of(folder), folder)[1] == {10: "empty", 11: "empty"}

    def test_they_lose_no_neighbour(self, folder: Store) -> None:
        """Every third image fails in its decoder; the pixels of the others are all there and all right."""
        files = class_folder({"a": 200, "b": 200})
        broken = list(files)[::3]
        index = index_of(fill(folder, {**files, **{key: files[key][: len(files[key]) // 2] for key in broken}}))
        images, bad = collect(index, folder, threads=4)
        assert {index.paths[row] for row in bad} == set(broken)
        for row, pixels in images.items():
            assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(files[index.paths[row]]))))

    def test_a_damaged_shard_is_named(self, folder: Store) -> None:
        """A shard whose pages are damaged is refused by name."""
        data = shard([(f"{i}.png", PNG, i % 2) for i in range(20)])
        fill(folder, {"x.parquet": data[:4] + b"\xff" * 200 + data[204:]})
        with pytest.raises(BadInput, match=r"x\.parquet must be a Parquet file"):
            collect(index_of(folder), folder)


class TestStoreFails:
    """A set is whole or an error, never silently shorter."""

    @pytest.mark.parametrize("change", ["delete", "overwrite"])
    def test_what_changed_since_the_index(self, place: tuple[Store, bool], change: str) -> None:
        """An object that is gone is Missing, one that was written again is Changed."""
        store, packed = place
        files = as_shards(class_folder({"a": 20, "b": 20}), 3) if packed else class_folder({"a": 20, "b": 20})
        index = index_of(fill(store, files))
        last = max(files)
        if change == "delete":
            store.delete(last)
        else:
            store.write(last, files[min(files)])
        with pytest.raises(Missing if change == "delete" else Changed, match=last):
            collect(index, store)

    def test_a_shard_that_changes_while_it_is_read(self, folder: Store) -> None:
        """Each ranged read tells the version it came from."""
        files = as_shards(class_folder({"a": 20, "b": 20}), 2)
        index = index_of(fill(folder, files))

        class Rewriting(Folder):
            def read_range(self, expected: Object, start: int, length: int) -> bytes:
                if expected.key == max(files):
                    self.write(expected.key, files[max(files)])
                return super().read_range(expected, start, length)

        with pytest.raises(Changed, match=max(files)):
            collect(index, Rewriting(folder.uri, folder.uri))

    @pytest.mark.parametrize("error", [StoreError("the line is down"), RuntimeError("a bug")])
    def test_a_failure_halfway(self, folder: Store, error: Exception) -> None:
        """Whatever the store raises comes out as it is."""
        index = index_of(fill(folder, class_folder({"a": 300, "b": 10}, 2, 2)))

        class Failing(Folder):
            def read_many(self, objects: list[Object], in_flight: int = 64) -> Iterator[bytes]:
                for number, data in enumerate(super().read_many(objects, in_flight)):
                    if number == 290:
                        raise error
                    yield data

        with pytest.raises(type(error), match=str(error)):
            collect(index, Failing(folder.uri, folder.uri))


def by_pillow(blob: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")).astype(int)


@functools.cache
def graph(size: tuple[int, int], resize: str) -> Callable[[bytes], tf.Tensor]:
    return tf.function(lambda blob: decode(blob, 1, size, resize), [tf.TensorSpec([], tf.string)])


def run(blob: bytes, size: tuple[int, int], resize: str) -> np.ndarray:
    """Decode in a graph, as Dataset.map does, and eagerly: both must be the same."""
    eager = decode(blob, 1, size, resize).numpy()
    assert np.array_equal(eager, graph(size, resize)(blob))
    assert eager.dtype == np.uint8
    assert eager.shape == (*size, 3)
    return eager.astype(int)


class TestFormats:
    """Each format at its own size, compared with Pillow."""

    @pytest.mark.parametrize(
        ("form", "mode", "options", "worst"),
        [
            ("JPEG", "RGB", {}, 0),
            ("JPEG", "RGB", {"progressive": True}, 0),
            ("JPEG", "L", {}, 0),
            ("JPEG", "CMYK", {}, 1),
            ("PNG", "RGB", {}, 0),
            ("PNG", "L", {}, 0),
            ("PNG", "P", {}, 0),
            ("PNG", "RGBA", {}, 0),
            ("PNG", "LA", {}, 0),
            ("PNG", "1", {}, 0),
            ("BMP", "RGB", {}, 0),
            ("BMP", "RGBA", {}, 0),
            ("BMP", "L", {}, 0),
            ("GIF", "L", {}, 0),
            ("GIF", "P", {}, 0),
            ("WEBP", "RGB", {"lossless": True}, 0),
            ("WEBP", "RGB", {}, 0),
            ("WEBP", "RGBA", {"lossless": True}, 0),
        ],
    )
    def test_as_pillow_reads_it(self, form: str, mode: str, options: dict, worst: int) -> None:
        """Three channels, whatever the file has: grey is repeated, a palette looked up, alpha dropped."""
        blob = encoded(picture(3), form, mode, **options)
        assert np.abs(run(blob, SIZE, "bilinear") - by_pillow(blob)).max() <= worst

    def test_sixteen_bits(self) -> None:
        """Of 16 bits the upper 8 count (Pillow would cut all above 255)."""
        deep = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 85
        out = io.BytesIO()
        Image.fromarray(deep).save(out, "PNG")
        assert np.array_equal(run(out.getvalue(), SIZE, "bilinear"), np.repeat(deep[..., None] >> 8, 3, 2))

    def test_transparent_palette(self) -> None:
        """A palette with a transparent colour keeps its colours."""
        blob = encoded(picture(3), "PNG", "P", transparency=0)
        assert np.array_equal(run(blob, SIZE, "bilinear"), by_pillow(blob))

    @pytest.mark.parametrize("mode", ["P", "1"])
    def test_bmp_with_a_palette(self, folder: Store, mode: str) -> None:
        """TensorFlow alone would take the numbers of its colours for shades of grey."""
        blob = encoded(picture(3), "BMP", mode)
        fill(folder, class_folder({"a": 3, "b": 3}) | {"a/palette.bmp": blob})
        index = index_of(folder)
        images, bad = collect(index, folder)
        assert not bad
        found = images[index.paths.index("a/palette.bmp")]
        assert np.array_equal(found, run(encoded(by_pillow(blob).astype(np.uint8)), SIZE, "bilinear"))

    def test_first_frame(self) -> None:
        """Of an animation the first frame counts."""
        others = [Image.fromarray(picture(i)).convert("P") for i in (4, 5)]
        blob = encoded(picture(3), "GIF", "P", save_all=True, append_images=others)
        assert np.array_equal(run(blob, SIZE, "bilinear"), by_pillow(blob))


def detailed(height: int, width: int) -> np.ndarray:
    """Edges, texture and a little noise, as in a photograph."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + y / 31), np.sin(y / 11), np.sin((x + y) / 23)], -1) * 60 + 128
    waves[height // 4 : height // 2, width // 3 : width // 2] = (230, 30, 60)
    noise = np.random.default_rng(0).normal(0, 8, waves.shape)
    return (waves + noise).clip(0, 255).astype(np.uint8)


class TestResize:
    """From any size to the one asked for."""

    @pytest.mark.parametrize("size", [(64, 64), (50, 90), (30, 33), (190, 40)])
    def test_shrinks_as_pillow_does(self, size: tuple[int, int]) -> None:
        """Bilinear shrinking takes every source pixel into account (antialiased): within 2 of 255 of Pillow's."""
        pixels = detailed(200, 300)
        expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(run(encoded(pixels), size, "bilinear") - expected).max() <= 2

    @pytest.mark.parametrize("size", [(100, 100), (50, 60), (25, 30)])
    def test_area_is_the_mean(self, size: tuple[int, int]) -> None:
        """Area shrinking gives each output pixel the mean of those it covers."""
        pixels, (height, width) = detailed(200, 300), size
        expected = pixels.reshape(height, 200 // height, width, 300 // width, 3).mean((1, 3))
        assert np.abs(run(encoded(pixels), size, "area") - expected).max() <= 0.51

    def test_enlarges_as_pillow_does(self) -> None:
        """Bilinear enlarging agrees too."""
        expected = np.asarray(Image.fromarray(picture(1)).resize((70, 64), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(run(encoded(picture(1)), (64, 70), "bilinear") - expected).max() <= 1

    @pytest.mark.parametrize("form", ["PNG", "JPEG"])
    def test_nearest_takes_pixels_as_they_are(self, form: str) -> None:
        """Pixel for pixel what Keras' loader takes (Pillow's NEAREST), a large JPEG included."""
        blob = encoded(detailed(600, 500), form, quality=95)
        expected = np.asarray(Image.open(io.BytesIO(blob)).resize((64, 64), Image.Resampling.NEAREST))
        assert np.array_equal(run(blob, (64, 64), "nearest"), expected)

    @pytest.mark.parametrize(
        ("height", "width", "scaled"),
        [
            (64, 64, (64, 64)),
            (127, 500, (127, 500)),  # half would be 64 x 250, but a whole factor is 1
            (128, 500, (64, 250)),
            (255, 999, (128, 500)),
            (256, 256, (64, 64)),
            (1025, 600, (129, 75)),
            (2000, 3000, (250, 375)),  # libjpeg scales by 8 at most
            (40, 3000, (40, 3000)),
        ],
    )
    def test_a_large_jpeg_is_scaled_by_its_decoder(self, height: int, width: int, scaled: tuple[int, int]) -> None:
        """By 2, 4 or 8, and never below the size asked for."""
        blob = tf.constant(encoded(np.zeros((height, width, 3), np.uint8), "JPEG"))
        assert tuple(_decode_jpeg(blob, tf.constant(1), (64, 64), exact=False).shape) == (*scaled, 3)

    @pytest.mark.parametrize("resize", ["bilinear", "area"])
    @pytest.mark.parametrize("side", [128, 200, 384, 1000])
    def test_that_changes_little(self, resize: str, side: int) -> None:
        """The result stays close to that of the full decode."""
        pixels = detailed(side, side)
        blob = encoded(pixels, "JPEG", quality=95)
        full = encoded(tf.io.decode_jpeg(blob).numpy())
        difference = np.abs(run(blob, (64, 64), resize) - run(full, (64, 64), resize))
        assert difference.mean() < 3
