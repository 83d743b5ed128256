"""Image files: what a file is by its content, checked before it is decoded, and read by Pillow where TensorFlow cannot.

TensorFlow reads JPEG, PNG, and WebP without transparency. Everything else reaches it as a BMP, as Pillow reads it.
"""

import functools
import io
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

MAX_PIXELS = 100_000_000
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is the limit here
warnings.filterwarnings("ignore", module=r"PIL\.")  # an image is read, or there is a reason; nothing between
_FORMATS = ("JPEG", "BMP", "GIF", "WEBP", "TIFF", "AVIF", "PPM")
_PNG = b"\x89PNG\r\n\x1a\n"
_PACKED = {b"iCCP", b"iTXt", b"zTXt"}  # chunks of a PNG that are unpacked with it, and change no pixel
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_TILE_WIDTH, _TILE_LENGTH = 322, 323


class Unreadable(ValueError):
    """The image must not or cannot be decoded; the text says why."""


class Admitted(NamedTuple):
    """An image as TensorFlow reads it.

    Attributes:
        orientation: How it must be turned, as EXIF counts: 1 to 8.
        pixels: At most MAX_PIXELS.
    """

    blob: bytes
    orientation: int
    pixels: int


def admit(blob: bytes, exif: str) -> Admitted:
    """The image as TensorFlow reads it.

    exif: as `data.exif` in the spec. `ignore` always gives 1, and is how older runs go on: what TensorFlow read for
    them it reads still. Raises Unreadable, in one line, whatever the bytes are.
    """
    if not blob:
        raise Unreadable("empty")
    try:
        admitted = _admit_png(blob) if blob.startswith(_PNG) else _admit_other(blob, exif)
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable(_why_unidentified(blob)) from None
    except Exception as error:  # no list of what decoders raise for damaged files would be complete
        what = " ".join(str(error).split())[:120] or type(error).__name__
        raise Unreadable(f"corrupt: {what}") from None
    return admitted if exif == "apply" else admitted._replace(orientation=1)


def as_png(pixels: np.ndarray) -> bytes:
    """(height, width, 3) uint8 as a PNG, which loses nothing."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} pixels: more than 100 megapixels are refused before decoding")


def _orientation(read: Callable[[], Image.Exif]) -> int:
    """The orientation in an image's EXIF, which is taken out of there: Pillow would turn a TIFF by it."""
    try:
        found = read().pop(ExifTags.Base.Orientation, 1)
    except Exception:  # as damaged files make it; viewers then show the image as it is stored
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _admit_png(blob: bytes) -> Admitted:
    """A PNG without what unpacks to more than its pixels. Pillow refuses some that can be read."""
    if len(blob) < 33 or blob[12:16] != b"IHDR":
        raise Unreadable("corrupt: no PNG image can be read from it")
    width, height = struct.unpack_from(">II", blob, 16)
    _check_pixels(width, height)
    packed, orientation = [], 1
    for kind, start, end in _chunks(blob):
        if kind in _PACKED:
            packed += [start, end]
        elif kind == b"eXIf":
            orientation = _orientation(functools.partial(_exif, blob[start + 8 : end - 4]))
    if packed:
        edges = [0, *packed, len(blob)]
        blob = b"".join(blob[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    return Admitted(blob, orientation, width * height)


def _chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk, as far as they can be told apart."""
    start, kind = len(_PNG), b""
    while start + 8 <= len(png) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", png, start)
        yield kind, start, start + length + 12
        start += length + 12


def _exif(data: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(data)
    return exif


def _admit_other(blob: bytes, exif: str) -> Admitted:
    formats = (*_FORMATS, "HEIF") if _is_heic(blob) and _reads_heic() else _FORMATS
    with Image.open(io.BytesIO(blob), formats=formats) as image:
        _check_pixels(*image.size)
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # its tiles may be larger than the image
            _check_pixels(*(int(image.tag_v2.get(side, 1)) for side in (_TILE_WIDTH, _TILE_LENGTH)))
        orientation = _orientation(image.getexif)
        if image.format in ("JPEG", "MPO") or (image.format == "WEBP" and _is_opaque(image, blob)):
            return Admitted(blob, orientation, image.width * image.height)
        if image.format == "GIF" and exif == "ignore":
            return Admitted(_first_frame(blob), 1, image.width * image.height)
        out = io.BytesIO()
        _in_eight_bits(image).convert("RGB").save(out, "BMP")
        return Admitted(out.getvalue(), orientation, image.width * image.height)


def _is_opaque(image: Image.Image, webp: bytes) -> bool:
    """Whether it is a single image without transparency: TensorFlow reads no other."""
    animated = webp[12:16] == b"VP8X" and webp[20] & 2
    return image.mode == "RGB" and not animated


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Of 16 bits the upper 8, as viewers show them; Pillow would cut all above 255. Raises Unreadable."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.asarray(image.convert("I")) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unreadable("pixels of 32 bits, whose brightness nothing tells: save it with 8 or 16 bits")
    return image


def _first_frame(gif: bytes) -> bytes:
    """The GIF without what follows its first frame: TensorFlow would unpack all of them."""

    def after_colours(at: int, flags: int) -> int:
        return at + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)

    def after_blocks(at: int) -> int:
        while gif[at]:
            at += gif[at] + 1
        return at + 1

    try:
        at = after_colours(13, gif[10])
        while gif[at] == 0x21:
            at = after_blocks(at + 2)
        return gif[: after_blocks(after_colours(at + 10, gif[at + 9]) + 1)] + b";"
    except IndexError:  # it ends within the first frame
        return gif


def _is_heic(blob: bytes) -> bool:
    return blob[4:8] == b"ftyp" and blob[8:12] in _HEIC_BRANDS


@functools.cache
def _reads_heic() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False)
    return True


def _why_unidentified(blob: bytes) -> str:
    if _is_heic(blob) and not _reads_heic():
        return "a HEIC image, which takes pillow-heif on every node: pip install 'batch-orchestrator[heic]'"
    accepts = {name: Image.OPEN[name][1] for name in _FORMATS}
    claimed = [name for name, accept in accepts.items() if accept and accept(blob[:16])]
    if _is_heic(blob) or claimed:
        return f"corrupt: no {'HEIC' if _is_heic(blob) else claimed[0]} image can be read from it"
    return f"not a JPEG, PNG, BMP, GIF, WebP, TIFF, AVIF, HEIC or PPM image: it begins with {blob[:12]!r}"
