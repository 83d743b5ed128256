"""image files: of every kind that people have, the pixels that a viewer shows, or one line that says why not."""

import io
import resource
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from images import picture
from PIL import ExifTags, Image, ImageOps

from orchestrator.data import image_files
from orchestrator.data.stream import decode, decoded

SIDE = 24
PIXELS = picture(3, SIDE, SIDE)
TAGGED = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def saved(form: str, mode: str = "RGB", pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, form, **options)
    return out.getvalue()


def tagged(form: str, orientation: int, pixels: np.ndarray = PIXELS) -> bytes:
    """A file that says how it is to be turned, without loss."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    lossless = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    return saved(form, pixels=pixels, exif=exif, **lossless.get(form, {}))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = saved("PNG")


def png(*chunks: bytes, at: int = 33) -> bytes:
    """The picture with chunks after its header, or elsewhere."""
    return PNG[:at] + b"".join(chunks) + PNG[at:]


def animated(form: str, mode: str, **options: object) -> bytes:
    others = [Image.fromarray(picture(i, SIDE, SIDE)).convert(mode) for i in (4, 5)]
    return saved(form, mode, save_all=True, append_images=others, **options)


def small_first_frame(**options: object) -> bytes:
    """A GIF of one frame, which fills a part of its canvas."""
    gif = bytearray(saved("GIF", "P", PIXELS[:10, :12], **options))
    gif[6:10] = struct.pack("<HH", SIDE, SIDE)
    return bytes(gif)


def bmp(bits: int, masks: Sequence[int], pixels: np.ndarray) -> bytes:
    """A BMP whose masks say where red, green, blue and alpha are."""
    data = pixels[::-1].tobytes()
    header = struct.pack("<IiiHHIIiiII", 108, SIDE, SIDE, 1, bits, 3, len(data), 0, 0, 0, 0)
    header += struct.pack("<IIII", *masks) + bytes(52)
    return b"BM" + struct.pack("<IHHI", 122 + len(data), 0, 0, 122) + header + data


def large_tile(side: int) -> bytes:
    """A TIFF of 10 x 10 pixels in one deflated tile of side x side."""
    data = zlib.compress(bytes(10))
    tags = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 146, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(12) + data


class Files:
    """Files in place of a store."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self._files = files

    def blobs(self, rows: np.ndarray) -> Iterator[bytes]:
        return (self._files[row] for row in rows)


def read(files: Sequence[bytes], exif: str = "apply") -> list[np.ndarray | str]:
    """What becomes of each: (SIDE, SIDE, 3) uint8, or the reason why it cannot be read."""
    found: dict[int, np.ndarray | str] = {}
    for rows, what in decoded(Files(files), len(files), (SIDE, SIDE), "bilinear", 2, exif):
        found |= {rows: what} if isinstance(what, str) else zip(rows.tolist(), what, strict=True)
    return [found[row] for row in range(len(files))]


def by_viewer(blob: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(blob)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


alpha = np.dstack([PIXELS, picture(9, SIDE, SIDE)[..., 0]])
red, green, blue = (PIXELS[..., i].astype(np.uint16) for i in range(3))
deep = PIXELS[..., 0].astype(np.uint16) * 257
noise = np.random.default_rng(0).bytes(1_200_000)
cmyk = saved("JPEG", "CMYK")
in_adobe = cmyk.index(b"Adobe") + 11

AS_SHOWN = {
    "a TIFF of each kind": [saved("TIFF", mode) for mode in ("RGB", "RGBA", "L", "1", "P", "CMYK")],
    "a packed TIFF": [saved("TIFF", compression=how) for how in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")],
    "a TIFF of pages": [animated("TIFF", "RGB")],
    "AVIF, PPM and a JPEG of two": [saved("AVIF"), saved("PPM"), animated("MPO", "RGB")],
    "JPEG of CMYK and of YCCK": [cmyk, cmyk[:in_adobe] + b"\2" + cmyk[in_adobe + 1 :]],
    "JPEG with more behind it": [saved("JPEG") + bytes(1000)],
    "BMP of 16 bits, and with red first": [
        bmp(16, (0xF800, 0x7E0, 0x1F, 0), red >> 3 << 11 | green >> 2 << 5 | blue >> 3),
        bmp(32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000), alpha),
    ],
    "transparent WebP": [saved("WEBP", "RGBA", alpha, lossless=True), saved("WEBP", "RGBA", alpha)],
    "animated": [animated("WEBP", "RGB"), animated("WEBP", "RGBA"), animated("GIF", "P"), animated("PNG", "RGB")],
    "transparent GIF": [saved("GIF", "P", transparency=9), animated("GIF", "P", transparency=9)],
    "GIF with a small first frame": [small_first_frame(), small_first_frame(transparency=9)],
    "EXIF that is damaged or nonsense": [tagged("JPEG", 9), tagged("JPEG", 6).replace(b"Exif\0\0MM", b"Exif\0\0??")],
}


@pytest.mark.parametrize("kind", AS_SHOWN)
def test_pixels_are_those_that_a_viewer_shows(kind: str) -> None:
    """To the bit those of Pillow: of several images the first, and alpha dropped."""
    for blob, found in zip(AS_SHOWN[kind], read(AS_SHOWN[kind]), strict=True):
        assert not isinstance(found, str), found
        assert np.array_equal(found, by_viewer(blob))


@pytest.mark.parametrize(
    "blob",
    [
        png(chunk(b"iCCP", b"x\0\0" + zlib.compress(noise))),
        png(chunk(b"tRNS", b"\0")),
        png(chunk(b"zTXt", b"k\0\0 and nothing that can be unpacked")),
        png(chunk(b"eXIf", b"nonsense")),
    ],
    ids=["a large ICC profile", "short transparency", "damaged text", "damaged EXIF"],
)
def test_a_png_that_pillow_refuses(blob: bytes) -> None:
    """TensorFlow reads it, so it is read."""
    (found,) = read([blob])
    assert np.array_equal(found, PIXELS)


def test_of_16_bits_the_upper_8_count() -> None:
    """Pillow would cut all above 255. Of 32 bits nobody knows what is white."""
    grey = np.repeat(PIXELS[..., :1], 3, 2)
    pgm = b"P5 %d %d 65535\n" % (SIDE, SIDE) + deep.astype(">u2").tobytes()
    for blob in (saved("TIFF", "I;16", deep), saved("PNG", "I;16", deep), pgm):
        assert np.array_equal(read([blob])[0], grey)
    for mode in ("I", "F"):
        (reason,) = read([saved("TIFF", mode, PIXELS[..., 0])])
        assert reason == "pixels of 32 bits, whose brightness nothing tells: save it with 8 or 16 bits"


class TestOrientation:
    """A file that says how it is to be turned."""

    @pytest.mark.parametrize("form", TAGGED)
    def test_is_turned_as_a_viewer_turns_it(self, form: str) -> None:
        """All eight ways; `ignore` leaves it as it is stored."""
        files = [tagged(form, orientation) for orientation in range(1, 9)]
        for blob, found in zip(files, read(files), strict=True):
            assert np.array_equal(found, by_viewer(blob))
        assert all(np.array_equal(found, by_viewer(files[0])) for found in read(files, "ignore"))

    def test_wherever_a_png_says_it(self) -> None:
        """After the pixels too, where Pillow would have to decode them first."""
        blob = tagged("PNG", 6)
        start = blob.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(blob[start : start + 4])
        late = blob[:start] + blob[end:-12] + blob[start:end] + blob[-12:]
        assert np.array_equal(read([late])[0], by_viewer(blob))

    @pytest.mark.parametrize("resize", ["nearest", "bilinear", "area"])
    def test_turning_comes_before_resizing(self, resize: str) -> None:
        """The same to the bit as a file that was turned before; a large JPEG is still scaled by its decoder."""
        pixels, size = picture(1, 120, 170), (30, 20)
        for orientation in range(1, 9):
            turned = tagged("PNG", 1, by_viewer(tagged("PNG", orientation, pixels)))
            ours = decode(*image_files.admit(tagged("PNG", orientation, pixels), "apply")[:2], size, resize)
            assert np.array_equal(ours, decode(turned, 1, size, resize))
            jpeg = decode(*image_files.admit(tagged("JPEG", orientation, pixels), "apply")[:2], size, resize)
            assert np.abs(ours.numpy().astype(int) - jpeg.numpy()).mean() < 2


UNREADABLE = {
    "cut.tif": (saved("TIFF")[:300], "corrupt: image file is truncated"),
    "cut.avif": (saved("AVIF")[:-100], "corrupt: "),
    "lying.ppm": (b"P6 9000 9000 255\n", "corrupt: image file is truncated"),
    "tile.tif": (large_tile(30_000), "30000 x 30000 pixels: more than 100 megapixels"),
    "no frame.gif": (saved("GIF", "P")[:13] + b";", "corrupt: no GIF image can be read from it"),
    "flat.jpg": (saved("JPEG").replace(struct.pack(">HH", SIDE, SIDE), bytes(4), 1), "corrupt: no JPEG image"),
    "flat.png": (PNG.replace(struct.pack(">II", SIDE, SIDE), bytes(8), 1), "cannot be decoded: Invalid PNG"),
    "page.jpg": (
        b"<!DOCTYPE html>",
        "not a JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF, HEIC or PPM image: it begins with",
    ),
    "film.jpg": (b"\0\0\0\x18ftypisom", "not a JPEG, PNG, "),
}


def test_what_cannot_be_read_has_a_reason() -> None:
    """One short line each, and no end to the others."""
    *reasons, found = read([*(blob for blob, _ in UNREADABLE.values()), PNG])
    for (name, (_, expected)), reason in zip(UNREADABLE.items(), reasons, strict=True):
        assert isinstance(reason, str), name
        assert reason.startswith(expected), name
        assert "\n" not in reason
        assert len(reason) < 200
    assert np.array_equal(found, PIXELS)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(MemoryError(), "corrupt: MemoryError"), (OverflowError("too\nlarge"), "corrupt: too large")],
)
def test_whatever_a_decoder_raises(monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str) -> None:
    """It is that image's reason, and ends nothing."""

    def refuse(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(image_files.Image, "open", refuse)
    reason, found = read([saved("JPEG"), PNG])
    assert reason == expected
    assert np.array_equal(found, PIXELS)


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_small_files_do_not_unpack_into_all_memory(exif: str) -> None:
    """Text behind the pixels of a PNG (2 GB from 2 MB), and all frames of a GIF (1 GB)."""
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(7_000_000)))
    gif = saved("GIF", "P", np.zeros((2000, 2000, 3), np.uint8))
    header = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    files = [png(*[text] * 300, at=len(PNG) - 12), gif[:header] + gif[header:-1] * 250 + b";"]
    read(files[:1])
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not any(isinstance(found, str) for found in read(files, exif))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000


def test_older_runs_read_what_they_read() -> None:
    """With `ignore`, of a GIF what TensorFlow makes of it: what is transparent stays black."""
    for blob in (saved("GIF", "P", transparency=9), animated("GIF", "P", transparency=9), small_first_frame()):
        assert np.array_equal(read([blob], "ignore")[0], decode(blob, 1, (SIDE, SIDE), "bilinear"))


class TestHeic:
    """HEIC takes an extra."""

    HEADER = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(40)

    def test_without_it_the_reason_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A line that can be pasted."""
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        image_files._reads_heic.cache_clear()
        (reason,) = read([self.HEADER])
        image_files._reads_heic.cache_clear()
        assert reason.startswith("a HEIC image, ")
        assert reason.endswith(": pip install 'batch-orchestrator[heic]'")

    def test_with_it_they_are_read(self) -> None:
        """As a viewer shows them, turned ones too."""
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.register_heif_opener()
        files = [tagged("HEIF", orientation) for orientation in (1, 6)]
        *found, reason = read([*files, self.HEADER])
        assert [np.array_equal(a, by_viewer(b)) for a, b in zip(found, files, strict=True)] == [True, True]
        assert reason == "corrupt: no HEIC image can be read from it"
